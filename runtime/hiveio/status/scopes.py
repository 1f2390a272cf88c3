"""The scopes of the transaction log, by the ends of its topics and by the cache."""

import asyncio
import time
from collections.abc import Callable, Sequence

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka.end_offsets import EndOffsets
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.reader import Reader
from hiveio.kafka.threads import blocking
from hiveio.redis import Redis
from hiveio.status.model import Quarantined, Scope
from hiveio.status.processes import counted
from hiveio.status.text import ranges
from hiveio.transaction.cache import Cache, rest
from hiveio.transaction.entry import Watermark
from hiveio.transaction.presence import Announcement, announcements
from hiveio.transaction.record import Format
from hiveio.transaction.record import decode as decode_record
from hiveio.transaction.resume import last_event

RATE_S = 10.0  # over which verdicts a second are counted
VOIDS = 1_000  # the last records, of which the void share is
BACK = 1_000  # records of the event topic in which the last event is looked for
NAMES = 20  # quarantined aggregates that are named
MOST_SCOPES = 1_000
MOST_FINGERPRINTS = 8


class ScopeWatch:
    """Looks at the scopes of one log. Methods raise Unavailable."""

    def __init__(self, settings: Settings, redis: Redis | None) -> None:
        self._settings, self._redis = settings, redis
        self._ends = EndOffsets(settings)
        self._log = LogReader(settings, settings.log_topic)
        self._events = LogReader(settings, settings.written_topic)
        self._reader = Reader(settings)
        self._topic_id = ""
        self.count = 0  # of the scopes of the log, by the last look
        self.caches: dict[int, Cache] = {}  # by scope, the one that has come farthest, by the last look
        self._processes = False
        self._published: dict[int, tuple[int, int | None]] = {}  # the end of the event topic, and what its last says

    async def stop(self) -> None:
        await blocking(self._reader.close)
        await blocking(self._log.close)
        await blocking(self._events.close)

    async def announced(self) -> list[Announcement]:
        """The instances of this log."""
        await self._identify()
        return announcements((await self._cache("").announced()).values()) if self._redis is not None else []

    async def look(
        self, fingerprints: Sequence[str], problem: Callable[[str], None], *, processes: bool
    ) -> list[Scope]:
        """All scopes. ``fingerprints`` are the versions of the models whose caches are looked at. ``processes`` says
        whether the service has process managers."""
        self._processes = processes
        s = self._settings
        await self._identify()
        if self.count > MOST_SCOPES:
            problem(f"Only {MOST_SCOPES} of {self.count} scopes are shown.")
        partitions = range(min(self.count, MOST_SCOPES))
        log = [(s.log_topic, partition) for partition in partitions]
        ends = await blocking(self._ends.known, log + [(s.written_topic, partition) for partition in partitions])
        answering = [at for at in log if at in ends and (s.written_topic, at[1]) in ends]
        if missing := [at[1] for at in log if at not in answering]:
            problem(f"Kafka does not say where scopes {ranges(missing)} end: their partitions have no leader in Kafka.")
        since = await blocking(self._ends.since, answering, int((time.time() - RATE_S) * 1000))
        found = []
        for _, partition in answering:
            end, events_end = ends[s.log_topic, partition], ends[s.written_topic, partition]
            appended = end - since.get((s.log_topic, partition), end)
            found.append(Scope(partition=partition, end=end, events_end=events_end, rate=appended / RATE_S))
        if len(fingerprints) > MOST_FINGERPRINTS:
            problem(f"Only {MOST_FINGERPRINTS} of {len(fingerprints)} fingerprints are looked at.")
        if self._redis is None:
            problem("CACHE_URL is not set, so nothing of the cache is known: watermarks, leases, instances.")
        chosen = fingerprints[:MOST_FINGERPRINTS]
        results = await asyncio.gather(*(self._fill(scope, chosen) for scope in found), return_exceptions=True)
        failures = {str(each) for each in results if isinstance(each, Unavailable)}
        for each in results:
            if isinstance(each, BaseException) and not isinstance(each, Unavailable):
                raise each
        for text in sorted(failures):
            problem(text)
        return found

    async def _identify(self) -> None:
        """Learn which log it is, and how many scopes it has. The topic may have been created again since the last
        look."""
        self._topic_id, partitions = await blocking(self._described)
        first = (await self._log.first_records([0])).get(0)
        record = decode_record(first.value) if first is not None else None
        self.count = record.partitions if isinstance(record, Format) else partitions

    def _described(self) -> tuple[str, int]:
        topic = self._settings.log_topic
        return self._reader.topic_id(topic), len(self._reader.partitions(topic))

    def _cache(self, fingerprint: str) -> Cache:
        assert self._redis is not None
        return Cache(self._redis, self._settings.log_topic, self._topic_id, fingerprint)

    async def _fill(self, scope: Scope, fingerprints: Sequence[str]) -> None:
        """Add what only some sources know. The first failure ends it, and leaves the rest unknown."""
        await self._add_published(scope)
        if self._redis is None:
            return
        holder = await self._cache("").leader(scope.partition)
        scope.leader = holder
        best: tuple[Watermark, Cache] | None = None
        for fingerprint in fingerprints:
            cache = self._cache(fingerprint)
            look = await cache.look(scope.partition)
            if (watermark := look.watermark) is None:
                continue
            note = rest(scope.end, [scope.events_end])  # with process managers the end of the outbox comes behind it
            scope.rest = scope.rest or (not holder and (look.rest == note or look.rest.startswith(f"{note}:")))
            if best is None or watermark.offset > best[0].offset:
                best = watermark, cache
            count, names = await cache.some_unfolded(scope.partition, watermark.generation, NAMES)
            if count:
                quarantined = Quarantined(fingerprint=fingerprint, count=count, names=names)
                scope.quarantined.append(quarantined)
        if best is None:
            self.caches.pop(scope.partition, None)
        else:
            self.caches[scope.partition] = best[1]
            scope.applied = best[0].offset
            _, bits = await best[1].verdicts(scope.partition, max(0, scope.applied - VOIDS), scope.applied)
            judged = len(bits) - bits.count("?")
            scope.void_share = bits.count("0") / judged if judged else None
            if self._processes:
                scope.processes = await counted(best[1], scope.partition, best[0])

    async def _add_published(self, scope: Scope) -> None:
        """Which record of the log the last event on the topic came from. It is read only where the topic has moved."""
        end, position = self._published.get(scope.partition, (-1, None))
        if end != scope.events_end:
            first, present = await self._events.bounds(scope.partition)
            within = max(first, present - BACK), present
            last = await last_event(self._events, scope.partition, lambda offset: None, within)
            position = last.offset if last is not None else None
            self._published[scope.partition] = scope.events_end, position
        scope.published = position
