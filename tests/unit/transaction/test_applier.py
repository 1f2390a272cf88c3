"""The leader of a scope moves its cache; another instance only while the cache makes no progress."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from hiveio.actor import contracts
from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.testing.memory import MemoryCache
from hiveio.testing.service import Service, memory_settings
from hiveio.transaction import applier
from hiveio.transaction.cache import fingerprint
from hiveio.transaction.entry import Watermark
from tests.actors.tally import Add, Tallies
from tests.unit.transaction.test_engine import until

ROUNDS = 200


class OwnCalls(MemoryCache):
    """As one instance calls the cache that it shares with ``other``. ``records`` has how many records each call has
    applied."""

    def __init__(self, settings: Settings, other: MemoryCache | None = None) -> None:
        super().__init__(settings, fingerprint(contracts([Tallies])))
        if other is not None:
            self.scopes, self.folds = other.scopes, other.folds
            self.locks, self.waiting, self.tips = other.locks, other.waiting, other.tips
        self.records: list[int] = []
        self.applied = 0
        self.stuck = False

    async def apply(self, partition: int, base: Watermark, to: Watermark, *given: Any) -> Watermark | None:
        if self.stuck:
            raise Unavailable("stuck")
        self.applied += 1
        reached = await super().apply(partition, base, to, *given)
        if reached == to:
            self.records.append(to.offset - base.offset)
        return reached


class Two:
    """The leader of a scope and another instance."""

    def __init__(self, leader: Service, other: Service, leads: OwnCalls, follows: OwnCalls) -> None:
        self.leader, self.other, self.leads, self.follows = leader, other, leads, follows

    async def work(self, *alone: Service) -> None:
        """Both work, or one alone, and all of it is applied."""
        for number in range(20):
            for each in alone or (self.leader, self.other):
                await each.submit(Tallies, f"{number % 7}", Add(1))
        await until(lambda: self.leads.scopes[0].watermark.offset == len(self.leader.log.partitions[0]))


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    settings = memory_settings(None)
    leads = OwnCalls(settings)
    follows = OwnCalls(settings, leads)
    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(Service(Tallies, cache=leads))
        other = await stack.enter_async_context(Service(Tallies, log=leader.log, cache=follows))
        (scope,) = other.transactions.scopes
        scope.applier.take_turns(lambda: False)
        yield Two(leader, other, leads, follows)


async def test_the_leader_alone_applies_whoever_works(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applier, "SOON_STILL_S", 5.0)  # the leader may be busy for a moment
    await two.work()
    await until(lambda: sum(two.leads.records) > 30)
    assert not two.follows.applied


async def test_another_one_takes_over_where_the_cache_makes_no_progress_and_gives_way_where_it_does(two: Two) -> None:
    two.leads.stuck = True
    await two.work(two.other)
    assert two.follows.applied
    two.leads.stuck = False
    for _ in range(ROUNDS):
        before = two.follows.applied
        await two.work()
        if two.follows.applied == before:
            return
    raise AssertionError("the leader is back, and the other one applies still")
