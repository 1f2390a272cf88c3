"""Faults 81 to 83: Redis Cluster and Sentinel fail over, disagree about the master, and move slots, under load."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
from redis import Redis as RedisClient
from redis.exceptions import ResponseError

from tests.faults.stage import Broker, Stage, until
from tests.services import HOST, Redis, RedisCluster, Sentinels

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]
PUBLISHED_S = 15.0
PASSWORD, OWN = "secret", "another"


class SharedStage(Stage):
    """A stage whose instances have one Redis of many servers for their cache and their locks."""

    url: str
    server: Callable[[], Redis]  # that has the cache

    def environ(self, number: int) -> dict[str, str]:
        return super().environ(number) | {"CACHE_URL": self.url}

    @property
    def cache_url(self) -> str:
        return self.url_of(self.server())

    @staticmethod
    def url_of(server: Redis) -> str:
        return f"redis://:{PASSWORD}@{HOST}:{server.port}"

    def watermark_of(self, server: Redis) -> int:
        client: Any = RedisClient.from_url(self.url_of(server), socket_timeout=10)
        with contextlib.closing(client):
            with contextlib.suppress(ResponseError):
                client.execute_command("READONLY")  # a replica of a cluster would send us to its master
            marks: list[Any] = [
                client.get(key) for key in client.scan_iter(match=f"hive:{{{self.log_topic}/*") if key.count(b":") == 2
            ]
        return max((int(mark.partition(b"|")[0]) for mark in marks if mark and mark.count(b"|") >= 4), default=0)

    async def reached(self, offset: int) -> None:
        """Work goes on: the cache comes to this offset."""
        await until(lambda: self.watermark_of(self.server()) >= offset, f"at {offset}", to_thread=True)


class ClusterStage(SharedStage):
    def __init__(self, broker: Broker, cluster: RedisCluster) -> None:
        super().__init__(broker, published_s=PUBLISHED_S)
        self.cluster, self.url = cluster, cluster.url
        self.server = lambda: cluster.master(self.slot)

    @cached_property
    def slot(self) -> int:
        """That of the scope, of which there is one. It is known once something is in the cache."""
        pattern = f"hive:{{{self.log_topic}/0/*"
        running = [server for server in self.cluster.servers if server.running]
        found = next(filter(None, (self.cluster.ask(server, "KEYS", pattern) for server in running)))
        return self.cluster.slot(found[0].decode())


def lag(replica: Any, master: Any) -> None:
    """The replica loses its master, and cannot come back to it."""
    replica.config_set("masterauth", "wrong")
    master.execute_command("CLIENT", "KILL", "TYPE", "replica")


@pytest.fixture(scope="module")
def cluster() -> Any:
    with RedisCluster(password=PASSWORD) as service:
        yield service


async def progress(stage: SharedStage, *servers: Redis) -> None:
    """The cache of each of them moves, which is used by some instance."""
    before = [stage.watermark_of(server) for server in servers]

    def moved() -> bool:
        return all(stage.watermark_of(server) > then for server, then in zip(servers, before, strict=True))

    await until(moved, f"all beyond {before}", to_thread=True)


@pytest.mark.fault(22)
async def test_22_two_masters_of_a_slot_are_used_at_once(broker: Broker, cluster: RedisCluster) -> None:
    """One of them is cut off from the cluster, and does not notice; instance 0 knows no other."""
    with ClusterStage(broker, cluster) as stage:
        await stage.accepted("Deposit", "Account/h0", amount=10)
        slot = stage.slot
        old = cluster.master(slot)
        new = cluster.replica(old)
        async with stage.load(hot=0.9):
            await asyncio.sleep(0.5)
            cluster.cut_off(old)
            cluster.ask(new, "CLUSTER FAILOVER", "TAKEOVER")
            others = [server for server in cluster.servers if server not in (old, new)]
            await until(
                lambda: all(cluster.owner(server, slot) == new.port for server in others), "told", to_thread=True
            )
            await asyncio.to_thread(stage.instances[1].kill)
            await asyncio.to_thread(stage.instances[1].start_with, CACHE_URL=cluster.url_by(others))
            for _ in range(2):
                await progress(stage, old, new)
            cluster.join_again(old)
            await asyncio.to_thread(cluster.until, cluster.is_well, "well")
            await stage.reached(stage.watermark_of(new) + 50)
        await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(20)
async def test_20_a_shard_is_lost_and_comes_back_empty(broker: Broker, cluster: RedisCluster) -> None:
    """Its master and its replica are replaced by new ones on their addresses."""
    with ClusterStage(broker, cluster) as stage:
        await stage.accepted("Deposit", "Account/h0", amount=10)
        slot = stage.slot
        master = cluster.master(slot)
        async with stage.load():
            await asyncio.sleep(0.5)
            before = stage.watermark_of(master)
            await asyncio.to_thread(cluster.replace, master, cluster.replica(master))
            await asyncio.to_thread(cluster.until, cluster.is_well, "well")
            assert cluster.master(slot) is master
            await stage.reached(before + 1)
        await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(81)
async def test_81_a_master_of_a_cluster_fails_over_to_a_replica_that_lags(
    broker: Broker, cluster: RedisCluster
) -> None:
    with ClusterStage(broker, cluster) as stage:
        await stage.accepted("Deposit", "Account/h0", amount=10)
        slot = stage.slot
        async with stage.load():
            for how in ("killed", "deposed"):
                await asyncio.sleep(0.5)
                old = cluster.master(slot)
                new = cluster.replica(old)
                with (
                    contextlib.closing(cluster.client(new)) as replica,
                    contextlib.closing(cluster.client(old)) as gone,
                ):
                    lag(replica, gone)
                    await asyncio.sleep(1.0)
                    before = stage.watermark_of(old)
                    assert stage.watermark_of(new) < before
                    if how == "killed":
                        old.kill()
                    else:
                        replica.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
                    await until(lambda new=new: cluster.has(new, slot), "promoted", to_thread=True)  # type: ignore[misc]
                    replica.config_set("masterauth", PASSWORD)
                await stage.reached(before + 1)
                if not old.running:
                    old.start()
                await asyncio.to_thread(cluster.until, cluster.is_well, "well")
            await asyncio.sleep(0.5)
        await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(82)
async def test_82_the_slot_of_a_scope_is_moved_key_by_key(broker: Broker, cluster: RedisCluster) -> None:
    with ClusterStage(broker, cluster) as stage:
        await stage.accepted("Deposit", "Account/h0", amount=10)
        slot, source = stage.slot, cluster.master(stage.slot)
        target = next(
            master for number in range(99) if (master := cluster.master(cluster.slot(f"{number}"))) is not source
        )
        async with stage.load():
            for to in (target, source, target):
                await asyncio.sleep(1.0)
                await asyncio.to_thread(cluster.migrate, slot, to, 0.002)
                await stage.reached(stage.watermark_of(to) + 50)
        assert cluster.master(slot) is target
        await stage.well("Account/h0", "Tally/t0")


class SentinelStage(SharedStage):
    """Instance 0 asks the first Sentinel alone, instance 1 the two others."""

    def __init__(self, broker: Broker, sentinels: Sentinels) -> None:
        super().__init__(broker, published_s=PUBLISHED_S)
        self.sentinels = sentinels
        self.server = lambda: sentinels.master

    def environ(self, number: int) -> dict[str, str]:
        asked = self.sentinels.sentinels[1:] if number else self.sentinels.sentinels[:1]
        return super(SharedStage, self).environ(number) | {"CACHE_URL": self.sentinels.url_by(asked)}


@pytest.mark.fault(83)
async def test_83_sentinels_disagree_about_the_master_and_fail_over(broker: Broker) -> None:
    with Sentinels(password=PASSWORD, own_password=OWN) as sentinels, SentinelStage(broker, sentinels) as stage:
        old, new = sentinels.master, sentinels.replica
        await stage.accepted("Deposit", "Account/h0", amount=10)
        async with stage.load(hot=0.9):
            with contextlib.ExitStack() as stack:
                replica, master = (stack.enter_context(sentinels.client(server)) for server in (new, old))
                # Each Sentinel has another master, until the others would make the second one a replica again.
                replica.replicaof("NO", "ONE")
                sentinels.watch(sentinels.sentinels[0], new, quorum=1)
                master.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                before = [stage.watermark_of(server) for server in (old, new)]
                await asyncio.sleep(2.0)
                after = [stage.watermark_of(server) for server in (old, new)]
                assert all(then < now for then, now in zip(before, after, strict=True)), (before, after)
                replica.replicaof(HOST, old.port)
                sentinels.watch(sentinels.sentinels[0], old, quorum=2)
                await asyncio.to_thread(RedisCluster.until, sentinels.is_well, "watched again")
                # The replica lags, and has to take over.
                lag(replica, master)
                await asyncio.sleep(1.0)
                before[0] = stage.watermark_of(old)
                old.kill()
                named = [until(lambda s=s: s.named() == new.port, "named", to_thread=True) for s in sentinels.sentinels]  # type: ignore[misc]
                await asyncio.gather(*named)
                replica.config_set("masterauth", PASSWORD)
            stage.server = lambda: new
            await stage.reached(before[0] + 1)
        await stage.well("Account/h0", "Tally/t0")
