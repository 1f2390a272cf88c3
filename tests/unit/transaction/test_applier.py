"""The leader of a scope moves its cache; another instance only while the cache stands still."""

import asyncio
from collections import Counter as Counts
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from hiveio.testing.service import Service
from hiveio.transaction.applier import Applier
from tests.actors.tally import Add, Tallies
from tests.unit.transaction.test_engine import until

Two = tuple[Service, Service]


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> Counts[Applier]:
    """How often each of them has moved a cache, or tried to."""
    counts = Counts[Applier]()
    original = Applier._apply

    async def apply(self: Applier) -> None:
        counts[self] += 1
        await original(self)

    monkeypatch.setattr(Applier, "_apply", apply)
    return counts


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    """The leader and another instance."""
    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(Service(Tallies))
        other = await stack.enter_async_context(Service(Tallies, log=leader.log, cache=leader.cache))
        other.transactions.scopes[0].applier.follow_leader(lambda: False)
        yield leader, other


def applier(service: Service) -> Applier:
    return service.transactions.scopes[0].applier


def stands_at(service: Service) -> int:
    return service.transactions.scopes[0].mirror.watermark.offset


async def test_the_leader_alone_applies_whoever_works(two: Two, applied: Counts[Applier]) -> None:
    leader, other = two
    for number in range(50):
        for each in two:
            await each.submit(Tallies, f"{number % 7}", Add(1))
    await until(lambda: not (applier(leader).judged or applier(other).judged))
    assert stands_at(leader) == stands_at(other) == len(leader.log.partitions[0])
    assert applied[applier(leader)] > 10
    assert applied[applier(other)] <= 2, "once at most while the leader was busy"


async def test_another_one_takes_over_where_the_cache_stands_still_and_gives_way_where_it_moves(
    two: Two, applied: Counts[Applier]
) -> None:
    leader, other = two
    applier(leader).follow_leader(lambda: False)  # as one that has lost its lease,
    applier(leader)._patience = 1_000.0  # and does not get on
    for number in range(20):
        await other.submit(Tallies, f"{number % 7}", Add(1))
    end = len(leader.log.partitions[0])
    await until(lambda: stands_at(other) == end)
    took_over = applied[applier(other)]
    assert took_over
    assert not applied[applier(leader)]
    for number in range(20):
        await leader.submit(Tallies, f"{number % 7}", Add(1))
    await until(lambda: stands_at(other) == len(leader.log.partitions[0]))
    assert applied[applier(other)] > took_over, "it goes on, and nobody has to wait for it again"
    applier(leader).follow_leader(lambda: True)
    for number in range(20):
        await leader.submit(Tallies, f"{number % 7}", Add(1))
        await asyncio.sleep(0.002)
    await until(lambda: not (applier(leader).judged or applier(other).judged))
    before = applied[applier(other)]
    for number in range(20):
        await leader.submit(Tallies, f"{number % 7}", Add(1))
    await until(lambda: not (applier(leader).judged or applier(other).judged))
    assert applied[applier(other)] <= before + 1, "the leader is back"
