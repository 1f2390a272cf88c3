"""The poll thread of a consumer: it never stops polling, whatever the handlers do.

Work belongs to an assignment: a ``Lane`` is opened on assign, and closed and joined on revoke. Records are handed to
the loop in groups; a lane that does not keep up is paused alone. Offsets are committed in groups, after their effect.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka.client import client_config, is_fatal, make, start_thread
from hiveio.kafka.topics import group_members

COMMIT_S = 0.25
TURN_S = 0.1  # the longest a poll waits
SLOW_S = 0.1  # a lane that holds the others up for so long is paused
CALL_S = 10.0  # one request to Kafka
STUCK_S = 60.0
AGAIN_S = 1.0  # before a client that failed is made anew
logger = logging.getLogger("hiveio.consumer")
T = TypeVar("T")
Key = tuple[str, int]  # topic, partition


class Start(NamedTuple):
    """What Kafka knows of a partition when it is assigned: committed offset and its note, first offset, end offset.

    ``fresh`` is the first offset written since this consumer started, ``beside`` first and end offset of the partition
    of the topic beside it (see Poller), (0, 0) when there is none.
    """

    topic: str
    partition: int
    committed: int | None
    note: str
    low: int
    high: int
    fresh: int
    beside: tuple[int, int] = (0, 0)


class Lane:
    """One partition, from its assign to its revoke. ``begin`` is the offset to read from.

    ``done`` is the next offset and the note to commit with it: one tuple, because the poll thread reads it while the
    loop works, and an offset with the note of another would skip or repeat records after a restart.
    """

    def __init__(self, topic: str, partition: int, begin: int, done: tuple[int, str | bytes | None]) -> None:
        self.topic, self.partition, self.begin, self.done = topic, partition, begin, done
        self.committed: tuple[int, str | bytes | None] | None = None
        self.high = 0  # the partition's end, as the last fetch told it; written by the poll thread alone
        self.handed = 0  # records; written by the poll thread alone
        self.finished = 0  # of those; written by the loop alone
        # librdkafka keeps a pause from one assignment to the next: the first turn resumes whatever was paused before.
        self.paused = True
        self.failure: str | None = None

    @property
    def backlog(self) -> int:
        return self.handed - self.finished


class Lanes(Protocol):
    """What the consumer does with an assignment. Everything here is called on the loop."""

    async def open(self, starts: Sequence[Start]) -> Sequence[Lane]: ...
    async def close(self, lanes: Sequence[Lane], *, lost: bool) -> None: ...
    def take(self, groups: Sequence[tuple[Lane, list[Message]]]) -> None: ...
    def broken(self, lane: Lane, reason: str) -> None: ...


class Poller:
    """Joins the group and hands records over until it is stopped. Makes a new client after a fatal error.

    ``beside`` names, for a topic, another one, of which the same partition is looked up on assign.
    """

    def __init__(self, settings: Settings, owner: Lanes, beside: Callable[[str], str]) -> None:
        self._settings, self._owner, self._topics = settings, owner, list(settings.read_topics)
        self._beside = beside
        self._batch = settings.buffer
        protocol = settings.kafka.get("group.protocol", "consumer").lower()
        own = {"partition_assignment_strategy": "cooperative-sticky"} if protocol == "classic" else {}
        self._config = client_config(
            settings,
            group_protocol=protocol,
            topic_metadata_refresh_interval_ms=10_000,
            # As much as is handled in a tenth of a second; by default librdkafka keeps 100,000 records of a partition,
            # and then asks for no more for a whole second, in which a fast consumer runs dry.
            queued_min_messages=10_000,
            fetch_queue_backoff_ms=10,
            **own,
        )
        self._config |= {
            "group.id": settings.group_id,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",  # where to begin is decided on assign; later, a lost offset is a failure
            "on_commit": self._on_commit,
            "error_cb": self._on_error,
        }
        ours = {"on_commit", "error_cb"}
        self._lookup_config = {name: value for name, value in self._config.items() if name not in ours}
        self._lookup_config |= {"log_level": 0, "client.id": f"{settings.client_id}.lookup"}
        # After it Kafka takes the partitions away; so long a callback may take.
        self._longest_s = int(self._config.get("max.poll.interval.ms", 300_000)) / 1000
        self.patience_s = self._longest_s * 0.8
        self._consumer: Consumer | None = None
        self._thread: threading.Thread | None = None
        self._progress = threading.Event()
        self._lanes: dict[Key, Lane] = {}
        self._stopping = False
        self._fatal: str | None = None
        self._commit_at = 0.0
        self._turned = time.monotonic()
        self._asked: asyncio.Future[str | None] | None = None
        self._member: str | None = None  # its id, of this client
        self.joined = False
        self.trouble: str | None = None

    # -- on the loop

    def start(self) -> None:
        """Raises ConfigError for properties that librdkafka refuses."""
        self._loop = asyncio.get_running_loop()
        self._started_ms = int(time.time() * 1000)
        self._consumer = make(Consumer, self._config)
        self._thread = start_thread("consumer poll", self._run)

    async def stop(self, timeout_s: float) -> None:
        """Close the lanes, commit, leave the group; within the bound."""
        self._stopping = True
        self._progress.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, timeout_s)
            if self._thread.is_alive():
                logger.warning("the consumer did not leave its group within %g s", timeout_s)

    def progress(self) -> None:
        """A lane has finished records."""
        self._progress.set()

    def alive(self) -> bool:
        thread = self._thread
        return thread is None or self._stopping or (thread.is_alive() and time.monotonic() - self._turned < STUCK_S)

    async def is_member(self) -> bool:
        """Whether the group has us. One that joins a group with no partition left is not told so (KIP-848)."""
        if not self.joined and (member := self._member):
            members, stable = await asyncio.to_thread(group_members, self._settings, self._settings.group_id, 1.0)
            self.joined = self.joined or (stable and member in members)
        return self.joined

    async def ask(self) -> str | None:
        """None when Kafka answers, else the reason."""
        if self._asked is None or self._asked.done():  # probes that come together ask Kafka once
            self._asked = self._loop.create_future()
        return await asyncio.shield(self._asked)

    # -- on the poll thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._session()
            except Exception as error:
                if self._loop.is_closed():
                    return
                self.trouble = f"the consumer failed and is made anew: {error}"
                trace = None if isinstance(error, Unavailable) else error
                logger.error("%s", self.trouble, exc_info=trace)
                self._progress.clear()
                if not self._stopping:
                    self._progress.wait(AGAIN_S)

    def _session(self) -> None:
        """The life of one client."""
        self._fatal = None
        consumer = self._consumer = self._consumer or make(Consumer, self._config)
        # A client's method that waits, called inside one of its callbacks, takes from the client what its other
        # callbacks need: a log line served later in the same poll aborts the process (2.16.1). So they ask another.
        lookup = self._lookup = make(Consumer, self._lookup_config)
        try:
            consumer.subscribe(
                self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            self._member = consumer.memberid()
            while not self._stopping and self._fatal is None:
                self._turn(consumer)
            if self._fatal is not None:
                raise RuntimeError(self._fatal)
        finally:
            self._release(consumer, list(self._lanes.values()), lost=self._fatal is not None)
            self._consumer = None
            consumer.close()
            lookup.close()

    def _turn(self, consumer: Consumer) -> None:
        self._turned = time.monotonic()
        if self._turned >= self._commit_at:
            self._commit(consumer)
            for known in self._lanes.values():
                self._look_at_end(consumer, known)
            self._commit_at = self._turned + COMMIT_S
        if self._asked is not None:
            self._answer(consumer)
        waiting = self._make_room(consumer)
        # poll wakes at the first record and consume takes what came with it; consume alone waits for a full batch
        first = consumer.poll(0.01 if waiting else TURN_S)
        if first is None:
            return
        topic, partition = first.topic(), first.partition()
        lane = self._lanes.get((topic or "", partition if partition is not None else -1))
        rest = consumer.consume(self._batch - 1, 0) if self._batch > 1 else []
        if lane is not None and self._lanes.get((lane.topic, lane.partition)) is not lane:
            messages = rest  # its partition was revoked in consume
        else:
            messages = [first, *rest]
        groups: dict[Key, list[Message]] = {}
        for message in messages:
            if message.error() is not None:
                self._on_message_error(message)
                continue
            key = (message.topic(), message.partition())
            group = groups.get(key)  # type: ignore[arg-type]
            if group is None:
                groups[key] = [message]  # type: ignore[index]
            else:
                group.append(message)
        taken = []
        for key, group in groups.items():
            if (found := self._lanes.get(key)) is not None and found.failure is None:
                found.handed += len(group)
                self._look_at_end(consumer, found)
                taken.append((found, group))
        if taken:
            self._loop.call_soon_threadsafe(self._owner.take, taken)

    @staticmethod
    def _look_at_end(consumer: Consumer, lane: Lane) -> None:
        found = consumer.get_watermark_offsets(TopicPartition(lane.topic, lane.partition), cached=True)
        if found is not None:
            lane.high = max(lane.high, found[1])

    def _answer(self, consumer: Consumer) -> None:
        """Here and not on another thread: ``list_topics`` beside a poll blocks both for ever (2.16.1)."""
        asked, self._asked = self._asked, None
        try:
            consumer.list_topics(timeout=1.0)
            reason = None
        except KafkaException as error:
            reason = f"Kafka at {self._settings.brokers} does not answer: {error.args[0].str()}"
        if asked is not None:
            self._loop.call_soon_threadsafe(_resolve, asked, reason)

    def _make_room(self, consumer: Consumer) -> bool:
        """Wait for the loop, shortly; pause the lanes that hold it up, so that polling and the others go on.

        Returns whether a lane is paused that will go on.
        """
        resumed = [lane for lane in self._lanes.values() if lane.paused and lane.backlog <= self._batch // 4]
        self._set_paused(consumer, [lane for lane in resumed if lane.failure is None], paused=False)
        self._progress.clear()
        if not self._has_room():
            self._progress.wait(SLOW_S)
            if not self._has_room():
                # Pausing throws away what librdkafka has fetched: only for slow lanes, never to keep pace.
                self._set_paused(consumer, [lane for lane in self._lanes.values() if lane.backlog], paused=True)
        self._set_paused(consumer, [lane for lane in self._lanes.values() if lane.failure is not None], paused=True)
        return any(lane.paused and lane.failure is None for lane in self._lanes.values())

    def _has_room(self) -> bool:
        return sum(lane.backlog for lane in self._lanes.values() if not lane.paused) < 2 * self._batch

    @staticmethod
    def _set_paused(consumer: Consumer, lanes: list[Lane], *, paused: bool) -> None:
        lanes = [lane for lane in lanes if lane.paused is not paused]
        if lanes:
            partitions = [TopicPartition(lane.topic, lane.partition) for lane in lanes]
            consumer.pause(partitions) if paused else consumer.resume(partitions)
            for lane in lanes:
                lane.paused = paused

    def _on_message_error(self, message: Message) -> None:
        error = message.error()
        assert error is not None
        lane = self._lanes.get((message.topic() or "", message.partition() or 0))
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) and lane is not None:
            self._loop.call_soon_threadsafe(self._owner.broken, lane, error.str())
        elif is_fatal(error):
            self._fatal = error.str()
        else:
            self.trouble = error.str()
            logger.warning("%s", error.str())

    def _on_error(self, error: KafkaError) -> None:
        if is_fatal(error):
            self._fatal = error.str()
            if error.code() == KafkaError.UNSUPPORTED_VERSION or "KIP-848" in error.str():
                self._fatal += " (brokers before Kafka 4 need KAFKA_GROUP_PROTOCOL=classic)"
        else:
            logger.warning("%s", error.str())

    # -- the assignment

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.joined = True
        self.trouble = None
        if partitions and not self._stopping:
            lookup = self._lookup
            beside = {p.topic: self._partitions(lookup, self._beside(p.topic)) for p in partitions}
            committed = self._committed(lookup, partitions)
            starts = [self._start_of(lookup, partition, beside[partition.topic]) for partition in committed]
            lanes = self._call(self._owner.open(starts))
            self._lanes |= {(lane.topic, lane.partition): lane for lane in lanes}
            partitions = [TopicPartition(lane.topic, lane.partition, lane.begin) for lane in lanes]
        consumer.incremental_assign(partitions)

    def _committed(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Kafka may not answer for a while: giving up would leave the partitions to nobody."""
        give_up = time.monotonic() + self._longest_s / 2
        while True:
            try:
                found: list[TopicPartition] = consumer.committed(partitions, timeout=CALL_S)
                for partition in found:
                    if partition.error is not None:
                        raise KafkaException(partition.error)
                return found
            except KafkaException as error:
                if time.monotonic() > give_up or self._stopping:
                    raise
                logger.warning("the committed offsets cannot be read: %s", error.args[0].str())
            self._turned = time.monotonic()
            time.sleep(TURN_S)

    def _start_of(self, consumer: Consumer, found: TopicPartition, beside: set[int]) -> Start:
        topic, partition = found.topic, found.partition
        committed = found.offset if found.offset >= 0 else None
        fresh = -1
        if committed is None:
            (at,) = consumer.offsets_for_times([TopicPartition(topic, partition, self._started_ms)], CALL_S)
            if at.error is not None:
                raise KafkaException(at.error)
            fresh = at.offset
        low, high = _bounds(consumer, topic, partition)
        letters = _bounds(consumer, self._beside(topic), partition) if partition in beside else (0, 0)
        fresh = fresh if fresh >= 0 else high
        return Start(topic, partition, committed, found.metadata or "", low, high, fresh, letters)

    @staticmethod
    def _partitions(consumer: Consumer, topic: str) -> set[int]:
        """The partitions of a topic; none if it is not there."""
        found = consumer.list_topics(topic, timeout=CALL_S).topics[topic]
        if found.error is not None and found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return set()
        if found.error is not None:
            raise KafkaException(found.error)
        return set(found.partitions)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._give_back(consumer, partitions, lost=False)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._give_back(consumer, partitions, lost=True)

    def _give_back(self, consumer: Consumer, partitions: list[TopicPartition], *, lost: bool) -> None:
        keys = [(partition.topic, partition.partition) for partition in partitions]
        lanes = [self._lanes[key] for key in keys if key in self._lanes]
        self._release(consumer, lanes, lost=lost, wait=False)  # the commit goes out before the partitions are let go
        consumer.incremental_unassign(partitions)

    def _release(self, consumer: Consumer, lanes: list[Lane], *, lost: bool, wait: bool = True) -> None:
        """Close and join the lanes, then commit what they have done; after that nobody here touches them.

        Without ``wait``, inside a callback, the commit is on its way when this returns.
        """
        if not lanes:
            return
        if not self._loop.is_closed():
            self._call(self._owner.close(lanes, lost=lost))
        if not lost:
            try:
                self._commit(consumer, lanes, wait=wait)
            except KafkaException as error:  # what is not committed is delivered again
                logger.warning("offsets were not committed: %s", error.args[0].str())
        for lane in lanes:
            self._lanes.pop((lane.topic, lane.partition), None)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it on the loop and wait: bounded by the time after which Kafka takes the partitions away anyway."""
        self._turned = time.monotonic() + self._longest_s
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(self.patience_s)
        finally:
            self._turned = time.monotonic()

    # -- offsets

    def _commit(self, consumer: Consumer, closed: list[Lane] | None = None, *, wait: bool = False) -> None:
        """Commit what is done; at once for lanes that are ``closed``."""
        offsets = []
        for lane in self._lanes.values() if closed is None else closed:
            done = lane.done
            if done is not lane.committed:
                offset, note = done
                text = note.decode() if isinstance(note, bytes) else note
                offsets.append(TopicPartition(lane.topic, lane.partition, offset, "-" if text is None else text))
                lane.committed = done
        if offsets:
            if wait:
                consumer.commit(offsets=offsets, asynchronous=False)
            else:
                consumer.commit(offsets=offsets)

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            failed = error or partition.error
            lane = self._lanes.get((partition.topic, partition.partition))
            if failed is not None and lane is not None:
                lane.committed = None  # the next turn commits it again
                logger.warning("%s/%d: not committed: %s", partition.topic, partition.partition, failed.str())


def _bounds(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    ends = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=CALL_S)
    if ends is None:
        raise RuntimeError(f"the end of {topic}/{partition} was not told within {CALL_S:g} s")
    return ends


def _resolve(asked: "asyncio.Future[str | None]", answer: str | None) -> None:
    if not asked.done():
        asked.set_result(answer)
