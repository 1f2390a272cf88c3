"""What the cache says of a scope, as the texts that it keeps: its watermark, and the entries of aggregates."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from hiveio.transaction.bounds import ENTRY_BYTES
from hiveio.transaction.record import FIRST_FORMAT, FORMAT
from hiveio.transaction.rule import IdRecord, IdWindow, LogState, Writer

_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Watermark(NamedTuple):
    """Every record below ``offset`` has been applied to the cache. A watermark is compared as a whole, with the id of
    the record before it. ``time``, ``format``, ``stamp`` and ``floor`` are those of LogState at that offset.
    ``known`` is the newest format that the version which has moved it knows."""

    offset: int
    time: int
    topic: str
    generation: str
    format: int = FIRST_FORMAT
    stamp: int = 0
    floor: int = 0
    known: int = FORMAT
    transaction: str = ""

    @property
    def text(self) -> str:
        return "|".join(map(str, self))

    @staticmethod
    @lru_cache(maxsize=256)
    def parse(text: bytes) -> "Watermark | None":
        """The watermark, or None where the text is empty or is none. The same text gives the same object, since most
        replies carry the watermark of the reply before."""
        parts = text.decode().split("|", 8)
        if len(parts) != 9:
            return None
        offset, time, topic, generation, *parts, transaction = parts
        format, stamp, floor, known = map(int, parts)
        return Watermark(int(offset), int(time), topic, generation, format, stamp, floor, known, transaction)

    def moved(self, offset: int, state: LogState, transaction: str) -> "Watermark":
        """The watermark of the same generation at a later offset."""
        numbers = state.format, state.stamp, state.floor, FORMAT
        return Watermark(offset, state.time, self.topic, self.generation, *numbers, transaction)

    def log_state(self, window: IdWindow, writers: Iterable[tuple[str, Writer]]) -> LogState:
        return LogState(window, self.format, self.time, self.stamp, self.floor, writers)


class Entry(Struct, gc=False):
    """An aggregate as it is from the watermark ``at`` on, until a record touches it. The entry of a record that is not
    read back yet has the ``at`` of the entry on which its command was performed.

    ``unfolded`` are the events, as JSON with commas between, that the instance which applied them could not fold into
    the snapshot. ``unfolded_from`` is the offset of the record of the first one. ``fault`` says why this instance
    cannot fold them either; ``state`` is None then. ``process`` is the Process of a process, encoded.

    ``state`` is also None for an aggregate that has never existed. An entry whose ``head`` is None says only that
    others applied a record which touched the aggregate: the cache has its new entry from ``at`` on.
    """

    version: int = 0
    head: str | None = ""
    state: Any = None
    snapshot: bytes = b""
    at: int = 0
    unfolded: bytes = b""
    unfolded_from: int = 0
    fault: str = ""
    process: bytes = b""

    def end(self) -> None:
        """It is a process that has ended: nothing needs its state any more."""
        self.state, self.snapshot, self.unfolded, self.unfolded_from, self.fault = None, b"", b"", 0, ""

    @property
    def folded_size(self) -> int:
        """The bytes of what is folded."""
        return len(self.snapshot) + len(self.process)

    @property
    def size(self) -> int:
        """About the bytes of memory that it takes, without its state."""
        return self.folded_size + len(self.unfolded) + ENTRY_BYTES

    @property
    def text(self) -> bytes:
        begin = f"{self.version} {self.head or ''} ".encode()
        if self.process:
            begin += b"=%d %s" % (len(self.process), self.process)
        if not self.unfolded:
            return begin + self.snapshot
        return begin + b"~%d %d %s%s" % (self.unfolded_from, len(self.snapshot), self.snapshot, self.unfolded)

    @classmethod
    def parse(cls, text: bytes, at: int) -> "Entry":
        """The entry that this text of the cache says; its state is not decoded."""
        version, head, snapshot = text.split(b" ", 2)
        entry = cls(int(version), head.decode(), None, snapshot, at)
        if snapshot[:1] == b"=":  # no JSON begins like that, nor with the other sign
            bytes, rest = snapshot[1:].split(b" ", 1)
            size = int(bytes)
            entry.process, entry.snapshot = rest[:size], rest[size:]
        if entry.snapshot[:1] == b"~":
            unfolded_from, bytes, rest = entry.snapshot[1:].split(b" ", 2)
            size = int(bytes)
            entry.snapshot, entry.unfolded, entry.unfolded_from = rest[:size], rest[size:], int(unfolded_from)
        return entry

    @property
    def events(self) -> list[msgspec.Raw]:
        """The events of ``unfolded``."""
        return _raws(b"[%s]" % self.unfolded)


class CacheReply(NamedTuple):
    """One aggregate and one command id, as the cache has them at its ``watermark``. None says that it has none."""

    watermark: Watermark | None
    stored_entry: bytes | None = None
    stored_id: bytes | None = None

    @property
    def entry(self) -> Entry | None:
        """The entry; its state is not decoded. Raises ValueError where somebody has changed it by hand, as ``id``
        does."""
        if not self.stored_entry or self.watermark is None:
            return None
        return Entry.parse(self.stored_entry, self.watermark.offset)

    @property
    def id(self) -> IdRecord | None:
        return IdRecord.parse(self.stored_id.decode()) if self.stored_id else None


class WatermarkReply(NamedTuple):
    """How far the cache has come. ``text`` is the watermark as it is stored: somebody may have changed it by hand.
    ``writers`` are the writers of the log at that offset."""

    text: bytes
    watermark: Watermark | None
    writers: dict[str, Writer]
