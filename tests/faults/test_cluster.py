"""Faults 15 and 16: of three brokers the leader of the log is lost, or too few replicas are in sync."""

import asyncio
import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.conftest import required
from tests.faults.chaos import Chaos
from tests.faults.checker import Told
from tests.faults.cluster import NODES, Cluster, ClusterStage
from tests.faults.stage import until
from tests.integration.topics import configure

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]
WRITES_S = 15.0  # until commands are taken again, after another leader is elected
PUBLISHED_S = 30.0  # the fault, an election, and the clients' way to the new leader
HOWS = ("killed", "paused", "silent")  # where a deposed one is reached, a new instance may not become ready meanwhile
ROUND_S = 10.0
ROUNDS = max(1, int(float(os.environ.get("HIVEIO_FAULT_SECONDS", "0")) // ROUND_S))
SEED = int(os.environ.get("HIVEIO_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three brokers for these tests: each test leaves all of them running."""
    with required("kafka"), Cluster() as made:
        yield made


@pytest.mark.fault(15)
@pytest.mark.parametrize("how", [*HOWS, "deposed"])
async def test_15_the_leader_of_the_log_is_lost(cluster: Cluster, how: str) -> None:
    """``silent``: its packets are held. ``deposed``: the other brokers do not reach it, and the clients do."""

    async def taken() -> None:
        began = time.monotonic()
        for number in range(2):
            await stage.accepted("Deposit", "Account/a", at=number, within_s=WRITES_S, amount=1)
        print(f"{how}: taken again after {time.monotonic() - began:.1f} s")

    with ClusterStage(cluster, published_s=PUBLISHED_S) as stage:
        await until(lambda: cluster.in_sync(stage.log_topic) == len(NODES), "replicated", to_thread=True)
        async with stage.load():
            await asyncio.sleep(2)
            async with stage.without_leader(how):
                await taken()
                await asyncio.sleep(2)
        await until(lambda: cluster.in_sync(stage.log_topic) == len(NODES), "all in sync again", to_thread=True)
        await stage.well("Account/a", "Account/h0", "Tally/t0")


@pytest.mark.fault(15)
@pytest.mark.timeout(ROUNDS * 60 + 240, func_only=True)
async def test_15_the_leader_is_lost_while_other_things_fail(cluster: Cluster) -> None:
    """At random: the cache is emptied, or back from an older file; instances are killed or paused."""
    dice = random.Random(SEED)
    with ClusterStage(cluster, published_s=2 * PUBLISHED_S) as stage:
        chaos = Chaos(stage, dice, ("kill", "stop", "flush", "redis empty", "redis older"))
        async with stage.load():
            for _ in range(ROUNDS):
                how = dice.choice(HOWS)
                print(f"seed {SEED}: the leader is {how}")
                async with stage.without_leader(how):
                    await chaos.run(ROUND_S)
                await until(lambda: cluster.in_sync(stage.log_topic) == len(NODES), "in sync again", to_thread=True)
        print(f"seed {SEED}: {dict(chaos.injected)}")
        await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(16)
async def test_16_too_few_replicas_are_unknown_and_resolved_later(cluster: Cluster) -> None:
    with ClusterStage(cluster, published_s=PUBLISHED_S) as stage:
        await stage.accepted("Deposit", "Account/a", amount=100)
        await until(lambda: cluster.in_sync(stage.log_topic) == len(NODES), "replicated", to_thread=True)
        configure(cluster.brokers, stage.log_topic, {"min.insync.replicas": "3"})
        follower = next(node for node in NODES if node != cluster.leader(stage.log_topic))
        async with stage.load(8) as load:
            await asyncio.sleep(1)
            with cluster.lost(follower, "killed"):
                await until(lambda: cluster.in_sync(stage.log_topic) == 2, "out of sync", to_thread=True)
                calls = await asyncio.gather(
                    *[stage.send("Deposit", f"Account/u{n}", at=n % 2, key=f"u{n}", amount=1) for n in range(4)],
                    *[stage.send("Withdraw", "Account/a", at=n % 2, amount=1) for n in range(2)],
                )
                assert not [call for call in calls if call.told not in (Told.UNKNOWN, Told.NOT_EXECUTED)], calls
                # Those that came first; once verdicts are late an instance takes no more.
                await until(lambda: any(call.status == 504 for call in load.history), "a command without a verdict")
            for call in [call for call in load.history if call.status == 504][:10]:
                first = await stage.outcome(call, at=0)
                assert first in ("accepted", "refused", "closed"), call
                assert await stage.outcome(call, at=1) == first, "one outcome, for everybody and for ever"
                on_record = first == "accepted" or (first == "refused" and call.key is not None)
                assert stage.verdicts(call).count(True) == on_record, (first, call)
        configure(cluster.brokers, stage.log_topic, {"min.insync.replicas": "2"})
        await stage.well("Account/a", "Account/u0", "Account/h0")
