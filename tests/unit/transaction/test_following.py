"""Which scopes an instance opens that nobody looks after, and which it closes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pytest

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka.assigned import Partition
from hiveio.testing.service import Service
from hiveio.transaction.cache import Look
from hiveio.transaction.entry import Watermark
from hiveio.transaction.following import FIRST_LOOK, LOOKED_AT, TRIED, Following
from hiveio.transaction.leader import IsLeading
from hiveio.transaction.leadership import Leadership
from hiveio.transaction.scope import Scope
from tests.actors.tally import Add, Tallies
from tests.unit.transaction.test_engine import until

LOG, EVENTS = "log", "events"
SCOPES = 150


class Seen:
    """What Kafka and Redis say of scopes that are not followed: at first all are at rest."""

    def __init__(self) -> None:
        self.log_ends = dict.fromkeys(range(SCOPES), 9)
        self.event_ends = dict.fromkeys(range(SCOPES), 5)
        self.watermarks: dict[int, Watermark | None] = {}
        self.served: set[int] = set()
        self.notes = dict.fromkeys(range(SCOPES), "9:5")
        self.looks: list[int] = []
        self.asked: list[int] = []

    def known(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        asked = list(partitions)
        self.asked.append(len(asked))
        ends = {LOG: self.log_ends, EVENTS: self.event_ends}
        return {(topic, partition): ends[topic][partition] for topic, partition in asked if partition in ends[topic]}

    ends = known

    async def look(self, partition: int) -> Look:
        self.looks.append(partition)
        watermark = self.watermarks.get(partition, Watermark(9, 0, "id", "gen"))
        text = watermark.text.encode() if watermark is not None else b""
        return Look(text, watermark, partition in self.served, self.notes.get(partition, ""))

    def left(self, partition: int) -> None:
        """Its leader has died."""
        self.log_ends[partition] = 10

    def watermark(self, partition: int, offset: int | None) -> None:
        self.watermarks[partition] = None if offset is None else Watermark(offset, 0, "id", "gen")


class Opened:
    """The scopes of one instance."""

    def __init__(self) -> None:
        self.partitions: list[int] = []

    def __len__(self) -> int:
        return SCOPES

    def __iter__(self) -> Any:
        return iter(())

    def __contains__(self, partition: int) -> bool:
        return partition in self.partitions

    def open(self, partition: int) -> None:
        self.partitions.append(partition)


def following(seen: Any, opened: Any, leads: Any = None, works_on: Any = lambda scope: False) -> Following:
    return Following(opened, leads, seen, seen, LOG, [EVENTS], works_on=works_on, unused_s=0.0)


async def first_look(seen: Seen) -> list[int]:
    """The scopes that are opened because they need an instance."""
    opened = Opened()
    await following(seen, opened).look(range(SCOPES), first=True)
    return sorted(opened.partitions)


async def test_at_its_start_an_instance_tries_some_scopes_that_have_records() -> None:
    """A version that cannot read them is not ready."""
    seen, opened = Seen(), Opened()
    seen.log_ends |= dict.fromkeys(range(100, SCOPES), 1)
    seen.event_ends |= dict.fromkeys(range(100, SCOPES), 0)
    await following(seen, opened).look_at_all()
    assert sorted(seen.looks) == list(range(SCOPES))
    assert max(seen.asked) <= 2 * FIRST_LOOK
    assert len(opened.partitions) == len(set(opened.partitions)) == TRIED
    assert max(opened.partitions) < 100


async def test_at_its_start_an_instance_opens_the_scopes_that_are_left_with_work() -> None:
    seen = Seen()
    assert await first_look(seen) == []
    seen.left(3)
    del seen.notes[4]  # Redis was emptied
    seen.event_ends[5] = 0  # the event topic was made anew
    seen.left(6)
    seen.served.add(6)  # somebody leads it
    assert await first_look(seen) == [3, 4, 5]


async def test_at_its_start_an_instance_opens_the_scopes_whose_cache_is_far_behind() -> None:
    seen = Seen()
    seen.served.update(range(SCOPES))
    seen.log_ends |= {7: 5_000, 8: 5_000, 9: 5_000}
    for partition, offset in {7: 4_900, 8: 3_000, 9: None}.items():
        seen.watermark(partition, offset)
    assert await first_look(seen) == [8, 9], "another version of the models leads them"


async def test_a_scope_with_nothing_but_its_format_record_needs_nobody() -> None:
    seen = Seen()
    seen.notes.clear()
    seen.watermarks = dict.fromkeys(range(SCOPES))
    seen.log_ends = dict.fromkeys(range(SCOPES), 1)
    seen.event_ends = dict.fromkeys(range(SCOPES), 0)
    assert await first_look(seen) == []
    seen.event_ends[2] = 1  # events without a log: the publisher says so
    assert await first_look(seen) == [2]


async def test_the_sweep_finds_what_is_left_and_costs_the_same_whatever_the_number_of_scopes_is() -> None:
    seen, opened = Seen(), Opened()
    sweep = following(seen, opened)
    seen.left(11)
    rounds = -(-SCOPES // LOOKED_AT)
    for _ in range(rounds):
        await sweep.look_at_some()
    assert opened.partitions == [11]
    assert sorted(seen.looks) == list(range(SCOPES)), "each once"
    assert max(seen.asked) <= 2 * LOOKED_AT


async def test_a_partition_that_nobody_leads_in_kafka_holds_up_no_other() -> None:
    seen, opened = Seen(), Opened()
    del seen.log_ends[1], seen.event_ends[2]
    seen.left(3)
    await following(seen, opened).look(range(10))
    assert opened.partitions == [3]
    assert await first_look(seen) == [1, 2, 3], "readiness says so"


async def test_the_sweep_opens_a_scope_whose_own_cache_makes_no_progress_although_somebody_leads_it() -> None:
    seen, opened = Seen(), Opened()
    sweep = following(seen, opened)
    seen.served.update((1, 2))
    seen.log_ends |= {1: 90, 2: 90}
    seen.watermark(1, 20)
    for offset in range(20, 60, 10):
        seen.watermark(2, offset)  # it is being moved on
        await sweep.look([1, 2])
    assert opened.partitions == [1]


# -- closing, and what a leader leaves


class Duty:
    """Stands in for the publisher."""

    name = "publishing"
    topic = EVENTS

    latest: "Duty"

    def __init__(self) -> None:
        self.done = False
        Duty.latest = self

    @property
    def rests(self) -> bool:
        return self.done

    async def run(self, is_leading: IsLeading) -> None:
        while await is_leading():
            await asyncio.sleep(0)

    def renew(self) -> None:
        pass


class EventTopic:
    """Stands in for what publishes to a topic."""

    topic = EVENTS

    def publisher(self, scope: Scope, cache: Any) -> Duty:
        return Duty()


class Leases:
    """What Redis keeps of leases and notes."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.holder = ""
        self.notes: dict[int, tuple[int, ...]] = {}
        self.away = False

    async def lease(self, partition: int, holder: str, ttl_ms: int) -> tuple[Watermark | None, str]:
        await asyncio.sleep(0)
        if self.holder in ("", holder):
            self.holder = "" if ttl_ms == 0 else holder
        return (await self.service.cache.watermark(partition)).watermark, self.holder

    async def note_rest(self, partition: int, log_end: int, ends: Sequence[int]) -> None:
        if self.away:
            raise Unavailable("it is away")
        self.notes[partition] = (log_end, *ends)


class Led:
    """One instance with a scope that it leads."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.scopes = service.transactions.scopes
        self.leases = Leases(service)
        self.works: Callable[[Scope], bool] = lambda scope: False
        leases: Any = self.leases
        topic: Any = EventTopic()
        seen: Any = Seen()
        self.leadership = Leadership([topic], leases, "me", seen, None)
        (self.scope,) = self.scopes
        self.leadership.begin(self.scope)
        self.scopes.on_open(self.leadership.begin)
        self.following = following(seen, self.scopes, self.leadership, lambda scope: self.works(scope))
        self.scope.used_at -= 100

    async def close(self) -> bool:
        """Whether the scope is closed."""
        await self.following.close_unused()
        return 0 not in self.scopes


@pytest.fixture
async def led() -> AsyncIterator[Led]:
    async with Service(Tallies, settings=Settings(partitions=1)) as service:
        await service.submit(Tallies, "a", Add(1))
        made = Led(service)
        await until(lambda: made.leases.holder == "me" and made.scope.applied)
        yield made
        await made.leadership.stop(1.0)


async def test_the_leader_leaves_a_scope_that_nobody_uses_once_all_of_it_is_published(led: Led) -> None:
    assert not await led.close(), "something is to publish"
    Duty.latest.done = True
    assert await led.close()
    assert led.leases.notes == {0: (2, 5)}
    assert not led.leases.holder, "the lease is given back"
    assert (await led.service.submit(Tallies, "a", Add(1))).version == 2, "it is opened again"
    await until(lambda: led.leases.holder == "me")


async def test_a_scope_that_is_used_is_not_closed(led: Led) -> None:
    Duty.latest.done = True
    led.works = lambda scope: True
    assert not await led.close()
    led.works = lambda scope: False
    led.scope.used_at += 100
    assert not await led.close()
    assert not led.leases.notes


async def test_a_scope_is_not_closed_under_an_open_aggregate_or_a_read(led: Led) -> None:
    Duty.latest.done, engine = True, led.service.transactions.engine
    led.works = engine.works_on
    await until(lambda: not engine.works_on(led.scope))
    engine.pipelines.of(led.scope, "Tally/a").expect()
    assert not await led.close()
    engine.pipelines.of(led.scope, "Tally/a").arrived(None)
    read = asyncio.create_task(led.scope.reach(99))
    await asyncio.sleep(0)
    assert not await led.close()
    read.cancel()
    await asyncio.wait([read])
    assert await led.close()


async def test_a_scope_that_is_used_while_its_leader_leaves_is_led_again(led: Led) -> None:
    Duty.latest.done = True
    closing = asyncio.create_task(led.close())
    await until(lambda: not led.leases.holder)
    answer = await led.service.submit(Tallies, "a", Add(1))
    assert not await closing
    assert answer.version == 2
    await until(lambda: led.leases.holder == "me")


async def test_a_follower_leaves_a_scope_without_a_note(led: Led) -> None:
    led.leases.holder = "another"
    async with asyncio.timeout(5):
        while not await led.close():  # it learns that when it renews the lease
            await asyncio.sleep(0.01)
    assert not led.leases.notes


async def test_a_scope_is_left_although_the_note_cannot_be_written(led: Led) -> None:
    Duty.latest.done = led.leases.away = True
    assert await led.close()


async def test_an_instance_that_stops_notes_what_is_at_rest(led: Led) -> None:
    Duty.latest.done = True
    await led.leadership.stop(60.0)
    assert led.leases.notes == {0: (2, 5)}
    led.leases.notes.clear()
    Duty.latest.done = False
    led.leadership.begin(led.scope)
    await until(partial(getattr, led.leases, "holder"))
    await led.leadership.stop(0.01)
    assert not led.leases.notes
