"""A TCP proxy in front of Kafka or Redis that holds, cuts or passes messages, each direction by itself."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import NamedTuple, Self

from tests.services import HOST, free_port

PRODUCE, FETCH, LIST_OFFSETS, INIT_PRODUCER = 0, 1, 2, 22  # API keys of Kafka's protocol


class Passing(NamedTuple):
    """A message on its way. ``request`` is the message itself or, on the way back, the one that it answers;
    ``port`` is that of the client."""

    request: bytes
    data: bytes
    port: int

    @property
    def api(self) -> int:
        """Of a Kafka request."""
        return int.from_bytes(self.request[4:6], "big") if self.request else -1


When = Callable[[Passing], bool]


def always(message: Passing) -> bool:
    return True


def kafka(api: int, topic: str = "") -> When:
    """Requests of this kind that name the topic, and their answers."""
    # The length before a topic's name keeps "bank" and "bank.transactions" apart; fields may be prefixed either way.
    name = topic.encode()
    texts = (len(name).to_bytes(2, "big") + name, bytes([len(name) + 1]) + name)
    return lambda message: message.api == api and (not topic or any(text in message.request for text in texts))


class Gate:
    """One direction of all connections of a proxy. Set from any thread."""

    def __init__(self) -> None:
        self._mode, self._left = "pass", 0
        self._when: When = always
        self._edit: Callable[[bytes], bytes] = bytes
        self.struck = threading.Event()  # a message was held, cut or edited
        self.count = 0  # messages held, cut or edited so far

    def hold(self, when: When = always) -> Self:
        """Keep these messages, and those behind them on their connection, until ``open``."""
        return self._set("hold", when, -1)

    def cut(self, when: When = always, times: int = -1) -> Self:
        """Break the connection instead of passing such a message; ``times`` bounds how often."""
        return self._set("cut", when, times)

    def edit(self, change: Callable[[bytes], bytes], when: When = always, times: int = 1) -> Self:
        """Pass such a message changed."""
        self._edit = change
        return self._set("edit", when, times)

    def open(self) -> None:
        """Pass everything, also what was held."""
        self._mode = "pass"

    def _set(self, mode: str, when: When, left: int) -> Self:
        self.struck.clear()
        self._when, self._left, self.count = when, left, 0
        self._mode = mode
        return self

    async def judge(self, message: Passing) -> bytes | None:
        """The message to pass, or None to cut. Returns once it may go on."""
        if self._mode == "pass" or self._left == 0 or not self._when(message):
            return message.data
        mode, self._left = self._mode, self._left - 1
        self.count += 1
        self.struck.set()
        if mode == "cut":
            return None
        if mode == "edit":
            return self._edit(message.data)
        while self._mode == "hold":
            await asyncio.sleep(0.01)
        return message.data


class Proxy:
    """Listens on ``port`` and passes to ``target``. A context manager.

    ``up`` is the gate of requests, ``down`` that of answers. ``framed`` is Kafka's protocol, where each answer is
    known to belong to its request; otherwise a message is what arrives at once, and answers the last request.
    """

    def __init__(self, target: int, *, framed: bool = False, port: int | None = None) -> None:
        self.target, self.framed = target, framed
        self.port = port or free_port()
        self.up, self.down = Gate(), Gate()
        self._refuses = False
        self._connections: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"proxy {self.port}", daemon=True)
        self._started: Future[None] = Future()

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)

    def refuse(self) -> None:
        """Nobody gets through any more: connections are broken, and new ones too."""
        self._refuses = True
        self._loop.call_soon_threadsafe(self._break_all)

    def lead_to(self, target: int) -> None:
        """From now on another server is behind it: connections are broken, as when an address moves."""
        self.target = target
        self._loop.call_soon_threadsafe(self._break_all)

    def open(self) -> None:
        """Everything passes again."""
        self._refuses = False
        self.up.open()
        self.down.open()

    def _break_all(self) -> None:
        for writer in list(self._connections):
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._serve())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            rest = asyncio.all_tasks(self._loop)
            for task in rest:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

    async def _serve(self) -> None:
        try:
            server = await asyncio.start_server(self._connected, HOST, self.port)
        except BaseException as error:
            self._started.set_exception(error)
            raise
        self._started.set_result(None)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            self._break_all()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            if self._refuses:
                return
            back, other = await asyncio.open_connection(HOST, self.target)
            self._connections.add(other)
            asked: dict[bytes, bytes] = {}
            port: int = writer.get_extra_info("peername")[1]
            pumps = [
                asyncio.ensure_future(self._pump(reader, other, asked, self.up, port)),
                asyncio.ensure_future(self._pump(back, writer, asked, self.down, port)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the service is away: so is its proxy
        finally:
            for end in filter(None, (writer, other)):
                self._connections.discard(end)
                end.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: dict[bytes, bytes],
        gate: Gate,
        port: int,
    ) -> None:
        async for data in self._messages(reader):
            key = data[8:12] if gate is self.up else data[4:8]
            if not self.framed:
                key = b""
            if gate is self.up:
                asked[key] = data
                message = Passing(data, data, port)
            else:
                message = Passing(asked.get(key, b"") if not self.framed else asked.pop(key, b""), data, port)
            passed = await gate.judge(message)
            if passed is None:
                return
            writer.write(passed)
            await writer.drain()

    async def _messages(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        while True:
            if not self.framed:
                data = await reader.read(65536)
                if not data:
                    return
                yield data
                continue
            try:
                head = await reader.readexactly(4)
                yield head + await reader.readexactly(int.from_bytes(head, "big"))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
