"""The rule: a record's verdict is a pure function of the records before it in its partition.

Everyone who reads the log reaches the same verdicts: instances, the checker, ``hiveio.testing``. Neither Redis nor a
lock nor a clock enters. Modelled as ``Accepts`` and ``Step`` in the TLA+ module Scope.
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct

from hiveio.transaction.record import Barrier, Commit, Foreign, Format, Record

HASH = "crc32"


def scope_of(text: str, partitions: int) -> int:
    """The partition of a scope. The hash is pinned in the format record."""
    return zlib.crc32(text.encode()) % partitions


class Known(NamedTuple):
    """A command id on record: where, when (log time, ms), and whether it is an Idempotency-Key."""

    offset: int
    time: int
    keyed: bool

    @classmethod
    def parse(cls, text: str) -> "Known":
        offset, time, keyed = text.split(":")
        return cls(int(offset), int(time), keyed == "1")

    @property
    def text(self) -> str:
        return f"{self.offset}:{self.time}:{int(self.keyed)}"


class Window(NamedTuple):
    """How long command ids are remembered: in records, and keyed ones also in log time."""

    records: int
    time_ms: int

    def holds(self, known: Known, offset: int, time: int) -> bool:
        """Whether a command id is remembered when the record at ``offset`` and log time ``time`` is judged."""
        return offset - known.offset <= self.records or (known.keyed and time - known.time <= self.time_ms)


def accepts(record: Record, head_of: Callable[[str], str], known: bool) -> bool:
    """The verdict. ``head_of`` gives the head of an aggregate ("" if it has none) just before the record, ``known``
    says whether its command id is in the window there."""
    if not isinstance(record, Commit):
        return not isinstance(record, Foreign)
    if known:
        return False
    for write in record.writes:
        if head_of(write.aggregate) != write.head:
            return False
    return all(head_of(read.aggregate) == read.head for read in record.reads)


class Fact(Struct):
    """What the fold knows of an aggregate: its head and version."""

    head: str = ""
    version: int = 0


class Prefix:
    """The fold of a partition's prefix, in memory: the reference, and what the checker and ``hiveio.testing`` use."""

    def __init__(self, window: Window | None = None) -> None:
        self.window = window or Window(0, 0)
        self.facts: dict[str, Fact] = {}
        self.ids: dict[str, Known] = {}
        self.verdicts: list[bool] = []
        self.time = 0

    def known(self, text: str, offset: int, time: int) -> Known | None:
        found = self.ids.get(text)
        return found if found is not None and self.window.holds(found, offset, time) else None

    def forget(self) -> None:
        """Drop the command ids that have left the window; nothing that counts changes."""
        now = len(self.verdicts), self.time
        self.ids = {text: known for text, known in self.ids.items() if self.window.holds(known, *now)}

    def head(self, aggregate: str) -> str:
        fact = self.facts.get(aggregate)
        return fact.head if fact else ""

    def append(self, transaction: str, record: Record, time: int = 0) -> bool:
        """Judge the next record and fold it."""
        offset = len(self.verdicts)
        self.time = time = max(self.time, time)
        if isinstance(record, Format):
            if not offset:
                self.window = Window(record.idempotency_count, record.idempotency_time_ms)
            self.verdicts.append(True)
            return True
        command = record.command
        known = command is not None and self.known(command.text, offset, time) is not None
        verdict = accepts(record, self.head, known)
        self.verdicts.append(verdict)
        if not verdict:
            return False
        if isinstance(record, Barrier):
            for name in record.aggregates:
                self.facts.setdefault(name, Fact()).head = transaction
        elif isinstance(record, Commit):
            for write in record.writes:
                fact = self.facts.setdefault(write.aggregate, Fact())
                fact.head = transaction
                fact.version += len(write.events)
        if command is not None and not known:
            self.ids[command.text] = Known(offset, time, record.keyed)
        return True
