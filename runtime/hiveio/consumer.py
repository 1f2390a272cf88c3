"""The consumer role: events from topics to actors, one lane a partition, the offset last.

A record is handled at least once; exactly once by an actor that stores what it makes of it together with the offset
and has a method ``position(self, topic, partition) -> int | None`` (plain or async): the next offset to consume.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import Sequence

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import Handler
from hiveio.errors import ConfigError, Corrupt
from hiveio.kafka import Lane, Message, Poller, Start
from hiveio.lane import Counts, Progress, Routing, Target, WorkLane

CLOSE_S = 30.0  # so long a revoke waits for the record in hand; then its handler is cancelled
STUCK_S = 600.0  # a handler that takes longer is stuck
LOOK_BACK = 1_000  # records read to know what was seen, where no commit tells
logger = logging.getLogger("hiveio.consumer")


class Consumer:
    """Reads the topics of ``settings.read_topics`` as a member of the group and gives each event to those who take it.

    - In order within a partition; partitions are handled side by side. An event that no actor takes is skipped.
    - A handler that raises is tried again; at last its partition stops, loudly, and nothing of it is lost.
    - ``with_record`` gives every handler the record's Context, also where the actor does not ask for it.

    Raises ConfigError when brokers, topic or group are not set, or when no actor takes events.
    """

    name = "consumer"

    def __init__(
        self, settings: Settings, handlers: Sequence[tuple[Contract, Handler]], *, with_record: bool = False
    ) -> None:
        settings.need(
            brokers="the consumer reads from Kafka",
            read_topics="the consumer reads its events from it",
            group_id="the consumer commits its offsets under it",
        )
        heard = [(contract, handler) for contract, handler in handlers if contract.heard]
        if not heard:
            raise ConfigError(f"ACTOR_MODULE={settings.actor_module}: no actor's perform takes an Event")
        self._settings = settings
        self._routing = Routing(heard, with_record=with_record)
        self._poller = Poller(settings, self)
        self._lanes: dict[tuple[str, int], WorkLane] = {}
        self._drain_s = settings.drain_timeout_ms / 1000 * 0.8
        self._stopping = False

    @property
    def counts(self) -> Counts:
        return self._routing.counts

    # -- component

    async def start(self) -> None:
        """Joins the group in the background; readiness tells when that is done. Raises ConfigError."""
        self._poller.start()

    async def stop(self) -> None:
        """Finish the records in hand, commit, leave the group; within the time for draining."""
        self._stopping = True
        await self._poller.stop(self._drain_s)

    async def ready(self) -> str | None:
        failures = [lane.failure for lane in self._lanes.values() if lane.failure is not None]
        if failures:
            return "; ".join(failures)
        if self._poller.trouble is not None:
            return self._poller.trouble
        if not self._poller.joined:
            return f"the group {self._settings.group_id} is not joined yet"
        return await self._poller.ask()

    def alive(self) -> bool:
        """Whether the poll thread turns and no handler has held a record for longer than STUCK_S."""
        now = time.monotonic()
        stuck = any(lane.touched is not None and now - lane.touched > STUCK_S for lane in self._lanes.values())
        return self._poller.alive() and not stuck

    # -- the assignment, called by the poller

    async def open(self, starts: Sequence[Start]) -> Sequence[Lane]:
        lanes: list[WorkLane] = []
        try:
            for start in starts:
                lanes.append(await self._open(start))  # noqa: PERF401 - those made before a failure are closed
        except BaseException:
            await self.close(lanes, lost=True)
            raise
        self._lanes |= {(lane.topic, lane.partition): lane for lane in lanes}
        return lanes

    async def close(self, lanes: Sequence[Lane], *, lost: bool) -> None:
        # A lost partition may be another's by now: its handler is not waited for.
        timeout_s = 0.0 if lost else min(CLOSE_S, self._drain_s * 0.8) if self._stopping else CLOSE_S
        mine = [lane for lane in lanes if isinstance(lane, WorkLane)]
        if mine:
            await asyncio.gather(*(lane.close(timeout_s) for lane in mine))
        for lane in mine:
            if self._lanes.get((lane.topic, lane.partition)) is lane:
                del self._lanes[lane.topic, lane.partition]

    def take(self, groups: Sequence[tuple[Lane, list[Message]]]) -> None:
        for lane, chunk in groups:
            if isinstance(lane, WorkLane):
                lane.take(chunk)

    def broken(self, lane: Lane, reason: str) -> None:
        if isinstance(lane, WorkLane):
            lane.fail(reason)

    async def _open(self, start: Start) -> WorkLane:
        """Where to begin: at the actors' positions, else at the committed offset, else by EVENT_STORE_FROM_START."""
        where = f"{start.topic}/{start.partition}"
        usual = start.committed
        if usual is None:
            usual = start.low if self._settings.from_start else start.high
        resumes: dict[Target, int] = {}
        for target in self._routing.targets:
            own = await _position(target.contract, start.topic, start.partition)
            resumes[target] = usual if own is None else own
        first = min(resumes.values())  # an actor with a position of its own may stand behind the others, or before them
        progress = _progress(start.note) if first == start.committed else None
        begin = first
        if progress is None:
            progress, begin = Progress(), max(start.low, first - LOOK_BACK)
        if first < start.low:
            logger.error("%s: the events from %d to %d are gone from the topic", where, first, start.low - 1)
            first = begin = start.low
        lane = WorkLane(
            start.topic,
            start.partition,
            begin=min(begin, start.high),
            start=first,
            progress=progress,
            note=progress.last if begin == first else "",  # empty: what was seen is not known yet
            resumes=resumes,
            routing=self._routing,
            finished=self._poller.progress,
        )
        if first == start.committed:
            lane.committed = lane.done
        if max(resumes.values()) > start.high:
            lane.fail(f"the partition ends at {start.high}: has the topic been made anew?")
        return lane


def _progress(note: str) -> Progress | None:
    """What a commit's note says was seen; None when it says nothing. ``-`` is: nothing with a position."""
    if note == "-":
        return Progress()
    try:
        return Progress(note.encode()) if note else None
    except Corrupt:
        return None  # another program's note


async def _position(contract: Contract, topic: str, partition: int) -> int | None:
    ask = getattr(contract.actor, "position", None)
    if ask is None:
        return None
    found = ask(topic, partition)
    if inspect.isawaitable(found):
        found = await found
    if found is not None and not (isinstance(found, int) and found >= 0):
        raise TypeError(f"{contract.name}.position gave {found!r}; it gives the next offset to consume, or None")
    return found
