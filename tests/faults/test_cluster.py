"""Faults 15, 16 and 75 to 77: of three brokers a leader is lost, or too few replicas are in sync."""

import asyncio
import contextlib
import os
import random
import time
import uuid
from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import required
from tests.faults.chaos import Chaos
from tests.faults.checker import Call, Result
from tests.faults.cluster import ELECTED_S, NODES, Cluster, ClusterStage
from tests.faults.stage import until
from tests.faults.watching import Readiness
from tests.integration.topics import configure, read_all
from tests.process import STARTED_S, Role, wait_until
from tests.services import HOST

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]
WRITES_S = 15.0  # until commands are taken again, after another leader is elected
PUBLISHED_S = 30.0  # the fault, an election, and the clients' way to the new leader
HOWS = ("killed", "paused", "silent")  # where a deposed one is reached, a new instance may not become ready meanwhile
SERVES_S = 15.0  # until a role has left a leader that was deposed
UNREADY_S = 5.0  # until a role says so, or takes requests again
READY_S = 20.0  # until one has started that knows only such a leader
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

    with ClusterStage(cluster, published_s=PUBLISHED_S) as stage, contextlib.ExitStack() as probing:
        await until(lambda: cluster.in_sync(stage.log_topic) == len(NODES), "replicated", to_thread=True)
        async with stage.load() as load:
            await asyncio.sleep(2)
            probes = [probing.enter_context(Readiness(f"http://{HOST}:{port}")) for port in stage.ports]
            began = time.monotonic()
            async with stage.without_leader(how) as node:
                await taken()
                end = began + UNREADY_S
                taken_by = {
                    call.instance
                    for call in load.history
                    if call.result is Result.ACCEPTED and call.called > began and call.answered < end
                }
                for number, probe in enumerate(probes):
                    assert number in taken_by or probe.unready(began, end), probe.said
                probing.close()
                if how == "deposed":
                    await starts_anew(stage, node)
                else:
                    await asyncio.sleep(2)
        await until(lambda: cluster.in_sync(stage.log_topic) == len(NODES), "all in sync again", to_thread=True)
        await stage.well("Account/a", "Account/h0", "Tally/t0")


async def starts_anew(stage: ClusterStage, node: int) -> None:
    """Fault 76: an instance that knows no other broker than the deposed one becomes ready, and serves."""
    only = f"{HOST}:{stage.cluster.proxies[node].port}"
    await asyncio.to_thread(stage.instances[1].kill)
    began = time.monotonic()
    await asyncio.to_thread(stage.instances[1].start_with, EVENT_STORE_BROKERS=only)  # returns when it is ready
    assert time.monotonic() - began < READY_S
    await stage.accepted("Deposit", "Account/a", at=1, within_s=SERVES_S, amount=1)


ROLES = """
from hiveio import Actor, Event, Query

class Deposited(Event):
    amount: int

class Total(Query):
    path = "/total"

class Account(Actor):
    path = "/accounts/{id}"
    total = 0

    def perform(self, message: Deposited | Total) -> Deposited | int:
        if isinstance(message, Total):
            return self.total
        self.total += message.amount
        return message
"""


def served_by(brokers: str, topic: str, group: str) -> tuple[Role, Role]:
    """A producer and a consumer of this topic."""
    environ = {"EVENT_STORE_BROKERS": brokers, "EVENT_STORE_TOPIC": topic, "REQUEST_TIMEOUT": "3000"}
    joins = {"EVENT_STORE_GROUP_ID": group, "EVENT_STORE_FROM_START": "true"}
    return (
        Role("producer", environ, actor=ROLES.replace(": Deposited | Total", ": Deposited"), wait=False),
        Role("consumer", environ | joins, actor=ROLES, wait=False),
    )


class Pair:
    """A producer and a consumer: what the one takes the other has seen soon."""

    def __init__(self, producer: Role, consumer: Role) -> None:
        self.producer, self.consumer = producer, consumer
        self.stored = 0

    def post(self) -> int:
        body = {"type": "Deposited", "payload": {"amount": 1}}
        status = httpx.post(f"{self.producer.url}/accounts/a", json=body, timeout=20).status_code
        self.stored += status == 200
        return status

    def total(self) -> int:
        answer = httpx.get(f"{self.consumer.url}/total", timeout=20)
        return int(answer.json()) if answer.status_code == 200 else -1

    def ready(self, within_s: float) -> None:
        for role in (self.producer, self.consumer):
            role.ready(within_s)

    def serves(self, within_s: float) -> None:
        try:
            wait_until(lambda: self.post() == 200, within_s, "stored")
            wait_until(lambda: self.total() >= self.stored, within_s, "consumed")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.producer.text()}{self.consumer.text()}") from None


@pytest.mark.fault(75, 76, 77)
async def test_75_to_77_every_role_leaves_a_leader_that_the_others_have_deposed(cluster: Cluster) -> None:
    """It leads what producer and consumer work on, and of the stream processor the event topic alone."""
    stage, topic = ClusterStage(cluster, published_s=PUBLISHED_S), f"deposed-{uuid.uuid4().hex[:8]}"
    for name, replicas in ((topic, [1, 2, 3]), (stage.topic, [1, 2, 3]), (stage.log_topic, [2, 3, 1])):
        cluster.make(name, replicas)
    others = ",".join(cluster.nodes[node].brokers for node in (2, 3))

    def published(call: Call) -> bool:
        return any(call.marker.encode() in (message.value() or b"") for message in read_all(others, stage.topic))

    with stage, contextlib.ExitStack() as stack:
        only = f"{HOST}:{cluster.proxies[1].port}"  # the broker that will be deposed
        first = Pair(*[stack.enter_context(role) for role in served_by(only, topic, topic)])
        await stage.accepted("Deposit", "Account/a", amount=1)
        await asyncio.to_thread(first.ready, STARTED_S)
        await asyncio.to_thread(first.serves, STARTED_S)
        names = (topic, stage.topic, stage.log_topic)
        await until(lambda: all(cluster.in_sync(name) == len(NODES) for name in names), "replicated", to_thread=True)
        assert (cluster.leader(topic), cluster.leader(stage.topic), cluster.leader(stage.log_topic)) == (1, 1, 2)
        lost = cluster.lost(1, "deposed")
        urls = (first.producer.url, first.consumer.url, *(f"http://{HOST}:{port}" for port in stage.ports))
        probes = [stack.enter_context(Readiness(url)) for url in urls]
        cut = time.monotonic()
        await asyncio.to_thread(lost.__enter__)
        try:
            led = (topic, stage.topic)
            await until(lambda: all(cluster.leader(name) > 1 for name in led), "elected", ELECTED_S, to_thread=True)
            second = Pair(*[stack.enter_context(role) for role in served_by(only, topic, f"{topic}-2")])
            began = time.monotonic()
            await asyncio.sleep(UNREADY_S)
            for probe in probes:
                assert probe.unready(cut, time.monotonic()), probe.said
            await asyncio.to_thread(first.serves, SERVES_S - UNREADY_S)
            print(f"served again after {time.monotonic() - began:.1f} s")
            call = await stage.accepted("Deposit", "Account/a", amount=1)
            await until(lambda: published(call), "published", SERVES_S, to_thread=True)
            print(f"published again after {time.monotonic() - began:.1f} s")
            await asyncio.to_thread(second.ready, READY_S)
            second.stored = first.stored
            await asyncio.to_thread(second.serves, SERVES_S)
        finally:
            await asyncio.to_thread(lost.__exit__, None, None, None)
        await until(lambda: cluster.in_sync(topic) == len(NODES), "all in sync again", to_thread=True)
        await stage.well("Account/a")


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
                assert not [call for call in calls if call.result not in (Result.UNKNOWN, Result.NOT_EXECUTED)], calls
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
