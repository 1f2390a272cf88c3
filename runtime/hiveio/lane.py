"""The records of one partition, in order: what is a repeat, who takes it, what happens when that fails."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hiveio.actor import Contract
from hiveio.envelope import Codec, Context, Envelope, Handler
from hiveio.errors import Corrupt, Invalid, Problem, Refused, Stop, Unavailable
from hiveio.kafka import Lane, Message

ATTEMPTS = 8  # of a handler that raises; one that raises Unavailable is tried until it works
FIRST_S, LONGEST_S = 0.1, 5.0  # the wait between attempts, doubled each time, with jitter
SLICE_S = 0.005  # so long a lane works before others get their turn
logger = logging.getLogger("hiveio.consumer")

Headers = list[tuple[str, bytes | None]]


class Progress:
    """The consumer's rule for an event topic that a publisher writes (DESIGN.md section 5, Publishing).

    Each event carries its ``hive-position`` in the transaction log and, as ``hive-previous``, the one before it.
    Publishers repeat and overlap, and never leave a gap: what is above the last seen is new, all else is a repeat.
    """

    __slots__ = ("last",)

    def __init__(self, last: bytes | None = None) -> None:
        """Raises Corrupt when ``last`` is no position."""
        if last is not None:
            parse_position(last)
        self.last = last

    def take(self, position: bytes, previous: bytes | None) -> bool:
        """Whether the event is new. Raises Corrupt when events are missing between the last seen and this one."""
        last = self.last
        if last is None:
            parse_position(position)
        elif previous != last:  # else it follows, and there is nothing to compare
            at, seen = parse_position(position), parse_position(last)
            if at[0] != seen[0]:
                raise Corrupt(f"position {_text(position)} comes after {_text(last)}: two logs in one partition")
            if at <= seen:
                return False
            raise Corrupt(
                f"events are missing: position {_text(position)} comes after {_text(previous)}, "
                f"and the last one seen is {_text(last)}"
            )
        self.last = position
        return True


def parse_position(text: bytes) -> tuple[int, int, int]:
    """``<partition>:<offset>:<index>``. Raises Corrupt."""
    try:
        partition, offset, index = text.split(b":")
        return int(partition), int(offset), int(index)
    except ValueError:
        raise Corrupt(f"the position {_text(text)} is none; it looks like 0:17:0") from None


def _text(position: bytes | None) -> str:
    return "nothing" if position is None else position.decode("utf-8", "replace")


class Counts:
    """What became of the records of this process."""

    __slots__ = ("failed", "handled", "repeated", "retried", "skipped")

    def __init__(self) -> None:
        self.handled = self.repeated = self.skipped = self.retried = self.failed = 0


class Target:
    """An actor's handler; ``with_record`` when it is given the context of each record."""

    __slots__ = ("contract", "handle", "with_record")

    def __init__(self, contract: Contract, handle: Handler, *, with_record: bool) -> None:
        self.contract, self.handle, self.with_record = contract, handle, with_record


class Routing:
    """Which handlers take which event; one for all lanes."""

    def __init__(self, handlers: Sequence[tuple[Contract, Handler]], *, with_record: bool = False) -> None:
        self.targets = [
            Target(contract, handle, with_record=with_record or contract.wants_context) for contract, handle in handlers
        ]
        self.by_type: dict[type, list[Target]] = {}
        for target in self.targets:
            for kind in target.contract.heard.values():
                self.by_type.setdefault(kind, []).append(target)
        self.codec = Codec(self.by_type, strict=False)
        self.counts = Counts()

    def unheard(self, value: bytes, error: Problem) -> bool:
        """Whether it could not be decoded because nobody here takes its type, which is no fault."""
        if not isinstance(error, Invalid) or error.members.get("pointer") != "/type":
            return False
        try:
            return _type_of(value).type not in self.codec.types
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False


class _Type(msgspec.Struct):
    type: str


_type_of = msgspec.json.Decoder(_Type).decode


class WorkLane(Lane):
    """A partition at work, in one task: each record is handled before the next, and then counts as done.

    ``resumes`` says from which offset on a target takes records, where it is not the same for all; records below
    ``start`` only tell what was seen.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        begin: int,
        start: int,
        progress: Progress,
        note: str | bytes | None,
        resumes: dict[Target, int],
        routing: Routing,
        finished: Callable[[], None],
    ) -> None:
        super().__init__(topic, partition, begin, (start, note))
        self.progress, self.routing, self.start, self._resumes = progress, routing, start, resumes
        self._settled = max([start, *resumes.values()])
        self._on_finished = finished
        self._chunks: deque[list[Message]] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._waiting = False  # nothing is in hand that must be finished
        self.touched: float | None = None  # when the record in hand was begun; None: none is
        self.task = asyncio.create_task(self._run(), name=f"lane {topic}/{partition}")

    def take(self, chunk: list[Message]) -> None:
        if self._closing or self.failure is not None:
            self.finished += len(chunk)
            return
        self._chunks.append(chunk)
        self._arrived.set()

    async def close(self, timeout_s: float) -> None:
        """Finish the record in hand, or cancel its handler after the time. Nothing is handled after this."""
        self._closing = True
        if self._waiting or timeout_s <= 0:
            self.task.cancel()
        _, running = await asyncio.wait([self.task], timeout=max(timeout_s, 0.0))
        if running:
            if timeout_s > 0:
                logger.warning("%s: the handler did not finish within %g s and is cancelled", self, timeout_s)
            self.task.cancel()
            await asyncio.wait([self.task], timeout=1.0)

    def fail(self, reason: str) -> None:
        """Stop this partition, loudly: its offset stays, and readiness tells. Others go on."""
        if self.failure is None:
            self.failure = f"{self}: {reason}"
            self.routing.counts.failed += 1
            logger.error("%s: this partition stops, and nothing of it is lost: %s", self, reason)
        self._chunks.clear()
        self.finished = self.handed
        self._on_finished()

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.done[0]}"

    async def _run(self) -> None:
        try:
            while not self._closing and self.failure is None:
                if not self._chunks:
                    self._waiting = True
                    self._arrived.clear()
                    await self._arrived.wait()
                    self._waiting = False
                    continue
                chunk = self._chunks.popleft()
                await self._work(chunk)
                if self.failure is None:
                    self.finished += len(chunk)
                    self._on_finished()
        except asyncio.CancelledError:
            if not self._closing:
                raise
        except Corrupt as error:
            self.fail(str(error))
        except Exception as error:
            logger.exception("%s", self)
            self.fail(f"{type(error).__name__}: {error}")
        finally:
            self.touched = None

    async def _work(self, chunk: list[Message]) -> None:
        routing, progress, clock = self.routing, self.progress, time.monotonic
        decode, by_type, counts = routing.codec.decode, routing.by_type, routing.counts
        slice_end = (now := clock()) + SLICE_S
        for message in chunk:
            self.touched = now
            offset = message.offset()
            assert offset is not None
            headers: Any = message.headers()
            taken = True
            position = previous = None
            if headers is not None:
                for name, text in headers:
                    if name == "hive-position":
                        position = text
                    elif name == "hive-previous":
                        previous = text
                if position is not None:
                    taken = progress.take(position, previous)
            if offset < self.start:
                continue
            if not taken:
                counts.repeated += 1
            elif (value := message.value()) is None:
                counts.skipped += 1
            else:
                try:
                    event, meta = decode(value)
                except Problem as error:
                    if not routing.unheard(value, error):
                        return self.fail(f"the record cannot be decoded: {error}")
                    counts.skipped += 1
                else:
                    key = message.key()
                    envelope = Envelope(message=event, id=_id(key) if key else "", meta=meta)
                    for target in by_type[type(event)]:
                        if offset < self._settled and offset < self._resumes.get(target, 0):
                            continue
                        if target.with_record and envelope.record is None:
                            self._add_record(envelope, message, headers, position)
                        try:
                            await target.handle(envelope)
                        except Exception as error:
                            if not await self._again(target.handle, envelope, error):
                                return None
                    counts.handled += 1
            self.done = (offset + 1, progress.last)
            if (now := clock()) > slice_end:
                await asyncio.sleep(0)
                slice_end = (now := clock()) + SLICE_S
            if self._closing:
                return None
        self.touched = None
        return None

    def _add_record(
        self, envelope: Envelope, message: Message, headers: Headers | None, position: bytes | None
    ) -> None:
        texts = {name: text.decode("utf-8", "replace") for name, text in headers or () if text is not None}
        version = texts.get("hive-version", "")
        envelope.headers = texts
        envelope.key = texts.get("hive-key")
        envelope.record = Context(
            id=envelope.id or None,
            topic=self.topic,
            key=envelope.key,
            partition=self.partition,
            offset=message.offset(),
            position=parse_position(position) if position is not None else None,
            version=int(version) if version.isdecimal() else None,
            time=message.timestamp()[1] / 1000,
            headers=texts,
            meta=msgspec.json.decode(envelope.meta) if envelope.meta else None,
        )

    async def _again(self, handle: Handler, envelope: Envelope, error: Exception) -> bool:
        """Try a handler that raised again, in growing intervals. False when the partition has stopped."""
        attempt = 1
        while True:
            # A refusal says that the same record is refused again.
            if isinstance(error, Refused | Stop) or (attempt >= ATTEMPTS and not isinstance(error, Unavailable)):
                return await self._give_up(error, attempt)
            wait_s = min(LONGEST_S, FIRST_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            logger.warning(
                "%s: attempt %d failed, the next is in %.2f s: %s: %s",
                self, attempt, wait_s, type(error).__name__, error,
            )  # fmt: skip
            self.routing.counts.retried += 1
            self._waiting = True  # a revoke does not wait for a record that is not in hand
            await asyncio.sleep(wait_s)
            self._waiting = False
            self.touched = time.monotonic()
            try:
                await handle(envelope)
                return True
            except Exception as failure:
                error, attempt = failure, attempt + 1

    async def _give_up(self, error: Exception, attempts: int) -> bool:
        """Here a record that nobody can handle would go elsewhere, and those behind it go on; False: it does not."""
        logger.error("%s: the handler raised", self, exc_info=error)
        tried = f" after {attempts} attempts" if attempts > 1 else ""
        self.fail(f"{type(error).__name__}{tried}: {error}")
        return False


def _id(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.decode("utf-8", "replace")
