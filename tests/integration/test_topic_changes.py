"""Topics that grow, appear, are created again or end with what is no record: a consumer skips nothing."""

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from hiveio import Context
from hiveio.actor import contracts
from hiveio.config import Settings
from hiveio.errors import ConfigError
from hiveio.kafka import lookup
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.reader import Reader
from hiveio.projection import SqliteProjection
from tests.integration.consumers import Deposited, Member, Recorder, member, plain, settings, wire
from tests.integration.topics import Written, committed, make_topic, write
from tests.services import Kafka

__all__ = ["settings"]
Made = Callable[..., Settings]
QUICK = {"topic.metadata.refresh.interval.ms": "300"}  # and so often a member looks at its topics


@pytest.fixture(params=["consumer", "classic"])
def protocol(request: pytest.FixtureRequest) -> dict[str, str]:
    # A classic member that is stopped while the group is rebalanced stays in it for its session.
    classic = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "500"} if request.param == "classic" else {}
    return QUICK | {"group.protocol": str(request.param)} | classic


def grow(brokers: str, topic: str, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})  # named: its results end with it
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(10)


def delete(brokers: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.delete_topics([topic])[topic].result(10)
    until = time.monotonic() + 10
    while topic in admin.list_topics(timeout=10).topics and time.monotonic() < until:
        time.sleep(0.02)


def write_old(brokers: str, topic: str, amounts: Iterable[int]) -> None:
    """Records that say they are of yesterday, as a mirror writes them."""
    producer = Producer({"bootstrap.servers": brokers})
    for amount in amounts:
        producer.produce(topic, wire(amount), "a", 0, timestamp=int((time.time() - 86400) * 1000))
    assert producer.flush(10) == 0


def ends(brokers: str, group: str, topic: str, partitions: int) -> list[int]:
    return [committed(brokers, group, topic, partition)[0] for partition in range(partitions)]


def reads(*members: Member) -> list[int]:
    return sorted(amount for one in members for amount in one.actor.amounts())


# -- partitions and topics that are new


async def test_a_partition_is_added_while_it_runs_and_while_it_does_not(
    kafka: Kafka, topic: str, settings: Made, protocol: dict[str, str]
) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain([1, 2]))
    made = settings(from_start=False, kafka=protocol)
    async with member(made) as one:
        await one.ready()
        grow(kafka.brokers, topic, 3)
        write(kafka.brokers, topic, [*plain([3], 1), *plain([4], 2)])  # before the group knows of it
        await one.until(lambda: one.partitions() == {0, 1, 2})
        write(kafka.brokers, topic, plain([5]))
        # A new assignment may bring again what was handled and not committed; none may be left out.
        await one.until(lambda: set(reads(one)) == {3, 4, 5})
        await one.ready()
        assert one.consumer.alive()
        await one.until(lambda: ends(kafka.brokers, made.group_id, topic, 3) == [3, 1, 1])
    grow(kafka.brokers, topic, 4)
    write(kafka.brokers, topic, [*plain([6], 3), *plain([7], 1)])
    async with member(made) as two:
        await two.until(lambda: reads(two) == [6, 7])


async def test_kafka_is_away_during_the_assignment(
    topic: str, protocol: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lookup, "CALL_S", 1.0)
    original, paused = lookup.Lookup.committed, asyncio.Event()
    with Kafka() as broker:
        make_topic(broker.brokers, topic, 2)
        write(broker.brokers, topic, [*plain([1]), *plain([2], 1)])

        async def brokers_were_asked() -> None:
            """Before that, readiness names nothing else."""
            await (await entered).unready("is not read yet")

        def committed_without_kafka(self: lookup.Lookup, keys: Any) -> Any:
            if not paused.is_set():
                asyncio.run_coroutine_threadsafe(brokers_were_asked(), loop).result(30)
                broker.pause()
                loop.call_soon_threadsafe(paused.set)
            return original(self, keys)

        loop = asyncio.get_running_loop()
        entered: asyncio.Future[Member] = loop.create_future()
        monkeypatch.setattr(lookup.Lookup, "committed", committed_without_kafka)
        made = Settings(brokers=broker.brokers, topic=topic, group_id=topic, from_start=True, kafka=protocol)
        async with member(made) as one:
            entered.set_result(one)
            await asyncio.wait_for(paused.wait(), 30)
            await one.until(lambda: any("not read yet" in record.message for record in caplog.records))
            assert "is not read yet" in (await one.consumer.ready() or "")
            assert one.consumer.alive()
            broker.resume()
            await one.until(lambda: reads(one) == [1, 2])
            await one.ready()


async def test_a_new_group_notes_where_it_begins_for_every_partition_and_is_then_free_to_die(
    kafka: Kafka, topic: str, settings: Made, protocol: dict[str, str]
) -> None:
    """Members race for the beginning, and own a part each."""
    make_topic(kafka.brokers, topic, 4)
    other = f"{topic}-other"
    make_topic(kafka.brokers, other)
    write(kafka.brokers, topic, [record for at in range(4) for record in plain([at] * (at + 1), at)])
    write(kafka.brokers, other, plain([9]))
    made = settings(from_start=False, consumer_topic=(other, topic), kafka=protocol)
    async with member(made) as one, member(made) as two, member(made) as three:
        await asyncio.gather(one.ready(), two.ready(), three.ready())
        assert ends(kafka.brokers, made.group_id, topic, 4) == [1, 2, 3, 4]
        assert ends(kafka.brokers, made.group_id, other, 1) == [1]
        await one.until(lambda: sum(len(each.consumer.workers) for each in (one, two, three)) == 5)
    write(kafka.brokers, topic, [record for at in range(4) for record in plain([10 + at], at)])
    write(kafka.brokers, other, plain([14]))
    async with member(made) as later:
        await later.until(lambda: reads(later) == [10, 11, 12, 13, 14])
    assert reads(one, two, three) == []


@pytest.mark.parametrize("by", ["expression", "name"])
async def test_topics_that_appear_are_read_from_their_first_event(
    kafka: Kafka, topic: str, settings: Made, protocol: dict[str, str], by: str
) -> None:
    """While the consumer runs and while it does not, with records of yesterday."""
    first, *later = (f"{topic}-{suffix}" for suffix in "abc")
    made = settings(
        consumer_topic=(f"^{topic}-[abc]",) if by == "expression" else (first, *later), from_start=False, kafka=protocol
    )
    make_topic(kafka.brokers, first)
    write(kafka.brokers, first, plain([1]))
    async with member(made) as one:
        await one.until(lambda: committed(kafka.brokers, made.group_id, first)[0] == 1)
        make_topic(kafka.brokers, later[0])
        write_old(kafka.brokers, later[0], [2])
        await one.until(lambda: reads(one) == [2])
    make_topic(kafka.brokers, later[1])
    write_old(kafka.brokers, later[1], [3])
    async with member(made) as two:
        await two.until(lambda: reads(two) == [3])
        await two.ready()


async def test_a_topic_that_is_added_to_the_setting_is_new_to_the_group(
    kafka: Kafka, topic: str, settings: Made
) -> None:
    make_topic(kafka.brokers, topic)
    make_topic(kafka.brokers, f"{topic}-b")
    write(kafka.brokers, f"{topic}-b", plain([1, 2]))
    async with member(settings(from_start=False)) as one:
        await one.ready()
        await one.until(lambda: committed(kafka.brokers, settings().group_id, topic)[0] == 0)
    write(kafka.brokers, topic, plain([3]))
    async with member(settings(from_start=False, consumer_topic=(topic, f"{topic}-b"))) as two:
        await two.ready()
        write(kafka.brokers, f"{topic}-b", plain([4]))
        await two.until(lambda: reads(two) == [3, 4])


# -- deleted and created again


async def test_a_topic_made_anew_while_it_does_not_run_is_read_from_its_first_event(
    kafka: Kafka, topic: str, settings: Made, protocol: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Kafka forgets the offsets with the topic; a coordinator that did not hear of it still has them."""
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain([1, 2]))
    made = settings(from_start=False, kafka=protocol)
    async with member(made) as one:
        await one.ready()
        write(kafka.brokers, topic, plain([3]))
        await one.until(lambda: reads(one) == [3])
    delete(kafka.brokers, topic)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain(range(10, 20)))
    async with member(made) as two:
        await two.until(lambda: reads(two) == [*range(10, 20)])
    client = Consumer({"bootstrap.servers": kafka.brokers, "group.id": made.group_id})
    client.commit(offsets=[TopicPartition(topic, 0, 4, "- AAAAAAAAAAAAAAAAAAAAAQ 01234567")], asynchronous=False)
    client.close()
    async with member(made) as three:
        await three.until(lambda: reads(three) == [*range(10, 20)])
        await three.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == 10)
    assert "deleted and created again" in caplog.text


async def test_a_topic_made_anew_under_a_running_consumer_is_read_from_its_first_event(
    kafka: Kafka, topic: str, settings: Made, protocol: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """At once, and longer than it was: its offsets say nothing."""
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain([1, 2]))
    made = settings(kafka=protocol)
    async with member(made) as one:
        await one.until(lambda: reads(one) == [1, 2])
        delete(kafka.brokers, topic)
        make_topic(kafka.brokers, topic)
        write(kafka.brokers, topic, plain(range(10, 20)))
        await one.until(lambda: set(one.actor.amounts()) == {1, 2, *range(10, 20)})
        admin = AdminClient({"bootstrap.servers": kafka.brokers})
        id = str(admin.describe_topics(TopicCollection([topic]))[topic].result(10).topic_id)
        await one.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == 10)
        assert committed(kafka.brokers, made.group_id, topic)[1].split(" ")[1] == id
        await one.ready()
    assert "deleted and created again" in caplog.text


async def test_a_projection_knows_that_its_position_is_in_a_topic_that_is_gone(
    kafka: Kafka, topic: str, settings: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Lines(SqliteProjection):
        database = str(tmp_path / "lines.sqlite")
        tables = "CREATE TABLE IF NOT EXISTS line (amount INTEGER)"

        def perform(self, event: Deposited, context: Context) -> None:
            self.once(context, lambda db: db.execute("INSERT INTO line VALUES (?)", (event.amount,)))

        def lines(self) -> list[int]:
            return [amount for (amount,) in self.connection.execute("SELECT amount FROM line ORDER BY rowid")]

    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain([1, 2]))
    async with member(settings(from_start=False), Lines) as one:
        await one.until(lambda: one.actor.lines() == [1, 2])
    delete(kafka.brokers, topic)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain([3, 4, 5, 6]))
    for _ in range(2):
        async with member(settings(from_start=False), Lines) as two:
            await two.until(lambda: two.actor.lines() == [1, 2, 3, 4, 5, 6])
            await two.ready()
    assert caplog.text.count("Lines has a position in a topic of this name that was deleted") == 1


async def test_dead_letters_of_a_topic_that_is_gone_are_not_those_of_the_new_one(
    kafka: Kafka, topic: str, settings: Made
) -> None:
    """Its offsets begin again, and so would those of its dead letters."""
    make_topic(kafka.brokers, topic)
    bad: Written = (0, "a", b"{", {})
    write(kafka.brokers, topic, [*plain([1]), (0, "b", b"{", {}), bad])
    made = settings(kafka=QUICK)
    async with member(made) as one:
        await one.until(lambda: one.consumer.counts.dead == 2)
        delete(kafka.brokers, topic)
        make_topic(kafka.brokers, topic)
        write(kafka.brokers, topic, [*plain([2, 3]), bad])
        await one.until(lambda: reads(one) == [1, 2, 3])
        await one.until(lambda: one.consumer.counts.dead + one.consumer.counts.parked == 3)
        await one.until(lambda: one.consumer.workers[topic, 0].store.fold.count == 3)
    write(kafka.brokers, topic, plain([4]))
    async with member(made) as two:
        await two.until(lambda: reads(two) == [4])
        assert two.consumer.workers[topic, 0].store.fold.count == 3


# -- what is no record


async def test_a_topic_that_ends_with_control_records_is_read_to_its_end(
    kafka: Kafka, topic: str, settings: Made
) -> None:
    make_topic(kafka.brokers, topic, 2)
    producer = Producer({"bootstrap.servers": kafka.brokers, "transactional.id": topic})
    producer.init_transactions(20)
    for amount, good in ((1, True), (2, False)):
        producer.begin_transaction()
        producer.produce(topic, wire(amount), "a", 0)
        producer.flush(20)
        producer.commit_transaction(20) if good else producer.abort_transaction(20)
    async with member(settings()) as one:
        await one.until(lambda: one.consumer.positions() == {(topic, 0): 4, (topic, 1): 0})
        assert reads(one) == [1]
        assert [at["lag_records"] for at in one.consumer.details()["partitions"]] == [0, 0]
        await one.until(lambda: ends(kafka.brokers, settings().group_id, topic, 2) == [4, 0])
        (contract,) = contracts([Recorder])
        await one.until(lambda: one.consumer.workers[topic, 0].at[0] > 3)
        assert await one.consumer.reached(contract, topic, 0, 3)
        write(kafka.brokers, topic, plain([3]))
        await one.until(lambda: reads(one) == [1, 3])
        await one.until(lambda: ends(kafka.brokers, settings().group_id, topic, 2) == [5, 0])
    producer.begin_transaction()
    producer.produce(topic, wire(4), "a", 0)
    producer.flush(20)
    producer.abort_transaction(20)
    events = LogReader(settings(), topic)
    last = await events.read_message(0, OFFSET_END)
    assert last is not None, "an aborted one is a record to whoever writes next to it"
    assert last.offset() == 5
    assert await events.read_message(1, OFFSET_END) is None
    assert await events.read_message(0, 6) is None, "a mark"
    await asyncio.to_thread(events.close)
    with Reader(settings()) as reader:
        assert [message.offset() for message in reader.read(topic, 0, 0)] == [0, 4]
        assert [message.offset() for message in reader.read(topic, 0, 5)] == []
        assert [message.offset() for message in reader.read(topic, 0, 0, 1)] == [0], "not what came in the same batch"


# -- nothing to read


async def test_what_is_not_there_is_named_until_it_is(kafka: Kafka, topic: str, settings: Made) -> None:
    async with (
        member(settings(kafka=QUICK)) as named,
        member(settings(kafka=QUICK, group_id=f"{topic}-x", consumer_topic=(f"^{topic}.*",))) as matching,
    ):
        await named.unready(f"there is no topic {topic}")
        await matching.unready(f"no topic matches EVENT_STORE_CONSUMER_TOPIC=^{topic}.*")
        for never in (f"{topic}.{topic}-x.dead", f"{topic}.transactions"):
            make_topic(kafka.brokers, never)
        await asyncio.sleep(1.5)  # it has looked again
        assert f"no topic matches EVENT_STORE_CONSUMER_TOPIC=^{topic}.*" in (await matching.consumer.ready() or "")
        make_topic(kafka.brokers, topic)
        write(kafka.brokers, topic, plain([1]))
        await asyncio.gather(named.ready(), matching.ready())
        await named.until(lambda: reads(named) == reads(matching) == [1])
        assert {name for name, _ in matching.consumer.workers} == {topic}


def test_an_expression_that_cannot_be_is_named_with_its_setting(settings: Made) -> None:
    for topics in (("^a", "^b"), ("a", "^b"), ("^(",), ("^a[",)):
        with pytest.raises(ConfigError, match="EVENT_STORE_CONSUMER_TOPIC"):
            Member(settings(consumer_topic=topics))
