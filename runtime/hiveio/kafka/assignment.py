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
from hiveio.kafka.lookup import Expression, Lookup, TopicInfo
from hiveio.kafka.threads import blocking

MISSING_S = 1.0  # between two searches for a topic that does not exist
logger = logging.getLogger("hiveio.consumer")


class Membership(Protocol):
    """What the loop asks of the poll thread. ``commit`` returns why the offsets are not committed, or None."""

    def subscribe(self, names: Sequence[str]) -> None: ...
    def assign(self, lane: Lane) -> None: ...
    def reopen(self, keys: Sequence[Partition]) -> None: ...
    async def commit(self, owned: Partition, offsets: Offsets) -> str | None: ...


class Assignment:
    """The partitions that this member has, and the lanes of those that are open.

    ``waiting`` says of each partition that cannot be looked up or opened why; it is tried again until it is revoked.
    ``missing`` says which topics do not exist, and ``joining`` why the group is not joined yet. ``joined`` comes with
    the partitions, on the loop: who sees it sees those in ``waiting`` too.
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
        self.joined = False
        self.joining: str | None = f"the group {settings.group_id} is not joined yet"
        self._owner_ids: dict[Partition, str] = {}  # of each partition; a new one at each assignment
        self._wake = asyncio.Event()
        self._opening: tuple[Partition, asyncio.Task[Lane]] | None = None
        self._group_was_empty = False  # it existed, and had no members, before this one joined
        self._at_start: dict[str, TopicInfo] = {}  # the topics at that time

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._watch(), name="topics"),
            asyncio.create_task(self._open_all(), name="assignment"),
        ]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def take(self, keys: Sequence[Partition]) -> None:
        """The group has given it these, or none: open them."""
        self.joined = True
        if not keys:
            return
        for key in keys:
            self.waiting[key], self._owner_ids[key] = (
                "the offset to begin with is being looked up",
                secrets.token_hex(4),
            )
        self._wake.set()

    async def give(self, keys: Iterable[Partition], *, lost: bool) -> None:
        """Close these; when this returns, nothing works on them."""
        revoked = set(keys)
        for key in revoked:
            self.waiting.pop(key, None)
            self._owner_ids.pop(key, None)
        if self._opening is not None and self._opening[0] in revoked:
            task = self._opening[1]
            task.cancel()
            await asyncio.wait([task])
        lanes = [lane for key in revoked if (lane := self.lanes.pop(key, None)) is not None]
        if lanes:
            await self._owner.close(lanes, lost=lost)

    # -- the topics

    async def _watch(self) -> None:
        pauses = Pauses()
        names: list[str] | None = None
        while True:
            try:
                if names is None:  # before it joins
                    self._group_was_empty = await blocking(self._lookup.group_is_left)
                found, missing = await blocking(self._lookup.topics, self._topics)
            except Exception as error:  # whatever it is: the watch goes on
                if not isinstance(error, Unavailable):
                    logger.exception("the topics could not be looked up")
                if names is None:
                    self.joining = str(error)
                await asyncio.sleep(pauses.next_s())
                continue
            pauses.reset()
            if names is None:
                self._at_start = found
                self.joining = f"the group {self._settings.group_id} is not joined yet"
            self._report_missing(list(missing.values()), bool(found))
            names_now = sorted(found) if self._topics.by_pattern else list(self._topics.names)
            if names_now != names:
                names = names_now
                self._member.subscribe(names)
            lanes = self.lanes.items()
            if recreated := [key for key, lane in lanes if _is_recreated(lane.topic_id, found.get(lane.topic))]:
                self._member.reopen(recreated)
            await asyncio.sleep((MISSING_S if self.missing else self._look_s) * random.uniform(0.8, 1.0))

    def _report_missing(self, missing: list[str], found: bool) -> None:
        before = self.missing
        self.missing = "; ".join(missing) or None
        if self._topics.by_pattern and not found:
            self.missing = f"no topic matches EVENT_STORE_CONSUMER_TOPIC={self._topics.names[0]}"
        if self.missing and self.missing != before:
            logger.warning("a topic is missing: %s; the consumer goes on looking for it", self.missing)

    # -- the lanes

    async def _open_all(self) -> None:
        pauses = Pauses()
        while True:
            await self._wake.wait()
            self._wake.clear()
            owner_ids = {key: self._owner_ids[key] for key in self.waiting}
            try:
                for start in await self._starts(owner_ids):
                    await self._open(start, owner_ids[start.topic, start.partition])
            except Unavailable as error:
                self._report(self.waiting.keys() & owner_ids.keys(), error)
            except Exception as error:
                logger.exception("the assigned partitions could not be opened")
                self._report(self.waiting.keys() & owner_ids.keys(), error)
            if self.waiting:
                asyncio.get_running_loop().call_later(pauses.next_s(), self._wake.set)
            else:
                pauses.reset()

    async def _open(self, start: Start, owner_id: str) -> None:
        key = start.topic, start.partition
        if self._owner_ids.get(key) is not owner_id:
            return
        task = asyncio.ensure_future(self._owner.open(start))
        self._opening = key, task
        await asyncio.wait([task])
        self._opening = None
        if task.cancelled():  # it was revoked meanwhile
            return
        if (error := task.exception()) is not None:
            self._report([key], error)
        elif self._owner_ids.get(key) is not owner_id:  # it was revoked in the same turn
            await self._owner.close([task.result()], lost=True)
        else:
            del self.waiting[key]
            self.lanes[key] = task.result()
            self._member.assign(task.result())

    def _report(self, keys: Iterable[Partition], error: BaseException) -> None:
        """Log each reason once; readiness says it for as long as it lasts."""
        reason = str(error) if isinstance(error, HiveError) else text(error)
        changed = [key for key in keys if self.waiting.get(key, reason) != reason]
        for key in changed:
            self.waiting[key] = reason
        if changed:
            names = ", ".join(f"{topic}/{partition}" for topic, partition in sorted(changed)[:10])
            trace = None if isinstance(error, HiveError) else error
            logger.warning("%s: not read yet, and tried again: %s", names, reason, exc_info=trace)

    # -- where they begin

    async def _starts(self, owner_ids: dict[Partition, str]) -> list[Start]:
        """The starts of those partitions of which it is known. Raises Unavailable."""
        keys = list(owner_ids)
        names = {topic for topic, _ in keys}
        topics, missing = await blocking(self._lookup.describe, names | {self._companion(name) for name in names})
        for name in names & missing.keys():
            self._report([key for key in keys if key[0] == name], Unavailable(missing[name]))
        keys = [key for key in keys if key[0] in topics]
        committed = await blocking(self._lookup.committed, keys)
        new = [key for key in keys if key not in committed]
        begins: dict[Partition, int | None] = {}
        try:
            begins = await self._first(new)
        except Unavailable as error:
            self._report(new, error)
        return [
            await blocking(self._start, key, owner_ids[key], topics, committed.get(key), begins.get(key))
            for key in keys
            if key in committed or key in begins
        ]

    def _start(
        self,
        key: Partition,
        owner_id: str,
        topics: dict[str, TopicInfo],
        committed: tuple[int, CommitMetadata] | None,
        begin: int | None,
    ) -> Start:
        """Blocking."""
        topic, partition = key
        this, companion = topics[topic], self._companion(topic)
        low, high = self._lookup.bounds(topic, partition)
        companions = companion in topics and partition < topics[companion].partitions
        recreated = _is_recreated(committed[1].topic_id if committed else self._id_at_start(topic), this)
        if recreated:
            logger.warning(
                "%s/%d: the topic was deleted and created again; it is read from its first event, %d", *key, low
            )
        offset, metadata = (
            committed
            if committed and not recreated
            else (None, CommitMetadata(owner=committed[1].owner if committed else None))
        )
        companion_bounds = self._lookup.bounds(companion, partition) if companions else (0, 0)
        return Start(
            topic=topic,
            partition=partition,
            topic_id=this.id,
            committed=offset,
            metadata=metadata,
            first=low if begin is None else begin,
            low=low,
            high=high,
            owner=Owner(owner_id, companion_bounds[1]),
            companion=companion_bounds,
            recreated=recreated,
        )

    def _id_at_start(self, topic: str) -> str:
        return self._at_start[topic].id if topic in self._at_start else ""

    async def _first(self, keys: list[Partition]) -> dict[Partition, int | None]:
        """Where partitions without an offset begin: at the first event (None), or, where the group is new, at the end.

        A group that is new to topics commits an offset for every partition of them at once; the owner of the first
        partition does that, and the others wait for it. A partition that has no offset later on is new, and is read
        from its first event.
        """
        begins: dict[Partition, int | None] = dict.fromkeys(keys)
        if self._settings.from_start or not keys:
            return begins
        group = self._settings.group_id
        metadata = await blocking(self._lookup.group_metadata)
        found, _ = await blocking(self._lookup.topics, self._topics)
        companions, _ = await blocking(self._lookup.describe, [self._companion(name) for name in found])
        new = [
            name
            for name in sorted(found)
            if self._companion(name) not in companions and self._is_new(found, name, metadata)
        ]
        if not any(topic in new for topic, _ in keys):
            return begins
        leader = new[0], 0
        if leader not in self.waiting:
            raise Unavailable(
                f"the group {group} is new, and the owner of {leader[0]}/0 has not committed its first offsets yet"
            )
        offsets: Offsets = {}
        unread = 0
        for name in new:
            for partition in range(found[name].partitions):
                low, high = await blocking(self._lookup.bounds, name, partition)
                unread += high - low
                seen = NOTHING if low == high else UNKNOWN
                offsets[name, partition] = high, CommitMetadata(seen, found[name].id, self.subscription)
        if (reason := await self._member.commit(leader, offsets)) is not None:
            raise Unavailable(f"the group {group} is new, and its first offsets could not be committed: {reason}")
        if unread:
            logger.warning(
                "the group %s has no offsets of %s: it is new there, and begins at the next event; %d offsets before "
                "it are not read. If it is not new, its offsets have expired: EVENT_STORE_FROM_START=true and a group "
                "of another name, or `hiveio replay --reset`, read them",
                group, ", ".join(new), unread,
            )  # fmt: skip
        return {key: offsets[key][0] if key in offsets else None for key in keys}

    def _is_new(self, found: dict[str, TopicInfo], topic: str, metadata: dict[Partition, CommitMetadata]) -> bool:
        """Whether the group has never read it. Any sign of the contrary counts, so that nothing is skipped."""
        return not (
            any(name == topic for name, _ in metadata)
            or any(
                each.subscription == self.subscription for each in metadata.values()
            )  # the topic is newer than the group
            or self._id_at_start(topic) != found[topic].id  # the topic is newer than this member
            or (self._group_was_empty and not metadata)  # the offsets were deleted with their topic, or never committed
        )


def _is_recreated(id: str, topic: TopicInfo | None) -> bool:
    """Whether this topic has another id; False if one of them is not known."""
    return topic is not None and bool(id and topic.id) and id != topic.id
