"""Faults 51 to 54 and 67: records of others, a lease in the wrong hands, an event topic that does not fit its log, a
scope that has failed beside one that has not, and many publishers of a silent Kafka."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from hiveio.kafka.unconsumed import RECORD_BYTES, SHARED_BYTES
from hiveio.transaction.rule import scope_of
from tests.faults.checker import Result
from tests.faults.proxy import always
from tests.faults.stage import PUBLISHED_S, Broker, Stage, until
from tests.integration.test_outcomes import FOREVER, LOG
from tests.integration.topics import Written, make_topic, read_all, write

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]


def markers(stage: Stage) -> list[str]:
    """Of the events on the event topic."""
    messages = read_all(stage.direct.brokers, stage.topic)
    return [json.loads(m.value() or b"")["payload"]["marker"] for m in messages if b"marker" in (m.value() or b"")]


async def published(stage: Stage, marker: str, within_s: float = 40.0) -> None:
    await until(lambda: marker in markers(stage), f"{marker} published", within_s, to_thread=True)


async def lead(stage: Stage) -> None:
    """Let the victim have the lease."""
    stage.instances[1].kill()
    await stage.accepted("Deposit", "Account/lead", amount=1)  # it follows the scope from then on
    await until(lambda: stage.victim.lines('"publishing '), "publishing")
    await stage.start(instance=1)


@pytest.mark.fault(51)
async def test_51_records_of_others_in_the_log_and_on_the_event_topic_are_passed_over(broker: Broker) -> None:
    with Stage(broker) as stage:
        first = await stage.accepted("Deposit", "Account/a", amount=10)
        await published(stage, first.marker)
        for value in (b"\xff{", b"[]", b'{"hello":"world"}', b""):
            stage.append("stranger", value)
        strange = {"hive-position": "0:not a number:0", "hive-id": "x.0"}
        odd = [(0, "k", b"null", {}), (0, None, b"\xff", strange), (0, "k", b"{}", {"hive-position": "7:1:0"})]
        write(stage.direct.brokers, stage.topic, odd * 400)  # more than are read at once, back from the end
        for instance in stage.instances:
            instance.kill()
        for number in range(2):
            await stage.start(instance=number)
        second = await stage.accepted("Deposit", "Account/a", amount=1)
        await published(stage, second.marker)
        assert markers(stage).count(first.marker) == 1, "not published again"
        critical = [line for instance in stage.instances for line in instance.lines('"critical"')]
        assert any(f"{stage.log_topic}/0" in line and "void for every reader" in line for line in critical)
        assert any(f"{stage.topic}/0" in line and "so it is skipped" in line for line in critical)
        findings = [f for f in await asyncio.to_thread(stage.findings) if f.point != 6 or "event topic" not in str(f)]
        assert not findings, findings


def transactions(stage: Stage) -> None:
    """Somebody's transactions in the log: one is aborted, and the log ends with the marks of the other."""
    producer = Producer({"bootstrap.servers": stage.direct.brokers, "transactional.id": stage.topic})
    producer.init_transactions(20)
    for end in (producer.abort_transaction, producer.commit_transaction):
        producer.begin_transaction()
        producer.produce(stage.log_topic, b"not ours", "k", 0)
        producer.flush(20)
        end(20)


@pytest.mark.fault(51)
async def test_51_marks_of_transactions_in_the_log_stand_for_no_record(broker: Broker) -> None:
    """Kafka gives no record at their offsets, in the middle of the log and at its end."""
    with Stage(broker) as stage:
        first = await stage.accepted("Deposit", "Account/a", amount=10)
        await published(stage, first.marker)
        await asyncio.to_thread(transactions, stage)
        assert (await stage.read("Account/a")).version == 1, "a read waits for the end of the log"
        second = await stage.accepted("Deposit", "Account/a", at=1, amount=1)
        await published(stage, second.marker)
        await asyncio.to_thread(transactions, stage)
        for instance in stage.instances:
            instance.kill()
        for number in range(2):
            await stage.start(instance=number)
        await stage.ready()
        third = await stage.accepted("Deposit", "Account/a", amount=1)
        await published(stage, third.marker)
        assert len(markers(stage)) == 3
        assert (verified := await asyncio.to_thread(stage.verify)).returncode == 0, verified.stdout


async def cut_off(stage: Stage) -> None:
    stage.kafka_proxy.refuse()


async def silent(stage: Stage) -> None:
    stage.kafka_proxy.up.hold(always)


async def failed(stage: Stage) -> None:
    call = await stage.send("Deposit", "Account/b", at=1, key="poison", amount=1)
    assert call.result is Result.ACCEPTED
    await until(lambda: not stage.victim.is_ready(), "stopped", to_thread=True)


@pytest.mark.fault(52)
@pytest.mark.parametrize("happens", [cut_off, silent, failed])
async def test_52_who_cannot_publish_gives_the_lease_to_others(
    broker: Broker, happens: Callable[[Stage], Awaitable[None]]
) -> None:
    with Stage(broker, broken=("poison", "")) as stage:
        await lead(stage)
        first = await stage.accepted("Deposit", "Account/a", at=1, amount=10)
        await published(stage, first.marker)
        await happens(stage)
        began = time.monotonic()
        call = await stage.accepted("Deposit", "Account/a", at=1, amount=1)
        await published(stage, call.marker)
        print(f"{happens.__name__}: published after {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < PUBLISHED_S
        stage.kafka_proxy.open()
        if happens is failed:  # that one stays as it is: it has stopped
            assert not await asyncio.to_thread(stage.findings)
        else:
            await stage.well("Account/a")


@pytest.mark.fault(54)
async def test_54_a_scope_that_has_failed_is_not_felt_by_the_others(broker: Broker) -> None:
    ill, well = (next(f"{n}" for n in range(99) if scope_of(f"{n}", 2) == scope) for scope in (0, 1))
    with Stage(broker, broken=("poison", ""), environ={"EVENT_STORE_PARTITIONS": "2"}) as stage:
        for each in (well, ill):  # the victim follows both
            await stage.accepted("Deposit", f"Account/{each}", amount=1)
        assert (await stage.send("Deposit", f"Account/{ill}", at=1, key="poison", amount=1)).result is Result.ACCEPTED
        await until(lambda: not stage.victim.is_ready(), "stopped", to_thread=True)
        strange: list[Written] = [(0, "k", b"null", {})] * (SHARED_BYTES // RECORD_BYTES // 2 + 5_000)
        await asyncio.to_thread(write, stage.direct.brokers, stage.log_topic, strange)
        began = time.monotonic()
        for _ in range(20):  # with a backlog that nobody takes each waits a second
            call = await stage.send("Deposit", f"Account/{well}", amount=1)
            assert call.result is Result.ACCEPTED, call
        assert time.monotonic() - began < 10


@pytest.mark.fault(67)
async def test_67_many_publishers_of_a_silent_kafka_leave_threads_to_actors(broker: Broker) -> None:
    with Stage(broker, 1, environ={"EVENT_STORE_PARTITIONS": "16"}) as stage:
        for number in range(40):
            await stage.accepted("Deposit", f"Account/{number}", amount=1)
        stage.kafka_proxy.down.hold(always)
        began = time.monotonic()
        while time.monotonic() - began < 5:
            checks = {each["name"]: each for each in json.loads(await asyncio.to_thread(stage.victim.why))["checks"]}
            assert checks["Account"]["ready"], checks["Account"]
            await asyncio.sleep(0.2)
        assert not checks["transaction log"]["ready"]
        stage.kafka_proxy.open()
        await stage.ready()


async def stopped(stage: Stage, *texts: str) -> None:
    """No instance takes commands any more, and each says why."""
    for number, instance in enumerate(stage.instances):
        await until(lambda i=instance: all(i.lines(text) for text in texts), "stopped")  # type: ignore[misc]
        call = await stage.send("Deposit", "Account/a", at=number, amount=1)
        assert call.result in (Result.NOT_EXECUTED, Result.UNKNOWN), call  # 503, or nobody listens
        assert not instance.is_ready()


def made(stage: Stage) -> bool:
    """The log, empty and as the runtime makes it; deleting takes a moment."""
    try:
        make_topic(stage.direct.brokers, stage.log_topic, config=FOREVER | LOG)
    except KafkaException:
        return False
    return True


async def at_rest(stage: Stage, *, events: int = 1) -> AdminClient:
    """So many events are published, and the service is stopped: something may be done to its topics."""
    for _ in range(events):
        call = await stage.accepted("Deposit", "Account/a", amount=10)
    await published(stage, call.marker)
    for instance in stage.instances:
        instance.stop()
    return AdminClient({"bootstrap.servers": stage.direct.brokers})


def delete(admin: AdminClient, topic: str) -> None:
    admin.delete_topics([topic])[topic].result(20)


async def restart(stage: Stage) -> None:
    for instance in stage.instances:
        instance.kill()
        instance.launch()


@pytest.mark.fault(53)
async def test_53_the_log_was_made_anew_beside_a_topic_with_events(broker: Broker) -> None:
    with Stage(broker) as stage:
        delete(await at_rest(stage), stage.log_topic)
        await restart(stage)
        await stopped(stage, "has events of a log that is gone")


@pytest.mark.fault(53)
async def test_53_the_log_was_cut(broker: Broker) -> None:
    """As a broker that lost its last records: a log that is shorter, with the same first ones."""
    with Stage(broker) as stage:
        admin = await at_rest(stage, events=3)
        records = read_all(stage.direct.brokers, stage.log_topic)[:-2]
        delete(admin, stage.log_topic)
        await until(lambda: made(stage), "made anew", to_thread=True)
        write(stage.direct.brokers, stage.log_topic, [(0, (m.key() or b"").decode(), m.value(), {}) for m in records])
        await restart(stage)
        await stopped(stage, "does not match its log", "Restore the log")


@pytest.mark.fault(53)
@pytest.mark.parametrize("how", ["purged", "made anew"])
async def test_53_the_event_topic_was_emptied(broker: Broker, how: str) -> None:
    with Stage(broker) as stage:
        admin = await at_rest(stage)
        if how == "purged":
            place = TopicPartition(stage.topic, 0, -1)
            admin.delete_records([place])[place].result(20)
        else:
            delete(admin, stage.topic)
        await restart(stage)
        await stopped(stage, "was emptied or recreated")
        assert stage.end(stage.topic) == (1 if how == "purged" else 0), "nothing is published again silently"
