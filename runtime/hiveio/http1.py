"""HTTP/1.1: gunicorn's protocol, with what it leaves undone."""

import asyncio
from http import HTTPStatus
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
            self.connection.read_on()
        return part


class Connection(ASGIProtocol):  # type: ignore[misc]
    """A connection that its worker knows, and that answers what cannot be parsed with a problem document."""

    _early = b""  # what the client sent before it had its answer: the next request, or a part of it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.worker.connections.add(self)
        super().connection_made(transport)
        if self.worker.crowded:
            self._send_error_response(503, "too many connections at once")
            self._close_transport()

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)
        super().connection_lost(exc)

    @property
    def busy(self) -> bool:
        """Whether a request came in whose answer is not out."""
        return self._current_request is not None and not self._conn_lost_handled

    @property
    def progress(self) -> int:
        """Requests so far."""
        return int(self.req_count) - 1

    def drain(self) -> None:
        """The answers say so: Connection: close."""

    def close(self) -> None:
        self._close_transport()

    # gunicorn lets its parser drop what came early: the client waits for ever, or the rest of a request is taken for
    # the head of another. These two are called around the parser's reset; its own timer there never runs out.

    def _resume_reading(self) -> None:
        self._early = self._callback_parser.remaining()
        if self._callback_parser.remaining_truncated:
            self._close_transport()
        self.read_on()

    def read_on(self) -> None:
        """What had to wait, because a body came faster than it was taken, is read."""
        super()._resume_reading()

    def _arm_keepalive_timer(self) -> None:
        if self._early and not self._closed:
            self._feed_callback_parser(self._early)

    def _is_websocket_upgrade(self, request: object) -> bool:
        # A request as any other, as RFC 9110 allows; gunicorn would refuse it with bytes that are not HTTP.
        return False

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
        again = "Retry-After: 1\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n{again}\r\n"
        )
        self._safe_write(head.encode("latin-1") + body)
