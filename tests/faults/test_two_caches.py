"""Faults 21 and 22: a failover to a replica that lags, and two Redis masters that are used at once.

Locks are in the cache's Redis, as they are by default, or on two nodes of their own.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis as RedisClient

from tests.faults.checker import Result, check
from tests.faults.evidence import dump
from tests.faults.fold import Finding
from tests.faults.proxy import PRODUCE, Proxy, kafka
from tests.faults.stage import Broker, Stage, until
from tests.services import HOST, Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]
PUBLISHED_S = 15.0


def redis_at(server: Redis) -> Any:
    return RedisClient(host=HOST, port=server.port, socket_timeout=10)


class TwoCaches(Stage):
    """A stage with a second Redis, ``other``. Each instance comes to its Redis through a proxy of its own, which may
    lead to the one or the other: as an address that moves at a failover. ``nodes`` is how many nodes of their own the
    locks have; without any they are in the cache's Redis."""

    def __init__(self, broker: Broker, nodes: int = 0, *, broken: Sequence[str] = ()) -> None:
        super().__init__(broker, published_s=PUBLISHED_S, broken=broken)
        self._count = nodes

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        super()._prepare(stack)
        self.other = stack.enter_context(Redis())
        self.nodes = [stack.enter_context(Redis()) for _ in range(self._count)]
        self.link = stack.enter_context(Proxy(self.redis.port))  # from the replica to the master
        self.ways = [self.redis_proxy, *(stack.enter_context(Proxy(self.redis.port)) for _ in self._broken[1:])]

    def environ(self, number: int) -> dict[str, str]:
        environ = super().environ(number) | {"CACHE_URL": f"redis://{HOST}:{self.ways[number].port}"}
        return environ | ({"LOCK_URLS": ",".join(node.url for node in self.nodes)} if self.nodes else {})

    async def forget_locks(self) -> None:
        """One of the nodes forgets the locks that it has given."""
        for node in self.nodes[:1]:
            with contextlib.closing(redis_at(node)) as client:
                await asyncio.to_thread(client.flushall)

    async def replicate(self) -> None:
        """``other`` becomes a replica of ``redis``, and has all of it."""
        self.link.lead_to(self.redis.port)
        with contextlib.closing(redis_at(self.redis)) as client:
            client.config_set("repl-diskless-sync-delay", "0")  # it would wait 5 s for further replicas
        with contextlib.closing(redis_at(self.other)) as client:
            client.replicaof(HOST, self.link.port)
            await until(lambda: client.info("replication")["master_link_status"] == "up", "replicated", to_thread=True)

    async def fail_over(self) -> None:
        """The replica is promoted as it is, and every instance is led to it."""
        with contextlib.closing(redis_at(self.other)) as client:
            client.replicaof("NO", "ONE")
        self.link.open()
        for way in self.ways:
            way.lead_to(self.other.port)
        self.redis, self.other = self.other, self.redis

    @contextlib.asynccontextmanager
    async def apart(self) -> AsyncIterator[None]:
        """Meanwhile the victim has ``other`` for its Redis."""
        self.ways[0].lead_to(self.other.port)
        try:
            yield
        finally:
            self.ways[0].lead_to(self.redis.port)

    def findings_of_other(self) -> list[Finding]:
        """What the checker finds, with the other Redis as the cache."""
        evidence = self.evidence()
        cache = dump(self.other.url, f"{self.log_topic}/0/{evidence.topic_id}")
        return check(replace(evidence, cache=cache), self.workload.history)


NODES = pytest.mark.parametrize("nodes", [0, 2], ids=["locks in the cache", "locks on two nodes"])


@pytest.mark.fault(21)
@NODES
async def test_21_failover_to_a_replica_that_lags(broker: Broker, nodes: int) -> None:
    with TwoCaches(broker, nodes) as stage:
        async with stage.load():
            for _ in range(3):
                await stage.replicate()
                await asyncio.sleep(0.3)
                stage.link.down.hold()  # from here on the replica lags
                await asyncio.sleep(1.0)
                before = stage.watermark()
                await stage.forget_locks()
                await stage.fail_over()
                assert stage.watermark() < before or stage.watermark() == 0
            await asyncio.sleep(0.5)
        await stage.well("Account/h0", "Tally/t0")


async def both_have_the_lock(stage: TwoCaches) -> None:
    """The victim appends under a lock that it certainly has, and so has another one, which is faster."""
    await stage.accepted("Deposit", "Account/a", at=1, amount=10)
    async with stage.apart():
        await stage.accepted("Deposit", "Account/a", amount=1)
        held = stage.kafka_proxy.up.hold(kafka(PRODUCE, stage.log_topic))
        late = stage.sending("Withdraw", "Account/a", amount=8)
        await until(held.struck.is_set, "in flight")
        await stage.accepted("Withdraw", "Account/a", at=1, amount=7)
        stage.kafka_proxy.open()
        assert (await late).result is not Result.UNKNOWN


@pytest.mark.fault(22)
async def test_22_two_masters_give_the_same_lock(broker: Broker) -> None:
    with TwoCaches(broker) as stage:
        await both_have_the_lock(stage)
        await stage.well("Account/a")


@pytest.mark.fault(22)
@pytest.mark.parametrize("beginning", ["empty", "as the other"])
@NODES
async def test_22_two_masters_are_used_at_once(broker: Broker, beginning: str, nodes: int) -> None:
    with TwoCaches(broker, nodes) as stage:
        async with stage.load(hot=0.9):
            for _ in range(2):
                if beginning != "empty":
                    await stage.replicate()
                    with contextlib.closing(redis_at(stage.other)) as client:
                        client.replicaof("NO", "ONE")
                async with stage.apart():
                    await asyncio.sleep(1)
                    await stage.forget_locks()
                    await asyncio.sleep(1)
                await asyncio.sleep(0.5)
        # Each has written on its own Redis, and each is the fold as far as it goes.
        async with stage.apart():
            await stage.well("Account/h0", "Tally/t0")
            findings = await asyncio.to_thread(stage.findings_of_other)
            assert not findings, "\n".join(map(str, findings[:20]))
        await stage.well("Account/h0")
