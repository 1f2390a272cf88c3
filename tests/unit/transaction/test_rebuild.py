"""A lost cache is folded by one instance; the others wait for it, and take over where it makes no progress."""

import random
from contextlib import AsyncExitStack

import pytest

from hiveio.config import Settings
from hiveio.kafka.tail import LogRecord
from hiveio.testing.memory import MemoryLog
from hiveio.testing.service import Service, memory_settings
from hiveio.transaction import rebuild
from hiveio.transaction.rule import scope_of
from hiveio.transaction.scope import Scope
from tests.actors.tally import Add, Tallies, Tally
from tests.unit.transaction.test_applier import OwnCalls
from tests.unit.transaction.test_engine import until

RECORDS, FAR = 600, 200
SCOPES = 12


def filled(partitions: int) -> MemoryLog:
    """A log of many records in each partition, each of another aggregate."""
    log = MemoryLog(memory_settings(Settings(partitions=partitions)))
    value = '{"kind":"commit","command":["Tally/%s","c-%s"],"writes":[["Tally/%s","",0,[%s]]]}'
    event = '{"type":"Added","payload":{"amount":5}}'
    number = 0
    while min(map(len, log.partitions)) <= RECORDS:
        records = log.partitions[scope_of(f"{number}", partitions)]
        if len(records) <= RECORDS:
            records.append(
                LogRecord(len(records), f"t-{number}", (value % (number, number, number, event)).encode(), 1)
            )
        number += 1
    return log


@pytest.fixture(autouse=True)
def close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "FAR", FAR)


class Two:
    """Two instances of one cluster."""

    def __init__(self, partitions: int) -> None:
        log = filled(partitions)
        first = OwnCalls(log.settings)
        self.caches = [first, OwnCalls(log.settings, first)]
        self.services = [Service(Tallies, log=log, cache=cache) for cache in self.caches]
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Two":
        for service in self.services:
            await self._stack.enter_async_context(service)
        await until(self.applied)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def scopes(self) -> list[Scope]:
        return [scope for service in self.services for scope in service.transactions.scopes]

    def applied(self) -> bool:
        return all(scope.applied for scope in self.scopes)

    def lose_cache(self) -> None:
        """Both notice it at once."""
        self.caches[0].forget_all()
        for scope in self.scopes:
            scope.mirror.observe_watermark(None)
        for cache in self.caches:
            cache.records.clear()

    async def rebuilt(self) -> None:
        await until(lambda: all(scope.ready for scope in self.scopes) and self.applied())


async def test_one_instance_folds_and_the_other_one_goes_on_from_there() -> None:
    async with Two(1) as two:
        two.lose_cache()
        await until(lambda: any(scope.folded_elsewhere for scope in two.scopes))
        (waits,) = [scope for scope in two.scopes if scope.folded_elsewhere]
        assert "is being folded by another instance" in waits.state
        await two.rebuilt()
        first, second = sorted(sum(cache.records) for cache in two.caches)
        assert second > RECORDS - FAR
        assert first + second < RECORDS + 2 * FAR, "the other one folds the end at most"
        for service in two.services:
            assert (await service.submit(Tallies, "7", Add(1))).version
            assert (await service.read(Tallies, "8")) == (Tally(5, 1), 1)


async def test_another_instance_folds_where_the_one_that_does_makes_no_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rebuild, "LEASE_MS", 1_500)
    async with Two(1) as two:
        for cache in two.caches:
            cache.stuck = True
        two.lose_cache()
        await until(lambda: any(scope.folded_elsewhere for scope in two.scopes))
        waits = [scope.folded_elsewhere for scope in two.scopes].index(True)
        two.caches[waits].stuck = False
        await until(lambda: sum(two.caches[waits].records) > RECORDS)
        two.caches[1 - waits].stuck = False
        await two.rebuilt()


async def test_a_scope_that_fails_waits_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Two(1) as two:
        for cache in two.caches:
            cache.stuck = True
        two.lose_cache()
        await until(lambda: any(scope.folded_elsewhere for scope in two.scopes))
        (waits,) = [scope for scope in two.scopes if scope.folded_elsewhere]
        waits.fail("never mind")
        await until(lambda: waits.stopped)


async def test_instances_that_have_lost_many_scopes_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # Once in two thousand times, one of them would be the first in almost all scopes.
    monkeypatch.setattr("hiveio.transaction.rebuild.random.uniform", random.Random(1).uniform)
    async with Two(SCOPES) as two:
        two.lose_cache()
        await two.rebuilt()
        shares = [sum(cache.records) for cache in two.caches]
        assert min(shares) > RECORDS, shares
        assert sum(shares) < SCOPES * (RECORDS + 2 * FAR), "no scope is folded twice"
