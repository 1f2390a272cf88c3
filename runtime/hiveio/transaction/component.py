"""The unified transaction log: Kafka's log and Redis' cache as one component of a service."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.errors import BadAnnotation, ConfigError, Unavailable, Unsafe
from hiveio.http.routes import RESERVED, RESERVED_BELOW
from hiveio.kafka.appender import Appender
from hiveio.kafka.client import first_contact
from hiveio.kafka.end_offsets import EndOffsets
from hiveio.kafka.leaders import LeaderWatch
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.tail import Tail
from hiveio.kafka.threads import blocking
from hiveio.kafka.topics import FOREVER, Topic, ensure_topic
from hiveio.redis import Redis, connect
from hiveio.transaction import metrics
from hiveio.transaction.bounds import Bounds
from hiveio.transaction.cache import Cache, fingerprint, taken
from hiveio.transaction.engine import Engine
from hiveio.transaction.following import Following
from hiveio.transaction.forwarding import Forwarding
from hiveio.transaction.journal import fresh_ids
from hiveio.transaction.lag import PublisherLag
from hiveio.transaction.leadership import Leadership
from hiveio.transaction.lock import Redlock
from hiveio.transaction.outlet import Outlet
from hiveio.transaction.pinned import Pinned
from hiveio.transaction.placement import Placement
from hiveio.transaction.presence import Presence
from hiveio.transaction.publisher import COMMANDS, EVENTS
from hiveio.transaction.rebuild import Rebuilds
from hiveio.transaction.record import FIRST_FORMAT, PROCESSES
from hiveio.transaction.rule import IdWindow
from hiveio.transaction.scope import Scope
from hiveio.transaction.scopes import Scopes
from hiveio.types import Observer

logger = logging.getLogger("hiveio.transaction")

MAX_RECORD_BYTES = 1_000_000  # of a record of the log, with its headers
_LOG_TOPIC = FOREVER | {"message.timestamp.type": "LogAppendTime"}
LEAST_WINDOW_S = 60  # IDEMPOTENCY_TIME where there are process managers
LATE_S = 3.0  # without a record being read back, or events being published
OPENING_S = 1.0  # for which commands wait for a scope that is opened; then the instance is not ready
LEADERS_S = 5.0  # to ask the brokers who leads; then the start goes on without that
START_S = 20.0  # to reach the backends; then the start fails


class TransactionLog:
    """Owns the clients, the scopes, the engine and the leaders of one instance. It is a Component of the service.

    ``observer`` is called for each event that is published and gives the headers to send.
    """

    name = "transaction log"

    def __init__(self, settings: Settings, contracts: Sequence[Contract], observer: Observer | None = None) -> None:
        settings.need(
            brokers="the transaction log is in Kafka",
            written_topic="it names the event topic, and with .transactions the log",
            cache_url="the transaction cache is in Redis",
        )
        for contract in contracts:
            if contract.replay is None or contract.model is None:
                raise BadAnnotation(f"{contract.name} has no replay: a stream processor folds its state from events")
            if "/" in contract.name:
                raise BadAnnotation(f"the actor name {contract.name!r} contains a /")
            if contract.path and not (contract.path.startswith((*RESERVED, RESERVED_BELOW)) or "{id}" in contract.path):
                raise BadAnnotation(
                    f"{contract.kind.__name__}: the path {contract.path!r} has no {{id}}, which names a command's "
                    f'aggregate; write path = "{contract.path.rstrip("/")}/{{id}}"'
                )
            if contract.process and settings.idempotency_time_s < LEAST_WINDOW_S:
                raise ConfigError(
                    f"IDEMPOTENCY_TIME={settings.idempotency_time_s}: with the process manager {contract.name} it must "
                    f"be {LEAST_WINDOW_S} or more, because a sixtieth of it is the longest step of the log's clock, by "
                    "which deadlines fire"
                )
        self.settings, self.contracts, self._observer = settings, contracts, observer
        self.engine: Engine
        self.scopes = Scopes()
        self._outlets: list[Outlet] = []
        self._forwarding: Forwarding | None = None
        self._has_processes = any(contract.process for contract in contracts)
        self._needs_format = PROCESSES if self._has_processes or settings.command_topics else FIRST_FORMAT
        self._nodes: list[Redis] = []
        self._started = False
        topics = [settings.log_topic, settings.written_topic]
        if self._has_processes:
            topics.append(settings.outbox_topic)
        self._brokers = LeaderWatch(settings, lambda: topics, self._renew, self._late)
        self._making, self._made = False, asyncio.Event()  # whether the clients are being made, and are made
        self._unused: dict[str, int] = {}
        self._looked_at = 0  # the partition whose leader readiness has asked last

    async def start(self) -> None:
        s = self.settings
        instance = os.urandom(6).hex()
        by_url = {url: connect(url) for url in dict.fromkeys((s.cache_url, *s.lock_nodes))}
        self._nodes = list(by_url.values())
        cache_node = by_url[s.cache_url]
        first_contact(s)
        topic, events = await _retrying(lambda: self._backends(cache_node))
        meaning = fingerprint(self.contracts)
        metrics.models(meaning)
        self._cache = Cache(cache_node, s.log_topic, topic.id, meaning, taken(self.contracts))
        await self._log_others()
        self._brokers.start()
        await self._brokers.settled(LEADERS_S)
        self._making = True
        self._reader = LogReader(s, s.log_topic)
        self.tail = Tail(s, s.log_topic)
        events_outlet = Outlet(s, s.written_topic, EVENTS, self._observer)
        self._outlets = [events_outlet]
        if self._has_processes:
            self._outlets.append(Outlet(s, s.outbox_topic, COMMANDS, self._observer))
        self._end_offsets = EndOffsets(s)
        lock_nodes = [by_url[url] for url in s.lock_nodes]
        remember_ms = 4 * (s.lock_retry_delay_ms + s.lock_retry_jitter_ms) + 100
        lock = Redlock(lock_nodes, instance, s.lock_ttl_ms, s.lock_drift_factor, remember_ms)
        by_name = {contract.name: contract for contract in self.contracts}
        window = IdWindow(s.idempotency_count, s.idempotency_time_s * 1000)
        pinned = Pinned(s, by_name, self._reader, events_outlet.reader, self._end_offsets)
        count, self._unused = await _retrying(lambda: pinned.scopes(topic, events))
        placement, bounds = Placement(by_name, s.log_topic, count, s.misplaced), Bounds.of(count)
        if s.misplaced:
            logger.warning(
                "EVENT_STORE_MISPLACED=%s: records of these aggregates in a wrong partition do not stop a scope",
                s.misplaced,
            )
        await _retrying(lambda: placement.sample(self._reader, self._cache))
        common = (s.log_topic, topic.id, self._cache, self.tail, self._reader, by_name, window, placement)
        ids, rebuilds = fresh_ids(), Rebuilds(instance)
        self.scopes = Scopes(
            count, lambda partition: Scope(partition, *common, ids, rebuilds, bounds, self._needs_format)
        )
        self.engine = Engine(s, self.contracts, self.scopes, self._cache, self._reader, lock)
        in_flight: int = await _retrying(lambda: pinned.in_flight(count, topic.id, self._cache))
        self._appender = Appender(s, s.log_topic, self.engine.append_failed, in_flight)
        self._appender.start()
        await _retrying(lambda: pinned.pin(count, self._appender))
        self.tail.start()
        for outlet in self._outlets:
            outlet.start()
        self.engine.start(self._appender)
        drive = (self.engine.fire, self.engine.resume) if self._has_processes else (None, None)
        self._leadership = Leadership(self._outlets, self._cache, instance, self._end_offsets, *drive)
        self.scopes.on_open(self._leadership.begin)
        if not s.auth_jwks_url:  # else whoever may write to Redis could send commands in the name of anybody
            engine = self.engine
            self._forwarding = Forwarding(
                self._cache, instance, by_name, self._leadership.leader, engine.submit, engine.execute
            )
            engine.forward_by(self._forwarding)
        published = [outlet.topic for outlet in self._outlets]
        self._following = Following(
            *(self.scopes, self._leadership, self._cache, self._end_offsets, s.log_topic, published),
            works_on=self.engine.works_on,
            unused_s=2 * s.request_timeout_ms / 1000,
        )
        self._following.start()
        self._lag = PublisherLag(self.scopes, self._end_offsets, events_outlet.reader, s.written_topic)
        self._lag.start()
        self._presence = Presence(self._cache, s, instance, meaning, by_name)
        self._presence.start()
        self._started = True
        self._made.set()

    @property
    def outbox_stream(self) -> str:
        """With what the causes begin of all commands that processes of this service send: see Cause."""
        return f"{self.settings.outbox_topic}/{self._cache.topic_id}/"

    async def _log_others(self) -> None:
        """Log a line if other logs of this name have keys in Redis."""
        try:
            others = await self._cache.others()
        except Unavailable:
            return  # nothing depends on it, and readiness says why Redis takes no writes
        if others:
            logger.warning(
                "the Redis of CACHE_URL has seen %d other logs named %s, of other clusters or deleted ones: %s; their "
                "keys are not used here, and docs/operations.md says how to delete them",
                *(len(others), self.settings.log_topic, ", ".join(others[:5])),
            )

    async def _backends(self, cache_node: Redis) -> tuple[Topic, Topic]:
        """The topics, which are created if need be. Raises Unsafe if Redis may evict keys, or a topic may lose
        records."""
        await cache_node.refuse_eviction()
        s = self.settings
        found = await ensure_topic(s, s.log_topic, _LOG_TOPIC)
        events = await ensure_topic(s, s.written_topic, FOREVER)
        _check(found, _LOG_TOPIC)
        _check(events, FOREVER)
        if self._has_processes:
            outbox = await ensure_topic(s, s.outbox_topic, FOREVER)
            _check(outbox, FOREVER)
            if outbox.partitions < s.partitions:
                raise Unsafe(
                    f"Topic {outbox.name} has {outbox.partitions} partitions and EVENT_STORE_PARTITIONS is "
                    f"{s.partitions}: the commands of each scope go to a partition of their own; add partitions to "
                    f"{outbox.name}"
                )
        return found, events

    async def stop(self) -> None:
        """Answer the commands, publish the accepted events and release the locks, each within its share of the time."""
        share = self.settings.drain_timeout_ms / 1000 / 5
        if self._started:
            if self._forwarding is not None:
                await self._forwarding.take_no_commands()
            await self.engine.drain(2 * share)
            if self._forwarding is not None:
                await self._forwarding.stop()
        await self._brokers.stop()
        if self._started:
            await self._following.stop()
            await self._leadership.stop(share)
            for scope in self.scopes:
                await scope.stop()
            await self._appender.stop(share)
            await self.tail.stop()
            await self._lag.stop()
            await self._presence.stop()
            for outlet in self._outlets:
                await outlet.stop()
            await blocking(self._reader.close)
        for node in self._nodes:
            await node.stop()

    async def ready(self) -> str | None:
        now, looked_at = asyncio.get_running_loop().time(), self._following.looked_at
        for scope in self.scopes:
            if scope.opening and scope.opened_at > looked_at and now - scope.opened_at < OPENING_S:
                continue  # commands wait for it a moment
            if scope.state or scope.journal.late:
                return scope.state or f"the verdicts of {scope.where} are late"
        if unready := self._cache.away() or self._brokers.doubt:
            return unready
        if looked_at > now:
            return f"the partitions of {self.settings.log_topic} are being looked at"
        self._looked_at = (self._looked_at + 1) % len(self.scopes)
        try:
            await self._cache.probe(self._looked_at)
            # Without this, an instance without work would not notice that Kafka or the leader of a partition is away.
            await self._reader.end(self._looked_at)
        except Unavailable as error:
            return str(error)
        return None

    async def _renew(self, topics: set[str]) -> None:
        """Renew all clients that work on these topics."""
        if not self._making:
            return
        await self._made.wait()
        self._leadership.renew(topics)
        renewals = [*[outlet.renew(topics) for outlet in self._outlets], blocking(self._end_offsets.renew)]
        if self.settings.log_topic in topics:
            self.tail.renew()
            self._appender.renew()
            renewals.append(blocking(self._reader.renew))
        await asyncio.gather(*renewals)

    def _late(self) -> bool:
        """Whether a record was not read back, or events could not be published, for LATE_S."""
        if not self._started:
            return False
        now = time.monotonic()
        oldest = [next(iter(scope.journal.pending.values())) for scope in self.scopes if scope.journal.pending]
        return self._leadership.paused or any(now - pending.started_at > LATE_S for pending in oldest)

    def details(self) -> dict[str, Any]:
        """What /readyz?verbose says of aggregates in quarantine, of unknown actors and of unused partitions."""
        quarantined = [each for scope in self.scopes for each in scope.quarantine.summary()]
        unknown_actors = sorted({actor for scope in self.scopes for actor in scope.quarantine.unknown_actors})
        found = {"quarantined": quarantined, "actors_not_here": unknown_actors, "unused_partitions": self._unused}
        return {name: value for name, value in found.items() if value}

    def alive(self) -> bool:
        if not self._started:
            return True
        return self.tail.alive() and all(outlet.alive() for outlet in self._outlets) and self.engine.alive


def _check(topic: Topic, needed: Mapping[str, str]) -> None:
    """Raises Unsafe if a topic that others have created may lose records."""
    wrong = topic.differs({**needed, "unclean.leader.election.enable": "false"})
    if int(topic.config.get("max.message.bytes", MAX_RECORD_BYTES)) < MAX_RECORD_BYTES:
        wrong["max.message.bytes"] = str(MAX_RECORD_BYTES)
    for name, value in wrong.items():
        raise Unsafe(topic.doubt(name, value))


async def _retrying(step: Any) -> Any:
    """Try until the backends answer, for START_S: containers may start in any order."""
    end = asyncio.get_running_loop().time() + START_S
    pause = 0.1
    while True:
        try:
            return await step()
        except Unavailable as error:
            if asyncio.get_running_loop().time() > end:
                raise Unsafe(f"The backends could not be used within {START_S:.0f} s: {error}") from None
            logger.info("the start waits: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)
