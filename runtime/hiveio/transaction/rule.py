"""The rule: a record's verdict is a pure function of the records before it in its partition.

Everyone who reads the log reaches the same verdicts: instances, the checker, ``hiveio.testing``. Neither Redis nor a
lock nor a clock of this process enters. Modelled as ``Accepts`` and ``Step`` in the TLA+ module Scope; the log's clock
in the module Window.
"""

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec import Struct

from hiveio.transaction.record import FIRST_FORMAT, Barrier, Commit, Foreign, Format, Record, Upgrade

HASH = "crc32"
WRITERS = 1_000  # remembered; that is part of format 2
STEPS = 60  # the log's clock goes on by this part of the time window in one step at most; part of format 2


def scope_of(text: str, partitions: int) -> int:
    """The partition of a scope. The hash is pinned in the format record."""
    return zlib.crc32(text.encode()) % partitions


class IdRecord(NamedTuple):
    """A command id on record: where, when (log time, ms), and whether it is an Idempotency-Key."""

    offset: int
    time: int
    keyed: bool

    @classmethod
    def parse(cls, text: str) -> "IdRecord":
        offset, time, keyed = text.split(":")
        return cls(int(offset), int(time), keyed == "1")

    @property
    def text(self) -> str:
        return f"{self.offset}:{self.time}:{int(self.keyed)}"


class IdWindow(NamedTuple):
    """How long command ids are remembered: in records, and keyed ones also in log time."""

    records: int
    time_ms: int

    @property
    def step_ms(self) -> int:
        """The longest step of the log's clock in format 2."""
        return max(1, self.time_ms // STEPS)

    def holds(self, known: IdRecord, offset: int, time: int) -> bool:
        """Whether a command id is remembered when the record at ``offset`` and log time ``time`` is judged."""
        return offset - known.offset <= self.records or (known.keyed and time - known.time <= self.time_ms)


def writer_of(transaction: str) -> tuple[str, int]:
    """The writer that a transaction id names, and the number of the record among those of its writer: 1 to 15
    hexadecimal digits behind the last hyphen. An id that has none is a writer's with one record."""
    name, hyphen, digits = transaction.rpartition("-")
    if hyphen and 0 < len(digits) < 16 and not digits.strip("0123456789abcdef"):
        return name, int(digits, 16)
    return transaction, 0


class Writer(Struct):
    """How far a writer has come: the number of its latest record, and the offset of that."""

    number: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> "Writer":
        return cls(*map(int, text.split(":")))

    @property
    def text(self) -> str:
        return f"{self.number}:{self.offset}"


class LogState:
    """What the rule needs of a prefix besides heads and command ids. It depends on the records alone, on no verdict.

    ``time`` is the log's clock (ms), ``stamp`` the broker's timestamp of the latest record that has one. ``writers``
    are those that wrote the latest records, the one that has been still for longest first; below ``floor`` stand all
    records of those that are forgotten.
    """

    __slots__ = ("_step_ms", "floor", "format", "moved", "stamp", "time", "window", "writers")

    def __init__(
        self,
        window: IdWindow,
        format: int = FIRST_FORMAT,
        time: int = 0,
        stamp: int = 0,
        floor: int = 0,
        writers: Iterable[tuple[str, Writer]] = (),
    ) -> None:
        self.window, self._step_ms = window, window.step_ms
        self.format, self.time, self.stamp, self.floor = format, time, stamp, floor
        self.writers = OrderedDict(sorted(writers, key=lambda pair: pair[1].offset))
        self.moved: tuple[str, ...] = ()  # the writers that the latest record has moved on, or made forgotten

    def take(self, offset: int, transaction: str, stamp: int, record: Record) -> bool:
        """Take the next record. Whether it may count: in format 2 neither a copy nor one that its writer's later
        records have overtaken does."""
        if stamp > 0:  # marks of somebody's transactions have none
            if self.format < 2:
                self.time = max(self.time, stamp)
            elif (step := stamp - self.stamp) > 0:
                self.time += step if step < self._step_ms else self._step_ms
            self.stamp = stamp
        if isinstance(record, (Commit, Barrier)):
            return self._move(offset, transaction, record.seen) or self.format < 2
        self.moved = ()
        if isinstance(record, Upgrade):
            before, self.format = self.format, max(self.format, record.format)
            return self.format > before
        if isinstance(record, Format) and not offset:
            self.format = record.format
            self.window = IdWindow(record.idempotency_count, record.idempotency_time_ms)
            self._step_ms = self.window.step_ms
        return True

    def _move(self, offset: int, transaction: str, seen: int) -> bool:
        """Whether the record is the first that its writer wrote with so high a number.

        A copy of a record of a forgotten writer is known by the floor: the original stands below it, and whoever
        appended that had not seen more than what stood before it.
        """
        name, number = writer_of(transaction)
        writers = self.writers
        latest = writers.get(name)
        if latest is not None:
            if number <= latest.number:
                self.moved = ()
                return False
            latest.number, latest.offset = number, offset
            writers.move_to_end(name)
            self.moved = (name,)
            return seen >= self.floor
        new = seen >= self.floor
        writers[name] = Writer(number, offset)
        self.moved = (name,)
        if len(writers) > WRITERS:
            forgotten, stood = writers.popitem(last=False)
            self.floor = stood.offset + 1
            self.moved = (name, forgotten)
        return new


def accepts(record: Record, head_of: Callable[[str], str], known: bool) -> bool:
    """The verdict on a record that may count. ``head_of`` gives the head of an aggregate ("" if it has none) just
    before the record, ``known`` says whether its command id is in the window there."""
    if not isinstance(record, Commit):
        return not isinstance(record, Foreign)
    if known:
        return False
    for write in record.writes:
        if head_of(write.aggregate) != write.head:
            return False
    return all(head_of(read.aggregate) == read.head for read in record.reads)


class AggregateHead(Struct):
    """What the fold knows of an aggregate: its head and version."""

    head: str = ""
    version: int = 0


class ReferenceFold:
    """The fold of a partition's prefix, in memory: the reference, and what the checker and ``hiveio.testing`` use."""

    def __init__(self, window: IdWindow | None = None) -> None:
        self.state = LogState(window or IdWindow(0, 0))
        self.aggregates: dict[str, AggregateHead] = {}
        self.ids: dict[str, IdRecord] = {}
        self.verdicts: list[bool] = []

    @property
    def window(self) -> IdWindow:
        return self.state.window

    @property
    def time(self) -> int:
        return self.state.time

    def known(self, text: str, offset: int, time: int) -> IdRecord | None:
        found = self.ids.get(text)
        return found if found is not None and self.window.holds(found, offset, time) else None

    def forget(self) -> None:
        """Drop the command ids that have left the window; nothing that counts changes."""
        now = len(self.verdicts), self.time
        self.ids = {text: known for text, known in self.ids.items() if self.window.holds(known, *now)}

    def head(self, aggregate: str) -> str:
        found = self.aggregates.get(aggregate)
        return found.head if found else ""

    def append(self, transaction: str, record: Record, time: int = 0) -> bool:
        """Judge the next record, with this timestamp, and fold it."""
        offset = len(self.verdicts)
        counts = self.state.take(offset, transaction, time, record)
        command = record.command if isinstance(record, (Commit, Barrier)) else None
        known = command is not None and self.known(command.text, offset, self.time) is not None
        verdict = counts and accepts(record, self.head, known)
        self.verdicts.append(verdict)
        if not verdict:
            return False
        if isinstance(record, Barrier):
            for name in record.aggregates:
                self.aggregates.setdefault(name, AggregateHead()).head = transaction
        elif isinstance(record, Commit):
            for write in record.writes:
                found = self.aggregates.setdefault(write.aggregate, AggregateHead())
                found.head = transaction
                found.version += len(write.events)
        if isinstance(record, (Commit, Barrier)) and command is not None and not known:
            self.ids[command.text] = IdRecord(offset, self.time, record.keyed)
        return True
