"""HTTP/2: streams of one connection, each a request of its own, on the state machine of h2.

gunicorn brings an HTTP/2 that serves the streams of a connection one after the other, keeps bodies without a limit and
drops what waits when it drains. This one runs them side by side, within the bounds below.
"""

import asyncio
import logging
from collections.abc import MutableMapping
from email.utils import formatdate
from typing import Any, Protocol, cast
from urllib.parse import unquote

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from hiveio.body import discard

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

MOST_STREAMS = 100  # requests of one connection at once; also those that the client gave up and that run still
MOST_NUISANCES = 1_000  # frames a second that bring nothing, or take it back; then the client is told to calm down
WINDOW = 1 << 20  # bytes of bodies on their way to us in one connection; 64 KiB of them in each stream
SLICE = 16_384  # bytes that are parsed before a flood can be noticed
SEND_S = 30  # for a client that opens no window for its answer

_NUISANCES = (
    events.PingReceived,
    events.PriorityUpdated,
    events.RemoteSettingsChanged,
    events.StreamReset,
    events.UnknownFrameReceived,
)
_LAST = 2**31 - 1

log = logging.getLogger("hiveio.http")


class Host(Protocol):
    """What a connection needs of its worker."""

    asgi: Any
    loop: asyncio.AbstractEventLoop
    connections: set[Any]
    crowded: bool


class _State(H2Connection):
    MAX_CLOSED_STREAMS = 4_096

    @property
    def open_inbound_streams(self) -> int:
        # A stream too many is refused by us, and may be sent again. h2 would end the connection with all its requests.
        super().open_inbound_streams  # noqa: B018 - it forgets streams that are closed
        return 0

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Any], list[events.Event]]:
        # The client opens no more streams, and waits for the answers that it is owed. h2 would drop them.
        return [], []


class Connection(asyncio.Protocol):
    """One client, or a proxy with the requests of many."""

    transport: asyncio.Transport

    def __init__(self, worker: Host) -> None:
        self.worker = worker
        self.progress = 0  # requests so far
        self.streams: dict[int, Stream] = {}
        self.state = _State(H2Configuration(client_side=False, header_encoding=None, normalize_outbound_headers=False))
        self.state.config.validate_outbound_headers = False  # they are ours
        self._nuisances = 0
        self._second = 0

    @property
    def busy(self) -> bool:
        """Whether a request came in whose answer is not out."""
        return bool(self.streams)

    # -- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self.worker.connections.add(self)
        self.scheme = "https" if transport.get_extra_info("ssl_object") else "http"
        self.client = _address(transport.get_extra_info("peername"))
        self.server = _address(transport.get_extra_info("sockname"))
        self.state.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS})
        self.state.initiate_connection()
        self.state.increment_flow_control_window(WINDOW)
        self.flush()
        if self.worker.crowded:
            self.close()

    def data_received(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), SLICE):
                for event in self.state.receive_data(data[start : start + SLICE]):
                    self._take(event)
                if self._nuisances > MOST_NUISANCES:
                    return self.close(ErrorCodes.ENHANCE_YOUR_CALM)
        except ProtocolError:
            # h2 has put the reason in a GOAWAY.
            self.flush()
            self.transport.close()
            return None
        return self.flush()

    def pause_writing(self) -> None:
        # Who does not read answers is not asked for more; what we owe stays bounded.
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
        """Ask the client for no more requests here. Those on their way are answered still."""
        # h2 knows only the end of a connection, which takes no answers any more.
        self._write(GoAwayFrame(0, last_stream_id=_LAST, error_code=ErrorCodes.NO_ERROR).serialize())

    def close(self, reason: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Say which request was the last one that was taken, and hang up."""
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
                self._nuisance(1)
        elif isinstance(event, events.StreamEnded):
            if stream := self.streams.get(event.stream_id):
                stream.end()
        elif isinstance(event, events.WindowUpdated | events.RemoteSettingsChanged):
            for stream in self.streams.values():
                stream.wake()
        elif isinstance(event, events.StreamReset) and (stream := self.streams.get(event.stream_id)):
            stream.leave()
        if isinstance(event, _NUISANCES):
            self._nuisance(2 if isinstance(event, events.StreamReset) else 1)

    def _begin(self, event: events.RequestReceived) -> None:
        self.progress += 1
        self._nuisance(-1)  # for the priority that it may bring
        if len(self.streams) >= MOST_STREAMS:
            self.state.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        stream = self.streams[event.stream_id] = Stream(self, event.stream_id)
        stream.task = self.worker.loop.create_task(stream.run(self._scope(event.headers)))

    def _scope(self, headers: list[Any]) -> MutableMapping[str, Any]:
        special = {name: value for name, value in headers if name[:1] == b":"}
        fields = [(bytes(name), bytes(value)) for name, value in headers if name[:1] != b":"]
        if (authority := special.get(b":authority")) is not None:
            fields = [(b"host", authority), *(field for field in fields if field[0] != b"host")]
        path, _, query = special.get(b":path", b"").partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "2",
            "method": special[b":method"].decode("latin-1"),
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

    def _nuisance(self, weight: int) -> None:
        second = int(self.worker.loop.time())
        if second != self._second:
            self._second, self._nuisances = second, 0
        self._nuisances += weight


class Stream:
    """One request and its answer."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.task: asyncio.Task[None] | None = None
        self._state = connection.state
        self._body: list[bytes] = []
        self._unread = 0  # bytes of the window that the client does not have back
        self._ended = False  # the request is here in full
        self._told = False  # and the application knows
        self._answered = False
        self._gone = False  # the client does not wait any more
        self._head: list[tuple[bytes, bytes]] | None = None
        self._changed: asyncio.Future[None] | None = None  # somebody waits

    # -- what the connection calls

    def feed(self, data: bytes, length: int) -> None:
        self._body.append(data)
        self._unread += length
        self.wake()

    def end(self) -> None:
        self._ended = True
        self.wake()

    def leave(self) -> None:
        """The client does not want the answer. What it sent is carried out, as over HTTP/1.1."""
        self._gone = True
        self.wake()

    def wake(self) -> None:
        if self._changed and not self._changed.done():
            self._changed.set_result(None)

    # -- the application

    async def run(self, scope: MutableMapping[str, Any]) -> None:
        connection, state = self.connection, self._state
        try:
            await connection.worker.asgi(scope, self._receive, self._send)
            if self._answered and not self._ended:
                await discard(self._receive)
        except Exception:
            log.exception("a stream failed")
        finally:
            del connection.streams[self.number]
            if not connection.transport.is_closing():
                self._give_back()
                if not self._gone and not (self._ended and self._answered):
                    # The client need not send the rest; or it waits for what does not come.
                    code = ErrorCodes.NO_ERROR if self._answered else ErrorCodes.INTERNAL_ERROR
                    self._quietly(state.reset_stream, self.number, code)
                connection.flush()

    async def _receive(self) -> MutableMapping[str, Any]:
        while not (self._body or self._gone or (self._ended and not self._told)):
            await self._change()
        if self._gone:
            return {"type": "http.disconnect"}
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._told = self._ended
        if self._unread and not self._ended:
            self._give_back()
            self.connection.flush()
        return {"type": "http.request", "body": data, "more_body": not self._ended}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        kind = message["type"]
        if self._gone:
            return
        if kind == "http.response.start":
            date = formatdate(usegmt=True).encode()
            self._head = [(b":status", b"%d" % message["status"]), *message["headers"], (b"date", date)]
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
        """A step on a stream, or a connection, that the client has just ended is no fault of anybody."""
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


def _address(name: Any) -> tuple[str, int] | None:
    return tuple(name[:2]) if isinstance(name, tuple) else None


class Greeting(asyncio.Protocol):
    """A new connection, until it is known which HTTP it speaks: by ALPN over TLS, by its first bytes without."""

    busy = False
    progress = 0

    def __init__(self, worker: Host, http1: Any) -> None:
        self.worker = worker
        self._http1 = http1
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        if secure := transport.get_extra_info("ssl_object"):
            self._become(Connection if secure.selected_alpn_protocol() == "h2" else self._http1)
            return
        self.worker.connections.add(self)
        if self.worker.crowded:
            self._become(self._http1)  # which says so

    def data_received(self, data: bytes) -> None:
        self._read += data
        if self._read.startswith(PREFACE):
            self._become(Connection)
        elif not PREFACE.startswith(self._read):
            self._become(self._http1)

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)

    def _become(self, kind: Any) -> None:
        self.worker.connections.discard(self)
        protocol = kind(self.worker)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if self._read:
            protocol.data_received(self._read)

    def drain(self) -> None:
        """It learns more about us with its first answer."""

    def close(self) -> None:
        self.transport.close()
