"""Mailboxes in Redis, by which the instances of a log send each other packets: forwarded commands, and their answers.

A packet may be lost, come twice or come late. Nothing that is promised rests on it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import TypeVar

import msgspec
from msgspec import Struct

from hiveio.errors import HiveError
from hiveio.transaction.cache import Cache

logger = logging.getLogger("hiveio.forwarding")

WAIT_S = 1.0  # for packets, in one call to Redis
TAKES_MS = 3_000  # for which an instance says that it takes commands
SAY_S = 1.0  # after which it says so again
AGAIN_S = 0.5  # after a call that failed
PACKET_BYTES = 250_000  # of the commands or answers in a packet, about


class Forwarded(Struct, frozen=True, array_like=True):
    """A command on its way to the instance that is to execute it.

    ``number`` counts the commands that its sender forwards. ``key`` is that of its command id, ``keyed`` whether that
    is an Idempotency-Key. ``offset`` and ``time`` are those of the log before its first record, and ``request`` is the
    id of the request.
    """

    number: int
    actor: str
    id: str
    key: str
    keyed: bool
    offset: int
    time: int
    request: str
    body: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class Answer(Struct, frozen=True, array_like=True):
    """What has become of a forwarded command: the ``outcome``, and the body and the headers of its answer."""

    number: int
    outcome: str
    body: bytes = b""
    headers: dict[str, str] = {}


class Packet(Struct, frozen=True, array_like=True):
    """What one instance sends another at once."""

    sender: str
    commands: tuple[Forwarded, ...] = ()
    answers: tuple[Answer, ...] = ()


T = TypeVar("T")
Failed = Callable[[], None]  # called where a command was not put into the mailbox, or perhaps not
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Packet).decode


class Mailbox:
    """That of one instance. It is looked into from ``open`` on, until nobody has called that for ``open_s``."""

    def __init__(self, cache: Cache, instance: str, open_s: float, taken: Callable[[Packet], None]) -> None:
        """``taken`` is called with each packet that comes."""
        self.instance = instance
        self._cache, self._open_s, self._taken = cache, open_s, taken
        self._commands: dict[str, list[tuple[Forwarded, Failed]]] = {}  # to be sent, by instance
        self._answers: dict[str, list[Answer]] = {}
        self._flushing = False
        self._open_until, self._opened = 0.0, asyncio.Event()
        self.takes, self._said_at = True, 0.0  # commands of others, and when it has said so
        self.works = True  # the latest look into it has not failed
        self._context = copy_context()  # not that of the request that happens to open it
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Look into it from now on."""
        self._open_until = asyncio.get_running_loop().time() + self._open_s
        self._opened.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), context=self._context)

    async def take_no_commands(self) -> None:
        """Say that this instance takes no commands of others any more."""
        self.takes = False
        if self._task is not None:
            await self._say()

    async def stop(self) -> None:
        """Send what waits, and look into it no more."""
        self._flush()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- what is sent

    def forward(self, to: str, command: Forwarded, failed: Failed) -> None:
        """Send a command with the others of this turn of the event loop."""
        self._commands.setdefault(to, []).append((command, failed))
        self._flush_soon()

    def answer(self, to: str, answer: Answer) -> None:
        """The same for answers."""
        self._answers.setdefault(to, []).append(answer)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        commands, self._commands = self._commands, {}
        answers, self._answers = self._answers, {}
        for to, each in commands.items():
            for part in _parts(each, lambda pair: _size(pair[0])):
                packet = Packet(self.instance, commands=tuple([command for command, _ in part]))
                sent = self._cache.send(to, _encode(packet), commands=True)
                sent.add_done_callback(partial(self._sent, [failed for _, failed in part]))
        for to, given in answers.items():
            for answered in _parts(given, lambda answer: len(answer.body)):
                packed = _encode(Packet(self.instance, answers=tuple(answered)))
                self._cache.send(to, packed, commands=False).add_done_callback(lambda sent: sent.exception())

    @staticmethod
    def _sent(failed: Sequence[Failed], sent: "asyncio.Future[bool]") -> None:
        if sent.exception() is not None or not sent.result():
            for each in failed:
                each()

    # -- what comes

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                if loop.time() > self._open_until:
                    self._opened.clear()
                    self._said_at = 0.0
                    await self._cache.take_no_commands(self.instance)
                    await self._opened.wait()
                if self.works and loop.time() > self._said_at + SAY_S:
                    await self._say()
                packets = await self._cache.receive(self.instance, WAIT_S)
                self.works = True
                for packed in packets:
                    self._take(packed)
            except HiveError as error:
                logger.debug("the mailbox of this instance could not be read: %s", error)
                self.works = False
                await asyncio.sleep(AGAIN_S)
            except Exception:
                logger.exception("the mailbox of this instance could not be read for an unexpected reason")
                await asyncio.sleep(AGAIN_S)

    async def _say(self) -> None:
        self._said_at = asyncio.get_running_loop().time()
        if self.takes:
            await self._cache.take_commands(self.instance, TAKES_MS)
        else:
            await self._cache.take_no_commands(self.instance)

    def _take(self, packed: bytes) -> None:
        try:
            packet = _decode(packed)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            logger.error("the mailbox of this instance has a packet that cannot be read; it is dropped")
            return
        self._taken(packet)


def _size(command: Forwarded) -> int:
    return len(command.body) + sum([len(value) for _, value in command.headers])


def _parts(items: Sequence[T], size: Callable[[T], int]) -> list[list[T]]:
    """The items in groups that are not much larger than a packet."""
    parts: list[list[T]] = []
    room = -1
    for item in items:
        if room < 0:
            parts.append([])
            room = PACKET_BYTES
        parts[-1].append(item)
        room -= size(item)
    return parts
