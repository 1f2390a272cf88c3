"""The form of a dead letter, and of a mark on one.

A dead letter is the record as it was (key, value, headers), with more headers that say why it failed. What is done
about it is a *mark*, a record of the same key without a value. So the topic alone says what is open, also after a
restart.
"""

from collections.abc import Mapping

from hiveio.kafka import Message
from hiveio.kafka.headers import headers_of as all_headers
from hiveio.kafka.session_clients import Outgoing

# -- headers of a dead letter
ORIGIN = "hive-dead-origin"  # <topic>/<partition>/<offset>
REASON = "hive-dead-reason"  # undecodable, unknown, refused, failed, or parked: it waits behind another of its key
EXCEPTION = "hive-dead-exception"
ATTEMPTS = "hive-dead-attempts"
ACTORS = "hive-dead-actors"  # the actors that have not handled it
OWNER = "hive-dead-owner"  # the owner of the partition when it was written: see Owner
TOPIC_ID = "hive-dead-topic-id"  # of the record's topic: a topic that is created again under its name has another
TIME = "hive-dead-time"  # of the record, ms since the epoch
EMPTY_KEY = "hive-dead-empty-key"  # the record has a key of no bytes, which the client writes as none
# The dead letter was too large with the record's value and headers: they are only at the origin.
OMITTED = "hive-dead-omitted"
# -- headers of a mark
# done, dropped, void: a dead letter is closed. retry: its key is to be tried again. failed: that attempt has failed.
# forget: all dead letters are closed.
MARK = "hive-dead-mark"
AT = "hive-dead-at"  # the dead letter's offset in the dead-letter partition
PREFIX = "hive-dead-"
MAX_EXCEPTION_LENGTH = 2_000  # characters of the text of an exception
MAX_KEY_BYTES = 65_536  # of a dead letter that was too large

NOBODY: frozenset[str] = frozenset()  # names of actors
Key = bytes | int  # of a record; where it has none, its offset


def dead_topic(topic: str, group: str) -> str:
    return f"{topic}.{group}.dead"


def dead_letter(
    message: Message,
    reason: str,
    exception: str,
    attempts: int,
    actors: frozenset[str],
    *,
    owner: str,
    topic_id: str = "",
) -> Outgoing:
    headers = [pair for pair in all_headers(message) if not pair[0].startswith(PREFIX)]
    origin = f"{message.topic()}/{message.partition()}/{message.offset()}"
    why = {ORIGIN: origin, REASON: reason, ATTEMPTS: str(attempts), ACTORS: ",".join(sorted(actors))}
    why |= {OWNER: owner, TIME: str(message.timestamp()[1])} | (
        {EXCEPTION: exception[:MAX_EXCEPTION_LENGTH]} if exception else {}
    )
    if topic_id:
        why[TOPIC_ID] = topic_id
    key = key_of(message)
    if key == b"":
        why[EMPTY_KEY] = ""
    return Outgoing(key, message.value(), [*headers, *_encoded(why)])


def slim(large: Outgoing) -> Outgoing:
    """A dead letter without the value and the headers of the record, which are still at its origin.

    It keeps its key, unless the key is too large itself.
    """
    own = [pair for pair in large.headers if pair[0].startswith(PREFIX)]
    key = large.key if len(large.key or b"") <= MAX_KEY_BYTES else None
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
        headers += _encoded({EXCEPTION: exception[:MAX_EXCEPTION_LENGTH]})
    return Outgoing(key_of(message), None, headers)


def _encoded(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    # The text of an exception may hold what is not UTF-8. The client does not check it, and the process would crash.
    return [(name, text.encode("utf-8", "backslashreplace")) for name, text in headers.items()]


def forget() -> Outgoing:
    """The mark that closes all dead letters before it: the projection is rebuilt, and reads their records again."""
    return Outgoing(None, None, [(MARK, "forget")])


def headers_of(message: Message) -> dict[str, bytes]:
    return {name: text for name, text in all_headers(message) if text is not None}


def origin_of(headers: Mapping[str, bytes]) -> tuple[str, int, int] | None:
    """Topic, partition and offset of the record; None when the headers do not say."""
    try:
        topic, partition, offset = headers[ORIGIN].decode().rsplit("/", 2)
        return topic, int(partition), int(offset)
    except (KeyError, ValueError):
        return None


def time_of(headers: Mapping[str, bytes]) -> int:
    """When the record was written, in ms since the epoch; 0 when the headers do not say."""
    return _number(headers.get(TIME)) or 0


def marked(headers: Mapping[str, bytes]) -> int | None:
    """The offset of the dead letter that a mark is about."""
    return _number(headers.get(AT))


def _number(text: bytes | None) -> int | None:
    return int(text) if text and len(text) <= 18 and text.isdigit() else None


def parking_key(message: Message, headers: Mapping[str, bytes]) -> Key | None:
    """The key that a dead letter parks, or that a mark frees; None when the headers do not say."""
    if EMPTY_KEY in headers:
        return b""
    if (key := key_of(message)) is not None:
        return key
    origin = origin_of(headers)
    return None if origin is None else origin[2]


def key_of(message: Message) -> bytes | None:
    """The key as it is in Kafka."""
    key = message.key()
    return key.encode() if isinstance(key, str) else key
