"""One request over HTTP/1.1 and its answer, as ASGI has them."""

import asyncio
import re
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from hiveio.http.body import MAX_DISCARDED, NotHttp
from hiveio.server.date import http_date
from hiveio.types import Fields

MAX_PARTS = 16  # of a body, each up to 64 KiB, that wait to be taken

_ASGI = {"version": "3.0", "spec_version": "2.4"}
_STATUS = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_ABSOLUTE = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE)


class Connection(Protocol):
    """The connection, as one of its requests sees it."""

    scheme: str
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    closed: bool  # by the client, or by us
    paused: bool  # nothing is read
    unsent: asyncio.Future[None] | None  # done when the client has fetched enough of what was written

    def hold(self) -> None:
        """Read no more: a body comes faster than the application takes it."""

    def read_on(self) -> None:
        """Read what waited for that."""

    def write(self, data: bytes) -> None:
        """Send these bytes, unless the client is gone."""


class Exchange:
    """``scope``, ``receive`` and ``send`` are what ASGI calls an application with."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_content_length",
        "_end_delivered",
        "_head",
        "_informed",
        "_older",
        "_parts",
        "_silent",
        "_waiter",
        "answered",
        "arrived",
        "complete",
        "gone",
        "keep",
        "scope",
        "started",
    )

    def __init__(self, connection: Connection, parser: Any, start: bytes) -> None:
        """Of the head that the parser found, which began with the bytes ``start``. Raises NotHttp for what it should
        have refused."""
        method, target = parser.method, parser.path
        older = parser.http_version == (1, 0)
        headers: Fields = parser.asgi_headers
        fields = dict(headers)
        keep: bool = parser.should_keep_alive
        if len(fields) < len(headers):  # of several Connection fields the parser takes the last
            keep = keep and not _says_close(headers)
        # Two spaces, and two recipients may disagree about the target: the parser takes any number.
        if start.find(b"  ", 0, len(method) + len(target) + 5) >= 0:
            raise NotHttp(400, "The parts of the request line must be separated by exactly one space.")
        # The parser takes gzip and identity, also without chunked: then it takes the body for the next request.
        if b"transfer-encoding" in fields and not _only_chunked(headers):
            raise NotHttp(
                501, "This Transfer-Encoding is not implemented. Send the body as chunked, or with a Content-Length."
            )
        if target[:1] != b"/":
            target, host = _other_form(method, target)
            if host is not None:
                # It replaces the Host of the request, which must be present all the same.
                headers = [(name, host if name == b"host" else value) for name, value in headers]
                fields = dict(headers)
        if 0x23 in target:  # three times as fast as with b"#"
            raise NotHttp(400, "The target of a request must not have a fragment (#).")
        path, _, query = target.partition(b"?")
        self.scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.0" if older else "1.1",
            "method": method.decode("ascii"),
            "scheme": connection.scheme,
            "path": (unquote_to_bytes(path) if b"%" in path else path).decode("utf-8", "replace"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "fields": fields,
            "server": connection.server,
            "client": connection.client,
        }
        self._connection = connection
        # The body of the request.
        self._content_length: int = parser.content_length or 0
        self._parts: list[bytes] = []
        self.arrived = False  # in full
        self._end_delivered = False  # to the application
        self.gone = False  # the client has hung up
        self._waiter: asyncio.Future[None] | None = None
        # The answer.
        self._older = older
        self.keep = keep  # the connection, for another request
        self._silent = method == b"HEAD"  # it has no body
        self._chunked = False
        self._informed = False  # the client knows that it may go on: 100 Continue
        self._head = b""  # of the answer, which goes out together with the first part of its body
        self.started = False
        self.answered = False  # a part of it was sent
        self.complete = False

    # -- the request. gunicorn's own body waits with ``asyncio.wait_for``, which forgets a cancellation where a part
    # comes at the same moment: a request that arrives byte by byte would then have no bound.

    def feed(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            if len(self._parts) >= MAX_PARTS:
                self._connection.hold()
            if self._waiter is not None:
                self._wake()

    def end(self) -> None:
        self.arrived = True
        if self._waiter is not None:
            self._wake()

    def leave(self) -> None:
        self.gone = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> MutableMapping[str, Any]:
        while not (self._parts or self.gone or (self.arrived and not self._end_delivered)):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.gone and (self._end_delivered or not self.arrived):  # what has arrived in full is carried out
            return {"type": "http.disconnect"}
        part = self._parts.pop(0) if self._parts else b""
        if self._connection.paused and len(self._parts) < MAX_PARTS // 2:
            self._connection.read_on()
        self._end_delivered = self.arrived and not self._parts
        return {"type": "http.request", "body": part, "more_body": not self._end_delivered}

    # -- the answer

    async def send(self, message: MutableMapping[str, Any]) -> None:
        connection = self._connection
        if connection.closed:
            return  # the client is gone
        kind = message["type"]
        if kind == "http.response.start":
            self._start(message["status"], message["headers"])
        elif kind == "http.response.body":
            body = b"" if self._silent else message.get("body", b"")
            self.complete = not message.get("more_body", False)
            if self._chunked:
                body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"0\r\n\r\n" if self.complete else b"")
            connection.write(self._head + body)  # in one write: they go out as one packet
            self._head, self.answered = b"", True
            if connection.unsent is not None:
                await connection.unsent
        else:
            self._informed = True
            if not self._older:
                connection.write(_STATUS[message["status"]] + b"\r\n")

    def _start(self, status: int, headers: Fields) -> None:
        self.started = True
        parts = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status]
        sized = closing = False
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                sized = True
            elif name == b"connection" and value == b"close":
                closing = True
        self._silent = self._silent or status in (204, 304)
        keep = self.keep and not closing  # closed exactly when the answer says so
        if not self._silent and not sized:
            self._chunked = not self._older
            keep = keep and self._chunked  # to an older client the end of the connection says the end of the body
            if self._chunked:
                parts.append(b"transfer-encoding: chunked\r\n")
        if keep and not self.arrived:  # the rest is read and dropped, if it is expected to come
            keep = self._content_length <= MAX_DISCARDED and (self._informed or b"expect" not in self.scope["fields"])
        if not keep and not closing:
            parts.append(b"connection: close\r\n")
        elif keep and self._older:
            parts.append(b"connection: keep-alive\r\n")
        parts += (b"Date: ", http_date(), b"\r\n\r\n")
        self.keep, self._head = keep, b"".join(parts)


def _says_close(headers: Fields) -> bool:
    said = b",".join(value for name, value in headers if name == b"connection")
    return b"close" in [option.strip().lower() for option in said.split(b",")]


def _only_chunked(headers: Fields) -> bool:
    return [value.lower() for name, value in headers if name == b"transfer-encoding"] == [b"chunked"]


def _other_form(method: bytes, target: bytes) -> tuple[bytes, bytes | None]:
    """The path of a target that is not a path, and the host in it: RFC 9112, section 3.2. Raises NotHttp."""
    if method == b"CONNECT":
        raise NotHttp(501, "CONNECT is not implemented, because this service is not a proxy.")
    if target == b"*":
        return target, None
    match = _ABSOLUTE.fullmatch(target)
    if not match:
        raise NotHttp(400, "The target of the request must be a path, or an http or https URL.")
    host, path = match[1], match[2]
    if not path:
        return b"*" if method == b"OPTIONS" else b"/", host
    return path if path[:1] == b"/" else b"/" + path, host
