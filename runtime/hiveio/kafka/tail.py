"""Reading the transaction log: following it with little delay, its end, and single records."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from hiveio.config import Settings
from hiveio.errors import backend_away
from hiveio.kafka.client import client_config, denied, make
from hiveio.kafka.guard import Pauses, text, tried
from hiveio.kafka.threads import blocking
from hiveio.kafka.untaken import Untaken

BATCH = 2_000  # most records handed over at once
MOST_MARKS = 100_000  # offsets without a record that are taken for marks of transactions; more are a loss
POLL_S = 0.1
AGAIN_S = 0.01  # between two looks at whether a partition that was let go of has room again
RENEW_S = 2.0  # so old is a client at least that is given up
logger = logging.getLogger("hiveio.kafka")


class LogRecord(NamedTuple):
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
    """What stands for an offset at which Kafka keeps a mark of somebody's transaction, and no record."""
    return LogRecord(offset, "", b"", 0)


Made = TypeVar("Made")
OnRecords = Callable[[list[Any]], None]  # of LogRecord, or what the tail makes of a message
OnError = Callable[[str], None]


def _consumer(settings: Settings, **extra: object) -> Consumer:
    return make(
        Consumer,
        client_config(settings)
        | {
            # asked for by the client; no group is joined, nothing is committed
            "group.id": f"{settings.client_id}.tail",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_uncommitted",
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 50,
            "fetch.queue.backoff.ms": 10,
            "queued.min.messages": 10_000,
            # Of all partitions together, and so is the largest answer of a broker, which librdkafka derives from it.
            "queued.max.messages.kbytes": 16_384,
        }
        | extra,
    )


class Tail:
    """Follows partitions of one topic, each with a callback on the event loop.

    Records of a partition arrive in order, in groups, each record once from the offset given to ``follow``. A partition
    whose records are not taken is let go of at its bound, and taken up where it was left once half of them are taken:
    the others are read on. The one who takes them calls ``taken``. ``make`` is what is made of each message, by the
    thread that reads. With ``gap`` no offset is left out, nor the last ones before the end: it makes what stands where
    there is no record.
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
        self._consumer = self._reading_client()
        self._wanted: dict[int, tuple[int, OnRecords, OnError] | None] = {}  # moves that the thread has not made yet
        self._moved = threading.Event()
        self._following: dict[int, tuple[int, OnRecords, OnError]] = {}
        self._next: dict[int, int] = {}  # of each the offset behind what was handed over
        self._denied = False  # a missing right was told
        self._lock = threading.Lock()
        self._untaken = Untaken()
        self._left: set[int] = set()  # let go of, because too much is not taken
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
        those that were handed over count as taken."""
        with self._lock:
            self._wanted[partition] = (offset, on_records, on_error)
        self._moved.set()

    def unfollow(self, partition: int) -> None:
        """Records of this partition are not handed over any more."""
        with self._lock:
            self._wanted[partition] = None
        self._moved.set()

    def taken(self, partition: int, count: int) -> None:
        """So many of the records of this partition are done with."""
        self._untaken.take(partition, count)

    def _run(self) -> None:
        pauses = Pauses()
        while (failure := tried(self._read)) is not None and not self._ended:
            logger.error("%s: the reading client failed and is made anew: %s", self._topic, text(failure))
            while not self._ended:
                time.sleep(pauses.next_s())
                if tried(self._renew) is None:
                    break
        tried(self._consumer.close)

    def _read(self) -> None:
        while not self._ended:
            self._move()
            if not self._following:
                self._moved.wait(1.0)
                continue
            self._take_up()
            # poll wakes at the first record, consume takes what came with it: 0.5 ms against 5.9 of consume alone
            first = self._consumer.poll(AGAIN_S if self._left else POLL_S)
            if first is None:
                continue
            self._hand_over([first, *self._consumer.consume(BATCH, 0)])
            self._let_go()

    def _renew(self) -> None:
        """Go on behind what was handed over: what the old client had taken and not given is read again."""
        tried(self._consumer.close)
        self._consumer = self._reading_client()
        self._assign(self._following.keys() - self._left)

    def _move(self) -> None:
        with self._lock:
            moves, self._wanted = self._wanted, {}
            self._moved.clear()
            self._untaken.begin(moves)
        if not moves:
            return
        self._left -= moves.keys()
        for partition, move in moves.items():
            if move is None:
                self._following.pop(partition, None)
            else:
                self._following[partition], self._next[partition] = move, move[0]
        # incremental: the others go on where they are
        known = self._assigned()
        self._consumer.incremental_unassign([TopicPartition(self._topic, p) for p in moves if p in known])
        self._assign({p for p, move in moves.items() if move is not None})

    def _let_go(self) -> None:
        """Read no more of the partitions whose records are not taken. No pause(): the client keeps that over seeks and
        assignments, and gives nothing of what it has fetched meanwhile."""
        if full := self._untaken.full(self._following) - self._left:
            self._left |= full
            self._consumer.incremental_unassign([TopicPartition(self._topic, p) for p in full])

    def _take_up(self) -> None:
        """Go on with the partitions that have room again."""
        if self._left and (roomy := self._untaken.roomy(self._following) & self._left):
            self._left -= roomy
            self._assign(roomy)

    def _assign(self, partitions: Iterable[int]) -> None:
        self._consumer.incremental_assign([TopicPartition(self._topic, p, self._next[p]) for p in partitions])

    def _reading_client(self) -> Consumer:
        # The end of a partition is told once it is quiet: behind it there may be marks.
        return _consumer(self._settings, **({} if self._gap is None else {"enable.partition.eof": True}))

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
            at_end = error is not None and error.code() == KafkaError._PARTITION_EOF
            if error is None or at_end:
                assert offset is not None
                expected = ends.get(partition)
                if expected is None:
                    expected = self._next.get(partition, offset)
                if self._gap is not None and expected < offset <= expected + MOST_MARKS:
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
                failures[partition] = error.str()
            elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED and not self._denied:
                self._denied = True
                logger.error("%s", denied(error, f"topic {self._topic}", "Read"))
        with self._lock:  # a follow() made meanwhile makes what was read before it void
            arrived = groups.keys() | failures.keys()
            current = {p: self._following[p] for p in arrived if p not in self._wanted and p in self._following}
            for p in current:
                self._untaken.add(p, len(groups.get(p, ())), sizes.get(p, 0))
        try:
            self._loop.call_soon_threadsafe(self._deliver, current, groups, failures)
        except RuntimeError:  # the loop is closed
            self._ended = True
            return
        self._next |= ends

    def _deliver(
        self,
        current: dict[int, tuple[int, OnRecords, OnError]],
        groups: dict[int, list[Any]],
        failures: dict[int, str],
    ) -> None:
        for partition, following in current.items():
            records = groups.get(partition, [])
            if partition in self._wanted or self._following.get(partition) is not following:
                continue
            if records:
                following[1](records)
            if partition in failures:
                following[2](failures[partition])


# Of a consumer that reads one record and goes elsewhere: it neither reads ahead, nor waits at the end of the log for a
# fetch of its own before the next one.
_ONE_RECORD = {
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 1,
    "queued.min.messages": 1,
    "fetch.message.max.bytes": 65_536,
}


class LogReader:
    """Ends and single records of a topic, read on a thread of its own."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._ends = _consumer(settings)
        self._made = time.monotonic()
        self._records = _consumer(settings, **_ONE_RECORD)
        self._reading = threading.Lock()
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._busy: set[int] = set()

    async def end(self, partition: int) -> int:
        """The end offset, fetched after this call came: every record acknowledged before stands below it.

        Concurrent callers share a fetch. Raises Unavailable.
        """
        asked = self._asked.get(partition)
        if asked is None:
            asked = self._asked[partition] = asyncio.get_running_loop().create_future()
        if partition not in self._busy:
            self._busy.add(partition)
            self._task = asyncio.ensure_future(self._fetch_ends(partition))
        return await asyncio.shield(asked)

    async def _fetch_ends(self, partition: int) -> None:
        while asked := self._asked.pop(partition, None):
            try:
                asked.set_result((await blocking(self.bounds, partition))[1])
            except Exception as error:  # whatever it is: nobody is left waiting
                asked.set_exception(error)
                asked.exception()  # those who asked may have gone: that is no fault to report
        self._busy.discard(partition)

    def bounds(self, partition: int, timeout_s: float = 5.0) -> tuple[int, int]:
        """First offset and end offset; blocking."""
        try:
            found = self._ends.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=timeout_s)
        except KafkaException as error:
            if error.args[0].code() == KafkaError._UNKNOWN_PARTITION and time.monotonic() - self._made > RENEW_S:
                # What a client was told of the topic while its broker was away can stay with it for many minutes.
                # The old one ends when nobody uses it any more.
                self._ends, self._made = _consumer(self._settings), time.monotonic()
            raise backend_away(f"the end of {self._topic}/{partition}: {error.args[0].str()}") from None
        if found is None:
            raise backend_away(f"the end of {self._topic}/{partition} was not told within {timeout_s:.0f} s")
        return found

    async def read(self, partition: int, offset: int, *, end: bool = False) -> LogRecord | None:
        """The record at this offset (with ``end``: the last one of the partition). None if there is none."""
        message = await blocking(self.read_message, partition, OFFSET_END if end else offset)
        if message is None:
            return None
        return log_record(message)

    def read_each(
        self, partition: int, offset: int, end: int, made: Callable[[Message], Made], timeout_s: float = 5.0
    ) -> list[Made]:
        """What is made of each message from ``offset`` to below ``end``, which is not beyond the end of the partition:
        something small, since only one message at a time is kept. Blocking."""
        if offset >= end:
            return []
        found: list[Made] = []
        with self._reading, closing(self._from(partition, offset, timeout_s)) as messages:
            for message in messages:
                if (at := message.offset() or 0) < end:
                    found.append(made(message))
                if at >= end - 1:
                    break
        return found

    def read_message(self, partition: int, offset: int, timeout_s: float = 5.0) -> Message | None:
        """The message at this offset, or the last one with OFFSET_END; None if the partition ends before. Blocking."""
        with self._reading:
            first, end = self.bounds(partition)
            if offset == OFFSET_END:
                return self._last(partition, first, end, timeout_s)
            if not first <= offset < end:
                return None
            message = next(self._from(partition, offset, timeout_s), None)
            return message if message is not None and message.offset() == offset else None  # a mark of a transaction

    def _last(self, partition: int, first: int, end: int, timeout_s: float) -> Message | None:
        """What stands at the end may be no record (a mark of a transaction): then it looks further back."""
        back = 1
        while first < end:
            begin, last = max(first, end - back), None
            for message in self._from(partition, begin, timeout_s):
                last = message
                if message.offset() == end - 1:
                    break
            if last is not None or begin == first:
                return last
            back *= 4
        return None

    def _from(self, partition: int, offset: int, timeout_s: float) -> Generator[Message]:
        """The records from this offset to the end of now."""
        where = f"{self._topic}/{partition}/{offset}"
        try:
            self._records.assign([TopicPartition(self._topic, partition, offset)])
            while True:
                message = self._records.poll(timeout_s)
                if message is None:
                    raise backend_away(f"{where} cannot be read: no answer")
                if (failure := message.error()) is not None:
                    if failure.code() == KafkaError._PARTITION_EOF:
                        return
                    if failure.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                        continue  # the client looks for a coordinator, whom nobody needs here
                    raise backend_away(f"{where} cannot be read: {failure.str()}")
                yield message
        except KafkaException as error:
            raise backend_away(f"{where}: {error.args[0].str()}") from None
        finally:
            self._records.unassign()

    def close(self) -> None:
        self._ends.close()
        self._records.close()
