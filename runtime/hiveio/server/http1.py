"""HTTP/1.1: gunicorn's protocol, with what it lacks, and with its hot path at half of the cost.

gunicorn serves any application. For each request it makes every header two times and a table of all reason phrases, and
looks up a dozen settings and hooks that are not used here.
"""

import asyncio
import re
from collections import deque
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

from gunicorn.asgi.protocol import (  # type: ignore[import-untyped]
    ASGIProtocol,
    _get_cached_date_header,
)

from hiveio.http.body import MAX_DISCARDED, MAX_PIPELINED, Chunks, NotHttp, discard
from hiveio.http.problem import CONTENT_TYPE, status_problem
from hiveio.server.address import host_and_port

MAX_PARTS = 16  # of a body, each up to 256 KiB, that wait to be taken
MAX_LINE = 8_192  # bytes of a head that are looked at for its request line, which the parser bounds at half of it

# Asked once, on the class itself: gunicorn keeps the result on the class that asks, and reads it from this one.
FAST_PARSER: bool = ASGIProtocol._check_h1c_protocol_available() and ASGIProtocol._h1c_has_limits


_ASGI = {"version": "3.0", "spec_version": "2.4"}
_STATUS = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_ABSOLUTE = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE)
_OTHER_VERSION = re.compile(rb"(?:\r\n)?[^\r\n]* HTTP/(?!1\.)\d\.\d\r\n")


class _Request:
    """What the parser found in the head of a request. Raises NotHttp for what the parser should have refused."""

    __slots__ = ("chunked", "content_length", "fields", "headers", "keep_alive", "method", "older", "path", "query")

    def __init__(self, parser: Any, head: bytes) -> None:
        """``head`` is its beginning, as it came."""
        method, target = parser.method, parser.path
        self.method: str = method.decode("ascii")
        self.older: bool = parser.http_version == (1, 0)
        self.headers: list[tuple[bytes, bytes]] = parser.asgi_headers
        self.fields = dict(self.headers)
        self.content_length: int = parser.content_length or 0
        self.chunked: bool = parser.is_chunked
        self.keep_alive: bool = parser.should_keep_alive
        if len(self.fields) < len(self.headers):  # of several Connection fields the parser takes the last
            self.keep_alive = self.keep_alive and not self._says_close()
        # Two spaces, and two recipients may disagree about the target: the parser takes any number.
        if head.find(b"  ", 0, len(method) + len(target) + 5) >= 0:
            raise NotHttp(400, "The parts of the request line must be separated by exactly one space.")
        # The parser takes gzip and identity, also without chunked: then it takes the body for the next request.
        if b"transfer-encoding" in self.fields and not self._only_chunked():
            raise NotHttp(
                501, "This Transfer-Encoding is not implemented. Send the body as chunked, or with a Content-Length."
            )
        if target[:1] != b"/":
            target = self._other_form(target)
        if 0x23 in target:  # three times as fast as with b"#"
            raise NotHttp(400, "The target of a request must not have a fragment (#).")
        self.path, _, self.query = target.partition(b"?")

    def _says_close(self) -> bool:
        said = b",".join(value for name, value in self.headers if name == b"connection")
        return b"close" in [option.strip().lower() for option in said.split(b",")]

    def _only_chunked(self) -> bool:
        return [value.lower() for name, value in self.headers if name == b"transfer-encoding"] == [b"chunked"]

    def _other_form(self, target: bytes) -> bytes:
        """The path of a target that is not a path: RFC 9112, section 3.2."""
        if self.method == "CONNECT":
            raise NotHttp(501, "CONNECT is not implemented, because this service is not a proxy.")
        if target == b"*":
            return target
        match = _ABSOLUTE.fullmatch(target)
        if not match:
            raise NotHttp(400, "The target of the request must be a path, or an http or https URL.")
        # It replaces the Host of the request, which must be present all the same.
        self.headers = [(name, match[1] if name == b"host" else value) for name, value in self.headers]
        self.fields = dict(self.headers)
        if not match[2]:
            return b"*" if self.method == "OPTIONS" else b"/"
        return match[2] if match[2][:1] == b"/" else b"/" + match[2]

    @property
    def expects(self) -> bool:
        """Whether the client waits for 100 Continue before it sends its body."""
        return b"expect" in self.fields


class Body:
    """The body of a request, in the parts in which it comes. gunicorn calls its methods by these names.

    gunicorn's own body waits with ``asyncio.wait_for``, which forgets a cancellation where a part comes at the same
    moment: a request that arrives byte by byte would then have no bound.
    """

    __slots__ = ("_complete", "_connection", "_end_delivered", "_gone", "_parts", "_waiter")

    def __init__(self, connection: "Http1Connection") -> None:
        self._connection = connection
        self._parts: deque[bytes] = deque()
        self._complete = False  # it has arrived in full
        self._end_delivered = False  # and the application has been given its end
        self._gone = False  # the client has hung up
        self._waiter: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        return len(self._parts) >= MAX_PARTS

    def feed(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            self._wake()

    def set_complete(self) -> None:
        self._complete = True
        self._wake()

    def signal_disconnect(self) -> None:
        self._gone = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> MutableMapping[str, Any]:
        while not (self._parts or self._gone or (self._complete and not self._end_delivered)):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._gone:
            return {"type": "http.disconnect"}
        part = self._parts.popleft() if self._parts else b""
        if len(self._parts) < MAX_PARTS // 2:
            self._connection.read_on()
        self._end_delivered = self._complete and not self._parts
        return {"type": "http.request", "body": part, "more_body": not self._end_delivered}


class Http1Connection(ASGIProtocol):  # type: ignore[misc]
    """A connection that its worker knows, and that answers what cannot be parsed with a problem document."""

    # Beyond 30 attributes an object's dict loses the fast way to all of them, a tenth of a request; gunicorn has 29.
    __slots__ = ("_answered", "_chunks", "_client", "_early", "_head", "_server")

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._head = b""  # the beginning of a request whose head has not arrived in full
        self._chunks: Chunks | None = None  # of the body that is read
        self._early = b""  # what the client sent before its answer: the next request, or a part of it
        self._answered = False  # the head of the answer was sent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = host_and_port(transport.get_extra_info("peername"))
        self._server = host_and_port(transport.get_extra_info("sockname"))
        super().connection_made(transport)
        if not self.worker.admit(self):
            self._send_error_response(503, "This instance has too many connections. Try again in a moment.")
            self._close_transport()

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)
        super().connection_lost(exc)

    @property
    def busy(self) -> bool:
        """Whether a request came in that is not answered yet."""
        return self._current_request is not None and not self._conn_lost_handled

    @property
    def progress(self) -> int:
        """Requests so far."""
        return int(self.req_count) - 1

    def drain(self) -> None:
        """The answers say so: Connection: close."""

    def close(self) -> None:
        self._close_transport()

    # gunicorn lets its parser drop what came early: the client gets no answer, or the rest of a request is taken for
    # the head of another. These two are called around the parser's reset; its own timer there never runs out.

    def _resume_reading(self) -> None:
        if chunks := self._chunks:
            self._early, truncated, self._chunks = chunks.rest, chunks.truncated, None
        else:
            self._early, truncated = self._callback_parser.remaining(), self._callback_parser.remaining_truncated
        if truncated:
            self._close_transport()
        self.read_on()

    def read_on(self) -> None:
        """Read what waited because a body came faster than the application took it."""
        super()._resume_reading()

    def _arm_keepalive_timer(self) -> None:
        if self._early and not self._closed:
            self._feed_callback_parser(self._early)

    def _is_websocket_upgrade(self, request: object) -> bool:
        # A request as any other, as RFC 9110 allows; gunicorn would refuse it with bytes that are not HTTP.
        return False

    # -- what comes in

    def data_received(self, data: bytes) -> None:
        if self._feed_callback_parser(data) and not self._reading_paused and self._is_buffer_full():
            self._pause_reading()

    def _feed_callback_parser(self, data: bytes) -> bool:
        try:
            if len(data) > MAX_PIPELINED:
                # In parts that the parser keeps in full, should it find that they are the beginning of chunks.
                for at in range(0, len(data), MAX_PIPELINED):
                    self._feed(data[at : at + MAX_PIPELINED])
            else:
                self._feed(data)
        except ValueError as error:  # the base of NotHttp and of all of the parser's errors, two families of them
            self._refuse(error)
            return False
        return True

    def _feed(self, data: bytes) -> None:
        if self._chunks is None:
            if self._current_request is None and len(self._head) < MAX_LINE:
                self._head += data
            self._callback_parser.feed(data)
            if self._chunks is None:
                return
            data = self._callback_parser.remaining()
        self._body_receiver.feed(self._chunks.feed(data))
        if self._chunks.complete:
            self._body_receiver.set_complete()

    def _on_headers_complete(self) -> bool:
        self._current_request = request = _Request(self._callback_parser, self._head)  # type: ignore[misc]
        self._head = b""
        self._answered = False
        self._body_receiver = Body(self)  # type: ignore[misc]
        self._request_ready.set()
        if request.chunked:
            self._chunks = Chunks()
        return request.chunked  # then the parser takes what follows for no body

    def _on_message_complete(self) -> None:
        if self._chunks is None:
            self._body_receiver.set_complete()

    def _refuse(self, error: ValueError) -> None:
        """Answer what is wrong, unless an answer was sent already, and hang up."""
        status = 400
        if isinstance(error, NotHttp):
            status = error.status
        elif isinstance(error, ASGIProtocol._h1c_limit_request_line):
            status = 414
        elif isinstance(error, ASGIProtocol._h1c_limit_request_headers):
            status = 431
        elif str(error) == "Unsupported Transfer-Encoding":
            status = 501
        elif _OTHER_VERSION.match(self._head):
            status, error = 505, ValueError("This service speaks HTTP/1.0 and HTTP/1.1.")
        if not self._answered:
            self._send_error_response(status, str(error))
        self._close_transport()

    # -- what goes out

    async def _handle_http_request(self, request: _Request, sockname: Any, peername: Any) -> bool:
        """Serve one request; whether the connection is kept."""
        path = unquote_to_bytes(request.path) if b"%" in request.path else request.path
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.0" if request.older else "1.1",
            "method": request.method,
            "scheme": "https" if self._is_ssl else "http",
            "path": path.decode("utf-8", "replace"),
            "raw_path": request.path,
            "query_string": request.query,
            "root_path": "",
            "headers": request.headers,
            "fields": request.fields,
            "server": self._server,
            "client": self._client,
        }
        head, started, complete, silent, chunked, keep = b"", False, False, False, False, request.keep_alive
        receiver, informed = self._body_receiver, False

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal head, started, complete, silent, chunked, keep, informed
            if self._closed:
                return  # the client is gone
            kind = message["type"]
            if kind == "http.response.start":
                status, headers, started = message["status"], message["headers"], True
                silent = request.method == "HEAD" or status in (204, 304)
                keep = keep and (b"connection", b"close") not in headers  # closed exactly when the answer says so
                if not silent and not any(name == b"content-length" for name, _ in headers):
                    chunked = not request.older
                    keep = keep and chunked  # to an older client the end of the connection says the end of the body
                if keep and not receiver._complete:  # the rest is read and dropped, if it is expected to come
                    keep = request.content_length <= MAX_DISCARDED and (informed or not request.expects)
                parts = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status]
                for name, value in headers:
                    parts += (name, b": ", value, b"\r\n")
                if chunked:
                    parts.append(b"transfer-encoding: chunked\r\n")
                if not keep and (b"connection", b"close") not in headers:
                    parts.append(b"connection: close\r\n")
                elif keep and request.older:
                    parts.append(b"connection: keep-alive\r\n")
                parts += (_get_cached_date_header(), b"\r\n")
                head = b"".join(parts)
            elif kind == "http.response.body":
                body = b"" if silent else message.get("body", b"")
                complete = not message.get("more_body", False)
                if chunked:
                    body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"0\r\n\r\n" if complete else b"")
                self._safe_write(head + body)  # in one write: they go out as one packet
                head, self._answered = b"", True
                if self._flow_control.write_paused:
                    await self._flow_control.drain()
            else:
                informed = True  # that the client may go on: 100 Continue
                if not request.older:
                    self._safe_write(_STATUS[message["status"]] + b"\r\n")

        try:
            await self.app(scope, receiver.receive, send)
        except asyncio.CancelledError:
            return False  # the client has been gone for longer than a request may take
        except Exception:
            self.log.exception("%s %s failed", request.method, scope["path"])
        if not started:
            self._send_error_response(500, HTTPStatus(500).phrase)
        elif complete and not receiver._complete:
            await discard(receiver.receive)
        return complete and keep

    def _is_buffer_full(self) -> bool:
        return self._body_receiver is not None and self._body_receiver.full

    def _send_error_response(self, status: int, message: str) -> None:
        body = status_problem(status, message)
        again = "Retry-After: 1\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n{again}\r\n"
        )
        self._safe_write(head.encode("latin-1") + body)
