"""The consumer loop on a real Kafka: every event handled, in order, the offset last."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition

from hiveio import Context
from hiveio.config import Settings
from hiveio.errors import ConfigError
from hiveio.kafka import poller
from hiveio.kafka.topics import group_members
from tests.integration.consumers import Ledger, Member, Recorder, member, plain, positioned, settings, wire
from tests.integration.topics import Written, committed, make_topic, write
from tests.process import Role, wait_until
from tests.services import Kafka

__all__ = ["settings"]


@pytest.fixture(params=["consumer", "classic"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_all_in_order_over_a_restart(
    kafka: Kafka, topic: str, settings: Callable[..., Settings], protocol: str
) -> None:
    make_topic(kafka.brokers, topic, 3)
    write(kafka.brokers, topic, [record for p in range(3) for record in plain(range(1000), p)])
    tuned = settings(kafka={"group.protocol": protocol})
    async with member(tuned) as first:
        await first.until(lambda: len(first.actor.seen) >= 1000)
    write(kafka.brokers, topic, plain(range(1000, 1010), 1))
    async with member(tuned) as second:
        await second.until(lambda: len(first.actor.seen) + len(second.actor.seen) >= 3010)
        await second.ready()
    offsets = defaultdict(list)
    for partition, offset, amount in [*first.actor.seen, *second.actor.seen]:
        assert offset == amount
        offsets[partition].append(offset)
    assert offsets == {0: [*range(1000)], 1: [*range(1010)], 2: [*range(1000)]}, "a stop in good order repeats nothing"


async def test_a_member_without_a_partition_is_ready(
    kafka: Kafka, topic: str, settings: Callable[..., Settings], protocol: str
) -> None:
    """Or the new container of a rolling upgrade would never be, and the old one would never go."""
    make_topic(kafka.brokers, topic)
    tuned = settings(kafka={"group.protocol": protocol})
    async with member(tuned) as first, member(tuned) as second:
        await asyncio.gather(first.ready(), second.ready())
        await first.until(lambda: first.partitions() or second.partitions())
        assert len([*first.partitions(), *second.partitions()]) == 1


async def test_a_member_is_ready_when_it_knows_of_its_partitions_and_not_when_kafka_has_assigned_them(
    kafka: Kafka, topic: str, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Or it would not read what is written from then on, where it begins at the end."""
    make_topic(kafka.brokers, topic)
    tuned = settings(kafka={"group.protocol": protocol}, from_start=False)
    come, go_on = threading.Event(), threading.Event()

    class Late(Consumer):
        def incremental_assign(self, partitions: list[TopicPartition]) -> None:
            if not partitions:  # so the callback begins
                come.set()
                go_on.wait(30)
            super().incremental_assign(partitions)

    monkeypatch.setattr(poller, "Consumer", Late)
    async with member(tuned) as one:
        try:
            await one.until(come.is_set)
            members, stable = await asyncio.to_thread(group_members, tuned, tuned.group_id)
            assert stable
            assert [*members.values()] == [1]
            for _ in range(5):
                assert await one.consumer.ready() is not None
        finally:
            go_on.set()
        await one.ready()
        assert one.partitions() == {0}


async def test_the_context(kafka: Kafka, topic: str, settings: Callable[..., Settings]) -> None:
    make_topic(kafka.brokers, topic)
    headers = {"hive-position": "0:7:0", "hive-version": "3", "hive-key": "k", "traceparent": "00-x"}
    value = b'{"type":"Deposited","payload":{"amount":1},"meta":{"source":"web"}}'
    write(kafka.brokers, topic, [(0, "aé", value, headers)])
    contexts: list[Context] = []

    async def keep(amount: int, context: Context) -> None:
        contexts.append(context)

    async with member(settings()) as one:
        one.actor.on_event = keep
        await one.until(lambda: contexts)
    (context,) = contexts
    assert (context.id, context.key, context.idempotency_key) == ("aé", "aé".encode(), "k")
    assert (context.topic, context.partition, context.offset) == (topic, 0, 0)
    assert (context.position, context.version, context.meta) == ((0, 7, 0), 3, {"source": "web"})
    assert context.headers == headers
    assert context.time is not None
    assert context.time > 1e9


async def test_each_actor_takes_its_types_and_others_are_skipped(
    kafka: Kafka, topic: str, settings: Callable[..., Settings]
) -> None:
    class Some(Recorder):
        unknown = "skip"

    class All(Ledger):
        unknown = "skip"

    make_topic(kafka.brokers, topic)
    records: list[Written] = [
        (0, "a", wire(5), {}),
        (0, "a", wire(2, "Withdrawn"), {}),
        (0, None, wire(9, "Closed"), {}),
    ]
    write(kafka.brokers, topic, [*records, (0, "a", None, {}), (0, None, wire(1), {})])
    async with member(settings(), Some, All) as one:
        await one.until(lambda: one.actor.amounts() == [5, 1])
        assert one.actors[1].sum == 4
        assert one.consumer.counts.skipped == 2


async def test_from_now_on_misses_nothing_once_it_is_ready(
    kafka: Kafka, topic: str, settings: Callable[..., Settings]
) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain([1, 2]))
    async with member(settings(from_start=False)) as first:
        await first.ready()
        await first.until(lambda: first.partitions())
    write(kafka.brokers, topic, plain([3]))  # while nobody is there
    async with member(settings(from_start=False)) as second:
        await second.until(lambda: second.actor.amounts() == [3])
    assert first.actor.amounts() == []


async def test_topics_by_expression(kafka: Kafka, topic: str, settings: Callable[..., Settings]) -> None:
    for name in (f"{topic}-a", f"{topic}-b"):
        make_topic(kafka.brokers, name)
        write(kafka.brokers, name, plain([1]))
    async with member(settings(consumer_topic=(f"^{topic}-[ab]",))) as one:
        await one.until(lambda: one.actor.amounts() == [1, 1])


async def test_repeats_of_a_publisher_are_dropped_also_after_a_restart(
    kafka: Kafka, topic: str, settings: Callable[..., Settings]
) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, positioned([0, 1, 2, 1, 2, 3]))
    async with member(settings()) as first:
        await first.until(lambda: first.actor.amounts() == [0, 1, 2, 3])
        metadata = await wait_committed(first, kafka.brokers, settings().group_id, topic, 6)
        assert metadata.startswith("0:3:0 ")
    write(kafka.brokers, topic, positioned([2, 3, 4]))
    async with member(settings()) as second:
        await second.until(lambda: second.actor.seen)
        assert second.actor.amounts() == [4]
        assert second.consumer.counts.repeated == 2


async def test_a_gap_stops_its_partition_loudly(kafka: Kafka, topic: str, settings: Callable[..., Settings]) -> None:
    make_topic(kafka.brokers, topic, 2)
    write(kafka.brokers, topic, [*positioned([0, 1, 3, 4]), *plain(range(5), 1)])
    async with member(settings()) as one:
        await one.until(lambda: len(one.actor.seen) == 7)
        await one.until(lambda: one.consumer.counts.failed)
        assert f"{topic}/0/2" in (await one.consumer.ready() or "")
        assert "events are missing" in (await one.consumer.ready() or "")
        assert one.consumer.alive()
    assert committed(kafka.brokers, settings().group_id, topic, 0)[0] == 2


async def test_a_slow_handler_holds_up_only_its_partition_and_keeps_its_membership(
    kafka: Kafka, topic: str, settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    """One record takes longer than max.poll.interval.ms; behind it is more than the queue takes."""
    make_topic(kafka.brokers, topic, 2)
    write(kafka.brokers, topic, [*plain(range(500)), *plain(range(500), 1)])
    calls: list[float] = []

    async def slow(amount: int, context: Context) -> None:
        if context.partition == 0 and amount == 0:
            calls.append(1)
            await asyncio.sleep(8)

    short = {"max.poll.interval.ms": "6000", "session.timeout.ms": "6000", "group.protocol": "classic"}
    async with member(settings(buffer=20, kafka=short)) as one:
        one.actor.on_event = slow
        await one.until(lambda: sum(p == 1 for p, _, _ in one.actor.seen) == 500)
        assert not any(p == 0 for p, _, _ in one.actor.seen)
        await one.until(lambda: len(one.actor.seen) == 1000)
    assert len(calls) == 1, "the record was delivered again"
    assert not caplog.records


async def test_two_members_never_share_a_partition_under_load(
    kafka: Kafka, topic: str, settings: Callable[..., Settings], protocol: str
) -> None:
    partitions, count = 4, 1500
    make_topic(kafka.brokers, topic, partitions)
    write(kafka.brokers, topic, [record for p in range(partitions) for record in plain(range(count), p)])
    tuned = settings(buffer=50, kafka={"group.protocol": protocol})
    shared = False
    busy: dict[int, str] = {}
    handled: list[tuple[int, int, str]] = []

    def watched(name: str) -> Callable[[int, Context], Awaitable[None]]:
        async def handle(amount: int, context: Context) -> None:
            partition, offset = context.partition, context.offset
            assert partition is not None
            assert offset is not None
            assert partition not in busy, f"{partition} is handled by {busy[partition]} and {name}"
            busy[partition] = name
            await asyncio.sleep(0.001 if shared else 0.03)  # enough is left for the second, however late it joins
            del busy[partition]
            handled.append((partition, offset, name))

        return handle

    async with member(tuned) as first:
        first.actor.on_event = watched("first")
        await first.until(lambda: len(handled) > 100)
        async with member(tuned) as second:
            second.actor.on_event = watched("second")
            await second.until(
                lambda: second.partitions() and {name for _, _, name in handled[-50:]} == {"first", "second"}, 40
            )
            shared = True
            assert not first.partitions() & second.partitions()
        await first.until(lambda: len(set(handled)) and len({h[:2] for h in handled}) == partitions * count, 60)
        assert first.consumer.counts.failed == 0
    for partition in range(partitions):
        offsets = [offset for p, offset, _ in handled if p == partition]
        assert offsets == [*range(count)], "skipped, repeated or out of order"


async def test_an_actor_that_stores_its_position_is_asked_for_it(
    kafka: Kafka, topic: str, settings: Callable[..., Settings]
) -> None:
    class Positioned(Recorder):
        async def position(self, topic: str, partition: int) -> int | None:
            return 4 if partition == 0 else None

    make_topic(kafka.brokers, topic, 2)
    write(kafka.brokers, topic, [*positioned([0, 1, 2, 3, 2, 3, 4]), *plain(range(3), 1)])
    async with member(settings(), Positioned, Ledger) as one:
        await one.until(lambda: len(one.actor.seen) == 4)
        assert sorted(one.actor.seen) == [(0, 6, 4), (1, 0, 0), (1, 1, 1), (1, 2, 2)], "repeats of before are repeats"
        await one.until(lambda: one.actors[1].sum == 10 + 3)


async def test_a_topic_made_anew_is_noticed(kafka: Kafka, topic: str, settings: Callable[..., Settings]) -> None:
    class Ahead(Recorder):
        def position(self, topic: str, partition: int) -> int | None:
            return 100

    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain(range(3)))
    async with member(settings(), Ahead) as one:
        await one.until(lambda: one.consumer.counts.failed)
        assert "deleted and created again?" in (await one.consumer.ready() or "")
    assert not one.actor.seen


async def test_a_topic_that_comes_later(kafka: Kafka, topic: str, settings: Callable[..., Settings]) -> None:
    async with member(settings(kafka={"topic.metadata.refresh.interval.ms": "500"})) as one:
        await asyncio.sleep(0.5)  # it looks for the topic and does not find it
        make_topic(kafka.brokers, topic)
        write(kafka.brokers, topic, plain([1]))
        await one.until(lambda: one.actor.seen)
        await one.ready()


async def test_repeats_of_a_producer_are_dropped_also_after_a_restart(
    kafka: Kafka, topic: str, settings: Callable[..., Settings]
) -> None:
    """A client sent its request again, under the same Idempotency-Key; one request gave two events."""

    def request(key: str, id: str, aggregate: str = "a") -> list[Written]:
        return [(0, aggregate, wire(i), {"hive-key": key, "hive-id": f"{id}.{i}"}) for i in range(2)]

    make_topic(kafka.brokers, topic)
    write(
        kafka.brokers, topic, [*request("k1", "x"), *request("k1", "y"), *request("k2", "z"), *request("k1", "w", "b")]
    )
    async with member(settings()) as first:
        await first.until(lambda: first.actor.amounts() == [0, 1] * 3)
        await first.until(lambda: committed(kafka.brokers, settings().group_id, topic)[0] == 8)
        assert first.consumer.counts.repeated == 2
    write(kafka.brokers, topic, [*request("k2", "v"), *plain([7])])
    async with member(settings()) as second:
        await second.until(lambda: second.actor.amounts() == [7])
        assert second.consumer.counts.repeated == 2


async def test_new_topics_of_an_expression_and_never_the_dead_letters(
    kafka: Kafka, topic: str, settings: Callable[..., Settings]
) -> None:
    make_topic(kafka.brokers, f"{topic}-a")
    made = settings(
        consumer_topic=(f"^{topic}.*",), from_start=False, kafka={"topic.metadata.refresh.interval.ms": "300"}
    )
    async with member(made) as one:
        await one.ready()
        await one.until(lambda: (f"{topic}-a", 0) in one.consumer.workers)
        write(kafka.brokers, f"{topic}-a", [*plain([1]), (0, "a", b"{", {})])
        await one.until(lambda: one.consumer.counts.dead == 1)
        make_topic(kafka.brokers, f"{topic}-b")
        write(kafka.brokers, f"{topic}-b", plain([2]))  # before the group knows of it
        await one.until(lambda: (f"{topic}-b", 0) in one.consumer.workers)
        await one.until(lambda: one.actor.amounts() == [1, 2])
        assert {name for name, _ in one.consumer.workers} == {f"{topic}-a", f"{topic}-b"}
        assert one.consumer.counts.dead == 1


async def test_an_offset_below_the_retention_stops_with_the_remedy(
    kafka: Kafka, topic: str, settings: Callable[..., Settings]
) -> None:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain(range(5)))
    made = settings(from_start=False)
    async with member(settings()) as first:
        await first.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == 5)
    write(kafka.brokers, topic, plain(range(5, 10)))
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    below = TopicPartition(topic, 0, 8)
    admin.delete_records([below])[below].result(10)
    async with member(made) as stopped:
        await stopped.until(lambda: stopped.consumer.counts.failed)
        reason = await stopped.consumer.ready() or ""
        assert "the topic no longer has the events from 5 to 7" in reason
        assert "EVENT_STORE_FROM_START=true" in reason
        assert not stopped.actor.seen
    async with member(settings()) as goes_on:
        await goes_on.until(lambda: goes_on.actor.amounts() == [8, 9])


async def wait_committed(one: Member, brokers: str, group: str, topic: str, offset: int) -> str:
    """The note of this offset, once it is committed."""
    await one.until(lambda: committed(brokers, group, topic)[0] == offset)
    return committed(brokers, group, topic)[1]


def test_what_a_consumer_needs(settings: Callable[..., Settings]) -> None:
    for name, says in (("group_id", "EVENT_STORE_GROUP_ID"), ("topic", "EVENT_STORE_TOPIC"), ("brokers", "BROKERS")):
        with pytest.raises(ConfigError, match=says):
            Member(settings(**{name: ""}))


# -- as a process

PROJECTION = '''
import os, signal
from hiveio import Actor, Event, Query

class Deposited(Event):
    amount: int
class Total(Query):
    pass

class Projection(Actor):
    """Its effects are lines of a file, so that they outlive it."""
    path = "/total"

    def perform(self, message: Deposited | Total) -> dict[str, int] | None:
        if isinstance(message, Total):
            with open(os.environ["EFFECTS"]) as file:
                return {"lines": len(file.readlines())}
        with open(os.environ["EFFECTS"], "a") as file:
            file.write(f"{message.amount}\\n")
        if message.amount == 500 and not os.path.exists(os.environ["EFFECTS"] + ".killed"):
            open(os.environ["EFFECTS"] + ".killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return None
'''


def test_killed_after_the_effect_and_before_the_commit(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    (tmp_path / "projection.py").write_text(PROJECTION)
    effects = tmp_path / "effects"
    effects.touch()
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain(range(1000)))
    environ = {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": topic,
        "EVENT_STORE_FROM_START": "true",
        "EFFECTS": str(effects),
    }
    with Role("consumer", environ, actor_path=tmp_path, module="projection") as role:
        wait_until(lambda: "999" in effects.read_text().split(), 60, "all events")
        shown = httpx.get(role.url + "/total").json()
    assert role.process.returncode == 0, role.text()
    lines = [int(line) for line in effects.read_text().split()]
    assert shown == {"lines": len(lines)}
    assert set(lines) == set(range(1000)), "skipped"
    assert lines.count(500) == 2, "delivered again"
    assert committed(kafka.brokers, topic, topic)[0] == 1000
