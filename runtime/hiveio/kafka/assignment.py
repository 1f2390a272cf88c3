"""From an assigned partition to its lane, on the loop: where it begins is looked up while polling goes on.

Where a partition without a committed offset begins is decided by the group, never by a clock (see ``_first``).
"""

import asyncio
import hashlib
import logging
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from hiveio.config import Settings
from hiveio.errors import HiveError, Unavailable
from hiveio.kafka.assigned import NOTHING, UNKNOWN, CommitMetadata, Lane, Lanes, Offsets, Owner, Partition, Start
from hiveio.kafka.guard import Pauses, text
from hiveio.kafka.lookup import Expression, Known, Lookup
from hiveio.kafka.threads import blocking

MISSING_S = 1.0  # before a topic that is not there is looked for again
logger = logging.getLogger("hiveio.consumer")


class Membership(Protocol):
    """What the loop asks of the poll thread. ``commit`` gives why the offsets do not stand, if so."""

    def subscribe(self, names: Sequence[str]) -> None: ...
    def assign(self, lane: Lane) -> None: ...
    def reopen(self, keys: Sequence[Partition]) -> None: ...
    async def commit(self, owned: Partition, offsets: Offsets) -> str | None: ...


class Assignment:
    """The partitions that this member has, and the lanes of those that are open.

    What cannot be looked up or opened is told in ``waiting`` and tried again, until it is taken away. ``missing`` says
    which topics are not there, and ``joining`` why the group is not joined yet.
    """

    def __init__(
        self,
        settings: Settings,
        owner: Lanes,
        membership: Membership,
        lookup: Lookup,
        companion: Callable[[str], str],
        look_s: float,
    ) -> None:
        """``look_s`` is the time between two looks at the topics. Raises ConfigError."""
        self._settings, self._owner, self._member, self._lookup = settings, owner, membership, lookup
        self._companion, self._look_s = companion, look_s
        self._topics = Expression(settings.read_topics)
        self.subscription = hashlib.sha256("\n".join(sorted(self._topics.names)).encode()).hexdigest()[:8]
        self.lanes: dict[Partition, Lane] = {}
        self.waiting: dict[Partition, str] = {}
        self.missing: str | None = None
        self.joining: str | None = f"the group {settings.group_id} is not joined yet"
        self._turns: dict[Partition, str] = {}  # the owner of each partition: another one each time that it is taken
        self._news = asyncio.Event()
        self._opening: tuple[Partition, asyncio.Task[Lane]] | None = None
        self._left = False  # the group was known, and had no members, before this one joined
        self._before: dict[str, Known] = {}  # the topics as they were then

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._watch(), name="topics"),
            asyncio.create_task(self._open_all(), name="assignment"),
        ]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def take(self, keys: Iterable[Partition]) -> None:
        """Open these."""
        for key in keys:
            self.waiting[key], self._turns[key] = "its start is looked up", secrets.token_hex(4)
        self._news.set()

    async def give(self, keys: Iterable[Partition], *, lost: bool) -> None:
        """Close these; when this returns nobody here touches them."""
        gone = set(keys)
        for key in gone:
            self.waiting.pop(key, None)
            self._turns.pop(key, None)
        if self._opening is not None and self._opening[0] in gone:
            task = self._opening[1]
            task.cancel()
            await asyncio.wait([task])
        lanes = [lane for key in gone if (lane := self.lanes.pop(key, None)) is not None]
        if lanes:
            await self._owner.close(lanes, lost=lost)

    # -- the topics

    async def _watch(self) -> None:
        pauses = Pauses()
        names: list[str] | None = None
        while True:
            try:
                if names is None:  # before it joins
                    self._left = await blocking(self._lookup.group_is_left)
                there, missing = await blocking(self._lookup.topics, self._topics)
            except Exception as error:  # whatever it is: nobody else looks
                if not isinstance(error, Unavailable):
                    logger.exception("the topics")
                if names is None:
                    self.joining = str(error)
                await asyncio.sleep(pauses.next_s())
                continue
            pauses.again()
            if names is None:
                self._before = there
                self.joining = f"the group {self._settings.group_id} is not joined yet"
            self._tell_missing(list(missing.values()), bool(there))
            wanted = sorted(there) if self._topics.by_pattern else list(self._topics.names)
            if wanted != names:
                names = wanted
                self._member.subscribe(names)
            if anew := [key for key, lane in self.lanes.items() if _is_anew(lane.topic_id, there.get(lane.topic))]:
                self._member.reopen(anew)
            await asyncio.sleep((MISSING_S if self.missing else self._look_s) * random.uniform(0.8, 1.0))

    def _tell_missing(self, missing: list[str], found: bool) -> None:
        before = self.missing
        self.missing = "; ".join(missing) or None
        if self._topics.by_pattern and not found:
            self.missing = f"no topic matches EVENT_STORE_CONSUMER_TOPIC={self._topics.names[0]}"
        if self.missing and self.missing != before:
            logger.warning("nothing to read: %s; it is looked for again", self.missing)

    # -- the lanes

    async def _open_all(self) -> None:
        pauses = Pauses()
        while True:
            await self._news.wait()
            self._news.clear()
            turns = {key: self._turns[key] for key in self.waiting}
            try:
                for start in await self._starts(turns):
                    await self._open(start, turns[start.topic, start.partition])
            except Unavailable as error:
                self._tell(self.waiting.keys() & turns.keys(), error)
            except Exception as error:
                logger.exception("the assignment")
                self._tell(self.waiting.keys() & turns.keys(), error)
            if self.waiting:
                asyncio.get_running_loop().call_later(pauses.next_s(), self._news.set)
            else:
                pauses.again()

    async def _open(self, start: Start, turn: str) -> None:
        key = start.topic, start.partition
        if self._turns.get(key) is not turn:
            return
        task = asyncio.ensure_future(self._owner.open(start))
        self._opening = key, task
        await asyncio.wait([task])
        self._opening = None
        if task.cancelled():  # it was taken away meanwhile
            return
        if (error := task.exception()) is not None:
            self._tell([key], error)
        elif self._turns.get(key) is not turn:  # it ended in the same turn
            await self._owner.close([task.result()], lost=True)
        else:
            del self.waiting[key]
            self.lanes[key] = task.result()
            self._member.assign(task.result())

    def _tell(self, keys: Iterable[Partition], error: BaseException) -> None:
        """Once for each reason; readiness says it for as long as it lasts."""
        reason = str(error) if isinstance(error, HiveError) else text(error)
        told = [key for key in keys if self.waiting.get(key, reason) != reason]
        for key in told:
            self.waiting[key] = reason
        if told:
            names = ", ".join(f"{topic}/{partition}" for topic, partition in sorted(told)[:10])
            trace = None if isinstance(error, HiveError) else error
            logger.warning("%s: not read yet, and tried again: %s", names, reason, exc_info=trace)

    # -- where they begin

    async def _starts(self, turns: dict[Partition, str]) -> list[Start]:
        """Of those of which it is known. Raises Unavailable."""
        keys = list(turns)
        names = {topic for topic, _ in keys}
        topics, missing = await blocking(self._lookup.describe, names | {self._companion(name) for name in names})
        for name in names & missing.keys():
            self._tell([key for key in keys if key[0] == name], Unavailable(missing[name]))
        keys = [key for key in keys if key[0] in topics]
        committed = await blocking(self._lookup.committed, keys)
        new = [key for key in keys if key not in committed]
        begins: dict[Partition, int | None] = {}
        try:
            begins = await self._first(new)
        except Unavailable as error:
            self._tell(new, error)
        return [
            await blocking(self._start, key, turns[key], topics, committed.get(key), begins.get(key))
            for key in keys
            if key in committed or key in begins
        ]

    def _start(
        self,
        key: Partition,
        turn: str,
        topics: dict[str, Known],
        committed: tuple[int, CommitMetadata] | None,
        begin: int | None,
    ) -> Start:
        """Blocking."""
        topic, partition = key
        this, companion = topics[topic], self._companion(topic)
        low, high = self._lookup.bounds(topic, partition)
        letters = companion in topics and partition < topics[companion].partitions
        anew = _is_anew(committed[1].topic_id, this) if committed else _is_anew(self._before_id(topic), this)
        if anew:
            logger.warning(
                "%s/%d: the topic was made anew under its name; it is read from its first event, %d", *key, low
            )
        offset, metadata = (
            committed
            if committed and not anew
            else (None, CommitMetadata(owner=committed[1].owner if committed else None))
        )
        letters_at = self._lookup.bounds(companion, partition) if letters else (0, 0)
        return Start(
            topic=topic,
            partition=partition,
            topic_id=this.id,
            committed=offset,
            metadata=metadata,
            first=low if begin is None else begin,
            low=low,
            high=high,
            owner=Owner(turn, letters_at[1]),
            companion=letters_at,
            anew=anew,
        )

    def _before_id(self, topic: str) -> str:
        return self._before[topic].id if topic in self._before else ""

    async def _first(self, keys: list[Partition]) -> dict[Partition, int | None]:
        """Where partitions without an offset begin: at the first event (None), or, where the group is new, at the end.

        A group that is new to topics notes a start for every partition of them, in one commit, which the owner of one
        partition makes; the others wait for it. What has no offset later on is new, and is read from its first event.
        """
        begins: dict[Partition, int | None] = dict.fromkeys(keys)
        if self._settings.from_start or not keys:
            return begins
        group = self._settings.group_id
        notes = await blocking(self._lookup.group_metadata)
        there, _ = await blocking(self._lookup.topics, self._topics)
        letters, _ = await blocking(self._lookup.describe, [self._companion(name) for name in there])
        new = [
            name for name in sorted(there) if self._companion(name) not in letters and self._is_new(there, name, notes)
        ]
        if not any(topic in new for topic, _ in keys):
            return begins
        leader = new[0], 0
        if leader not in self.waiting:
            raise Unavailable(f"the group {group} is new, and the owner of {leader[0]}/0 has not noted where it begins")
        offsets: Offsets = {}
        unread = 0
        for name in new:
            for partition in range(there[name].partitions):
                low, high = await blocking(self._lookup.bounds, name, partition)
                unread += high - low
                seen = NOTHING if low == high else UNKNOWN
                offsets[name, partition] = high, CommitMetadata(seen, there[name].id, self.subscription)
        if (reason := await self._member.commit(leader, offsets)) is not None:
            raise Unavailable(f"the group {group} is new, and where it begins could not be committed: {reason}")
        if unread:
            logger.warning(
                "the group %s has no offsets of %s: it is new there, and begins at the next event; %d offsets before "
                "it are not read. If it is not new, its offsets have expired: EVENT_STORE_FROM_START=true and a group "
                "of another name, or `hiveio replay --reset`, read them",
                group, ", ".join(new), unread,
            )  # fmt: skip
        return {key: offsets[key][0] if key in offsets else None for key in keys}

    def _is_new(self, there: dict[str, Known], topic: str, notes: dict[Partition, CommitMetadata]) -> bool:
        """Whether the group has never read it. Any sign of the contrary counts, so that nothing is skipped."""
        return not (
            any(name == topic for name, _ in notes)
            or any(note.subscription == self.subscription for note in notes.values())  # it came later than the group
            or self._before_id(topic) != there[topic].id  # it came while this member runs
            or (self._left and not notes)  # the offsets went with their topic, or never were noted
        )


def _is_anew(id: str, topic: Known | None) -> bool:
    """Whether this is another topic than that of the id; not where nothing is known."""
    return topic is not None and bool(id and topic.id) and id != topic.id
