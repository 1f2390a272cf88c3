"""Large snapshots: what goes to Redis and comes from it at once, and what stays in memory, is bounded in bytes."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis as redis_client

from hiveio.actor import contracts
from hiveio.config import Settings
from hiveio.envelope import Envelope
from hiveio.errors import Unavailable
from hiveio.kafka import unconsumed
from hiveio.transaction import bounds
from hiveio.transaction.bounds import ENTRY_BYTES
from hiveio.transaction.cache import Cache
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.entry import CacheReply, Watermark
from hiveio.transaction.rule import scope_of
from hiveio.transaction.scope import Scope
from tests.faults.proxy import Proxy
from tests.integration.pages import SIZE, Fill, Page, Pages, Writer
from tests.integration.topics import write
from tests.services import HOST, Kafka, Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(120, func_only=True)]

PAGES = 60
VIEW, LOADED, CALL = 3_000_000, 4_000_000, 8_000_000
FETCHED = 17_000_000  # by the client beforehand, and handed over together
MADE = contracts([Pages])


@pytest.fixture(scope="module")
def small_redis() -> Iterator[Redis]:
    """One that takes no more in one argument than ten megabytes."""
    with Redis(options={"proto-max-bulk-len": "10mb", "client-query-buffer-limit": "16mb"}) as server:
        yield server


class Instance:
    def __init__(self, kafka: Kafka, cache_url: str, topic: str, partitions: int = 1) -> None:
        settings = Settings(brokers=kafka.brokers, topic=topic, cache_url=cache_url, partitions=partitions)
        self.log = TransactionLog(settings, MADE)

    async def __aenter__(self) -> "Instance":
        await self.log.start()
        scopes = [self.log.scopes.use(partition) for partition in range(self.log.settings.partitions)]
        await until(lambda: all(scope.ready for scope in scopes))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.log.stop()

    @property
    def scope(self) -> Scope:
        return self.log.scopes[0]

    async def applied(self, offset: int) -> None:
        await until(
            lambda: self.scope.ready and self.scope.view.next >= offset and self.scope.mirror.watermark.offset >= offset
        )

    async def read(self, page: int) -> tuple[Any, int]:
        return await self.log.engine.read(MADE[0], f"{page}", "cached")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(40):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def topic() -> str:
    return f"large-{os.urandom(4).hex()}"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each answer of the cache to whoever judges."""
    sizes: list[int] = []
    original = Cache.load

    async def load(self: Cache, partition: int, asked: Sequence[tuple[str, str]]) -> list[CacheReply]:
        replies = await original(self, partition, asked)
        sizes.append(sum(len(reply.stored_entry or b"") for reply in replies))
        return replies

    monkeypatch.setattr(Cache, "load", load)
    return sizes


async def test_large_snapshots_come_back_after_a_loss_of_the_cache(
    kafka: Kafka, small_redis: Redis, topic: str, loaded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "VIEW_BYTES", VIEW)
    writer = Writer()
    async with Instance(kafka, small_redis.url, topic) as one:
        scope = one.scope
        records = await asyncio.to_thread(writer.records, range(PAGES))
        await asyncio.to_thread(write, kafka.brokers, f"{topic}.transactions", records)
        await one.applied(1 + PAGES)
        generation = scope.mirror.watermark.generation
        with redis_client.Redis(host=HOST, port=small_redis.port) as client:
            client.flushall()
        await asyncio.to_thread(write, kafka.brokers, f"{topic}.transactions", writer.records([0]))
        await one.applied(2 + PAGES)
        assert scope.mirror.watermark.generation != generation, "folded anew"
        assert scope.view.size <= VIEW + CALL + 2 * SIZE

        # what the view has let go of comes from the cache, a few at a time
        loaded.clear()
        await asyncio.to_thread(write, kafka.brokers, f"{topic}.transactions", writer.records(range(PAGES)))
        await one.applied(2 + 2 * PAGES)
        assert sum(loaded) >= PAGES * SIZE / 2
        assert max(loaded) <= LOADED + SIZE + 1_000
        assert scope.view.size <= VIEW + CALL + 2 * SIZE

        # reads of many at once, and nothing is written that would make room
        read = await asyncio.gather(*map(one.read, range(PAGES)))
        assert [(len(page.text), version) for page, version in read] == [(SIZE, 3)] + [(SIZE, 2)] * (PAGES - 1)
        assert isinstance(read[0][0], Page)
        assert scope.view.size <= VIEW + 2 * SIZE


async def test_an_instance_that_is_cut_off_from_redis_holds_little_of_what_others_write(
    kafka: Kafka, redis: Redis, topic: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on where it was, without folding anew."""
    backlog, unapplied = 4_000_000, 2_000_000
    monkeypatch.setattr(unconsumed, "SHARED_BYTES", backlog)
    monkeypatch.setattr(bounds, "UNAPPLIED_BYTES", unapplied)
    writer = Writer()
    with Proxy(redis.port) as proxy:
        async with (
            Instance(kafka, f"redis://{HOST}:{proxy.port}", topic) as one,
            Instance(kafka, redis.url, topic) as two,
        ):
            scope, end, large = one.scope, 1, 20_000
            proxy.refuse()
            for _ in range(4):  # together several times what may be held
                records = writer.records(range(500), size=large, ballast=large)
                await asyncio.to_thread(write, kafka.brokers, f"{topic}.transactions", records)
                end += len(records)
                await two.applied(end)
                assert one.log.tail.unconsumed_bytes(0) <= backlog + FETCHED
                assert scope.applier.size <= unapplied + 2 * large
                assert scope.view.size <= unapplied + 2 * large + 500 * ENTRY_BYTES  # those of the next records
            assert 1 < scope.view.next < end, "it has judged what it could hold"
            generation = two.scope.mirror.watermark.generation
            caplog.set_level("INFO", "hiveio.scope")
            proxy.open()
            await one.applied(end)
            assert scope.mirror.watermark.generation == generation
            assert "from offset" not in caplog.text, "not folded anew"
            assert (await one.read(7))[1] == 4


async def test_a_scope_whose_cache_takes_nothing_does_not_hold_up_the_others(
    kafka: Kafka, redis: Redis, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog = 500_000
    monkeypatch.setattr(unconsumed, "SHARED_BYTES", 2 * backlog)
    monkeypatch.setattr(unconsumed, "LEAST_BYTES", backlog)
    monkeypatch.setattr(bounds, "UNAPPLIED_BYTES", 2 * backlog)
    apply, stuck = Cache.apply, True

    async def late(self: Cache, partition: int, *rest: Any) -> Watermark | None:
        if stuck and partition == 0:
            raise Unavailable("never mind")
        return await apply(self, partition, *rest)

    monkeypatch.setattr(Cache, "apply", late)
    ill, well = ([page for page in range(200) if scope_of(f"{page}", 2) == scope] for scope in (0, 1))
    async with Instance(kafka, redis.url, topic, partitions=2) as one:
        scope, writer = one.scope, Writer()
        records = [record for _ in range(6) for record in writer.records(ill, size=20_000, ballast=20_000)]
        await asyncio.to_thread(write, kafka.brokers, f"{topic}.transactions", records)
        await until(lambda: scope.applier.large and one.log.tail.suspended == {0})
        for page in well[:20]:
            async with asyncio.timeout(2):
                await one.log.engine.submit(MADE[0], Envelope(message=Fill(10), id=f"{page}")).future
        assert scope.applier.large
        assert scope.view.next < 1 + len(records)
        stuck = False
        await one.applied(1 + len(records))
        assert (await one.read(ill[0]))[1] == 6
