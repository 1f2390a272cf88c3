"""HTTP/1.1: the connection of a client, around gunicorn's parser in C.

gunicorn's own protocol serves any application: for each request it makes every header two times and a table of all
reason phrases, looks up a dozen settings and hooks that are not used here, and lets its parser drop what came early.
"""

import asyncio
import re
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

from hiveio.http.body import MAX_PIPELINED, Chunks, NotHttp, discard
from hiveio.http.problem import CONTENT_TYPE, status_problem
from hiveio.server.address import host_and_port
from hiveio.server.http1_exchange import Exchange

try:
    from gunicorn_h1c import H1CProtocol, LimitRequestHeaders, LimitRequestLine  # type: ignore[import-untyped]
except ImportError:
    FAST_PARSER = False
else:
    FAST_PARSER = True

MAX_LINE = 8_192  # bytes of a head that are looked at for its request line, which the parser bounds at half of it
MAX_UNSENT = 65_536  # bytes of answers that wait for the client to fetch them, before more are made
LIMITS = {"limit_request_line": 4_094, "limit_request_fields": 100, "limit_request_field_size": 8_190}  # of a head

_OTHER_VERSION = re.compile(rb"(?:\r\n)?[^\r\n]* HTTP/(?!1\.)\d\.\d\r\n")


class Http1Connection(asyncio.Protocol):
    """A connection that its worker knows, and that answers what cannot be parsed with a problem document."""

    # Plain attributes are a tenth of a request slower: an object's dict loses the fast way to them beyond 30.
    __slots__ = (
        "_chunks",
        "_exchange",
        "_giving_up",
        "_head",
        "_lost",
        "_parser",
        "_serving",
        "_waiter",
        "client",
        "closed",
        "paused",
        "progress",
        "scheme",
        "server",
        "transport",
        "unsent",
        "worker",
    )

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.closed = False  # by the client, or by us
        self.paused = False  # nothing is read, because nobody takes it
        self.progress = 0  # requests that were answered
        self.unsent: asyncio.Future[None] | None = None  # done when the client has fetched enough of what was written
        self._lost = False
        self._head = b""  # the beginning of a request whose head has not arrived in full
        self._exchange: Exchange | None = None  # the request that is served, and its answer
        self._chunks: Chunks | None = None  # of the body that is read
        self._waiter: asyncio.Future[None] | None = None  # for a request
        self._giving_up: asyncio.TimerHandle | None = None  # a request whose client is gone
        self._parser: Any = H1CProtocol(
            on_headers_complete=self._on_headers_complete,
            on_body=self._on_body,
            on_message_complete=self._on_message_complete,
            permit_unconventional_http_version=True,  # HTTP/1.2 is answered as HTTP/1.1 (RFC 9110, section 2.5)
            **LIMITS,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self.transport.set_write_buffer_limits(high=MAX_UNSENT)
        self.client = host_and_port(transport.get_extra_info("peername"))
        self.server = host_and_port(transport.get_extra_info("sockname"))
        self.scheme = "https" if transport.get_extra_info("ssl_object") else "http"
        self._serving = self.worker.loop.create_task(self._serve())
        if not self.worker.admit(self):
            self._send_problem(503, "This instance has too many connections. Try again in a moment.")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)
        self.closed = self._lost = True
        if self._serving.done():
            self._let_go()
        elif self._exchange is not None:
            self._exchange.leave()
            # What the client sent is carried out, for as long as a request may take.
            within_s = self.worker.cfg.asgi_disconnect_grace_period
            self._giving_up = self.worker.loop.call_later(within_s, self._serving.cancel)
        self.resume_writing()
        self._wake()

    def _let_go(self) -> None:
        """Refer to nothing that refers back here, once all is over: then no collector is needed to free this."""
        self._exchange = self._parser = None
        if self._giving_up is not None:
            self._giving_up.cancel()  # it would keep all of this for as long as a request may take

    @property
    def busy(self) -> bool:
        """Whether a request came in that is not answered yet."""
        return self._exchange is not None and not self._lost

    def drain(self) -> None:
        """The answers say so: Connection: close."""

    def close(self) -> None:
        """Hang up, after what was written has gone out."""
        if not self.closed:
            self.closed = True
            with suppress(OSError, RuntimeError):  # it has been lost, and we have not heard of it yet
                if self.transport.can_write_eof():
                    self.transport.write_eof()
                self.transport.close()

    # -- what comes in

    def data_received(self, data: bytes) -> None:
        try:
            if len(data) > MAX_PIPELINED:
                # In parts that the parser keeps in full, should it find that they are the beginning of chunks.
                for at in range(0, len(data), MAX_PIPELINED):
                    self._feed(data[at : at + MAX_PIPELINED])
            else:
                self._feed(data)
        except ValueError as error:  # the base of NotHttp and of all of the parser's errors
            self._refuse(error)

    def hold(self) -> None:
        """Read no more: a body comes faster than the application takes it."""
        if not self.paused:
            self.paused = True
            with suppress(RuntimeError):  # it ends
                self.transport.pause_reading()

    def read_on(self) -> None:
        """Read what waited for that."""
        if self.paused:
            self.paused = False
            with suppress(RuntimeError):
                self.transport.resume_reading()

    def _feed(self, data: bytes) -> None:
        if self._chunks is None:
            if self._exchange is None and len(self._head) < MAX_LINE:
                self._head += data
            self._parser.feed(data)
            if self._chunks is None:
                return
            data = self._parser.remaining()
        assert self._exchange is not None
        self._exchange.feed(self._chunks.feed(data))
        if self._chunks.complete:
            self._exchange.end()

    def _on_headers_complete(self) -> bool:
        self._exchange = Exchange(self, self._parser, self._head)
        self._head = b""
        if self._waiter is not None:
            self._wake()
        if not self._parser.is_chunked:
            return False
        self._chunks = Chunks()
        return True  # the parser takes what follows for no body

    def _on_body(self, part: bytes) -> None:
        assert self._exchange is not None
        self._exchange.feed(part)

    def _on_message_complete(self) -> None:
        if self._chunks is None:
            assert self._exchange is not None
            self._exchange.end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _refuse(self, error: ValueError) -> None:
        """Answer what is wrong, unless an answer was sent already, and hang up."""
        status = 400
        if isinstance(error, NotHttp):
            status = error.status
        elif isinstance(error, LimitRequestLine):
            status = 414
        elif isinstance(error, LimitRequestHeaders):
            status = 431
        elif str(error) == "Unsupported Transfer-Encoding":
            status = 501
        elif _OTHER_VERSION.match(self._head):
            status, error = 505, ValueError("This service speaks HTTP/1.0 and HTTP/1.1.")
        if self._exchange is None or not self._exchange.answered:
            self._send_problem(status, str(error))
        self.close()

    # -- what goes out

    async def _serve(self) -> None:
        """Serve the requests of this connection, one after the other."""
        application, log, loop = self.worker.asgi, self.worker.log, self.worker.loop
        try:
            while not self.closed:
                if (exchange := self._exchange) is None:
                    self._waiter = loop.create_future()
                    await self._waiter
                    continue
                try:
                    await application(exchange.scope, exchange.receive, exchange.send)
                except Exception:
                    log.exception("%s %s failed", exchange.scope["method"], exchange.scope["path"])
                if not exchange.started:
                    self._send_problem(500, HTTPStatus(500).phrase)
                elif exchange.complete and not exchange.arrived:
                    await discard(exchange.receive)
                if not (exchange.complete and exchange.keep and exchange.arrived and self.worker.alive):
                    break
                self._next()
        except asyncio.CancelledError:
            pass  # the client has been gone for longer than a request may take
        except Exception:
            log.exception("a connection failed")
        finally:
            self.close()
            if self._lost:
                self._let_go()

    def _next(self) -> None:
        """Begin with the next request, which may have come early."""
        if self._chunks is not None:
            early, truncated = self._chunks.rest, self._chunks.truncated
        else:
            early, truncated = self._parser.remaining(), self._parser.remaining_truncated
        self._parser.reset()
        self._exchange = self._chunks = None
        self.progress += 1
        if truncated:
            self.close()
        else:
            self.read_on()
            if early:
                self.data_received(early)

    def write(self, data: bytes) -> None:
        """Send these bytes, unless the client is gone."""
        try:  # which costs nothing, as suppress() does
            self.transport.write(data)
        except (OSError, RuntimeError):
            pass

    def pause_writing(self) -> None:
        self.unsent = self.worker.loop.create_future()

    def resume_writing(self) -> None:
        if self.unsent is not None and not self.unsent.done():
            self.unsent.set_result(None)
        self.unsent = None

    def _send_problem(self, status: int, detail: str) -> None:
        body = status_problem(status, detail)
        again = "Retry-After: 1\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n{again}\r\n"
        )
        self.write(head.encode("latin-1") + body)
