"""The records of one scope with their verdicts, why void ones are void, and which of them touched an aggregate.

A verdict depends on all records before it, so a scope is judged from its first record on, once, by the rule alone, and
from then on as it grows. That happens on another thread, while pages show how far it is. It is bounded: all scopes
together have RECORDS, and of a longer log the first ones are known.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hiveio.config import Settings
from hiveio.errors import Corrupt, HiveError
from hiveio.kafka.reader import Reader
from hiveio.kafka.tail import LogRecord, log_record, no_record
from hiveio.kafka.threads import blocking
from hiveio.transaction import record as records
from hiveio.transaction.record import Commit, Record, Transactional, named
from hiveio.transaction.rule import ReferenceFold, writer_of

RECORDS = 500_000  # of all scopes together that are judged, at about 500 bytes each
AT_ONCE = 8  # scopes that are judged at once, each on a thread of those for calls to Kafka
FOLLOW_S = 1.0  # for which a page waits for what is new to be judged
NEAR = 500  # offsets, across which reading on is quicker than reading anew
FORGET = 20_000  # records after which command ids outside the window are forgotten


class Row(NamedTuple):
    """A record with its verdict; ``accepted`` is None where it is not judged (yet). ``reason`` says why it is void.
    ``record`` is None where this version does not know the record."""

    message: LogRecord
    record: Record | None
    accepted: bool | None
    reason: str


class ScopeRecords:
    """What is known of one scope. Methods are called from any thread; those that read raise HiveError."""

    def __init__(self, settings: Settings, partition: int, most: int = RECORDS) -> None:
        self.most = most
        self.partition, self.where = partition, f"{settings.log_topic}/{partition}"
        self._settings = settings
        self._following, self._reading = threading.Lock(), threading.Lock()
        self._judge = Reader(settings)
        self._pages = Reader(settings)
        self._begin()

    def _begin(self) -> None:
        self._fold = ReferenceFold()
        self.reasons: dict[int, str] = {}
        self.voids: list[int] = []
        self.touched: dict[str, list[int]] = {}  # by aggregate: the accepted records that wrote or moved it
        self.transactions: dict[str, int] = {}
        self.commands: dict[str, list[int]] = {}  # by command id: all records of it, void ones too
        self.end = 0
        self.failure = ""

    def close(self) -> None:
        with self._following, self._reading:
            self._judge.close()
            self._pages.close()

    @property
    def judged(self) -> int:
        return len(self._fold.verdicts)

    @property
    def complete(self) -> bool:
        return self.judged >= min(self.end, self.most)

    @property
    def beyond(self) -> bool:
        """Whether the log is longer than what is judged here."""
        return self.end > self.most

    def follow(self) -> None:
        """Judge what is new, up to the present end. Only one caller does; the others return at once."""
        if not self._following.acquire(blocking=False):
            return
        try:
            end = self._judge.bounds(self._settings.log_topic, self.partition)[1]
            if end < self.end:  # the topic was made anew
                self._begin()
            self.end, self.failure = end, ""
            stop = min(end, self.most)
            for message in self._messages(self._judge, self.judged, stop):
                self.add(message)
        except Corrupt as error:
            self.failure = f"{self.where}/{self.judged}: {error}"
        except HiveError as error:
            self.failure = str(error)
        finally:
            self._following.release()

    def _messages(self, reader: Reader, first: int, end: int) -> Iterator[LogRecord]:
        """A record for each offset, also where Kafka has a transaction marker."""
        at = first
        if first < end:
            for message in map(log_record, reader.read(self._settings.log_topic, self.partition, first, end)):
                yield from map(no_record, range(at, message.offset))
                yield message
                at = message.offset + 1
        yield from map(no_record, range(at, end))

    def add(self, message: LogRecord) -> None:
        """Judge the next record. Raises Corrupt."""
        record, fold = records.decode(message.value), self._fold
        offset = message.offset
        accepted, reason = judge(fold, message, record)
        if not accepted:
            self.reasons[offset] = reason
            self.voids.append(offset)
        else:
            for name in _moved(record):
                self.touched.setdefault(name, []).append(offset)
        if isinstance(record, Transactional):
            self.transactions[message.key] = offset
            if record.command is not None:
                self.commands.setdefault(record.command.text, []).append(offset)
        if offset % FORGET == 0:
            fold.forget()

    def rows(self, first: int, end: int) -> list[Row]:
        """The records of these offsets, oldest first; a few hundred at most."""
        return [self.row(message) for message in self._read(first, end)]

    def rows_at(self, offsets: Sequence[int]) -> list[Row]:
        """The records at these offsets, which rise. Those close to each other are read together."""
        wanted = set(offsets)
        read = (message for first, end in stretches(offsets) for message in self._read(first, end))
        return [self.row(message) for message in read if message.offset in wanted]

    def _read(self, first: int, end: int) -> Iterator[LogRecord]:
        with self._reading:
            _, present = self._pages.bounds(self._settings.log_topic, self.partition)
            yield from self._messages(self._pages, max(0, first), min(end, present))

    def row(self, message: LogRecord) -> Row:
        offset = message.offset
        accepted = self._fold.verdicts[offset] if offset < self.judged else None
        try:
            record = records.decode(message.value)
        except Corrupt as error:
            return Row(message, None, accepted, str(error))
        return Row(message, record, accepted, self.reasons.get(offset, ""))


class Books:
    """The records of all scopes, each read once somebody looks at it. To be closed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scopes: dict[int, ScopeRecords] = {}
        self._judging: dict[int, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    def close(self) -> None:
        for scope in self._scopes.values():
            scope.close()

    async def scope(self, partition: int, count: int) -> ScopeRecords:
        """The records of a scope, as far as they are judged after a moment. ``count`` is the number of scopes."""
        scope = self._scopes.get(partition)
        if scope is None:
            made = await blocking(ScopeRecords, self._settings, partition, max(1, RECORDS // count))
            scope = self._scopes.setdefault(partition, made)
            if scope is not made:
                await blocking(made.close)
        if (judging := self._judging.get(partition)) is None or judging.done():
            judging = self._judging[partition] = asyncio.ensure_future(self._judge(scope))
        await asyncio.wait([judging], timeout=FOLLOW_S)
        return scope

    async def first(self, number: int, count: int) -> list[ScopeRecords]:
        """The first scopes, so many of ``count``, together in the time of one."""
        return list(await asyncio.gather(*(self.scope(partition, count) for partition in range(number))))

    async def _judge(self, scope: ScopeRecords) -> None:
        async with self._slots:
            await blocking(scope.follow)


def stretches(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where these offsets lie, which rise: first and end of each stretch. What is near to each other is one."""
    at = 0
    while at < len(offsets):
        last = at
        while last + 1 < len(offsets) and offsets[last + 1] - offsets[last] < NEAR:
            last += 1
        yield offsets[at], offsets[last] + 1
        at = last + 1


def _moved(record: Record) -> tuple[str, ...]:
    if isinstance(record, Commit):
        return tuple(dict.fromkeys(write.aggregate for write in record.writes))
    return named(record)


def judge(fold: ReferenceFold, message: LogRecord, record: Record) -> tuple[bool, str]:
    """Add the next record to the fold. Its verdict, and in a sentence why it is void. ``rule.step`` alone decides: the
    reasons are looked for afterwards, where a void record has changed nothing."""
    reason = _copy_reason(fold, message.key, record)
    if fold.append(message.key, record, message.time):
        return True, ""
    if reason:
        return False, reason
    if isinstance(record, Commit):
        return False, _commit_reason(fold, message.offset, record)
    if isinstance(record, records.Upgrade):
        return False, f"the log has format {fold.state.format} already"
    return False, "it is no record of hiveio"


def _copy_reason(fold: ReferenceFold, transaction: str, record: Record) -> str:
    """Before the record is judged: why format 2 takes it for a copy, or ""."""
    if fold.state.format < 2 or not isinstance(record, Transactional):
        return ""
    name, number = writer_of(transaction)
    latest = fold.state.writers.get(name)
    if latest is not None and number <= latest.number:
        return f"its writer has written a later record before, at {latest.offset}, so it is a copy or too late"
    return (
        "what its writer had last read is too long ago, so it may be a copy" if record.seen < fold.state.floor else ""
    )


def _commit_reason(fold: ReferenceFold, offset: int, record: Commit) -> str:
    known = fold.id_record(record.command.text)
    if known is not None and fold.window.holds(known, offset, fold.time):
        return f"its command was executed or closed before, by the record at {known.offset}"
    for verb, parts in (("writes", record.writes), ("reads", record.reads)):
        for part in parts:
            if (head := fold.head(part.aggregate)) != part.head:
                before, now = _named(part.head), _named(head)
                return (
                    f"{part.aggregate}, which it {verb}, has changed: it was decided after {before}, and the latest "
                    f"one is {now}"
                )
    if record.process is not None and fold.time < record.process.due:
        return f"it fires a deadline that is due at {record.process.due}, and the log's clock is at {fold.time}"
    return "the rule says so"


def _named(head: str) -> str:
    return f"transaction {head}" if head else "no transaction"
