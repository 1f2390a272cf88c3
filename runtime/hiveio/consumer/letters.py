"""The form of a dead letter, and the fold of a dead-letter partition: what is open, which keys are parked.

A dead letter is the record as it was (key, value, headers) with headers that say why. What is done about it is a
*mark*, a record of the same key without a value: the topic alone tells what is open, to all, after every restart.
"""

from collections.abc import Mapping

from hiveio.kafka import Message
from hiveio.kafka.session import Outgoing

# -- headers of a dead letter
ORIGIN = "hive-dead-origin"  # <topic>/<partition>/<offset>
REASON = "hive-dead-reason"  # undecodable, unknown, refused, failed, or parked: it stands behind another of its key
EXCEPTION = "hive-dead-exception"
ATTEMPTS = "hive-dead-attempts"
ACTORS = "hive-dead-actors"  # those that have not handled it
TIME = "hive-dead-time"  # of the record, ms since the epoch
# -- headers of a mark
MARK = "hive-dead-mark"  # done, dropped: a letter is closed; retry, failed: its key is to be tried, is not; forget: all
AT = "hive-dead-at"  # the letter's offset in the dead-letter partition
OURS = "hive-dead-"
TEXT_LIMIT = 2_000  # of an exception

Key = bytes | int  # of a record; one without a key stands for itself, by its offset


def dead_topic(topic: str, group: str) -> str:
    return f"{topic}.{group}.dead"


def letter(message: Message, reason: str, exception: str, attempts: int, actors: frozenset[str]) -> Outgoing:
    headers = [(name, text) for name, text in _raw_headers(message) if not name.startswith(OURS)]
    origin = f"{message.topic()}/{message.partition()}/{message.offset()}"
    why = {ORIGIN: origin, REASON: reason, ATTEMPTS: str(attempts), ACTORS: ",".join(sorted(actors))}
    why |= {TIME: str(message.timestamp()[1])} | ({EXCEPTION: exception[:TEXT_LIMIT]} if exception else {})
    return Outgoing(_raw_key(message), message.value() or b"", [*headers, *why.items()])


def mark(kind: str, message: Message, exception: str = "") -> Outgoing:
    """A mark on a dead letter."""
    headers: list[tuple[str, str | bytes | None]] = [(MARK, kind), (AT, str(message.offset()))]
    headers.append((ORIGIN, headers_of(message).get(ORIGIN, b"")))
    if exception:
        headers.append((EXCEPTION, exception[:TEXT_LIMIT]))
    return Outgoing(_raw_key(message), None, headers)


def forget() -> Outgoing:
    """The mark that closes all letters before it: the projection is built anew and will meet their records again."""
    return Outgoing(None, None, [(MARK, "forget")])


def headers_of(message: Message) -> dict[str, bytes]:
    return {name: text for name, text in _raw_headers(message) if isinstance(text, bytes)}


def origin_of(headers: Mapping[str, bytes]) -> tuple[str, int, int] | None:
    """Topic, partition and offset of the record; None when the headers do not tell."""
    try:
        topic, partition, offset = headers[ORIGIN].decode().rsplit("/", 2)
        return topic, int(partition), int(offset)
    except (KeyError, ValueError):
        return None


def key_of(message: Message, headers: Mapping[str, bytes]) -> Key | None:
    if (key := _raw_key(message)) is not None:
        return key
    origin = origin_of(headers)
    return None if origin is None else origin[2]


def _raw_key(message: Message) -> bytes | None:
    key = message.key()
    return key.encode() if isinstance(key, str) else key


def _raw_headers(message: Message) -> list[tuple[str, str | bytes | None]]:
    found: object = message.headers()
    return list(found) if isinstance(found, list) else []


class Parked:
    """A key with open letters. ``first`` and ``last`` are offsets of the dead-letter partition."""

    __slots__ = ("actors", "asked", "count", "first", "gone", "last", "origin")

    def __init__(self, first: int) -> None:
        self.first = self.last = first
        self.count = 0
        self.origin = -1  # the last record's offset in the source partition
        self.actors: frozenset[str] = frozenset()
        self.asked = False  # somebody wants it tried again
        self.gone: set[int] = set()  # letters closed out of order

    def open(self, at: int) -> bool:
        return self.first <= at <= self.last and at not in self.gone


class Parking:
    """The fold. ``next`` is the offset to fold next; memory is one entry a parked key."""

    def __init__(self, next: int = 0) -> None:
        self.next = next
        self.entries: dict[Key, Parked] = {}
        self.count = 0  # letters that are open

    def fold(self, message: Message) -> Key | None:
        """Take the next message. Gives the key that it was about."""
        at = message.offset()
        assert at is not None
        self.next = at + 1
        headers = headers_of(message)
        kind = headers.get(MARK)
        if kind == b"forget":
            self.entries.clear()
            self.count = 0
            return None
        key = key_of(message, headers)
        if key is None:
            return None
        if kind is None:
            self._park(key, at, headers)
        elif (entry := self.entries.get(key)) is not None:
            if kind in (b"done", b"dropped"):
                self._close(key, entry, int(headers.get(AT, b"-1")))
            elif kind in (b"retry", b"failed"):
                entry.asked = kind == b"retry"
        return key

    def _park(self, key: Key, at: int, headers: Mapping[str, bytes]) -> None:
        origin = origin_of(headers)
        if origin is None:
            return  # nobody's letter
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = Parked(at)
        elif origin[2] <= entry.origin:
            return  # a letter written twice
        entry.last, entry.origin = at, origin[2]
        entry.actors |= frozenset(headers.get(ACTORS, b"").decode("utf-8", "replace").split(","))
        entry.count += 1
        self.count += 1

    def _close(self, key: Key, entry: Parked, at: int) -> None:
        if not entry.open(at):
            return
        entry.gone.add(at)
        entry.count -= 1
        self.count -= 1
        if not entry.count:
            del self.entries[key]
