"""Follows a log with little delay."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from msgspec import Struct

from hiveio.config import Settings
from hiveio.kafka.client import client_config, denied, make
from hiveio.kafka.guard import Pauses, text, tried
from hiveio.kafka.threads import blocking
from hiveio.kafka.unconsumed import Unconsumed

BATCH = 2_000  # most records handed over at once
MAX_MARKERS = 100_000  # consecutive offsets without a record that are taken for transaction markers; more are a loss
POLL_S = 0.1
OLD_END_S = 12.0  # for which a broker may not know that another one leads
REFUSED_S = 2.0  # between two clients that ask for an offset which a broker does not know
ROOM_S = 0.01  # between two checks whether a suspended partition has room again
logger = logging.getLogger("hiveio.kafka")


class LogRecord(Struct, frozen=True, gc=False):
    """One message of a log. ``time`` is the broker's, in ms."""

    offset: int
    key: str
    value: bytes
    time: int


def log_record(message: Message) -> LogRecord:
    key, offset = message.key(), message.offset()
    assert offset is not None
    text = key.decode("utf-8", "replace") if isinstance(key, bytes) else ""
    return LogRecord(offset, text, message.value() or b"", message.timestamp()[1])


def no_record(offset: int) -> LogRecord:
    """Represents an offset at which Kafka keeps a transaction marker instead of a record."""
    return LogRecord(offset, "", b"", 0)


def at_end(error: KafkaError) -> bool:
    return bool(error.code() == KafkaError._PARTITION_EOF)


OnRecords = Callable[[list[Any]], None]  # of LogRecord, or what the tail makes of a message
OnError = Callable[[str], None]


def reading_client(settings: Settings, **extra: object) -> Consumer:
    return make(
        Consumer,
        client_config(settings)
        | {
            # the client needs a name; no group is joined, nothing is committed
            "group.id": f"{settings.client_id}.tail",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_uncommitted",
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 50,
            "fetch.queue.backoff.ms": 10,
            "queued.min.messages": 10_000,
            # For all partitions together; librdkafka derives the largest answer of a broker from it.
            "queued.max.messages.kbytes": 16_384,
        }
        | extra,
    )


class Tail:
    """Follows partitions of one topic, each with a callback on the event loop.

    Records of a partition arrive in order, in groups, each record once from the offset given to ``follow``. A partition
    whose records are not consumed is suspended at its bound, and resumed once half of them are consumed; the others are
    read on. Whoever consumes records calls ``consumed``. A partition that is paused is suspended too. ``make`` converts
    each message, on the thread that reads. With ``gap`` no offset is left out, nor the last ones before the end: it
    makes an item for each offset without a record.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        make: Callable[[Message], Any] = log_record,
        gap: Callable[[int], Any] | None = no_record,
    ) -> None:
        self._settings, self._topic, self._make, self._gap = settings, topic, make, gap
        self._loop = asyncio.get_running_loop()
        self._stale = False  # the client is to be replaced
        self._consumer = self._reading_client()
        self._moves: dict[int, tuple[int, OnRecords, OnError] | None] = {}  # not executed by the thread yet
        self._moved = threading.Event()
        self._following: dict[int, tuple[int, OnRecords, OnError]] = {}
        self._next: dict[int, int] = {}  # of each partition, the offset after what was handed over
        self._denied = False  # a missing right was logged
        self._lock = threading.Lock()
        self._unconsumed = Unconsumed()
        self._pauses: dict[int, float] = {}  # by partition, until when it is paused
        self._suspended: set[int] = set()  # not read: it is paused, or too many records are not consumed
        self.refused: dict[int, float] = {}  # by partition, when a broker first did not know its next offset
        self._retry_at = 0.0  # when another client asks for it
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"tail {topic}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._ended = True
        self._moved.set()
        await blocking(self._thread.join, 5.0)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def follow(self, partition: int, offset: int, on_records: OnRecords, on_error: OnError) -> None:
        """Begin at this offset, or seek to it. Records read before are not handed over any more after this call, and
        those that were handed over count as consumed."""
        with self._lock:
            self._moves[partition] = (offset, on_records, on_error)
        self._moved.set()

    def unfollow(self, partition: int) -> None:
        """Records of this partition are not handed over any more."""
        with self._lock:
            self._moves[partition] = None
        self._moved.set()

    def pause(self, partition: int, pause_s: float) -> None:
        """Read this partition no further for this time, or until ``resume``. Until its next records are handed over,
        the call has no effect: a partition without records costs nothing."""
        with self._lock:
            self._pauses[partition] = time.monotonic() + pause_s

    def resume(self, partition: int) -> None:
        """End its pause. It is read within ROOM_S."""
        with self._lock:
            self._pauses.pop(partition, None)

    def consumed(self, partition: int, count: int) -> None:
        """This number of records of the partition has been consumed."""
        self._unconsumed.consume(partition, count)

    def unconsumed_bytes(self, partition: int) -> int:
        """The bytes of the records of this partition that are handed over and not consumed."""
        return self._unconsumed.size(partition)

    @property
    def suspended(self) -> frozenset[int]:
        """The partitions that are not read for now: they are paused, or too many of their records are not consumed."""
        return frozenset(self._suspended)

    def renew(self) -> None:
        """Replace the client, so that it looks up the leaders."""
        self._stale = True

    def _run(self) -> None:
        pauses = Pauses()
        while (failure := tried(self._read)) is not None and not self._ended:
            logger.error("%s: the reading client failed and is replaced: %s", self._topic, text(failure))
            while not self._ended:
                time.sleep(pauses.next_s())
                if tried(self._renew_client) is None:
                    break
        tried(self._consumer.close)

    def _read(self) -> None:
        while not self._ended:
            if self._stale or (self.refused and time.monotonic() > self._retry_at):
                self._renew_client()
            self._move()
            if not self._following:
                self._moved.wait(1.0)
                continue
            self._resume()
            # poll returns at the first record, consume adds what came with it: 0.5 ms instead of 5.9 with consume alone
            first = self._consumer.poll(ROOM_S if self._suspended else POLL_S)
            if first is None:
                continue
            self._hand_over([first, *self._consumer.consume(BATCH, 0)])
            self._suspend()

    def _is_lost(self, partition: int) -> bool:
        """Whether an offset that a broker does not know is considered lost. A deposed leader names an old end, so the
        answer must stay the same for OLD_END_S, in which new clients ask again."""
        now = time.monotonic()
        self._retry_at = now + REFUSED_S
        return now - self.refused.setdefault(partition, now) > OLD_END_S

    def _renew_client(self) -> None:
        """Go on after what was handed over: what the old client had only fetched is read again."""
        self._stale = False
        now = time.monotonic()
        self._retry_at = now + REFUSED_S
        # For a partition without a later error there is just no new record.
        self.refused = {
            p: first_at for p, first_at in self.refused.items() if now - first_at < OLD_END_S + 2 * REFUSED_S
        }
        tried(self._consumer.close)
        self._consumer = self._reading_client()
        self._assign(self._following.keys() - self._suspended)

    def _move(self) -> None:
        with self._lock:
            moves, self._moves = self._moves, {}
            for partition in moves:
                self._pauses.pop(partition, None)
            self._moved.clear()
            self._unconsumed.begin(moves)
        if not moves:
            return
        self._suspended -= moves.keys()
        self.refused = {partition: first_at for partition, first_at in self.refused.items() if partition not in moves}
        for partition, move in moves.items():
            if move is None:
                self._following.pop(partition, None)
            else:
                self._following[partition], self._next[partition] = move, move[0]
        # incremental: the other partitions go on where they are
        known = self._assigned()
        self._consumer.incremental_unassign([TopicPartition(self._topic, p) for p in moves if p in known])
        self._assign({p for p, move in moves.items() if move is not None})

    def _suspend(self) -> None:
        """Stop reading the partitions that are paused, or whose records are not consumed. The client's own pause()
        would be kept over seeks and assignments, and hand over nothing of what it has fetched meanwhile."""
        if stopped := (self._unconsumed.full(self._following) | self._paused()) - self._suspended:
            self._suspended |= stopped
            self._consumer.incremental_unassign([TopicPartition(self._topic, p) for p in stopped])

    def _resume(self) -> None:
        """Go on with the partitions that have room again and are not paused."""
        if self._suspended and (free := (self._unconsumed.roomy(self._following) & self._suspended) - self._paused()):
            self._suspended -= free
            self._assign(free)

    def _paused(self) -> set[int]:
        if not self._pauses:
            return set()
        now = time.monotonic()
        with self._lock:
            self._pauses = {p: until for p, until in self._pauses.items() if until > now}
            return self._pauses.keys() & self._following.keys()

    def _assign(self, partitions: Iterable[int]) -> None:
        self._consumer.incremental_assign([TopicPartition(self._topic, p, self._next[p]) for p in partitions])

    def _reading_client(self) -> Consumer:
        # The end of a partition is reported once nothing comes: there may be transaction markers before it.
        return reading_client(self._settings, **({} if self._gap is None else {"enable.partition.eof": True}))

    def _assigned(self) -> set[int]:
        return {tp.partition for tp in self._consumer.assignment()}

    def _hand_over(self, messages: list[Message]) -> None:
        groups: dict[int, list[Any]] = {}
        sizes: dict[int, int] = {}
        failures: dict[int, str] = {}
        ends: dict[int, int] = {}
        make = self._make
        for message in messages:
            partition, offset, error = message.partition(), message.offset(), message.error()
            assert partition is not None
            if error is None or at_end(error):
                assert offset is not None
                expected = ends.get(partition)
                if expected is None:
                    expected = self._next.get(partition, offset)
                if self._gap is not None and expected < offset <= expected + MAX_MARKERS:
                    groups.setdefault(partition, []).extend(map(self._gap, range(expected, offset)))
                    ends[partition] = offset
            if error is None:
                group = groups.get(partition)
                if group is None:
                    group = groups[partition] = []
                group.append(make(message))
                sizes[partition] = sizes.get(partition, 0) + len(message)
                ends[partition] = offset + 1  # type: ignore[operator]
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                if self._is_lost(partition):
                    failures[partition] = error.str()
            elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED and not self._denied:
                self._denied = True
                logger.error("%s", denied(error, f"topic {self._topic}", "Read"))
        with self._lock:  # a follow() in between makes what was read before it void
            arrived = groups.keys() | failures.keys()
            current = {p: self._following[p] for p in arrived if p not in self._moves and p in self._following}
            for p in current:
                self._unconsumed.add(p, len(groups.get(p, ())), sizes.get(p, 0))
        try:
            if current:  # and not the end of a partition alone, which follows each group
                self._loop.call_soon_threadsafe(self._deliver, current, groups, failures)
        except RuntimeError:  # the loop is closed
            self._ended = True
            return
        self._next |= ends
        if self.refused:
            well = {message.partition() for message in messages if (error := message.error()) is None or at_end(error)}
            self.refused = {p: first_at for p, first_at in self.refused.items() if p not in well and p not in failures}

    def _deliver(
        self,
        current: dict[int, tuple[int, OnRecords, OnError]],
        groups: dict[int, list[Any]],
        failures: dict[int, str],
    ) -> None:
        for partition, following in current.items():
            records = groups.get(partition, [])
            if partition in self._moves or self._following.get(partition) is not following:
                continue
            if records:
                following[1](records)
            if partition in failures:
                following[2](failures[partition])
