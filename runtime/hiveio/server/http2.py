"""HTTP/2: streams of one connection, each a request of its own, on the state machine of h2.

gunicorn brings an HTTP/2 that serves the streams of a connection one after the other, keeps bodies without a limit and
drops what waits when it drains. This one runs them side by side, within the bounds below.
"""

import asyncio
import contextlib
import logging
from collections.abc import MutableMapping
from typing import Any, Protocol, cast
from urllib.parse import unquote

from h2 import events
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from hiveio.http.body import NotHttp, discard
from hiveio.http.problem import CONTENT_TYPE, status_problem
from hiveio.server.address import host_and_port
from hiveio.server.date import http_date
from hiveio.server.http2_state import State, is_trailer, length, split
from hiveio.types import Fields

MAX_STREAMS = 100  # requests of one connection at once, with those that the client gave up and that still run
MAX_ABUSE = 1_000  # useless frames a second; beyond it the connection ends with ENHANCE_YOUR_CALM
WINDOW = 1 << 20  # bytes of bodies on their way to us in one connection; each stream has 64 KiB
SLICE = 16_384  # bytes that are parsed before a flood can be noticed
SEND_S = 30  # for a client that opens no window for its answer

_ABUSIVE = (
    events.PingReceived,
    events.PriorityUpdated,
    events.RemoteSettingsChanged,
    events.StreamReset,
    events.UnknownFrameReceived,
)
_LAST = 2**31 - 1

logger = logging.getLogger("hiveio.http")


class Host(Protocol):
    """What a connection needs of its worker."""

    asgi: Any
    loop: asyncio.AbstractEventLoop
    connections: set[Any]

    def admit(self, connection: Any) -> bool:
        """Note it in ``connections``, and say whether there is room for it."""


class Http2Connection(asyncio.Protocol):
    """One client, or a proxy with the requests of many."""

    transport: asyncio.Transport

    def __init__(self, worker: Host) -> None:
        self.worker = worker
        self.progress = 0  # requests so far
        self.streams: dict[int, Stream] = {}
        self.state = State(H2Configuration(client_side=False, header_encoding=None, normalize_outbound_headers=False))
        self.state.config.validate_outbound_headers = False  # they are ours
        self._abuse = 0
        self._second = 0

    @property
    def busy(self) -> bool:
        """Whether a request came in that is not answered yet."""
        return bool(self.streams)

    # -- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self.scheme = "https" if transport.get_extra_info("ssl_object") else "http"
        self.client = host_and_port(transport.get_extra_info("peername"))
        self.server = host_and_port(transport.get_extra_info("sockname"))
        self.state.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS})
        self.state.initiate_connection()
        self.state.increment_flow_control_window(WINDOW)
        self.flush()
        if not self.worker.admit(self):
            self.close()

    def data_received(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), SLICE):
                for event in self.state.receive_data(data[start : start + SLICE]):
                    self._take(event)
                if self._abuse > MAX_ABUSE:
                    return self.close(ErrorCodes.ENHANCE_YOUR_CALM)
        except ProtocolError:
            # h2 has put the reason in a GOAWAY.
            self.flush()
            self.transport.close()
            return None
        return self.flush()

    def pause_writing(self) -> None:
        # A client that does not read answers may send no more, so that what waits for it is bounded.
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)
        for stream in self.streams.values():
            stream.leave()

    # -- what the worker calls

    def drain(self) -> None:
        """Ask the client for no more requests here. Those on their way are still answered."""
        # h2 can only end a connection, and sends no answers after that.
        self._write(GoAwayFrame(0, last_stream_id=_LAST, error_code=ErrorCodes.NO_ERROR).serialize())

    def close(self, reason: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Say which request was the last one that was accepted, and hang up."""
        if not self.transport.is_closing():
            self.state.close_connection(reason)
            self.flush()
            self.transport.close()

    # -- streams

    def flush(self) -> None:
        self._write(self.state.data_to_send())

    def _write(self, data: bytes) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def _take(self, event: events.Event) -> None:
        if isinstance(event, events.RequestReceived):
            self._begin(event)
        elif isinstance(event, events.DataReceived):
            if stream := self.streams.get(event.stream_id):
                stream.feed(event.data, event.flow_controlled_length)
            else:
                self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if not event.data:
                self._count_abuse(1)
        elif isinstance(event, events.StreamEnded):
            if (stream := self.streams.get(event.stream_id)) and not stream.end():
                self._break_off(event.stream_id)
        elif isinstance(event, events.TrailersReceived):
            if not is_trailer(event.headers):
                self._break_off(event.stream_id)
        elif isinstance(event, events.WindowUpdated | events.RemoteSettingsChanged):
            for stream in self.streams.values():
                stream.wake()
        elif isinstance(event, events.StreamReset) and (stream := self.streams.get(event.stream_id)):
            stream.leave()
        if isinstance(event, _ABUSIVE):
            self._count_abuse(2 if isinstance(event, events.StreamReset) else 1)

    def _begin(self, event: events.RequestReceived) -> None:
        self.progress += 1
        self._count_abuse(-1)  # for the priority that it may bring
        declared = length(event.headers)
        if len(self.streams) >= MAX_STREAMS:
            self._reset(event.stream_id, ErrorCodes.REFUSED_STREAM)
        elif declared and event.stream_ended:
            self._break_off(event.stream_id)
        else:
            stream = self.streams[event.stream_id] = Stream(self, event.stream_id, declared)
            stream.task = self.worker.loop.create_task(stream.run(event.headers))

    def _break_off(self, number: int) -> None:
        """Reset the stream of a malformed message, which nobody may act on."""
        self._reset(number, ErrorCodes.PROTOCOL_ERROR)
        self._count_abuse(2)
        if stream := self.streams.get(number):
            stream.leave()

    def _reset(self, number: int, reason: ErrorCodes) -> None:
        with contextlib.suppress(ProtocolError):  # the client has done so already
            self.state.reset_stream(number, reason)

    def scope(self, headers: Fields) -> MutableMapping[str, Any]:
        """The request for the application. Raises NotHttp."""
        method, target, fields = split(headers)
        path, _, query = target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "2",
            "method": method.decode("latin-1"),
            "scheme": self.scheme,
            "path": unquote(path.decode("latin-1"), errors="replace"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": fields,
            "fields": dict(fields),
            "client": self.client,
            "server": self.server,
        }

    def _count_abuse(self, weight: int) -> None:
        second = int(self.worker.loop.time())
        if second != self._second:
            self._second, self._abuse = second, 0
        self._abuse += weight


class Stream:
    """One request and its answer."""

    def __init__(self, connection: Http2Connection, number: int, declared: int | None) -> None:
        self.connection = connection
        self.number = number
        self._to_come = declared  # bytes of the body, where its length was declared
        self.task: asyncio.Task[None] | None = None
        self._state = connection.state
        self._body: list[bytes] = []
        self._unread = 0  # bytes of the window that the client does not have back
        self._ended = False  # the request has arrived in full
        self._end_delivered = False  # and the application has been given its end
        self._answered = False
        self._gone = False  # the client has given up
        self._head: list[tuple[bytes, bytes]] | None = None
        self._changed: asyncio.Future[None] | None = None  # somebody waits

    # -- what the connection calls

    def feed(self, data: bytes, length: int) -> None:
        self._body.append(data)
        self._unread += length
        if self._to_come is not None:
            self._to_come -= len(data)
        self.wake()

    def end(self) -> bool:
        """Whether the body is as long as was declared: h2 checks this only where it ends with data."""
        if self._to_come:
            return False
        self._ended = not self._gone  # what was broken off does not end
        self.wake()
        return True

    def leave(self) -> None:
        """The client does not want the answer. What it sent is carried out, as over HTTP/1.1."""
        self._gone = True
        self.wake()

    def wake(self) -> None:
        if self._changed and not self._changed.done():
            self._changed.set_result(None)

    # -- the application

    async def run(self, headers: Fields) -> None:
        connection, state = self.connection, self._state
        try:
            try:
                await connection.worker.asgi(connection.scope(headers), self._receive, self._send)
            except NotHttp as error:
                await self._refuse(error, (b":method", b"HEAD") not in headers)
            if self._answered and not self._ended:
                await discard(self._receive)
        except Exception:
            logger.exception("a stream failed")
        finally:
            del connection.streams[self.number]
            if not connection.transport.is_closing():
                self._give_back()
                if not self._gone and not (self._ended and self._answered):
                    # The client need not send the rest; or it waits for an answer that does not come.
                    code = ErrorCodes.NO_ERROR if self._answered else ErrorCodes.INTERNAL_ERROR
                    self._quietly(state.reset_stream, self.number, code)
                connection.flush()

    async def _refuse(self, error: NotHttp, shown: bool) -> None:
        body = status_problem(error.status, str(error))
        head = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": error.status, "headers": head})
        await self._send({"type": "http.response.body", "body": body if shown else b""})

    async def _receive(self) -> MutableMapping[str, Any]:
        while not (self._body or self._gone or (self._ended and not self._end_delivered)):
            await self._change()
        if self._gone and (self._end_delivered or not self._ended):  # what has arrived in full is carried out
            return {"type": "http.disconnect"}
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._end_delivered = self._ended
        if self._unread and not self._ended:
            self._give_back()
            self.connection.flush()
        return {"type": "http.request", "body": data, "more_body": not self._ended}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        kind = message["type"]
        if self._gone:
            return
        if kind == "http.response.start":
            self._head = [(b":status", b"%d" % message["status"]), *message["headers"], (b"date", http_date())]
        elif kind == "http.response.informational":
            self._quietly(self._state.send_headers, self.number, [(b":status", b"%d" % message["status"])])
            self.connection.flush()
        elif kind == "http.response.body":
            body, last = message.get("body", b""), not message.get("more_body")
            if self._head is not None:
                head = [field for field in self._head if field[0] != b"connection"]  # HTTP/2 has none
                self._quietly(self._state.send_headers, self.number, head, end_stream=last and not body)
                self._head = None
            elif last and not body:
                self._quietly(self._state.end_stream, self.number)
            await self._send_body(body, last)
            self._answered = last
            self.connection.flush()

    async def _send_body(self, body: bytes, last: bool) -> None:
        view = memoryview(body)
        while view and not self._gone:
            try:
                window = self._state.local_flow_control_window(self.number)
            except ProtocolError:
                return
            if window <= 0:
                self.connection.flush()
                try:
                    async with asyncio.timeout(SEND_S):
                        await self._change()
                except TimeoutError:
                    self.leave()
                    self._quietly(self._state.reset_stream, self.number, ErrorCodes.CANCEL)
                continue
            size = min(window, self._state.max_outbound_frame_size, len(view))
            self._quietly(self._state.send_data, self.number, view[:size], end_stream=last and size == len(view))
            view = view[size:]

    def _quietly(self, call: Any, *arguments: Any, **named: Any) -> None:
        """Take a step on a stream or a connection that the client may have just ended, which is no fault."""
        try:
            call(*arguments, **named)
        except ProtocolError:
            self._gone = True

    def _give_back(self) -> None:
        if self._unread:
            self._quietly(self._state.acknowledge_received_data, self._unread, self.number)
            self._unread = 0

    async def _change(self) -> None:
        self._changed = self.connection.worker.loop.create_future()
        await self._changed
