"""Keys in parallel inside a partition, and events in lists, on a real Kafka."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from hiveio import Actor, Context, Query
from hiveio.config import Settings
from hiveio.errors import ConfigError
from hiveio.projection.postgres import PostgresProjection
from tests.integration.consumers import Deposited, Member, Recorder, Withdrawn, member, positioned, settings
from tests.integration.test_dead_letters import QUICK, Choosy, ask, dead_letters, keyed
from tests.integration.topics import committed, make_topic, write
from tests.services import Kafka

__all__ = ["settings"]

Made = Callable[..., Settings]


class Ask(Query):
    pass


class Lister(Actor):
    """Takes lists; fails on the amounts in ``bad``."""

    path = "/ask"

    def __init__(self) -> None:
        self.lists: list[list[int]] = []
        self.contexts: list[Context] = []
        self.bad: set[int] = set()

    async def perform(self, events: list[Deposited | Withdrawn] | Ask, context: Any) -> None:
        if isinstance(events, Ask):
            return
        assert len(context) == len(events)
        if self.bad & {event.amount for event in events}:
            raise ValueError("never")
        self.contexts += context
        self.lists.append([event.amount for event in events])

    def amounts(self) -> list[int]:
        return [amount for amounts in self.lists for amount in amounts]


async def test_keys_in_parallel_and_each_in_order(kafka: Kafka, topic: str, settings: Made) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(*[(f"k{i % 10}", i) for i in range(400)]))
    at_once, most = 0, 0
    seen = defaultdict(list)

    async def handle(amount: int, context: Context) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.002 if amount % 7 else 0.02)
        at_once -= 1
        assert context.id is not None
        seen[context.id].append(amount)

    made = settings(consumer_concurrency=4)
    async with member(made) as one:
        one.actor.on_event = handle
        await one.until(lambda: len(one.actor.seen) == 400)
        await one.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == 400)
    assert most == 4
    assert seen == {f"k{k}": [i for i in range(400) if i % 10 == k] for k in range(10)}


async def test_the_offset_stays_at_the_oldest_that_is_not_done(kafka: Kafka, topic: str, settings: Made) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("slow", 1), *[("b", i) for i in range(2, 20)]))
    released = asyncio.Event()

    async def handle(amount: int, context: Context) -> None:
        if amount == 1:
            await released.wait()

    made = settings(consumer_concurrency=3)
    async with member(made) as one:
        one.actor.on_event = handle
        await one.until(lambda: len(one.actor.seen) == 19)
        await one.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == 1)
        await one.until(lambda: one.consumer.age_s > 0)
        assert one.consumer.workers[topic, 0].lag[0] == 19
        released.set()
        await one.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == 20)


async def test_a_stop_finishes_the_handlers_that_run_and_nothing_else(kafka: Kafka, topic: str, settings: Made) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(*[(f"k{i}", i) for i in range(50)]))

    async def handle(amount: int, context: Context) -> None:
        await asyncio.sleep(0.1)

    made = settings(consumer_concurrency=5)
    async with member(made) as one:
        one.actor.on_event = handle
        await one.until(lambda: len(one.actor.seen) == 10)
    done = sorted(one.actor.amounts())
    assert len(done) < 50
    async with member(made) as two:
        await two.until(lambda: {*done, *two.actor.amounts()} == set(range(50)))
        assert not set(done) & set(two.actor.amounts()), "a stop in good order repeats nothing here"


async def test_a_key_that_fails_is_parked_and_others_go_on(kafka: Kafka, topic: str, settings: Made) -> None:
    made = settings(consumer_concurrency=4, **QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(*[(f"k{i % 5}", i) for i in range(50)]))
    async with member(made) as one:
        failing = Choosy(one, 10)
        await one.until(lambda: len(one.actor.seen) == 42 and one.consumer.counts.parked == 7)
        await one.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == 50)
        assert [int(r["hive-dead-origin"].split("/")[-1]) for r in dead_letters(kafka, made)] == [*range(10, 50, 5)]
        failing.bad = set()
        ask(kafka, made, "retry")
        await one.until(lambda: len(one.actor.seen) == 50)
        assert one.actor.amounts()[-8:] == [*range(10, 50, 5)]


async def test_lists_hold_what_came_at_once(kafka: Kafka, topic: str, settings: Made) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, [*positioned(range(100)), *positioned(range(90, 120))])
    made = settings(buffer=50)
    async with member(made, Lister) as one:
        await one.until(lambda: len(one.actor.amounts()) == 120)
        await one.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == 130)
        assert committed(kafka.brokers, made.group_id, topic)[1].startswith("0:119:0 ")
        assert one.consumer.counts.repeated == 10
    assert one.actor.amounts() == [*range(120)]
    assert max(map(len, one.actor.lists)) > 1
    assert max(map(len, one.actor.lists)) <= 50
    assert [context.offset for context in one.actor.contexts] == [*range(100), *range(110, 130)]


async def test_a_list_that_fails_is_handled_one_by_one(kafka: Kafka, topic: str, settings: Made) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    records = keyed(("a", 0), ("b", 1), ("a", 2), ("b", 3), (None, 4))
    records[4] = (0, None, b"{", {})
    async with member(made, Lister, Recorder) as one:
        one.actor.bad = {0}
        write(kafka.brokers, topic, records)
        await one.until(lambda: one.actor.amounts() == [1, 3] and one.consumer.counts.dead == 2)
        await one.until(lambda: one.actors[1].amounts() == [0, 1, 2, 3])
        kept = [(r["hive-dead-reason"], r["hive-dead-actors"]) for r in dead_letters(kafka, made)]
        assert sorted(kept) == [
            ("failed", "Lister"),
            ("parked", "Lister"),
            ("undecodable", "Lister,Recorder"),
        ]
        write(kafka.brokers, topic, keyed(("a", 5)))
        await one.until(lambda: one.consumer.counts.parked == 2 and one.actors[1].amounts()[-1] == 5)
        one.actor.bad = set()
        ask(kafka, made, "retry", "a")
        await one.until(lambda: one.actor.amounts() == [1, 3, 0, 2, 5])


def test_what_does_not_go_together(settings: Made) -> None:
    class Positioned(Recorder):
        def position(self, topic: str, partition: int) -> int | None:
            return None

    class Stored(PostgresProjection):
        def perform(self, event: Deposited) -> None: ...

    for kind in (Positioned, Lister, Stored):
        with pytest.raises(ConfigError, match="CONSUMER_CONCURRENCY=2"):
            Member(settings(consumer_concurrency=2), kind)
