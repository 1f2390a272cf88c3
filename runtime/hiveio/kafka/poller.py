"""The poll thread of a consumer, which never stops polling, whatever the handlers do.

Work belongs to an assignment: a ``Lane`` is opened for each partition (see ``assignment``), and closed and joined on
revoke. Records are handed to the loop in groups; a lane that does not keep up is paused alone. Offsets are committed
in groups, after their effect. Nothing is asked of Kafka in a callback, and no error leaves one.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka.assigned import Lane, Lanes, Offsets, Owner, Partition, by_partition
from hiveio.kafka.assignment import Assignment
from hiveio.kafka.client import denied, first_brokers, first_contact, is_fatal, make, start_thread
from hiveio.kafka.commits import Commits
from hiveio.kafka.group import member_config
from hiveio.kafka.guard import Pauses, text, tried
from hiveio.kafka.leaders import LeaderWatch
from hiveio.kafka.lookup import Lookup
from hiveio.kafka.reachability import is_connection_error
from hiveio.kafka.room import make_room, topic_partitions
from hiveio.kafka.threads import blocking
from hiveio.kafka.topics import group_members

COMMIT_S = 0.25
TURN_S = 0.1  # the longest a poll waits
SHORT_S = 0.01  # the same while something is about to be done here
STUCK_S = 60.0
OFFSETS_TOPIC = "__consumer_offsets"
COMMIT_TIMEOUT_S = 20.0  # for the commit of first offsets, or of an owner
logger = logging.getLogger("hiveio.consumer")
T = TypeVar("T")


class Poller:
    """Joins the group and hands records over until it is stopped. The client is replaced after a fatal error.

    ``companion`` names, for each topic, another one, whose partition of the same number is looked up on assign.
    """

    def __init__(self, settings: Settings, owner: Lanes, companion: Callable[[str], str]) -> None:
        """Raises ConfigError for properties and topics that are wrong."""
        self._settings, self._owner, self._batch = settings, owner, settings.buffer
        config = member_config(settings)
        # The end of a partition may be behind its last record: see Lane.at.
        self._config = config | {
            "enable.partition.eof": True,
            "on_commit": self._on_commit,
            "error_cb": self._on_error,
        }
        self._lookup = Lookup(settings, config)
        look_s = int(config["topic.metadata.refresh.interval.ms"]) / 1000
        self.assignment = Assignment(settings, owner, self, self._lookup, companion, look_s)
        # The longest that a callback may take; after that Kafka revokes the partitions.
        self._longest_s = int(config.get("max.poll.interval.ms", 300_000)) / 1000
        self.patience_s = self._longest_s * 0.8
        self._first_client: Consumer | None = None
        self._thread: threading.Thread | None = None
        self._progress = threading.Event()
        self._calls: queue.SimpleQueue[Callable[[Consumer], None]] = queue.SimpleQueue()  # for the poll thread
        self._names: list[str] = []
        self._probe: asyncio.Task[str | None] | None = None
        self._stopping = False
        self._stale = False  # the client is to be replaced
        self._leaders = LeaderWatch(settings, self._topics, self._renew)
        self._turned = time.monotonic()
        # Of the poll thread, and of one client.
        self._owned: set[Partition] = set()
        self._lanes: dict[Partition, Lane] = {}
        self._assigned: set[Partition] = set()  # of the owned, those that the client reads
        self._commits = Commits(self.assignment.subscription)
        self._subscribed: list[str] = []
        self._fatal: str | None = None
        self._commit_at = 0.0
        self._member: str | None = None  # its id
        self.trouble: str | None = None

    # -- on the loop

    def start(self) -> None:
        """Raises ConfigError for properties that librdkafka refuses."""
        self._loop = asyncio.get_running_loop()
        self._first_client = make(Consumer, self._config)
        self.assignment.start()
        self._thread = start_thread("consumer poll", self._run)
        first_contact(self._settings)
        self._leaders.start()

    async def stop(self, timeout_s: float) -> None:
        """Close the lanes, commit, leave the group; within the bound."""
        self._stopping = True
        self._progress.set()
        if self._thread is not None:
            await self._leaders.stop()
            await blocking(self._thread.join, timeout_s)
            if self._thread.is_alive():
                logger.warning("the consumer did not leave its group within %g s", timeout_s)
            self.assignment.stop()
            await blocking(self._lookup.close)

    def progress(self) -> None:
        """A lane has finished records."""
        self._progress.set()

    def alive(self) -> bool:
        thread = self._thread
        return thread is None or self._stopping or (thread.is_alive() and time.monotonic() - self._turned < STUCK_S)

    async def ready(self) -> str | None:
        """None when it is a member, everything that it was assigned is read, and Kafka answers; else the reasons."""
        found = self.assignment
        if reasons := [each for each in (found.missing, self.trouble, self._leaders.doubt) if each]:
            return "; ".join(reasons)
        # No callback comes where a group has no partition left for this member (KIP-848). Where there is one, the group
        # is stable as soon as it has been sent, which may be before the callback.
        if not found.joined and (member := self._member):
            assigned, stable = await blocking(group_members, self._settings, self._settings.group_id, 1.0)
            found.joined = found.joined or (stable and assigned.get(member) == 0)
        if not found.joined:
            return found.joining
        if found.waiting:
            (topic, at), reason = min(found.waiting.items())
            return f"{topic}/{at} is not read yet: {reason}"
        if self._probe is None or self._probe.done():  # probes that come together ask Kafka once
            self._probe = asyncio.ensure_future(blocking(self._lookup.answer))
        return await asyncio.shield(self._probe)

    def _topics(self) -> set[str]:
        """The topics that are read, and the one whose leader is the group's coordinator."""
        return {OFFSETS_TOPIC, *(topic for topic, _ in self.assignment.lanes)}

    async def _renew(self, topics: set[str]) -> None:
        """Join the group again, with a new client that looks up the leaders."""
        self.assignment.joined, self._member, self._stale = False, None, True
        self._progress.set()
        await blocking(self._lookup.close)
        self._owner.renew()

    # -- what the assignment asks for, on the loop

    def subscribe(self, names: Sequence[str]) -> None:
        self._names = list(names)

    def assign(self, lane: Lane) -> None:
        self._calls.put(partial(self._assign, lane))
        self._progress.set()

    def reopen(self, keys: Sequence[Partition]) -> None:
        self._calls.put(partial(self._reopen, keys))

    async def commit(self, owned: Partition, offsets: Offsets) -> str | None:
        """Commit these for the group, unless ``owned`` is another member's by now. None, or why that failed."""
        result: Future[str | None] = Future()
        self._calls.put(partial(self._commit_owned, owned, offsets, result))
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                return await asyncio.wrap_future(result)
        except TimeoutError:
            return f"Kafka did not answer within {COMMIT_TIMEOUT_S:g} s"

    async def claim(self, lane: Lane, owner: Owner) -> None:
        """Commit who has the partition from now on, so that a later commit of another member is recognised.

        Raises Unavailable where that could not be committed.
        """
        key, lane.owner = (lane.topic, lane.partition), owner
        if (reason := await self.commit(key, {key: self._commits.of(lane)})) is not None:
            raise Unavailable(f"the claim on {lane.topic}/{lane.partition} could not be committed: {reason}")

    # -- on the poll thread

    def _run(self) -> None:
        pauses = Pauses()
        while not self._stopping and not self._loop.is_closed():
            started = time.monotonic()
            failure = tried(self._session)
            if failure is None or self._loop.is_closed():
                continue
            if time.monotonic() - started > STUCK_S:
                pauses.reset()
            self.trouble = f"the consumer failed and is replaced: {text(failure)}"
            # Without a trace: it would be of the client's own code, and such an error may not be an exception.
            logger.error("%s", self.trouble)
            self._progress.clear()
            self._turned = time.monotonic()
            if not self._stopping:
                self._progress.wait(pauses.next_s())

    def _session(self) -> None:
        """The life of one client. Raises RuntimeError with the reason if it failed."""
        self._fatal, self._subscribed, self.assignment.joined, self._stale = None, [], False, False
        config = self._config | {"bootstrap.servers": first_brokers(self._settings)}
        consumer, self._first_client = self._first_client or make(Consumer, config), None
        failure = tried(lambda: self._turns(consumer))
        reason = self._fatal or (text(failure) if failure is not None else None)
        # Not in a `finally`: what failed may be no exception, and nothing may be chained to it.
        ending = tried(lambda: self._release(consumer, self._owned, lost=reason is not None))
        closing = tried(consumer.close)
        self._owned.clear()
        self._assigned.clear()
        self._lanes.clear()
        self._commits.forget()
        reason = reason or next((text(failed) for failed in (ending, closing) if failed is not None), None)
        if reason is not None:
            raise RuntimeError(reason)

    def _turns(self, consumer: Consumer) -> None:
        while not (self._stopping or self._stale) and self._fatal is None:
            self._turn(consumer)

    def _turn(self, consumer: Consumer) -> None:
        self._turned = time.monotonic()
        if self._names != self._subscribed:
            self._subscribe(consumer, self._names)
        while not self._calls.empty():
            self._calls.get_nowait()(consumer)
        if self._turned >= self._commit_at:
            self._commits.commit(consumer, self._lanes.values())
            for known in self._lanes.values():
                self._look_at_end(consumer, known)
            self._commit_at = self._turned + COMMIT_S
        waiting = make_room(consumer, self._lanes.values(), self._batch, self._progress) or len(self._lanes) < len(
            self._owned
        )
        # poll returns at the first record and consume adds what came with it; consume alone waits for a full batch
        first = consumer.poll(SHORT_S if waiting else TURN_S)
        if first is None:
            return
        topic, at = first.topic(), first.partition()
        lane = self._lanes.get((topic or "", at if at is not None else -1))
        rest = consumer.consume(self._batch - 1, 0) if self._batch > 1 else []
        if lane is not None and self._lanes.get((lane.topic, lane.partition)) is not lane:
            messages = rest  # its partition was revoked in consume
        else:
            messages = [first, *rest]
        self._hand_over(consumer, *by_partition(messages, self._on_message_error))

    def _hand_over(
        self, consumer: Consumer, groups: dict[Partition, list[Message]], ends: dict[Partition, int]
    ) -> None:
        groups_to_handle = []
        for key, group in groups.items():
            if (found := self._lanes.get(key)) is not None and found.failure is None:
                found.handed += len(group)
                found.handed_to = group[-1].offset() + 1  # type: ignore[operator]
                self._look_at_end(consumer, found)
                groups_to_handle.append((found, group))
        for key, offset in ends.items():
            if (found := self._lanes.get(key)) is not None:
                found.empty_to = offset
        if groups_to_handle:
            self.trouble = None
            self._loop.call_soon_threadsafe(self._owner.take, groups_to_handle)

    @staticmethod
    def _look_at_end(consumer: Consumer, lane: Lane) -> None:
        found = consumer.get_watermark_offsets(TopicPartition(lane.topic, lane.partition), cached=True)
        if found is not None:
            lane.high = max(lane.high, found[1])

    def _on_message_error(self, message: Message, error: KafkaError) -> None:
        lane = self._lanes.get((message.topic() or "", message.partition() or 0))
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) and lane is not None:
            self._loop.call_soon_threadsafe(self._owner.broken, lane, error.str())
        elif is_fatal(error):
            self._fatal = error.str()
        elif error.code() not in (
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError._UNKNOWN_TOPIC,
        ):  # the watch of the topics reports it
            self._report_trouble(error, f"topic {message.topic()}" if message.topic() else "")

    def _report_trouble(self, error: KafkaError, what: str = "") -> None:
        what, rights = what or f"topics {', '.join(self._settings.read_topics)}", "Describe or Read"
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            what, rights = f"group {self._settings.group_id}", "Read"
        trouble = denied(error, what, rights) or error.str()
        if trouble != self.trouble:
            self.trouble = trouble
            logger.warning("%s", trouble)

    # -- the group; callbacks, on the poll thread

    def _subscribe(self, consumer: Consumer, names: list[str]) -> None:
        if names:
            consumer.subscribe(names, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        else:
            consumer.unsubscribe()
        self._subscribed = names
        self._member = consumer.memberid()

    def _guarded(self, work: Callable[[], object]) -> None:
        """Do the work of a callback. An error would be raised by poll, perhaps as an object that no ``except`` names,
        so it ends the client instead."""
        failure = tried(work)
        if failure is not None:
            self._fatal = self._fatal or text(failure)

    def _on_error(self, error: KafkaError) -> None:
        if is_fatal(error):
            self._fatal = error.str()
            if error.code() == KafkaError.UNSUPPORTED_VERSION or "KIP-848" in error.str():
                self._fatal += " (brokers before Kafka 4 need KAFKA_GROUP_PROTOCOL=classic)"
        elif error.code() in (KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            self._report_trouble(error)
        elif not is_connection_error(error):
            logger.warning("%s", error.str())

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        self._guarded(lambda: self._commits.reported(error, partitions))

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # The partitions are the member's from now on; each is read once its lane is open.
        self._guarded(lambda: consumer.incremental_assign([]))
        self.trouble = None
        if not self._stopping:
            keys = [(found.topic, found.partition) for found in partitions]
            self._owned.update(keys)
            self._guarded(lambda: self._loop.call_soon_threadsafe(self.assignment.take, keys))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._give_back(consumer, partitions, lost=False)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._give_back(consumer, partitions, lost=True)

    def _give_back(self, consumer: Consumer, partitions: list[TopicPartition], *, lost: bool) -> None:
        keys = {(found.topic, found.partition) for found in partitions}
        read = [TopicPartition(*key) for key in keys & self._assigned]
        self._assigned -= keys
        # The commit is sent before the partitions are given back.
        self._guarded(lambda: self._release(consumer, keys & self._owned, lost=lost))
        self._owned -= keys
        for key in keys:
            self._lanes.pop(key, None)
        self._guarded(lambda: consumer.incremental_unassign(read))

    def _release(self, consumer: Consumer, keys: Iterable[Partition], *, lost: bool) -> None:
        """Close and join the lanes, then commit what they have done; after that nothing here works on them.

        The commit is in flight when this returns. What is not committed is delivered again.
        """
        keys = set(keys)
        if not keys or self._loop.is_closed():
            return
        self._owned -= keys
        lanes = [lane for key in keys if (lane := self._lanes.get(key)) is not None]
        failure = tried(lambda: self._call(self.assignment.give(keys, lost=lost)))
        if failure is None and not lost:
            self._commits.commit_now(consumer, lanes)
        for key in keys:
            self._lanes.pop(key, None)
        if failure is not None:
            raise RuntimeError(f"partitions were not closed in time: {text(failure)}")

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it on the loop and wait: bounded by the time after which Kafka revokes the partitions anyway."""
        self._turned = time.monotonic() + self._longest_s
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(self.patience_s)
        finally:
            self._turned = time.monotonic()

    # -- what the loop asked for, on the poll thread

    def _commit_owned(self, owned: Partition, offsets: Offsets, result: Future[str | None], consumer: Consumer) -> None:
        if owned in self._owned:
            self._commits.commit_offsets(consumer, offsets, result)
        else:  # it is another member's, which may have begun already
            result.set_result("the partition is another member's")

    def _assign(self, lane: Lane, consumer: Consumer) -> None:
        key = lane.topic, lane.partition
        if key in self._owned and self.assignment.lanes.get(key) is lane:
            consumer.incremental_assign([TopicPartition(*key, lane.begin)])
            self._assigned.add(key)
            self._lanes[key] = lane

    def _reopen(self, keys: Sequence[Partition], consumer: Consumer) -> None:
        """The topic was deleted and created again: begin again with these partitions."""
        lanes = [lane for key in keys if (lane := self._lanes.pop(key, None)) is not None]
        if lanes:
            consumer.incremental_unassign(topic_partitions(lanes))
            self._assigned.difference_update(keys)
            asyncio.run_coroutine_threadsafe(self._reassign(keys), self._loop)

    async def _reassign(self, keys: Sequence[Partition]) -> None:
        await self.assignment.give(keys, lost=True)
        self.assignment.take([key for key in keys if key in self._owned])
