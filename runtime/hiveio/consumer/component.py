"""The component: it gives each assigned partition a worker, and a watchdog watches the handlers.

A record is handled at least once. It is handled exactly once by an actor that stores its result together with the
offset, and has a method ``position(self, topic, partition)`` (plain or async). That returns the next offset to consume,
alone or with the topic's id as the context has it, or None.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.consumer.dead_letters.store import DeadLetterStore
from hiveio.consumer.dead_letters.topic import DeadLetterTopics
from hiveio.consumer.failures import RetryPolicy
from hiveio.consumer.metrics import ConsumerMetrics
from hiveio.consumer.position import position_of, resume
from hiveio.consumer.progress import Progress, RecentKeys
from hiveio.consumer.reading import parse_position
from hiveio.consumer.routing import Counts, Routing, Target
from hiveio.consumer.worker import Opening, PartitionWorker
from hiveio.envelope import Codec, Handler
from hiveio.errors import ConfigError, Invalid, Refused, Unavailable
from hiveio.kafka import Lane, Message, Poller, Start
from hiveio.kafka.assigned import NOTHING, UNKNOWN, Lanes
from hiveio.kafka.session import REPEATED

CLOSE_S = 30.0  # the longest that a revoke waits for a handler before it is cancelled
STUCK_S = 30.0  # a handler that runs for longer after it was cancelled is stuck
WATCH_S = 0.25
FURTHER = 8  # times as many, where events seem to be missing
LOOK_BACK = 1_000  # records that are read to know which keys of producers were seen
logger = logging.getLogger("hiveio.consumer")


class Consumer:
    """Reads the topics of ``settings.read_topics`` as a member of the group, and gives each event to its actors.

    - Events are handled in order within a partition, and partitions independently of each other.
    - A handler that raises or hangs is tried again. When its attempts are used up, the record goes to the dead-letter
      topic, later records of the same key are parked behind it, and all others go on. A record that no actor takes
      goes there at once, unless the actors skip it.
    - ``with_record`` gives every handler the record's Context, also where the actor does not ask for it. ``codec``
      decodes the records, where they are not simply the events that the actors take.

    Raises ConfigError when brokers, topic or group are not set, or when no actor takes events.
    """

    def __init__(
        self,
        settings: Settings,
        handlers: Sequence[tuple[Contract, Handler]],
        *,
        name: str = "consumer",
        with_record: bool = False,
        codec: Codec | None = None,
        poller: Callable[[Settings, Lanes, Callable[[str], str]], Poller] = Poller,
        dead_letters: Callable[[Settings], DeadLetterTopics] = DeadLetterTopics,
    ) -> None:
        self.name = name
        settings.need(
            brokers="the consumer reads from Kafka",
            read_topics="the consumer reads its events from it",
            group_id="the consumer commits its offsets under it",
        )
        takers = [(contract, handler) for contract, handler in handlers if contract.takes_records]
        if not takers:
            raise ConfigError(f"ACTOR_MODULE={settings.actor_module}: no actor's perform takes an Event")
        self._settings = settings
        self._routing = Routing(takers, with_record=with_record, codec=codec)
        self._policy = RetryPolicy(settings)
        if settings.consumer_concurrency > 1:
            for contract, _ in takers:
                alone = "takes lists of events" if contract.batch else "stores its position"
                if contract.batch or hasattr(contract.actor, "position"):
                    raise ConfigError(
                        f"CONSUMER_CONCURRENCY={settings.consumer_concurrency} is wrong: {contract.name} {alone}, "
                        "so its events are handled in the order of the partition; it takes 1. More partitions, and a "
                        "perform that takes a list of events, make it faster"
                    )
        self._dead_letters = dead_letters(settings)
        self._poller = poller(settings, self, self._dead_letters.topic_of)
        self.workers: dict[tuple[str, int], PartitionWorker] = {}
        self._back: dict[tuple[str, int], int] = {}  # records that the next worker of a partition looks back for
        self._watching: asyncio.Task[None] | None = None
        self._metrics = ConsumerMetrics(self._routing.counts)
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
        return max((worker.lag[1] for worker in self.workers.values()), default=0.0)

    # -- component

    async def start(self) -> None:
        """Join the group in the background; readiness says when that is done. Raises ConfigError."""
        self._poller.start()
        self._watching = asyncio.create_task(self._watch(), name="consumer watch")

    async def stop(self) -> None:
        """Finish the records that are being handled, commit and leave the group, within the time for draining."""
        self._stopping = True
        await self._poller.stop(self._drain_s)
        if self._watching is not None:
            self._watching.cancel()
        await self._dead_letters.stop()
        self._metrics.flush()

    async def ready(self) -> str | None:
        if failures := self._stopped():
            return "; ".join(failures)
        return await self._poller.ready()

    def alive(self) -> bool:
        """Whether the poll thread works, and every handler that was cancelled has ended within STUCK_S."""
        latest = time.monotonic() - self._policy.timeout_s - STUCK_S
        slots = (slot for worker in self.workers.values() for slot in worker.slots)
        return self._poller.alive() and all(slot.started_at is None or slot.started_at > latest for slot in slots)

    async def _watch(self) -> None:
        """One watchdog for all handlers: a timer for each record would cost more than the record."""
        while True:
            await asyncio.sleep(min(WATCH_S, self._policy.timeout_s / 4))
            for worker in self.workers.values():
                for slot in worker.slots:
                    slot.watch()
                self._metrics.set(worker.topic, worker.partition, *worker.lag, worker.parked)
            self._metrics.flush()

    def details(self) -> dict[str, Any]:
        """For /readyz?verbose: how far each partition of this process is."""
        partitions = [
            {
                "topic": worker.topic,
                "partition": worker.partition,
                "next": worker.at[0],
                "lag_records": worker.lag[0],
                "lag_seconds": round(worker.lag[1], 3),
                "parked_keys": worker.parked,
                "stopped": worker.failure or worker.blocked_reason,
            }
            for worker in self.workers.values()
        ]
        return {"partitions": partitions}

    def has_parked(self, contract: Contract, key: str) -> bool:
        """Whether events of the key wait as dead letters of the actor, in a partition of this process."""
        raw = key.encode("utf-8", "surrogateescape")
        return any(contract.name in worker.store.parked(raw) for worker in self.workers.values() if worker.store.busy)

    def positions(self) -> dict[tuple[str, int], int]:
        """For each partition of this process the next offset to handle."""
        return {partition: worker.at[0] for partition, worker in self.workers.items()}

    def stopped(self) -> str | None:
        """Why a partition has stopped, if one has."""
        return next(iter(self._stopped()), None)

    def _stopped(self) -> list[str]:
        return [reason for worker in self.workers.values() if (reason := worker.failure or worker.blocked_reason)]

    async def reached(self, contract: Contract, topic: str, partition: int, offset: int) -> bool:
        """Whether the actor has handled the event at this offset, or all events of the transaction at it.

        Raises Refused for a topic that is not consumed here, Unavailable where another instance has the partition.
        """
        of_log = topic.endswith(".transactions")
        source = topic.removesuffix(".transactions") if of_log else topic
        if not self._by_expression and source not in self._settings.read_topics:
            raise Refused(f"Hive-Position: {topic} is not consumed here.")
        worker = self.workers.get((source, partition))
        if worker is not None:
            end, seen = worker.at
            if not of_log:
                return end > offset
            at = parse_position(seen)[1] if isinstance(seen, bytes) else -1
            # Nobody knows here how many events the transaction has, but they are published together.
            return at > offset or (at == offset and end >= worker.high)
        if not of_log and hasattr(contract.actor, "position"):  # its store may be shared
            return (await position_of(contract, source, partition) or (0, ""))[0] > offset
        raise Unavailable(f"{source}/{partition} is not consumed by this instance now")

    # -- the assignment, called by the poller

    async def open(self, start: Start) -> Lane:
        worker = await self._open(start)
        self.workers[worker.topic, worker.partition] = worker
        return worker

    async def close(self, workers: Sequence[Lane], *, lost: bool) -> None:
        # Another member may own a lost partition by now: its handler is not waited for.
        # After the poll interval a revoke is too late: another member works on the partition by then.
        bound_s = self._drain_s * 0.8 if self._stopping else self._poller.patience_s / 2
        timeout_s = 0.0 if lost else min(CLOSE_S, bound_s)
        mine = [worker for worker in workers if isinstance(worker, PartitionWorker)]
        if mine:
            await asyncio.gather(*(worker.close(timeout_s) for worker in mine))
        for worker in mine:
            if self.workers.get((worker.topic, worker.partition)) is worker:
                del self.workers[worker.topic, worker.partition]
                self._metrics.set(worker.topic, worker.partition)

    def take(self, groups: Sequence[tuple[Lane, list[Message]]]) -> None:
        for worker, chunk in groups:
            if isinstance(worker, PartitionWorker):
                worker.take(chunk)

    def broken(self, worker: Lane, reason: str) -> None:
        if isinstance(worker, PartitionWorker):
            worker.fail(reason)

    def renew(self) -> None:
        self._dead_letters.renew()

    async def _open(self, start: Start) -> PartitionWorker:
        """A worker that begins at the actors' positions, else at the committed offset, else where the group begins."""
        usual = start.first if start.committed is None else start.committed
        resumes: dict[Target, int] = {}
        for target in self._routing.targets:
            resumes[target] = await resume(target.contract, start, usual)
        first = min(resumes.values())  # an actor with its own position may be behind the others, or ahead
        gone = f"the topic no longer has the events from {first} to {start.low - 1}" if first < start.low else ""
        if gone and self._settings.from_start:
            logger.error("%s/%d: %s; the consumer goes on at %d", start.topic, start.partition, gone, start.low)
            first = start.low
        back = self._back.pop((start.topic, start.partition), 0)
        progress = _progress(start.metadata.seen) if first == start.committed and not back else None
        begin = first
        if progress is None or progress.last is None:
            # Where no commit says what was seen, it reads all records again that may have repeats.
            back = back or (REPEATED if progress is None else LOOK_BACK)
            progress, begin = Progress(), max(start.low, first - back)
        opening = Opening(
            start,
            begin=min(begin, start.high),
            start=first,
            progress=progress,
            seen=progress.last if begin == first else "",  # empty: the last position is not known yet
            resumes=resumes,
        )
        worker = PartitionWorker(
            opening,
            routing=self._routing,
            policy=self._policy,
            keys=RecentKeys(self._settings.idempotency_count),
            concurrency=self._settings.consumer_concurrency,
            store=lambda notify: DeadLetterStore(
                self._dead_letters,
                start,
                start=first,
                limit=self._settings.consumer_parked,
                everybody=self._routing.names,
                notify=notify,
            ),
            finished=self._poller.progress,
            claim=lambda worker: self._poller.claim(worker, start.owner),
            look_back=self._look_back,
        )
        if first == start.committed and start.metadata.topic_id == start.topic_id:
            worker.committed = worker.done
        if gone and not self._settings.from_start:
            worker.fail(
                f"{gone}: its retention has deleted them. With EVENT_STORE_FROM_START=true the consumer goes on at "
                f"{start.low}, without them; `hiveio replay` rebuilds a projection"
            )
        if max(resumes.values()) > start.high:
            worker.fail(
                f"the partition ends at {start.high}, before the position of an actor. Was the topic deleted and "
                "created again? `hiveio replay --reset` begins again with it"
            )
        return worker

    def _look_back(self, worker: PartitionWorker) -> None:
        """Another worker of this partition reads further back, in the end from the beginning of the topic."""
        key = worker.topic, worker.partition
        self._back[key] = FURTHER * max(REPEATED, worker.looked_back)
        self._poller.reopen([key])


def _progress(seen: str) -> Progress | None:
    """The last position according to the metadata of a commit; None when that says nothing."""
    if seen == NOTHING:
        return Progress()
    try:
        return None if seen == UNKNOWN else Progress(seen.encode())
    except Invalid:
        return None  # another program has committed it
