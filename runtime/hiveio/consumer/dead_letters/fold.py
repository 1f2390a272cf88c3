"""The fold of a dead-letter partition: it says which dead letters are open, and which keys are parked."""

from collections.abc import Iterable, Mapping

from hiveio.consumer.dead_letters.format import (
    ACTORS,
    MARK,
    OWNER,
    TOPIC_ID,
    Key,
    headers_of,
    marked,
    origin_of,
    parking_key,
)
from hiveio.kafka import Message
from hiveio.kafka.assigned import Owner


class ParkedKey:
    """A key with open dead letters. ``first`` and ``last`` are offsets of the dead-letter partition."""

    __slots__ = ("actors", "asked", "count", "first", "gone", "last", "origin")

    def __init__(self, first: int) -> None:
        self.first = self.last = first
        self.count = 0
        # Of the last dead letter: its writer, the id of its record's topic, and the record's offset there.
        self.origin = (b"", b"", -1)
        self.actors: frozenset[str] = frozenset()
        self.asked = False  # somebody has asked for another attempt
        self.gone: set[int] = set()  # dead letters closed out of order

    def open(self, at: int) -> bool:
        return self.first <= at <= self.last and at not in self.gone


class Fold:
    """The state that follows from the dead letters and marks of a dead-letter partition.

    ``next`` is the offset of the record to add next. The memory used is one entry for each parked key.

    ``owners`` are the known owners of the partition, in order. A dead letter at an offset where one of them had begun,
    which is not its own, came late: its writer had lost the partition, and the owner has decided about the record by
    itself. Such a dead letter is void; ``void`` has them by their offsets, until a mark closes them for everybody.
    """

    def __init__(self, next: int = 0, owners: Iterable[Owner | None] = ()) -> None:
        self.next = next
        self.owners: list[Owner] = []
        for owner in owners:
            self.owned(owner)
        self.void: dict[int, Message] = {}
        self.entries: dict[Key, ParkedKey] = {}
        self.count = 0  # dead letters that are open

    def owned(self, owner: Owner | None) -> None:
        """Add an owner of the partition, which came after the owners that are known already."""
        if owner is not None and owner not in self.owners:
            self.owners.append(owner)

    def add(self, message: Message) -> Key | None:
        """Add the next message, and return the key that it is about."""
        at = message.offset()
        assert at is not None
        self.next = at + 1
        headers = headers_of(message)
        kind = headers.get(MARK)
        if kind == b"forget":
            self.entries.clear()
            self.void.clear()
            self.count = 0
            return None
        key = parking_key(message, headers)
        if key is None:
            return None
        if kind is None:
            if self._is_void(at, headers):
                self.void[at] = message
            else:
                self._park(key, at, headers)
        elif kind in (b"done", b"dropped", b"void") and (closed := marked(headers)) in self.void:
            del self.void[closed]
        elif (entry := self.entries.get(key)) is not None:
            if kind in (b"done", b"dropped", b"void"):
                self._close(key, entry, marked(headers))
            elif kind in (b"retry", b"failed"):
                entry.asked = kind == b"retry"
        return key

    def _is_void(self, at: int, headers: Mapping[str, bytes]) -> bool:
        present = next((n for n in reversed(range(len(self.owners))) if self.owners[n].companion_end <= at), None)
        return present is not None and headers.get(OWNER, b"") not in {o.id.encode() for o in self.owners[present:]}

    def _park(self, key: Key, at: int, headers: Mapping[str, bytes]) -> None:
        origin = origin_of(headers)
        if origin is None:
            return  # hiveio did not write it
        writer = headers.get(OWNER, b""), headers.get(TOPIC_ID, b"")
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = ParkedKey(at)
        elif writer == entry.origin[:2] and origin[2] <= entry.origin[2]:
            entry.gone.add(at)  # written twice
            return
        entry.last, entry.origin = at, (*writer, origin[2])
        entry.actors |= frozenset(headers.get(ACTORS, b"").decode("utf-8", "replace").split(","))
        entry.count += 1
        self.count += 1

    def _close(self, key: Key, entry: ParkedKey, at: int | None) -> None:
        if at is None or not entry.open(at):
            return
        entry.gone.add(at)
        entry.count -= 1
        self.count -= 1
        if not entry.count:
            del self.entries[key]
