"""Redlock on real nodes: quorum, all or nothing, owners, time."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest

from hiveio.redis import Redis as Node
from hiveio.redis import connect
from hiveio.transaction.cache import Cache
from hiveio.transaction.lock import Locked, Redlock
from tests.conftest import required
from tests.services import Redis

SCOPE = "hive:{lock/0}"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Redis]]:
    with ExitStack() as stack, required("redis"):
        yield [stack.enter_context(Redis()) for _ in range(5)]


@pytest.fixture
async def nodes(servers: list[Redis]) -> AsyncIterator[list[Node]]:
    nodes = [connect(server.url, timeout_s=9.0) for server in servers]
    for node in nodes:
        await node.execute("FLUSHALL")
    yield nodes
    for node in nodes:
        await node.stop()


def redlock(nodes: list[Node], token: str, ttl_ms: int = 5_000, remember_ms: int = 200) -> Redlock:
    return Redlock(nodes, token, ttl_ms, 0.01, remember_ms)


async def acquire(lock: Redlock, *names: str, waited_s: float = 0.0) -> Locked:
    future: asyncio.Future[Locked] = asyncio.get_running_loop().create_future()
    lock.acquire(SCOPE, names, future.set_result, waited_s)
    return await future


@pytest.mark.parametrize("count", [1, 3, 5])
async def test_one_holder_at_a_time_and_the_reason_names_each_node(nodes: list[Node], count: int) -> None:
    a, b = redlock(nodes[:count], "a"), redlock(nodes[:count], "b")
    before = time.monotonic()
    held = await acquire(a, "x")
    # validity = ttl - elapsed - (drift factor * ttl + 2 ms), from before the first request
    assert before + 4.9 < held.until <= time.monotonic() + 5 - 0.052
    async with asyncio.timeout(10):  # the last nodes have GRACE_S to say why
        while (refused := await acquire(b, "x")).reason.count("x is locked by another instance") != count:
            assert not refused.until
    assert not refused.away
    assert all(node.shown in refused.reason for node in nodes[:count])


async def test_all_of_a_call_are_locked_or_none(nodes: list[Node]) -> None:
    a, b = redlock(nodes, "a"), redlock(nodes, "b")
    assert (await acquire(a, "y")).until
    assert not (await acquire(b, "x", "y", "z")).until
    assert (await acquire(a, "x", "z")).until, "b kept nothing"


async def test_only_the_owner_gives_a_lock_back(nodes: list[Node]) -> None:
    a, b = redlock(nodes, "a"), redlock(nodes, "b")
    assert (await acquire(a, "x")).until
    b.release(SCOPE, ["x"])
    assert not (await acquire(b, "x")).until
    a.release(SCOPE, ["x"])
    assert (await acquire(b, "x")).until


async def test_a_lease_is_given_back_by_its_holder_alone(nodes: list[Node]) -> None:
    """One that was overtaken, and does not know it yet, takes nothing from the next holder."""
    cache = Cache(nodes[0], "topic", "id", "meaning")
    assert (await cache.lease(0, "a", 2_000))[1] == "a"
    assert (await cache.lease(0, "b", 2_000))[1] == "a"
    assert (await cache.lease(0, "b", 0))[1] == "a"
    assert (await cache.lease(0, "b", 2_000))[1] == "a", "a has it still"
    assert (await cache.lease(0, "a", 0))[1] == ""
    assert (await cache.lease(0, "b", 2_000))[1] == "b"


async def test_the_next_holder_learns_of_the_last_record_of_the_one_before(nodes: list[Node]) -> None:
    a, b = redlock(nodes, "a"), redlock(nodes, "b")
    assert (await acquire(a, "x", "y")).after == ()
    b.release(SCOPE, ["x"], "b-1")
    a.release(SCOPE, ["x"], "a-2")
    a.release(SCOPE, ["y"])
    held = await acquire(b, "x", "y")
    assert (bool(held.until), held.after) == (True, ("a-2",)), "that of who had it, and of nobody else"
    redlock(nodes, "b", ttl_ms=300).release(SCOPE, ["x", "y"], "b-3")
    released = time.monotonic()
    while (held := await acquire(a, "x")).after:
        assert time.monotonic() < released + 2, "it is forgotten when it has come long ago"
    assert held.until


async def test_the_holder_extends_and_learns_that_another_one_waits(nodes: list[Node]) -> None:
    a, b = (redlock(nodes, token, remember_ms=60_000) for token in "ab")
    first = await acquire(a, "x")
    assert not first.contended
    assert not (await acquire(b, "x")).until
    extended = await acquire(a, "x")
    assert extended.until > first.until
    assert extended.contended
    a.release(SCOPE, ["x"])
    assert not (await acquire(b, "x")).contended, "b waits for itself no more"


async def test_a_lock_ends_by_its_time(nodes: list[Node]) -> None:
    a, b = redlock(nodes, "a", ttl_ms=1_500), redlock(nodes, "b")
    held = await acquire(a, "x")
    while not (got := await acquire(b, "x")).until:
        assert time.monotonic() < held.until + 3
    assert time.monotonic() > held.until - 0.01
    assert got.until


@pytest.mark.parametrize("count", [3, 5])
async def test_a_majority_is_enough_at_once_and_a_minority_is_not(
    servers: list[Redis], nodes: list[Node], count: int
) -> None:
    """Nodes that hang do not hold up the others: their time-out is longer than the lock lasts."""
    a, few = redlock(nodes[:count], "a", ttl_ms=6_000), count // 2
    for server in servers[:few]:
        server.pause()
    try:
        for _ in range(20):
            held = await acquire(a, "x")
            assert held.until, "a majority"
        servers[few].pause()
        refused = await acquire(a, "x")
        assert not refused.until
        assert refused.away
        for number, node in enumerate(nodes[:count]):
            assert (f"{node.shown}: no answer in time" in refused.reason) == (number <= few)
    finally:
        for server in servers[: few + 1]:
            server.resume()
    # A node that gets the calls late gets them in order, so no lock is left that no one holds.
    b = redlock(nodes[:count], "b", ttl_ms=6_000)
    while not (await acquire(b, "x")).until:
        await asyncio.sleep(0.02)
    b.release(SCOPE, ["x"])
    assert (await acquire(redlock(nodes[:count], "c"), "x")).until


async def test_no_quorum_is_told_before_the_last_node_has_answered(servers: list[Redis], nodes: list[Node]) -> None:
    assert (await acquire(redlock(nodes[:3], "a"), "x")).until
    servers[0].pause()
    try:
        before = time.monotonic()
        refused = await acquire(redlock(nodes[:3], "b", ttl_ms=60_000), "x")
        assert time.monotonic() - before < 5
        assert refused.reason.count("x is locked by another instance") == 2
        assert f"{nodes[0].shown}: no answer in time" in refused.reason
    finally:
        servers[0].resume()


async def test_a_minority_that_answered_is_given_back(servers: list[Redis], nodes: list[Node]) -> None:
    b = redlock(nodes[1:3], "b")
    assert (await acquire(b, "x")).until
    a = redlock(nodes[:3], "a")
    assert not (await acquire(a, "x")).until, "1 of 3 is no quorum"
    assert (await acquire(redlock(nodes[:1], "c"), "x")).until, "a kept no lock on the first node"


@pytest.mark.parametrize("count", [1, 3, 5])
async def test_a_free_lock_goes_to_the_one_that_has_waited_longest(nodes: list[Node], count: int) -> None:
    """The order of asking does not matter, nor does a node that does not know of all who wait."""
    a, b, c = (redlock(nodes[:count], token, remember_ms=60_000) for token in "abc")
    assert (await acquire(a, "x")).until
    assert (await acquire(c, "x", waited_s=2)).waiters_ahead == 0
    assert (await acquire(b, "x", waited_s=1)).waiters_ahead == 1
    a.release(SCOPE, ["x"])
    assert (await acquire(a, "x")).waiters_ahead == 2, "who had it waits again, behind all others"
    assert (await acquire(b, "x", waited_s=1.01)).waiters_ahead == 1
    assert (await acquire(c, "x", waited_s=2.02)).contended
    c.release(SCOPE, ["x"])
    assert not (await acquire(a, "x", waited_s=0.03)).until
    assert (await acquire(b, "x", waited_s=1.04)).until


async def test_who_asks_no_more_is_not_waited_for(nodes: list[Node]) -> None:
    a, b, c = (redlock(nodes, token) for token in "abc")
    assert (await acquire(a, "x")).until
    began = time.monotonic()
    assert (await acquire(c, "x", waited_s=9)).waiters_ahead == 0
    a.release(SCOPE, ["x"])
    while not (await acquire(b, "x")).until:
        assert time.monotonic() < began + 2, "a waiter is remembered for 0.2 s"
    assert time.monotonic() > began + 0.15


async def test_of_several_that_wait_for_sets_the_first_gets_its_whole_set(nodes: list[Node]) -> None:
    """Younger ones that need less cannot take it away one by one."""
    a, b, c = (redlock(nodes, token, remember_ms=60_000) for token in "abc")
    assert (await acquire(a, "x")).until
    assert not (await acquire(c, "x", "y", waited_s=1)).until
    assert not (await acquire(b, "y", waited_s=0.5)).until, "y is free, and kept for c"
    a.release(SCOPE, ["x"])
    assert not (await acquire(b, "x", waited_s=0.5)).until
    assert (await acquire(c, "x", "y", waited_s=1)).until
