"""The form of a dead letter, and the fold of a dead-letter partition: what is open, which keys are parked.

A dead letter is the record as it was (key, value, headers) with headers that say why. What is done about it is a
*mark*, a record of the same key without a value: the topic alone tells what is open, to all, after every restart.
"""

from collections.abc import Iterable, Mapping

from hiveio.kafka import Message
from hiveio.kafka.assigned import Owner
from hiveio.kafka.headers import headers_of as all_headers
from hiveio.kafka.session import Outgoing

# -- headers of a dead letter
ORIGIN = "hive-dead-origin"  # <topic>/<partition>/<offset>
REASON = "hive-dead-reason"  # undecodable, unknown, refused, failed, or parked: it stands behind another of its key
EXCEPTION = "hive-dead-exception"
ATTEMPTS = "hive-dead-attempts"
ACTORS = "hive-dead-actors"  # those that have not handled it
OWNER = "hive-dead-owner"  # who had the partition when it was written: see Owner
TOPIC_ID = "hive-dead-topic-id"  # of the record's topic: one that is made anew under its name has another
TIME = "hive-dead-time"  # of the record, ms since the epoch
EMPTY_KEY = "hive-dead-empty-key"  # the record has a key of no bytes, which the client writes as none
OMITTED = "hive-dead-omitted"  # the letter was too large with the record's value and headers: they are at the origin
# -- headers of a mark
# done, dropped, void: a letter is closed; retry, failed: its key is to be tried, is not to be; forget: all are closed
MARK = "hive-dead-mark"
AT = "hive-dead-at"  # the letter's offset in the dead-letter partition
OURS = "hive-dead-"
TEXT_LIMIT = 2_000  # of an exception
LONGEST_KEY = 65_536  # bytes, of a letter that was too large

Key = bytes | int  # of a record; one without a key stands for itself, by its offset


def dead_topic(topic: str, group: str) -> str:
    return f"{topic}.{group}.dead"


def letter(
    message: Message,
    reason: str,
    exception: str,
    attempts: int,
    actors: frozenset[str],
    *,
    owner: str,
    topic_id: str = "",
) -> Outgoing:
    headers = [pair for pair in all_headers(message) if not pair[0].startswith(OURS)]
    origin = f"{message.topic()}/{message.partition()}/{message.offset()}"
    why = {ORIGIN: origin, REASON: reason, ATTEMPTS: str(attempts), ACTORS: ",".join(sorted(actors))}
    why |= {OWNER: owner, TIME: str(message.timestamp()[1])} | (
        {EXCEPTION: exception[:TEXT_LIMIT]} if exception else {}
    )
    if topic_id:
        why[TOPIC_ID] = topic_id
    key = key_of(message)
    if key == b"":
        why[EMPTY_KEY] = ""
    return Outgoing(key, message.value(), [*headers, *_encoded(why)])


def slim(large: Outgoing) -> Outgoing:
    """A letter without what the record holds, which its origin has still; its key stays, or is too large itself."""
    own = [pair for pair in large.headers if pair[0].startswith(OURS)]
    key = large.key if len(large.key or b"") <= LONGEST_KEY else None
    size = str(len(large.value or b"")).encode()
    return Outgoing(key, None, [*own, (OMITTED, size)])


def is_slim(made: Outgoing) -> bool:
    return any(name == OMITTED for name, _ in made.headers)


def mark(kind: str, message: Message, exception: str = "") -> Outgoing:
    """A mark on a dead letter."""
    found = headers_of(message)
    headers: list[tuple[str, str | bytes | None]] = [(MARK, kind), (AT, str(message.offset()))]
    headers += [(name, found[name]) for name in (ORIGIN, EMPTY_KEY) if name in found]
    if exception:
        headers += _encoded({EXCEPTION: exception[:TEXT_LIMIT]})
    return Outgoing(key_of(message), None, headers)


def _encoded(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    # The text of an exception may hold what is no UTF-8, the client does not look, and the process would end.
    return [(name, text.encode("utf-8", "backslashreplace")) for name, text in headers.items()]


def forget() -> Outgoing:
    """The mark that closes all letters before it: the projection is built anew and will meet their records again."""
    return Outgoing(None, None, [(MARK, "forget")])


def headers_of(message: Message) -> dict[str, bytes]:
    return {name: text for name, text in all_headers(message) if text is not None}


def origin_of(headers: Mapping[str, bytes]) -> tuple[str, int, int] | None:
    """Topic, partition and offset of the record; None when the headers do not tell."""
    try:
        topic, partition, offset = headers[ORIGIN].decode().rsplit("/", 2)
        return topic, int(partition), int(offset)
    except (KeyError, ValueError):
        return None


def time_of(headers: Mapping[str, bytes]) -> int:
    """When the record was written, in ms since the epoch; 0 when the headers do not tell."""
    return _number(headers.get(TIME)) or 0


def marked(headers: Mapping[str, bytes]) -> int | None:
    """The offset of the letter that a mark is about."""
    return _number(headers.get(AT))


def _number(text: bytes | None) -> int | None:
    return int(text) if text and len(text) <= 18 and text.isdigit() else None


def parking_key(message: Message, headers: Mapping[str, bytes]) -> Key | None:
    """What a letter, or a mark, parks and frees; None when the headers do not tell."""
    if EMPTY_KEY in headers:
        return b""
    if (key := key_of(message)) is not None:
        return key
    origin = origin_of(headers)
    return None if origin is None else origin[2]


def key_of(message: Message) -> bytes | None:
    """The key as it stands in Kafka."""
    key = message.key()
    return key.encode() if isinstance(key, str) else key


class Parked:
    """A key with open letters. ``first`` and ``last`` are offsets of the dead-letter partition."""

    __slots__ = ("actors", "asked", "count", "first", "gone", "last", "origin")

    def __init__(self, first: int) -> None:
        self.first = self.last = first
        self.count = 0
        # Of the last letter: who wrote it, the topic of its record by its id, and the record's offset there.
        self.origin = (b"", b"", -1)
        self.actors: frozenset[str] = frozenset()
        self.asked = False  # somebody wants it tried again
        self.gone: set[int] = set()  # letters closed out of order

    def open(self, at: int) -> bool:
        return self.first <= at <= self.last and at not in self.gone


class Parking:
    """The fold. ``next`` is the offset to fold next; memory is one entry a parked key.

    ``owners`` are those that are known to have had the partition, in order. A letter that stands where one of them had
    begun, and is not its own, came late: its writer had lost the partition, and the owner has decided about the record
    by itself. Such a letter is void; ``void`` has them by their offsets, until a mark closes them for everybody.
    """

    def __init__(self, next: int = 0, owners: Iterable[Owner | None] = ()) -> None:
        self.next = next
        self.owners: list[Owner] = []
        for owner in owners:
            self.owned(owner)
        self.void: dict[int, Message] = {}
        self.entries: dict[Key, Parked] = {}
        self.count = 0  # letters that are open

    def owned(self, owner: Owner | None) -> None:
        """Somebody is known to have had the partition after the owners that are known already."""
        if owner is not None and owner not in self.owners:
            self.owners.append(owner)

    def fold(self, message: Message) -> Key | None:
        """Take the next message. Gives the key that it was about."""
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
        begun = next((n for n in reversed(range(len(self.owners))) if self.owners[n].since <= at), None)
        return begun is not None and headers.get(OWNER, b"") not in {owner.id.encode() for owner in self.owners[begun:]}

    def _park(self, key: Key, at: int, headers: Mapping[str, bytes]) -> None:
        origin = origin_of(headers)
        if origin is None:
            return  # nobody's letter
        writer = headers.get(OWNER, b""), headers.get(TOPIC_ID, b"")
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = Parked(at)
        elif writer == entry.origin[:2] and origin[2] <= entry.origin[2]:
            entry.gone.add(at)  # written twice
            return
        entry.last, entry.origin = at, (*writer, origin[2])
        entry.actors |= frozenset(headers.get(ACTORS, b"").decode("utf-8", "replace").split(","))
        entry.count += 1
        self.count += 1

    def _close(self, key: Key, entry: Parked, at: int | None) -> None:
        if at is None or not entry.open(at):
            return
        entry.gone.add(at)
        entry.count -= 1
        self.count -= 1
        if not entry.count:
            del self.entries[key]
