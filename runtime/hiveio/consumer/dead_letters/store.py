"""The dead letters of one partition: they are written, park their keys, and are tried again.

The dead-letter topic has as many partitions as its source, and the owner of a partition writes its dead letters to the
same partition there. The fold of that partition says what is parked. Nothing counts as written, or as closed, before it
was read back, so the next owner finds the same state after a crash at any moment.
"""

import asyncio
import logging
import random
import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping

from hiveio.consumer.dead_letters.fold import Fold
from hiveio.consumer.dead_letters.format import (
    MARK,
    NOBODY,
    ORIGIN,
    TOPIC_ID,
    Key,
    dead_letter,
    headers_of,
    is_slim,
    mark,
    marked,
    origin_of,
    parking_key,
    slim,
)
from hiveio.consumer.dead_letters.topic import DeadLetterTopics
from hiveio.errors import Unavailable
from hiveio.kafka import Message, Start
from hiveio.kafka.session_clients import Outgoing, Oversized

READ_S = 30.0  # the time within which a dead letter that was written is read back
PAUSE_S = 2.0  # the pause before a write that failed is tried again
GROUP = 200  # dead letters that are written together, or tried again before their marks are written
WRITTEN = "hive-dead-write"  # a header by which a writer recognizes its own group
logger = logging.getLogger("hiveio.consumer")


class DeadLetterStore:
    """The dead letters of one partition, for its worker, from assign to revoke.

    ``busy`` is false as long as nothing is parked: then nothing else is asked about a record. ``notify`` is called when
    there are dead letters to try again in ``queue``, or when the parked keys have changed.
    """

    def __init__(
        self,
        topics: DeadLetterTopics,
        assigned: Start,
        *,
        start: int,
        limit: int,
        everybody: frozenset[str],
        notify: Callable[[], None],
    ) -> None:
        self._topics, self._topic, self._partition = topics, assigned.topic, assigned.partition
        bounds, self._committed = assigned.companion, assigned.committed
        self._topic_id, self._recreated = assigned.topic_id, assigned.recreated
        self._start, self._end = start, bounds[1]
        self.limit, self._everybody, self._notify = limit, everybody, notify
        self._owner = assigned.owner
        self.fold = Fold(bounds[0], (assigned.metadata.owner, assigned.owner))
        self.queue: deque[Message] = deque()
        self.busy = bounds[0] < bounds[1]
        self._kept: set[int] = set()  # offsets of records, from the start on, that are dead letters already
        self._found: dict[int, tuple[int, Key]] = {}  # while loading: dead letters by their offsets, of such records
        self._following = self._asked = False
        self._broken = ""
        self._changed = asyncio.Event()
        self.pending: list[Outgoing] = []  # put, and to be written by ``flush``
        self._unread: Counter[Key] = Counter()  # dead letters of a key that were put and not read back
        self._writing = asyncio.Lock()
        self.waits: str | None = None  # why dead letters are not written, for as long as they are not
        self._awaited = b""  # the name of the group that was written and not read back

    def __str__(self) -> str:
        return f"{self._topic}/{self._partition}"

    # -- from assign to revoke

    async def load(self) -> None:
        """Fold all messages of the partition. Raises Unavailable."""
        if self.fold.next < self._end:
            self._follow(self.fold.next)
            await self._until(lambda: self.fold.next >= self._end)
        for at, (origin, key) in self._found.items():
            # The record of a closed dead letter was handled. But the store of an actor that begins before the committed
            # offset may be a copy from before that.
            if self._opens(key, at) or not (self._committed is None or origin < self._committed):
                self._kept.add(origin)
        self._found.clear()
        if late := [message for at, message in self.fold.void.items() if at < self._end]:
            for message in late:
                self._warn_of_void(message)
            await self._write([mark("void", message) for message in late])
        self._settle()
        if not self.busy:
            self.close()

    def close(self) -> None:
        if self._following:
            self._topics.tail(self._topic).unfollow(self._partition)
            self._following = False
        self._clear()

    # -- for each record, while busy

    def blocked(self, key: bytes | None, offset: int) -> frozenset[str] | None:
        """The actors for whom the key is parked; None when the record is a dead letter already."""
        if self._kept:
            if offset in self._kept:
                return None
            if offset > max(self._kept):
                self._kept.clear()
                self._settle()
        return NOBODY if key is None else self.parked(key)

    def parked(self, key: bytes) -> frozenset[str]:
        """The actors for whom the key is parked."""
        entry = self.fold.entries.get(key)
        return entry.actors if entry else self._everybody if key in self._unread else NOBODY

    @property
    def room(self) -> bool:
        return len(self.fold.entries) < self.limit

    async def changed(self) -> None:
        """Return when something was read from the dead-letter topic."""
        self._changed.clear()
        await self._changed.wait()

    # -- writing

    @property
    def full(self) -> bool:
        """Whether it is time to flush."""
        return len(self.pending) >= GROUP

    def put(self, message: Message, reason: str, exception: str, attempts: int, actors: frozenset[str]) -> None:
        """Prepare a dead letter, which ``flush`` writes; the key is parked from now on."""
        made = dead_letter(message, reason, exception, attempts, actors, owner=self._owner.id, topic_id=self._topic_id)
        self.pending.append(made)
        self._unread[_key(made)] += 1
        self.busy = True

    async def flush(self) -> None:
        """Write all dead letters that were put. It tries until they are in the topic and are read back."""
        async with self._writing:
            group, self.pending = self.pending, []
            if group:
                await self._write(group)
                self._unread.subtract([_key(made) for made in group])
                self._unread += Counter()  # without those at 0
                self._settle()

    async def write_marks(self, *marks: Outgoing) -> None:
        """Write what was done about dead letters. It tries until that is read back, as ``flush`` does."""
        async with self._writing:
            await self._write(list(marks))

    async def _write(self, group: list[Outgoing]) -> None:
        name = secrets.token_hex(8)
        group[-1].headers.append((WRITTEN, name))
        self._awaited = name.encode()
        while self._awaited:
            try:
                await self._topics.write(self._topic, self._partition, group)
                self._follow(self.fold.next)
                await self._until(lambda: not self._awaited)
            except Unavailable as error:
                if isinstance(error, Oversized) and len(group) > 1:  # all together are too large, or one of them
                    half = len(group) // 2
                    await self._write(group[:half])
                    await self._write(group[half:])
                    return
                if isinstance(error, Oversized) and not is_slim(group[0]):
                    logger.error(
                        "%s: a dead letter is too large, so it is written without the value and the headers of its "
                        "record, which stay at their origin: %s",
                        self, error,
                    )  # fmt: skip
                    group = [slim(group[0])]
                    continue
                self.waits = f"{self}: the dead letters cannot be written, and are tried again: {error}"
                logger.warning("%s", self.waits)
                await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.0))
        self.waits = None

    # -- trying again

    def next(self) -> Message | None:
        """The next dead letter to try again, in order."""
        while self.queue:
            message = self.queue.popleft()
            self._topics.tail(self._topic).consumed(self._partition, 1)
            if self._to_retry(message):
                return message
        return None

    async def original(self, offset: int, time_ms: int) -> Message:
        """The record of a dead letter that was written without its value. Raises Unavailable, also where it is gone."""
        found = await self._topics.original(self._topic, self._partition, offset)
        if found is None or found.timestamp()[1] != time_ms:
            raise Unavailable(f"the record {self}/{offset} is no longer in its topic")
        return found

    def _to_retry(self, message: Message) -> bool:
        at, headers = message.offset(), headers_of(message)
        key = parking_key(message, headers)
        entry = self.fold.entries.get(key) if key is not None and MARK not in headers else None
        return entry is not None and entry.asked and at is not None and entry.open(at)

    # -- reading

    def _follow(self, offset: int) -> None:
        if not self._following:
            self._following, self._broken = True, ""
            self._topics.tail(self._topic).follow(self._partition, offset, self._arrived, self._failed)

    def _arrived(self, messages: list[Message]) -> None:
        for message in messages:
            at = message.offset()
            assert at is not None
            if at >= self.fold.next:
                self._asked |= self._add(message)
            if self._to_retry(message):
                self.queue.append(message)
            else:
                self._topics.tail(self._topic).consumed(self._partition, 1)
        if self._asked and self.fold.next >= self._end:  # the dead letters to try are before the mark: read them again
            self._asked = False
            if first := [entry.first for entry in self.fold.entries.values() if entry.asked]:
                self._clear()
                self._following = False
                self._follow(min(first))
        self._settle()
        self._changed.set()
        self._notify()

    def _add(self, message: Message) -> bool:
        """Add a message to the fold. Returns whether it asks for another attempt at a parked key."""
        at, headers = message.offset(), headers_of(message)
        assert at is not None
        key = self.fold.add(message)
        if headers.get(WRITTEN) == self._awaited:
            self._awaited = b""
        if key is None:
            if headers.get(MARK) == b"forget":
                self._kept.clear()
                self._found.clear()
            return False
        if headers.get(MARK) == b"void" and (closed := marked(headers)) is not None:
            self._found.pop(closed, None)  # its record is to be handled
        if at in self.fold.void:
            if at >= self._end:
                self._warn_of_void(message)
            return False
        origin = origin_of(headers) if at < self._end and MARK not in headers and self._is_of_this(headers) else None
        if origin is not None and origin[2] >= self._start:
            self._found[at] = origin[2], key
        return headers.get(MARK) == b"retry" and key in self.fold.entries

    def _warn_of_void(self, message: Message) -> None:
        logger.warning(
            "%s: the dead letter of %s came late, from an instance that had lost the partition, and is void: the next "
            "owner of the partition decides about the record itself. Nothing needs to be done",
            self, headers_of(message).get(ORIGIN, b"").decode("utf-8", "replace"),
        )  # fmt: skip

    def _opens(self, key: Key, at: int) -> bool:
        """Whether there is an open dead letter at this offset."""
        entry = self.fold.entries.get(key)
        return entry is not None and entry.open(at)

    def _is_of_this(self, headers: Mapping[str, bytes]) -> bool:
        """Whether the record of a dead letter is in this topic, and not in an earlier topic of the same name."""
        found = headers.get(TOPIC_ID)
        return found.decode("utf-8", "replace") == self._topic_id if found and self._topic_id else not self._recreated

    def _failed(self, reason: str) -> None:
        self._broken = reason
        self._following = False
        self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._broken:
                raise Unavailable(f"the dead-letter topic cannot be read: {self._broken}")
            try:
                async with asyncio.timeout(READ_S):
                    await self.changed()
            except TimeoutError:
                raise Unavailable(
                    f"nothing of the dead-letter topic was read within {READ_S:g} s. Does the user have the right Read?"
                ) from None

    def _clear(self) -> None:
        if self.queue:
            self._topics.tail(self._topic).consumed(self._partition, len(self.queue))
            self.queue.clear()

    def _settle(self) -> None:
        self.busy = bool(self.fold.entries or self._kept or self._unread)


def _key(made: Outgoing) -> Key:
    if isinstance(made.key, bytes):
        return made.key
    headers = {name: text for name, text in made.headers if isinstance(text, bytes)}
    origin = origin_of(headers)
    assert origin is not None
    return origin[2]
