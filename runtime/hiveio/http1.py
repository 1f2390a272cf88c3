"""HTTP/1.1: gunicorn's protocol, with what it leaves undone, and its hot path at half of its cost.

gunicorn serves any application, and for each request it makes every header twice, a table of all reason phrases, and a
dozen look-ups of settings and hooks that are not used here.
"""

import asyncio
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any, SupportsIndex
from urllib.parse import unquote_to_bytes

from gunicorn.asgi.protocol import (  # type: ignore[import-untyped]
    ASGIProtocol,
    BodyReceiver,
    _get_cached_date_header,
)

from hiveio.problem import CONTENT_TYPE, status_problem

MOST_PARTS = 16  # of a body, each up to 256 KiB, that wait to be taken

# Once for all, on the class itself: gunicorn keeps the result on whichever class asks and reads it from this one.
FAST_PARSER: bool = ASGIProtocol._check_h1c_protocol_available() and ASGIProtocol._h1c_has_limits


_ASGI = {"version": "3.0", "spec_version": "2.4"}
_STATUS = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class _Request:
    """What the parser has found in the head of a request."""

    __slots__ = ("chunked", "content_length", "headers", "keep_alive", "method", "path", "query", "version")

    def __init__(self, parser: Any) -> None:
        self.method: str = parser.method.decode("ascii")
        self.path, _, self.query = parser.path.partition(b"?")
        self.version: tuple[int, int] = parser.http_version
        self.headers: list[tuple[bytes, bytes]] = list(parser.asgi_headers)
        self.content_length: int = parser.content_length or 0
        self.chunked: bool = parser.is_chunked
        self.keep_alive: bool = parser.should_keep_alive


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

    def _on_headers_complete(self) -> bool:
        parser = self._callback_parser
        self._current_request = request = _Request(parser)
        self._body_receiver = BodyReceiver(request, self)
        self._request_ready.set()
        return request.method == "HEAD"

    async def _handle_http_request(self, request: _Request, sockname: Any, peername: Any) -> bool:
        """Serve one request; whether the connection is kept."""
        path = unquote_to_bytes(request.path) if b"%" in request.path else request.path
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1" if request.version >= (1, 1) else "1.0",
            "method": request.method,
            "scheme": "https" if self._is_ssl else "http",
            "path": path.decode("utf-8", "replace"),
            "raw_path": request.path,
            "query_string": request.query,
            "root_path": "",
            "headers": request.headers,
            "server": sockname,
            "client": peername,
        }
        head, started, complete, silent, chunked, keep = b"", False, False, False, False, request.keep_alive

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal head, started, complete, silent, chunked, keep
            if self._closed:
                return  # the client is gone
            kind = message["type"]
            if kind == "http.response.start":
                status, headers, started = message["status"], message["headers"], True
                silent = request.method == "HEAD" or status in (204, 304)
                keep = keep and (b"connection", b"close") not in headers  # closed exactly when the answer says so
                if not silent and not any(name == b"content-length" for name, _ in headers):
                    chunked = request.version >= (1, 1)
                    keep = keep and chunked  # to an older client the end of the connection says the end of the body
                parts = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status]
                for name, value in headers:
                    parts += (name, b": ", value, b"\r\n")
                if chunked:
                    parts.append(b"transfer-encoding: chunked\r\n")
                parts += (_get_cached_date_header(), b"\r\n")
                head = b"".join(parts)
            elif kind == "http.response.body":
                body = b"" if silent else message.get("body", b"")
                complete = not message.get("more_body", False)
                if chunked:
                    body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"0\r\n\r\n" if complete else b"")
                self._safe_write(head + body)  # in one write: they go out as one packet
                head = b""
                if self._flow_control.write_paused:
                    await self._flow_control.drain()
            else:
                self._send_informational(message["status"], message["headers"], request)

        try:
            await self.app(scope, self._body_receiver.receive, send)
        except asyncio.CancelledError:
            return False  # the client has been gone for longer than a request may take
        except Exception:
            self.log.exception("%s %s failed", request.method, scope["path"])
        if not started:
            self._send_error_response(500, HTTPStatus(500).phrase)
        return complete and keep

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
