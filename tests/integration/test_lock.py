"""Redlock on real nodes: quorum, all or nothing, owners, time."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest

from hiveio.redis import Redis as Node
from hiveio.transaction.lock import Locked, Redlock
from tests.conftest import require
from tests.services import Redis, ServiceUnavailable

SCOPE = "hive:{lock/0}"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Redis]]:
    with ExitStack() as stack:
        try:
            yield [stack.enter_context(Redis()) for _ in range(3)]
        except ServiceUnavailable as error:
            require("redis", error)


@pytest.fixture
async def nodes(servers: list[Redis]) -> AsyncIterator[list[Node]]:
    nodes = [Node(server.url, timeout_s=0.5) for server in servers]
    for node in nodes:
        await node.execute("FLUSHALL")
    yield nodes
    for node in nodes:
        await node.stop()


def redlock(nodes: list[Node], token: str, ttl_ms: int = 5_000) -> Redlock:
    return Redlock(nodes, token, ttl_ms, 0.01, 200)


async def acquire(lock: Redlock, *names: str) -> Locked:
    future: asyncio.Future[Locked] = asyncio.get_running_loop().create_future()
    lock.acquire(SCOPE, names, future.set_result)
    return await future


@pytest.mark.parametrize("count", [1, 3])
async def test_one_holder_at_a_time_and_the_reason_names_each_node(nodes: list[Node], count: int) -> None:
    a, b = redlock(nodes[:count], "a"), redlock(nodes[:count], "b")
    before = time.monotonic()
    held = await acquire(a, "x")
    # validity = ttl - elapsed - (drift factor * ttl + 2 ms), from before the first request
    assert before + 4.9 < held.until <= time.monotonic() + 5 - 0.052
    refused = await acquire(b, "x")
    assert not refused.until
    assert not refused.away
    assert refused.reason.count("x is locked by another instance") == count
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


async def test_the_holder_extends_and_hears_that_another_one_waits(nodes: list[Node]) -> None:
    a, b = redlock(nodes, "a"), redlock(nodes, "b")
    first = await acquire(a, "x")
    assert not first.wanted
    assert not (await acquire(b, "x")).until
    again = await acquire(a, "x")
    assert again.until > first.until
    assert again.wanted
    a.release(SCOPE, ["x"])
    assert not (await acquire(b, "x")).wanted, "b waits for itself no more"


async def test_a_lock_ends_by_its_time(nodes: list[Node]) -> None:
    a, b = redlock(nodes, "a", ttl_ms=150), redlock(nodes, "b")
    held = await acquire(a, "x")
    while not (got := await acquire(b, "x")).until:
        assert time.monotonic() < held.until + 1
    assert time.monotonic() > held.until - 0.01
    assert got.until


async def test_a_majority_is_enough_and_a_minority_is_not(servers: list[Redis], nodes: list[Node]) -> None:
    a = redlock(nodes, "a")
    servers[2].pause()
    try:
        assert (await acquire(a, "x")).until, "2 of 3"
        servers[1].pause()
        try:
            refused = await acquire(a, "x")
            assert not refused.until
            assert refused.away
            assert nodes[1].shown in refused.reason
            assert nodes[2].shown in refused.reason
        finally:
            servers[1].resume()
    finally:
        servers[2].resume()


async def test_a_minority_that_answered_is_given_back(servers: list[Redis], nodes: list[Node]) -> None:
    b = redlock(nodes[1:], "b")
    assert (await acquire(b, "x")).until
    a = redlock(nodes, "a")
    assert not (await acquire(a, "x")).until, "1 of 3 is no quorum"
    assert (await acquire(redlock(nodes[:1], "c"), "x")).until, "a kept no lock on the first node"
