"""Looks at everything once: Kafka for ends and groups, Redis for watermarks and leases, the instances for the rest.

It changes nothing, joins no group and needs no actor. What cannot be reached becomes a line of ``problems``, and the
rest is there all the same.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from hiveio.config import Settings
from hiveio.errors import HiveError
from hiveio.kafka.reader import Reader
from hiveio.kafka.threads import blocking
from hiveio.redis import Redis, connect
from hiveio.status.groups import GroupWatch
from hiveio.status.instances import Answers, ask_all, listed, url_of
from hiveio.status.model import Scope, Status
from hiveio.status.scopes import ScopeWatch
from hiveio.transaction.cache import Cache
from hiveio.transaction.presence import Announcement

FOLDING = "hiveio_fold_lag_records"
LAG, LAG_S = "hiveio_publisher_lag_records", "hiveio_publisher_lag_seconds"
T = TypeVar("T")


class Collector:
    """Gives the status, again and again; a later look reads only what is new. To be closed.

    ``urls`` are services to ask in addition to those that announce themselves (consumers and producers do not), and
    ``fingerprints`` are versions of the models whose caches are looked at although no instance has announced them.
    """

    def __init__(self, settings: Settings, urls: Sequence[str] = (), fingerprints: Sequence[str] = ()) -> None:
        """Raises ConfigError."""
        settings.need(brokers="the status is that of topics and groups in Kafka")
        if not settings.written_topic and not settings.read_topics:
            settings.need(written_topic="it names the events, and with .transactions the log")
        self.settings, self._urls, self._fingerprints = settings, list(urls), tuple(fingerprints)
        self._redis: Redis | None = connect(settings.cache_url) if settings.cache_url else None
        self._reader = Reader(settings)
        self._groups = GroupWatch(settings)
        self._scopes = ScopeWatch(settings, self._redis)
        self._looking = asyncio.Lock()

    async def stop(self) -> None:
        await self._scopes.stop()
        await blocking(self._groups.close)
        await blocking(self._reader.close)
        if self._redis is not None:
            await self._redis.stop()

    async def look(self) -> Status:
        """The status as it is now. Takes a few seconds where a backend does not answer."""
        async with self._looking:
            return await self._look()

    @property
    def caches(self) -> list[tuple[int, Cache]]:
        """The caches of scopes, by the last look: of each the one that has come farthest."""
        return sorted(self._scopes.caches.items())

    async def _look(self) -> Status:
        s = self.settings
        status = Status(time=time.time(), topic=s.written_topic or ",".join(s.read_topics), log="")
        topics = await self._tried(status, blocking(self._topics))
        announced: list[Announcement] = []
        scopes: list[Scope] = []
        if topics is not None and s.written_topic and s.log_topic in topics:
            status.log = s.log_topic
            announced = await self._tried(status, self._scopes.announced()) or []
            known = {*self._fingerprints, *(each.fingerprint for each in announced)}
            looked = self._scopes.look(sorted(known), status.problems.append, processes=s.outbox_topic in topics)
            scopes = await self._tried(status, looked) or []
            status.partitions = self._scopes.count
        urls = [url_of(each) for each in announced] + self._urls
        groups, answers = await asyncio.gather(self._grouped(status, topics), ask_all(urls, status.problems.append))
        status.scopes, status.groups = scopes, groups
        leads: dict[str, list[int]] = {}
        for scope in scopes:
            if scope.leader:
                leads.setdefault(scope.leader, []).append(scope.partition)
        status.instances = listed(announced, self._urls, leads, answers)
        status.problems += [each.unreachable for each in answers.values() if each.unreachable]
        leaders = {each.id: answers[url] for each in announced if each.id in leads and (url := url_of(each)) in answers}
        add_numbers(scopes, answers.values(), leaders)
        return status

    def _topics(self) -> list[str]:
        return self._reader.topics()

    async def _grouped(self, status: Status, topics: list[str] | None) -> list[Any]:
        if topics is None:
            return []
        return await self._tried(status, blocking(self._groups.look, topics, status.problems.append)) or []

    async def _tried(self, status: Status, asked: Any) -> Any:
        """The result, or None where a backend is away, which then is a problem."""
        try:
            return await asked
        except HiveError as error:
            status.problems.append(str(error))
            return None


def add_numbers(scopes: Sequence[Scope], answers: Collection[Answers], leaders: Mapping[str, Answers]) -> None:
    """What only the instances know. Of a scope that it does not follow, an instance says 0."""
    folding = {id: each.by_scope(FOLDING) for id, each in leaders.items()}
    slowest, lag, lag_s = (_largest(name, answers) for name in (FOLDING, LAG, LAG_S))
    for scope in scopes:
        at = scope.partition
        behind = folding.get(scope.leader, {}).get(at)
        if behind is None:
            behind = slowest.get(at) or None
        if behind is not None:
            scope.judged = max(0, scope.end - int(behind))
        if scope.applied is not None:
            scope.judged = max(scope.judged or 0, scope.applied)
        if at in lag:
            scope.publisher_lag, scope.publisher_lag_s = int(lag[at]), lag_s.get(at)


def _largest(name: str, answers: Iterable[Answers]) -> dict[int, float]:
    """By scope, the largest number that an instance says."""
    found: dict[int, float] = {}
    for each in answers:
        for partition, value in each.by_scope(name).items():
            found[partition] = max(value, found.get(partition, value))
    return found
