"""The rule: a record's verdict, and what it does to the fold, are a pure function of the records before it.

Everyone who reads the log reaches the same verdicts: instances, the checker, ``hiveio.testing``. These depend neither
on Redis nor on a lock or a clock of this process. Modelled as ``Accepts`` and ``Step`` in the TLA+ module Scope; the
log's clock in the module Window, what process managers add in the module Saga.

``step`` judges a record and says its effects. ``adopt`` says the effects of a record that others have judged. Nothing
else in the package knows which kind of record moves heads, or puts a command id on record.
"""

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from msgspec import Raw, Struct

from hiveio.transaction.process import advanced
from hiveio.transaction.record import (
    FIRST_FORMAT,
    PROCESSES,
    Cause,
    Commit,
    Foreign,
    Format,
    ProcessStep,
    Record,
    Transactional,
    Upgrade,
)

HASH = "crc32"
WRITERS = 1_000  # that are remembered; the number is part of format 2
STEPS = 60  # the log's clock goes on by this part of the time window in one step at most; part of format 2


def scope_of(text: str, partitions: int) -> int:
    """The partition of a scope. The hash is pinned in the format record."""
    return zlib.crc32(text.encode()) % partitions


class IdRecord(Struct, frozen=True, gc=False):
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
        return f"{self.offset}:{self.time}:{1 if self.keyed else 0}"


class IdWindow(NamedTuple):
    """How long command ids are remembered: in records, and keyed ones also in log time."""

    records: int
    time_ms: int

    @classmethod
    def of(cls, format: Format) -> "IdWindow":
        """The one that a format record pins."""
        return cls(format.idempotency_count, format.idempotency_time_ms)

    @property
    def step_ms(self) -> int:
        """The longest step of the log's clock in format 2."""
        return max(1, self.time_ms // STEPS)

    def holds(self, id: IdRecord, offset: int, time: int) -> bool:
        """Whether a command id is remembered when the record at ``offset`` and log time ``time`` is judged."""
        return offset - id.offset <= self.records or (id.keyed and time - id.time <= self.time_ms)


def writer_of(transaction: str) -> tuple[str, int]:
    """The writer that a transaction id names, and the number of the record among those of its writer: 1 to 15
    hexadecimal digits after the last hyphen. An id without them belongs to a writer with one record."""
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
    are those that wrote the latest records, first the one whose latest record is the oldest; all records of forgotten
    writers are below ``floor``.
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
        """Take the next record. Whether it may be accepted: in format 2 neither a copy nor one that its writer's later
        records have overtaken is."""
        if stamp > 0:  # marks of somebody's transactions have none
            if self.format < 2:
                self.time = max(self.time, stamp)
            elif (step := stamp - self.stamp) > 0:
                self.time += step if step < self._step_ms else self._step_ms
            self.stamp = stamp
        if isinstance(record, Transactional):
            return self._move(offset, transaction, record.seen) or self.format < 2
        self.moved = ()
        if isinstance(record, Upgrade):
            before, self.format = self.format, max(self.format, record.format)
            return self.format > before
        if isinstance(record, Format) and not offset:
            self.format = record.format
            self.window = IdWindow.of(record)
            self._step_ms = self.window.step_ms
        return not isinstance(record, Foreign)

    def _move(self, offset: int, transaction: str, seen: int) -> bool:
        """Whether the record is the first that its writer wrote with so high a number.

        The floor tells a copy of a record of a forgotten writer: the original is below it, and its writer had seen only
        what came before the original.
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
            forgotten, last = writers.popitem(last=False)
            self.floor = last.offset + 1
            self.moved = (name, forgotten)
        return new


class Lookup(Protocol):
    """What a verdict needs of the records before it, in addition to LogState."""

    def head(self, aggregate: str) -> str:
        """The head of an aggregate; "" if it has none."""

    def id_record(self, text: str) -> IdRecord | None:
        """A command id on record. One that the window has left may be given or not."""


class ProcessEffect(NamedTuple):
    """A process has made a step, or an aggregate has taken the command of one, at this time by the log's clock."""

    aggregate: str
    step: ProcessStep | None
    cause: Cause | None
    time: int
    offset: int

    @property
    def in_time(self) -> bool:
        """Whether it fires no deadline before its time."""
        return self.step is None or self.time >= self.step.due

    def after(self, aggregate: str, process: bytes) -> bytes:
        """What is kept of the process of an aggregate after the step; another one's is what it was."""
        if aggregate != self.aggregate:
            return process
        return advanced(process, self.step, self.cause, self.time, self.offset)

    def ends(self, aggregate: str) -> bool:
        """Whether it is a process that has ended by the step."""
        return self.step is not None and self.step.ends and aggregate == self.aggregate


class Effects(Struct, frozen=True, gc=False):
    """What a record does to the fold of its partition.

    ``verdict`` is None where nobody knows it any more: then ``heads`` may have moved, or not. ``heads`` are the
    aggregates whose head is the record's transaction from now on, with the events that each of them gains: by so many
    its version grows. ``id`` is the command id that is on record from now on; ``id_unknown`` says that it depends on
    more than the verdict whether there is one. ``writers`` are those that have moved on or are forgotten. ``process``
    is the step of a process.
    """

    verdict: bool | None
    heads: Mapping[str, Sequence[Raw]]
    id: tuple[str, IdRecord] | None
    writers: tuple[str, ...]
    id_unknown: bool = False
    process: ProcessEffect | None = None


_NO_HEADS: Mapping[str, Sequence[Raw]] = {}


def step(state: LogState, offset: int, transaction: str, stamp: int, record: Record, lookup: Lookup) -> Effects:
    """Judge the next record. ``state`` and ``lookup`` are those of the prefix just before it; ``state`` moves on."""
    may_count = state.take(offset, transaction, stamp, record)
    if not may_count or not isinstance(record, Transactional):
        return Effects(may_count, _NO_HEADS, None, state.moved)
    id, command = None, record.command
    if command is not None:
        text = command.text
        found = lookup.id_record(text)
        if found is None or not state.window.holds(found, offset, state.time):
            id = (text, IdRecord(offset, state.time, record.keyed))
        elif isinstance(record, Commit):
            return Effects(False, _NO_HEADS, None, state.moved)
    if not isinstance(record, Commit):
        return Effects(True, _heads(record), id, state.moved)
    if not _heads_match(record, lookup):
        return Effects(False, _NO_HEADS, None, state.moved)
    process = _process(state, offset, record) if record.process is not None or record.cause is not None else None
    if process is not None and not process.in_time:
        return Effects(False, _NO_HEADS, None, state.moved)
    return Effects(True, _heads(record), id, state.moved, False, process)


def adopt(state: LogState, offset: int, transaction: str, stamp: int, record: Record, verdict: bool | None) -> Effects:
    """The effects of the next record, by the verdict of others, or None where it is unknown. ``state`` moves on."""
    state.take(offset, transaction, stamp, record)
    if verdict is False or not isinstance(record, Transactional):
        return Effects(verdict, _NO_HEADS, None, state.moved)
    if record.command is None:
        return Effects(verdict, _heads(record), None, state.moved)
    if verdict and isinstance(record, Commit):
        id = (record.command.text, IdRecord(offset, state.time, record.keyed))
        return Effects(verdict, _heads(record), id, state.moved, process=_process(state, offset, record))
    # A barrier is accepted whether its command is on record already or not.
    return Effects(verdict, _heads(record), None, state.moved, id_unknown=True)


def _heads_match(commit: Commit, lookup: Lookup) -> bool:
    """Whether all aggregates that it writes or asks to validate have the heads that it names."""
    for write in commit.writes:
        if lookup.head(write.aggregate) != write.head:
            return False
    for read in commit.reads:  # noqa: SIM110 - most commits have none, and a generator costs them more
        if lookup.head(read.aggregate) != read.head:
            return False
    return True


def _process(state: LogState, offset: int, record: Commit) -> ProcessEffect | None:
    """What an accepted record does to what is kept of its target besides its state. Versions that know older formats
    only do not see it, so in such a log it is nothing."""
    if (record.process is None and record.cause is None) or state.format < PROCESSES:
        return None
    return ProcessEffect(record.command.target, record.process, record.cause, state.time, offset)


def _heads(record: Transactional) -> Mapping[str, Sequence[Raw]]:
    if not isinstance(record, Commit):
        return dict.fromkeys(record.aggregates, ())
    writes = record.writes
    if len(writes) == 1:  # as most have
        return {writes[0].aggregate: writes[0].events}
    heads = {write.aggregate: write.events for write in writes}
    if len(heads) < len(writes):  # one aggregate several times, as no version of this package writes it
        heads = dict.fromkeys(heads, ())
        for write in writes:
            heads[write.aggregate] += write.events
    return heads


class AggregateHead(Struct):
    """What the fold knows of an aggregate: its head and version, and what is kept of it as a process."""

    head: str = ""
    version: int = 0
    process: bytes = b""


class ReferenceFold:
    """The fold of a partition's prefix, whole and in memory: what the command line and ``hiveio.testing`` use."""

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

    def head(self, aggregate: str) -> str:
        found = self.aggregates.get(aggregate)
        return found.head if found is not None else ""

    def id_record(self, text: str) -> IdRecord | None:
        return self.ids.get(text)

    def forget(self) -> None:
        """Drop the command ids that have left the window; no later verdict changes by that."""
        now = len(self.verdicts), self.time
        self.ids = {text: id for text, id in self.ids.items() if self.window.holds(id, *now)}

    def append(self, transaction: str, record: Record, time: int = 0) -> bool:
        """Judge the next record, with this timestamp, and fold it. Its verdict."""
        effects = step(self.state, len(self.verdicts), transaction, time, record, self)
        for name, events in effects.heads.items():
            aggregate = self.aggregates.setdefault(name, AggregateHead())
            aggregate.head = transaction
            aggregate.version += len(events)
            if effects.process is not None:
                aggregate.process = effects.process.after(name, aggregate.process)
        if effects.id is not None:
            text, id = effects.id
            self.ids[text] = id
        self.verdicts.append(verdict := bool(effects.verdict))
        return verdict
