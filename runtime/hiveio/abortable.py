"""Requests over HTTP on a thread: a server may send a byte now and then, for ever, so another thread can abort them."""

import socket


class Abortable:
    """One request. ``opened`` is called with its connection, and ``abort`` from any thread, also before that."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._aborted = False

    def opened(self, connection: socket.socket) -> None:
        self._socket = connection
        if self._aborted:
            self.abort()

    def abort(self) -> None:
        """What reads from the connection, or writes to it, ends at once. Nothing happens to a request that has
        ended."""
        self._aborted = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended already
