"""What the consumer and its poll thread know of a partition: where reading begins, and how far it has come."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from confluent_kafka import KafkaError, Message

Partition = tuple[str, int]  # the name of its topic, and its number
UNKNOWN, NOTHING = "?", "-"
_METADATA = re.compile(r"(\S*) (\S+) (\S+)(?: (\w+)@(\d{1,18}))?")


class Owner(NamedTuple):
    """The member that has a partition: ``id`` differs at each assignment.

    ``companion_end`` is the end offset of the same partition of the companion topic (see Poller) at that moment.
    """

    id: str
    companion_end: int


class CommitMetadata(NamedTuple):
    """The text that is committed with an offset.

    ``seen`` is the last position of a publisher, NOTHING where there was none, UNKNOWN where that is not known.
    ``topic_id`` changes when the topic is deleted and created again. ``subscription`` names the topics, or the
    expression, that the group was subscribed to when it began with this partition. ``owner`` is the member that had
    the partition then, None if that is not known.
    """

    seen: str = UNKNOWN
    topic_id: str = ""
    subscription: str = ""
    owner: Owner | None = None

    def __str__(self) -> str:
        text = f"{self.seen} {self.topic_id or '-'} {self.subscription or '-'}"
        return f"{text} {self.owner.id}@{self.owner.companion_end}" if self.owner else text

    @classmethod
    def of(cls, text: str) -> "CommitMetadata":
        """Reads the text of older versions too, which have no owner, or the position alone."""
        found = _METADATA.fullmatch(text)
        if found is None:
            return cls(text or UNKNOWN)
        seen, topic_id, subscription, id, end = ("" if part == "-" else part for part in found.groups())
        return cls(seen or NOTHING, topic_id, subscription, Owner(id, int(end)) if id else None)


Offsets = dict[Partition, tuple[int, CommitMetadata]]


class Start(NamedTuple):
    """What Kafka knows of a partition when it is assigned.

    ``committed`` is the group's offset in this very topic, None where it has none; then it begins at ``first``.
    ``low`` and ``high`` are first offset and end offset, ``companion`` those of the same partition of the companion
    topic (see Poller), (0, 0) when there is none. ``recreated``: the group read an older topic of this name. ``owner``
    is this member at this assignment; that of ``metadata`` is the one before it.
    """

    topic: str
    partition: int
    topic_id: str
    committed: int | None
    metadata: CommitMetadata
    first: int
    low: int
    high: int
    owner: Owner
    companion: tuple[int, int] = (0, 0)
    recreated: bool = False


class Lane:
    """One partition, from its assign to its revoke. ``begin`` is the offset to read from.

    ``done`` is the next offset and the metadata to commit with it: one tuple, because the poll thread reads it while
    the loop works, and an offset with the metadata of another would skip or repeat records after a restart.
    """

    def __init__(self, start: Start, begin: int, done: tuple[int, str | bytes | None]) -> None:
        self.topic, self.partition, self.topic_id = start.topic, start.partition, start.topic_id
        self.subscription = start.metadata.subscription  # the present one where it is empty
        self.owner = start.metadata.owner  # to be committed: the one before, until this one has claimed the partition
        self.begin, self.done = begin, done
        self.committed: tuple[int, str | bytes | None] | None = None
        self.failure: str | None = None
        # Written by the poll thread alone.
        self.high = start.high  # the end offset, as of the last fetch
        self.handed = 0  # records
        self.handed_to = begin  # the offset after the last of them
        self.empty_to = begin  # from there on, there is no record below this offset
        # librdkafka keeps a pause from one assignment to the next, so the first turn resumes the partition.
        self.paused = True
        self.finished = 0  # of the records handed over; written by the loop alone

    @property
    def backlog(self) -> int:
        return self.handed - self.finished

    @property
    def at(self) -> tuple[int, str | bytes | None]:
        """As ``done``; behind offsets without a record (transaction markers, aborted events) once all before is done.

        Otherwise a partition that ends with those would never be done.
        """
        done = self.done
        if self.failure is None and self.handed_to <= done[0] < self.empty_to:
            return self.empty_to, done[1]
        return done


def by_partition(
    messages: Iterable[Message], failed: Callable[[Message, KafkaError], None]
) -> tuple[dict[Partition, list[Message]], dict[Partition, int]]:
    """The records of each partition, and its end offset if the client has reached it."""
    groups: dict[Partition, list[Message]] = {}
    ends: dict[Partition, int] = {}
    for message in messages:
        key = (message.topic(), message.partition())
        if (error := message.error()) is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                ends[key] = message.offset()  # type: ignore[index, assignment]
            else:
                failed(message, error)
            continue
        group = groups.get(key)  # type: ignore[arg-type]
        if group is None:
            groups[key] = [message]  # type: ignore[index]
        else:
            group.append(message)
    return groups, ends


class Lanes(Protocol):
    """What the consumer does with an assignment. Everything here is called on the loop."""

    async def open(self, start: Start) -> Lane: ...
    async def close(self, lanes: Sequence[Lane], *, lost: bool) -> None: ...
    def take(self, groups: Sequence[tuple[Lane, list[Message]]]) -> None: ...
    def broken(self, lane: Lane, reason: str) -> None: ...
    def renew(self) -> None: ...
