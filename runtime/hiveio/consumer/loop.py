"""The component: the assignment becomes lanes, and their life is watched.

A record is handled at least once; exactly once by an actor that stores what it makes of it together with the offset
and has a method ``position(self, topic, partition)`` (plain or async): the next offset to consume, alone or with the
topic's id as the context has it, or None.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.consumer.batch import BatchLane
from hiveio.consumer.careful import Opening
from hiveio.consumer.dead import DeadLetters
from hiveio.consumer.lane import WorkLane
from hiveio.consumer.metrics import Tally
from hiveio.consumer.parallel import ParallelLane
from hiveio.consumer.position import position_of, resume
from hiveio.consumer.progress import Progress, Window
from hiveio.consumer.reading import parse_position
from hiveio.consumer.retry import Retry
from hiveio.consumer.routing import Counts, Routing, Target
from hiveio.consumer.shelf import Shelf
from hiveio.envelope import Handler
from hiveio.errors import ConfigError, Invalid, Refused, Unavailable
from hiveio.kafka import Lane, Message, Poller, Start
from hiveio.kafka.assigned import NOTHING, UNKNOWN
from hiveio.kafka.session import REPEATED

CLOSE_S = 30.0  # so long a revoke waits, at most, for the record in hand; then its handler is cancelled
STUCK_S = 30.0  # a handler that runs for so long after it was told to end is stuck
WATCH_S = 0.25
LOOK_BACK = 1_000  # records read to know which keys of producers were seen
logger = logging.getLogger("hiveio.consumer")


class Consumer:
    """Reads the topics of ``settings.read_topics`` as a member of the group and gives each event to those who take it.

    - In order within a partition; partitions are handled side by side.
    - A handler that raises or hangs is tried again; at last the record goes to the dead-letter topic, those of the
      same key that come later are parked behind it, and all others go on. So does, at once, what no actor takes,
      unless the actors skip it.
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
        heard = [(contract, handler) for contract, handler in handlers if contract.heard or contract.tombstones]
        if not heard:
            raise ConfigError(f"ACTOR_MODULE={settings.actor_module}: no actor's perform takes an Event")
        self._settings = settings
        self._routing = Routing(heard, with_record=with_record)
        self._retry = Retry(settings)
        self._lane: Callable[..., WorkLane] = WorkLane
        if settings.consumer_concurrency > 1:
            for contract, _ in heard:
                alone = "takes lists of events" if contract.batch else "stores its position"
                if contract.batch or hasattr(contract.actor, "position"):
                    raise ConfigError(
                        f"CONSUMER_CONCURRENCY={settings.consumer_concurrency} is wrong: {contract.name} {alone}, "
                        "so its events are handled in the order of the partition; it takes 1. More partitions, and a "
                        "perform that takes a list of events, make it faster"
                    )
            self._lane = partial(ParallelLane, concurrency=settings.consumer_concurrency)
        elif any(contract.batch for contract, _ in heard):
            self._lane = BatchLane
        self._letters = DeadLetters(settings)
        self._poller = Poller(settings, self, self._letters.topic_of)
        self._lanes: dict[tuple[str, int], WorkLane] = {}
        self._watching: asyncio.Task[None] | None = None
        self._tally = Tally(self._routing.counts)
        self.longest_wait_s = settings.request_timeout_ms / 1000 * 0.9
        self._drain_s = settings.drain_timeout_ms / 1000 * 0.8
        self._stopping = False
        self._by_expression = any(name.startswith("^") for name in settings.read_topics)

    @property
    def counts(self) -> Counts:
        return self._routing.counts

    @property
    def age_s(self) -> float:
        """Of the oldest event that is not handled, over all partitions of this process."""
        return max((lane.lag[1] for lane in self._lanes.values()), default=0.0)

    # -- component

    async def start(self) -> None:
        """Joins the group in the background; readiness tells when that is done. Raises ConfigError."""
        self._poller.start()
        self._watching = asyncio.create_task(self._watch(), name="consumer watch")

    async def stop(self) -> None:
        """Finish the records in hand, commit, leave the group; within the time for draining."""
        self._stopping = True
        await self._poller.stop(self._drain_s)
        if self._watching is not None:
            self._watching.cancel()
        await self._letters.stop()
        self._tally.flush()

    async def ready(self) -> str | None:
        failures = [reason for lane in self._lanes.values() if (reason := lane.failure or lane.held) is not None]
        if failures:
            return "; ".join(failures)
        return await self._poller.ready()

    def alive(self) -> bool:
        """Whether the poll thread turns, and every handler that was told to end has ended within STUCK_S."""
        latest = time.monotonic() - self._retry.timeout_s - STUCK_S
        hands = (hand for lane in self._lanes.values() for hand in lane.hands)
        return self._poller.alive() and all(hand.since is None or hand.since > latest for hand in hands)

    async def _watch(self) -> None:
        """One watchdog for all: a timer for each record would cost more than the record."""
        while True:
            await asyncio.sleep(min(WATCH_S, self._retry.timeout_s / 4))
            for lane in self._lanes.values():
                for hand in lane.hands:
                    hand.watch(self._retry.timeout_s)
                self._tally.set(lane.topic, lane.partition, *lane.lag, lane.parked)
            self._tally.flush()

    def details(self) -> dict[str, Any]:
        """For /readyz?verbose: how far each partition of this process is."""
        partitions = [
            {
                "topic": lane.topic,
                "partition": lane.partition,
                "next": lane.at[0],
                "lag_records": lane.lag[0],
                "lag_seconds": round(lane.lag[1], 3),
                "parked_keys": lane.parked,
                "stopped": lane.failure or lane.held,
            }
            for lane in self._lanes.values()
        ]
        return {"partitions": partitions}

    def has_parked(self, contract: Contract, key: str) -> bool:
        """Whether events of the key wait as dead letters of the actor, in a partition of this process."""
        raw = key.encode("utf-8", "surrogateescape")
        return any(contract.name in lane.shelf.parked(raw) for lane in self._lanes.values() if lane.shelf.busy)

    def positions(self) -> dict[tuple[str, int], int]:
        """For each partition of this process the next offset to handle."""
        return {place: lane.at[0] for place, lane in self._lanes.items()}

    def stopped(self) -> str | None:
        """Why a partition stands still, if one does."""
        return next((reason for lane in self._lanes.values() if (reason := lane.failure or lane.held)), None)

    async def reached(self, contract: Contract, topic: str, partition: int, offset: int) -> bool:
        """Whether the actor has handled the event at this place, or all events of the transaction at it.

        Raises Refused for a topic that is not consumed here, Unavailable where another instance has the partition.
        """
        of_log = topic.endswith(".transactions")
        source = topic.removesuffix(".transactions") if of_log else topic
        if not self._by_expression and source not in self._settings.read_topics:
            raise Refused(f"Hive-Position: {topic} is not consumed here")
        lane = self._lanes.get((source, partition))
        if lane is not None:
            end, note = lane.at
            if not of_log:
                return end > offset
            at = parse_position(note)[1] if isinstance(note, bytes) else -1
            # How many events the transaction has is not known; they come to the topic together.
            return at > offset or (at == offset and end >= lane.high)
        if not of_log and hasattr(contract.actor, "position"):  # its store may be shared
            return (await position_of(contract, source, partition) or (0, ""))[0] > offset
        raise Unavailable(f"{source}/{partition} is not consumed by this instance now")

    # -- the assignment, called by the poller

    async def open(self, start: Start) -> Lane:
        lane = await self._open(start)
        self._lanes[lane.topic, lane.partition] = lane
        return lane

    async def close(self, lanes: Sequence[Lane], *, lost: bool) -> None:
        # A lost partition may be another's by now: its handler is not waited for.
        # A revoke that outlasted the poll interval would be too late: another member works at the partition by then.
        bound_s = self._drain_s * 0.8 if self._stopping else self._poller.patience_s / 2
        timeout_s = 0.0 if lost else min(CLOSE_S, bound_s)
        mine = [lane for lane in lanes if isinstance(lane, WorkLane)]
        if mine:
            await asyncio.gather(*(lane.close(timeout_s) for lane in mine))
        for lane in mine:
            if self._lanes.get((lane.topic, lane.partition)) is lane:
                del self._lanes[lane.topic, lane.partition]
                self._tally.set(lane.topic, lane.partition)

    def take(self, groups: Sequence[tuple[Lane, list[Message]]]) -> None:
        for lane, chunk in groups:
            if isinstance(lane, WorkLane):
                lane.take(chunk)

    def broken(self, lane: Lane, reason: str) -> None:
        if isinstance(lane, WorkLane):
            lane.fail(reason)

    def renew(self) -> None:
        self._letters.renew()

    async def _open(self, start: Start) -> WorkLane:
        """Where to begin: at the actors' positions, else where the group stands, or begins."""
        usual = start.first if start.committed is None else start.committed
        resumes: dict[Target, int] = {}
        for target in self._routing.targets:
            resumes[target] = await resume(target.contract, start, usual)
        first = min(resumes.values())  # an actor with a position of its own may stand behind the others, or before them
        gone = f"the events from {first} to {start.low - 1} are gone from the topic" if first < start.low else ""
        if gone and self._settings.from_start:
            logger.error("%s/%d: %s; it goes on at %d", start.topic, start.partition, gone, start.low)
            first = start.low
        progress = _progress(start.metadata.seen) if first == start.committed else None
        begin = first
        if progress is None or progress.last is None:
            # Where no commit tells what was seen, it looks back over all that may be repeats.
            back = REPEATED if progress is None else LOOK_BACK
            progress, begin = Progress(), max(start.low, first - back)
        opening = Opening(
            start,
            begin=min(begin, start.high),
            start=first,
            progress=progress,
            note=progress.last if begin == first else "",  # empty: what was seen is not known yet
            resumes=resumes,
        )
        lane = self._lane(
            opening,
            routing=self._routing,
            retry=self._retry,
            window=Window(self._settings.idempotency_count),
            shelf=lambda news: Shelf(
                self._letters,
                start,
                start=first,
                limit=self._settings.consumer_parked,
                everybody=self._routing.names,
                news=news,
            ),
            finished=self._poller.progress,
            claim=lambda lane: self._poller.claim(lane, start.owner),
        )
        if first == start.committed and start.metadata.topic_id == start.topic_id:
            lane.committed = lane.done
        if gone and not self._settings.from_start:
            lane.fail(
                f"{gone}, by its retention: with EVENT_STORE_FROM_START=true the consumer goes on at {start.low}, "
                "without them; a projection is made whole by `hiveio replay`"
            )
        if max(resumes.values()) > start.high:
            lane.fail(
                f"the partition ends at {start.high}: has the topic been made anew? "
                "`hiveio replay --reset` begins anew with it"
            )
        return lane


def _progress(seen: str) -> Progress | None:
    """What a commit's note says was seen; None when it says nothing."""
    if seen == NOTHING:
        return Progress()
    try:
        return None if seen == UNKNOWN else Progress(seen.encode())
    except Invalid:
        return None  # another program's note
