"""An instance follows what it uses: what it opens, what it leaves at rest, and what it finds that others left."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import redis as redis_client

from hiveio.actor import contracts
from hiveio.config import Settings
from hiveio.envelope import Envelope, Outcome
from hiveio.transaction import applier, following, forwarding, pace, rebuild
from hiveio.transaction.cache import Cache
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.entry import Watermark
from hiveio.transaction.proof import Consistency
from hiveio.transaction.rule import scope_of
from tests.actors.tally import Add, Tallies, Tally
from tests.integration.conftest import Make
from tests.integration.topics import Written, read_all, write
from tests.process import ROOT
from tests.services import HOST, Kafka, Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(120, func_only=True)]

ACTOR = (ROOT / "tests" / "actors" / "tally.py").read_text()
MADE = contracts([Tallies])
PARTITIONS = 4
SWEEP_S = 0.2
PROVED: tuple[Consistency, ...] = ("current", "linearizable")
LEASE_MS = 1_500


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


class Cluster:
    """Instances of one service, on a log of their own."""

    def __init__(self, kafka: Kafka, redis: Redis) -> None:
        self.topic = f"following-{os.urandom(4).hex()}"
        self.log_topic = f"{self.topic}.transactions"
        self.brokers, self.port = kafka.brokers, redis.port
        self.settings = Settings(
            brokers=kafka.brokers,
            topic=self.topic,
            cache_url=redis.url,
            partitions=PARTITIONS,
            request_timeout_ms=2_000,
        )

    @contextlib.asynccontextmanager
    async def instance(self) -> AsyncIterator[TransactionLog]:
        log = TransactionLog(self.settings, MADE)
        await log.start()
        try:
            yield log
        finally:
            await log.stop()

    async def write(self, *written: Written) -> None:
        await asyncio.to_thread(write, self.brokers, self.log_topic, written)

    async def events(self) -> int:
        return len(await asyncio.to_thread(read_all, self.brokers, self.topic))

    @contextlib.contextmanager
    def redis(self) -> Iterator[Any]:
        with redis_client.Redis(host=HOST, port=self.port) as client:
            yield client

    def keys(self, end: str) -> list[str]:
        """The keys of the log that end so."""
        with self.redis() as client:
            return [key.decode() for key in client.scan_iter(f"hive:*{self.log_topic}/*{end}", count=10_000)]


@pytest.fixture
def cluster(kafka: Kafka, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Its instances follow a scope for two seconds after the last use, and try none at their start."""
    monkeypatch.setattr(following, "FOLLOW_S", 1.0)
    monkeypatch.setattr(following, "SWEEP_S", SWEEP_S)
    monkeypatch.setattr(following, "TRIED", 0)
    return Cluster(kafka, redis)


def opened(log: TransactionLog) -> list[int]:
    return [scope.partition for scope in log.scopes]


async def looked(*logs: TransactionLog) -> None:
    """They have looked at all scopes once."""
    async with asyncio.timeout(30):
        while any([await log.ready() for log in logs]):
            await asyncio.sleep(0.01)


async def add(log: TransactionLog, id: str) -> str:
    """The version after the command."""
    envelope = Envelope(message=Add(1), id=id, body=b'{"type":"Add","payload":{"amount":1}}')
    outcome: Outcome = await log.engine.submit(MADE[0], envelope).future
    return outcome.headers["ETag"]


def test_hundreds_of_partitions_cost_no_threads(processor: Make) -> None:
    with processor(EVENT_STORE_PARTITIONS="200", wait=False) as role:
        role.ready(90)
        for number in range(20):
            body = {"type": "Add", "payload": {"amount": 1}}
            assert httpx.post(f"{role.url}/tallies/{number}", json=body, timeout=30).status_code == 200
        (worker,) = role.workers()
        assert worker.num_threads() < 70
        assert httpx.get(f"{role.url}/readyz").status_code == 200


async def test_an_instance_that_forwards_all_commands_reads_the_log_with_pauses_unless_it_needs_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "NEEDED_S", 0.1)
    monkeypatch.setattr(pace, "PAUSE_S", 600.0)  # so nothing but a need ends it
    for name in ("TAKES_S", "SILENT_S"):  # and no command goes another way than the mailbox because one is late
        monkeypatch.setattr(forwarding, name, 60.0)
    partition = scope_of("hot", PARTITIONS)
    async with contextlib.AsyncExitStack() as stack:
        started = [await stack.enter_async_context(contextlib.AsyncExitStack()) for _ in range(2)]
        logs = [await each.enter_async_context(cluster.instance()) for each in started]
        await looked(*logs)

        async def paused() -> TransactionLog:
            """Both work on the aggregate until one of them pauses."""
            async with asyncio.timeout(30):
                while not (found := [log for log in logs if log.tail.suspended]):
                    await asyncio.gather(*[add(log, "hot") for log in logs])
            return found[0]

        for consistency in PROVED:  # it pauses again some time after it was needed
            other = await paused()
            leader = logs[1 - logs.index(other)]
            for _ in range(20):
                await add(leader, "hot")
            version = int((await add(other, "hot")).strip('"'))
            assert other.tail.suspended == {partition}, "forwarded commands need nothing"
            assert other.scopes[partition].view.next < leader.scopes[partition].view.next - 15
            tally, read = await other.engine.read(MADE[0], "hot", consistency)
            assert (tally.count, read) == (version, version)
            assert not other.tail.suspended
        other = await paused()
        await started[1 - logs.index(other)].aclose()
        await until(lambda: not other.tail.suspended)  # it leads, and has to publish what comes


def record(id: str, number: int) -> Written:
    """A record of an instance that is gone."""
    event = '{"type":"Added","payload":{"amount":5}}'
    value = f'{{"kind":"commit","command":["Tally/{id}","c-{number}"],"writes":[["Tally/{id}","",0,[{event}]]]}}'
    return scope_of(id, PARTITIONS), f"t-{number:x}", value.encode(), {}


async def test_an_instance_beside_others_follows_nothing_until_it_is_used(cluster: Cluster) -> None:
    enough = asyncio.Event()

    async def adding(log: TransactionLog) -> int:
        """How often it has added to the aggregate until that was enough."""
        count = 0
        while not enough.is_set():
            await add(log, "a")
            count += 1
        return count

    async def follows_nothing(log: TransactionLog) -> None:
        """Over several sweeps in a row: it opens a scope for a moment whose leader is late for two looks."""
        sweeps = 0
        async with asyncio.timeout(30):
            while sweeps < 5:
                await asyncio.sleep(SWEEP_S * 1.5)
                sweeps = 0 if opened(log) else sweeps + 1

    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(cluster.instance())
        async with cluster.instance() as two:
            await looked(one, two)
            assert not opened(one) + opened(two), "there is nothing but format records"
        async with asyncio.TaskGroup() as group:
            added = group.create_task(adding(one))
            await until(lambda: cluster.keys(":publisher"))  # before another instance looks whether there is a leader
            two = await stack.enter_async_context(cluster.instance())
            await looked(two)
            await follows_nothing(two)
            enough.set()
        count = added.result() + 1
        assert opened(one) == [scope_of("a", PARTITIONS)]
        assert await add(two, "a") == f'"{count}"'
        assert await one.engine.read(MADE[0], "a", "current") == (Tally(count, count), count)
        assert opened(two) == opened(one)
        assert await two.ready() is None

        # nobody uses it any more: both leave it, and everything is published
        await until(lambda: not opened(one) + opened(two))
        assert await cluster.events() == count
        assert len(cluster.keys(":rest")) == 1
        assert not cluster.keys(":publisher"), "the lease is given back"
        assert await one.ready() is None
        assert await add(two, "a") == f'"{count + 1}"'


async def test_scopes_at_rest_need_nobody_after_a_restart(cluster: Cluster) -> None:
    async with cluster.instance() as one:
        for id in "abcdef":
            await add(one, id)
        used = {scope_of(id, PARTITIONS) for id in "abcdef"}
        assert set(opened(one)) == used
        await until(lambda: len(cluster.keys(":publisher")) == len(used) and all(scope.applied for scope in one.scopes))
    assert len(cluster.keys(":rest")) == len(used), "an instance that stops leaves them at rest"
    async with cluster.instance() as two:
        await looked(two)
        for _ in range(5):
            await asyncio.sleep(SWEEP_S)
            assert not opened(two)
        await until(lambda: two.scopes.use(scope_of("a", PARTITIONS)).ready)  # a read waits less long for it
        assert await two.engine.read(MADE[0], "a", "cached") == (Tally(1, 1), 1)


async def test_what_a_leader_has_left_that_died_is_found_and_published(cluster: Cluster) -> None:
    partition = scope_of("a", PARTITIONS)
    async with cluster.instance() as one, cluster.instance() as two:
        await looked(one, two)
        for _ in range(PARTITIONS):
            await one.ready()  # this writes a key of each scope in turn
        (key,) = [key for key in cluster.keys(":ready") if f"/{partition}/" in key]
        with cluster.redis() as client:
            client.set(key.replace(":ready", ":publisher"), "it has died", px=LEASE_MS)
        await cluster.write(record("a", 1))
        await until(lambda: opened(one) + opened(two))
        assert {*opened(one), *opened(two)} == {partition}
        async with asyncio.timeout(10):
            while not await cluster.events():
                await asyncio.sleep(0.05)
        await until(lambda: not opened(one) + opened(two))
        assert len(cluster.keys(":rest")) == 1


async def test_a_cache_that_is_lost_while_nobody_follows_is_folded_again(cluster: Cluster) -> None:
    async with cluster.instance() as one:
        await add(one, "a")
        await until(lambda: not opened(one))
        with cluster.redis() as client:
            client.flushall()
        await until(lambda: cluster.keys(":a:Tally/a"))
        await until(lambda: not opened(one))
        assert cluster.keys(":rest")
        assert await cluster.events() == 1, "nothing is published again"


async def test_a_scope_whose_topics_end_elsewhere_than_it_was_left_is_looked_after(cluster: Cluster) -> None:
    partition = scope_of("a", PARTITIONS)
    async with cluster.instance() as one:
        await add(one, "a")
        await until(lambda: not opened(one))
        (key,) = cluster.keys(":rest")
        with cluster.redis() as client:
            client.set(key, "2:9")  # as where somebody has emptied the event topic
            await until(lambda: opened(one) == [partition])
            await until(lambda: not opened(one))
            assert client.get(key) != b"2:9"
        assert await cluster.events() == 1


async def test_a_scope_that_is_opened_while_another_instance_folds_its_cache_waits_for_that(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "FAR", 100)
    monkeypatch.setattr(applier, "UNAPPLIED", 200)
    apply = Cache.apply
    applied: dict[int, list[int]] = {}

    async def slowly(self: Cache, partition: int, base: Watermark, to: Watermark, *given: Any) -> Watermark | None:
        await asyncio.sleep(0.5)
        reached = await apply(self, partition, base, to, *given)
        if reached == to:
            applied.setdefault(id(self), []).append(to.offset - base.offset)
        return reached

    async with cluster.instance():
        pass  # it has made the topics
    ids = [f"{number}" for number in range(8_000) if scope_of(f"{number}", PARTITIONS) == 0]
    await cluster.write(*[record(id, number) for number, id in enumerate(ids, 1)])
    monkeypatch.setattr(Cache, "apply", slowly)
    async with cluster.instance() as one, cluster.instance() as two:
        await until(lambda: [scope for log in (one, two) for scope in log.scopes if scope.folded_elsewhere])
        waits, folds = (one, two) if one.scopes[0].folded_elsewhere else (two, one)
        assert "by another instance" in str(await waits.ready())
        await until(lambda: waits.scopes.use(0).ready)
        assert await add(waits, ids[7]) == '"2"'
        await until(lambda: folds.scopes.use(0).ready)
        assert await folds.engine.read(MADE[0], ids[7], "current") == (Tally(6, 2), 2)
        assert sum(sorted(map(sum, applied.values()))[:-1]) < 500, "the other one folds the end at most"
