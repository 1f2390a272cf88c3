"""HTTP/1.1: gunicorn's protocol, with what it leaves undone."""

import asyncio
from typing import SupportsIndex

from gunicorn.asgi.protocol import ASGIProtocol  # type: ignore[import-untyped]

from hiveio.problem import CONTENT_TYPE, status_problem

MOST_PARTS = 16  # of a body, each up to 256 KiB, that wait to be taken

# Once for all, on the class itself: gunicorn keeps the result on whichever class asks and reads it from this one.
FAST_PARSER: bool = ASGIProtocol._check_h1c_protocol_available() and ASGIProtocol._h1c_has_limits


class _Parts(list[bytes]):
    """The parts of a body that wait to be taken; when few are left, more is read."""

    connection: "Connection"

    def pop(self, index: SupportsIndex = -1) -> bytes:
        part = super().pop(index)
        if len(self) < MOST_PARTS // 2:
            self.connection._resume_reading()
        return part


class Connection(ASGIProtocol):  # type: ignore[misc]
    """A connection that its worker knows, and that answers what cannot be parsed with a problem document."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.worker.connections.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)
        super().connection_lost(exc)

    @property
    def busy(self) -> bool:
        """Whether a request came in whose answer is not out."""
        return self._current_request is not None and not self._conn_lost_handled

    def _is_buffer_full(self) -> bool:
        # gunicorn asks for HTTP/2 only: a body that comes faster than it is taken would grow without a bound.
        receiver = self._body_receiver
        if receiver is None or len(receiver._chunks) < MOST_PARTS:
            return False
        if not isinstance(receiver._chunks, _Parts):
            receiver._chunks = _Parts(receiver._chunks)
            receiver._chunks.connection = self
        return True

    def _handle_h1c_exception(self, exc: Exception) -> bool:
        # gunicorn answers the errors of limits only; the others would drop the connection without a word.
        if super()._handle_h1c_exception(exc):
            return True
        if isinstance(exc, ValueError):  # the base of all of the parser's errors; it has two families of them
            self._send_error_response(400, str(exc))
            self._close_transport()
            return True
        return False

    def _send_error_response(self, status: int, message: str) -> None:
        body = status_problem(status, message)
        head = (
            f"HTTP/1.1 {status} {self._get_reason_phrase(status)}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._safe_write(head.encode("latin-1") + body)
