"""Faults 13, 14, 16, 38 and 44 as the producer meets them: what is answered as stored is there, once, where it says."""

import asyncio
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.conftest import required
from tests.faults.client import Connection, Lost, NotSent
from tests.faults.proxy import INIT_PRODUCER, PRODUCE, kafka
from tests.faults.stage import Broker
from tests.integration.topics import make_topic, read_all
from tests.process import Role, wait_until
from tests.services import Kafka, kafka_cluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240, func_only=True)]

ACTOR = """
from hiveio import Actor, Event

class Deposited(Event):
    amount: int
    text: str = ""

class Account(Actor):
    path = "/accounts/{id}"

    def perform(self, message: Deposited) -> Deposited:
        return message
"""
CLUSTER_AUTHORIZATION_FAILED, DUPLICATE_SEQUENCE_NUMBER = 31, 46  # error codes of Kafka
WELL_S = 60.0  # the longest that anything may take to be well again
PAUSE_S = float(os.environ.get("HIVEIO_PAUSE_SECONDS", "8"))  # of the long pause; FAULTS: 1 to 60


class Load:
    """Clients that post amounts, each once. ``stored`` are the positions answered, by amount."""

    def __init__(self, role: Role) -> None:
        assert role.port is not None
        self.port = role.port
        self.statuses: Counter[int] = Counter()  # 0: no answer
        self.stored: dict[int, str] = {}
        self.accepted: set[int] = set()  # 202
        self.refused: set[int] = set()
        self.retry_after: list[int] = []
        self._numbers = itertools.count(1)
        self._connections: list[Connection] = []
        self._own = self.connection()

    def connection(self) -> Connection:
        self._connections.append(Connection(self.port))
        return self._connections[-1]

    async def close(self) -> None:
        for connection in self._connections:
            connection.close()
        await asyncio.sleep(0.01)  # a transport closes on the loop's next turns

    async def post(self, connection: Connection | None = None, **more: Any) -> int:
        amount = next(self._numbers)
        body = {"type": "Deposited", "payload": {"amount": amount, **more}}
        try:
            answer = await (connection or self._own).request("POST", f"/accounts/{amount % 20}", body, timeout_s=30.0)
        except (Lost, NotSent):
            self.statuses[0] += 1
            return 0
        self.statuses[answer.status] += 1
        if answer.status == 200:
            self.stored[amount] = answer.headers["hive-position"]
        elif answer.status == 202:
            self.accepted.add(amount)
        elif answer.status in (403, 413, 503):
            self.refused.add(amount)
        if answer.status == 503:
            self.retry_after.append(int(answer.headers["retry-after"]))
        return answer.status

    async def until(self, status: int) -> None:
        """Post until it is answered with this."""
        async with asyncio.timeout(WELL_S):
            while await self.post() != status:
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def running(self, clients: int = 32) -> AsyncIterator[None]:
        over = asyncio.Event()

        async def client() -> None:
            connection = self.connection()
            while not over.is_set():
                status = await self.post(connection)
                if status in (0, 403, 503):
                    await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
            try:
                yield
            finally:
                over.set()

    def check(self, brokers: str, topic: str, *, least: int = 1, denied: bool = False) -> Counter[int]:
        """Answered as stored ⊆ stored, where it says; refused and stored are disjoint; nothing twice. ``denied`` says
        that Kafka may have been said to deny the right to write."""
        records = read_all(brokers, topic)
        found = {f"{topic}/{m.partition()}/{m.offset()}": m for m in records}
        amounts = Counter(msgspec.json.decode(m.value() or b"")["payload"]["amount"] for m in records)
        assert len(self.stored) >= least, self.statuses
        there = {place: msgspec.json.decode(m.value() or b"")["payload"]["amount"] for place, m in found.items()}
        wrong = {
            amount: (place, there.get(place)) for amount, place in self.stored.items() if there.get(place) != amount
        }
        assert not wrong, f"{wrong} (answered, found there); answered {self.stored}, written {there}, {self.statuses}"
        assert not self.refused & amounts.keys(), "refused, and written all the same"
        assert not amounts or max(amounts.values()) == 1, "written twice"
        assert set(self.statuses) <= {0, 200, 202, *([403] if denied else []), 413, 503, 504}, self.statuses
        return amounts


@pytest.fixture(scope="module")
def own() -> Iterator[Kafka]:
    """A broker that these tests may pause and kill; they leave it running."""
    with required("kafka"), Kafka() as service:
        yield service


@pytest.fixture
def producer(topic: str, tmp_path: Path) -> Callable[..., Role]:
    def made(brokers: str, **environ: str) -> Role:
        (tmp_path / "bank.py").write_text(ACTOR)
        settings = {"EVENT_STORE_BROKERS": brokers, "EVENT_STORE_TOPIC": topic, **environ}
        return Role("producer", settings, actor_path=tmp_path, module="bank")

    return made


@asynccontextmanager
async def started(role: Role) -> AsyncIterator[Load]:
    await asyncio.to_thread(role.__enter__)
    load = Load(role)
    try:
        yield load
    finally:
        await load.close()
        await asyncio.to_thread(role.kill)


@pytest.mark.fault(13)
async def test_13_a_short_pause_of_the_broker_is_only_a_wait(
    own: Kafka, topic: str, producer: Callable[..., Role]
) -> None:
    async with started(producer(own.brokers)) as load:
        async with load.running():
            await load.until(200)
            own.pause()
            await asyncio.sleep(1.0)
            own.resume()
            await load.until(200)
        assert set(load.statuses) == {200}
    load.check(own.brokers, topic)


@pytest.mark.fault(13)
async def test_13_a_broker_that_is_away_is_refused_at_once_in_bounded_memory(
    own: Kafka, topic: str, producer: Callable[..., Role]
) -> None:
    async with started(role := producer(own.brokers, REQUEST_TIMEOUT="3000")) as load:
        (worker,) = role.workers()
        async with load.running():
            await load.until(200)
            own.pause()
            await load.until(503)
            quick: list[float] = []
            memory = worker.memory_info().rss
            end = time.monotonic() + PAUSE_S
            while time.monotonic() < end:
                began = time.monotonic()
                if await load.post() == 503:
                    quick.append(time.monotonic() - began)
                await asyncio.sleep(0.02)
            grown = worker.memory_info().rss - memory
            own.resume()
            await load.until(200)
        assert sorted(quick)[len(quick) // 2] < 0.5, "a refusal does not wait"
        assert max(load.retry_after) > 1, "it grows with the outage"
        assert grown < 16 << 20
        assert [process.pid for process in role.workers()] == [worker.pid], "recovered without a restart"
        await asyncio.to_thread(role.ready)
        assert await asyncio.to_thread(role.stop) == 0
    load.check(own.brokers, topic)


@pytest.mark.fault(14)
async def test_14_a_broker_killed_under_load_has_every_acknowledged_record(
    own: Kafka, topic: str, producer: Callable[..., Role]
) -> None:
    async with started(role := producer(own.brokers, REQUEST_TIMEOUT="3000", EVENT_STORE_PARTITIONS="3")) as load:
        async with load.running():
            for _ in range(2):
                await load.until(200)
                await asyncio.to_thread(own.kill)
                await asyncio.to_thread(own.start)
            await load.until(200)
        assert await asyncio.to_thread(role.stop) == 0
    load.check(own.brokers, topic)


@pytest.mark.fault(14)
async def test_14_a_fatal_error_makes_a_new_producer(topic: str, producer: Callable[..., Role]) -> None:
    def refused(answer: bytes) -> bytes:
        at = 13  # length, correlation id, tags, throttle time; then the error code
        return answer[:at] + CLUSTER_AUTHORIZATION_FAILED.to_bytes(2, "big") + answer[at + 2 :]

    with Broker() as broker:
        make_topic(broker.kafka.brokers, topic)
        # Two: of the eager producer, and of the one that gathers.
        fatal = broker.proxy.down.edit(refused, kafka(INIT_PRODUCER), times=2)
        async with started(role := producer(broker.proxied, REQUEST_TIMEOUT="5000")) as load:
            replaced = "is replaced"  # also when nothing is produced
            await asyncio.to_thread(wait_until, lambda: role.text().count(replaced) == 2, what=replaced)
            async with load.running(16):
                await load.until(200)
            assert fatal.count == 2
            assert role.process.poll() is None
            assert len([line for line in role.complaints() if replaced in line["message"]]) == 2
            assert await asyncio.to_thread(role.stop) == 0
        # On a slow machine both failures are those of one and of its successor, which is replaced after a pause.
        load.check(broker.kafka.brokers, topic, denied=True)


@pytest.mark.fault(14)
async def test_14_an_answer_lost_on_its_way_is_one_record(topic: str, producer: Callable[..., Role]) -> None:
    with Broker() as broker:
        make_topic(broker.kafka.brokers, topic)
        async with started(producer(broker.proxied)) as load:
            async with load.running(16):
                await load.until(200)
                lost = broker.proxy.down.cut(kafka(PRODUCE), times=3)
                async with asyncio.timeout(WELL_S):
                    while lost.count < 3:
                        await asyncio.sleep(0.02)
                await load.until(200)
            assert set(load.statuses) == {200}, "librdkafka sends again, and Kafka drops the repeat"
        load.check(broker.kafka.brokers, topic)


@pytest.mark.fault(14)
async def test_14_kafka_has_it_already_and_does_not_say_where(topic: str, producer: Callable[..., Role]) -> None:
    """It is stored, so it is 200; a position is not made up."""

    def duplicate(answer: bytes) -> bytes:
        at = answer.index(topic.encode()) + len(topic) + 1 + 4  # behind name, number of partitions and partition
        edited = DUPLICATE_SEQUENCE_NUMBER.to_bytes(2, "big") + (-1).to_bytes(8, "big", signed=True)
        return answer[:at] + edited + answer[at + len(edited) :]

    with Broker() as broker:
        make_topic(broker.kafka.brokers, topic)
        async with started(producer(broker.proxied)) as load:
            await load.until(200)
            broker.proxy.down.edit(duplicate, kafka(PRODUCE))
            connection = load.connection()
            body = {"type": "Deposited", "payload": {"amount": 0}}
            answer = await connection.request("POST", "/accounts/a", body, timeout_s=30.0)
            assert (answer.status, answer.headers.get("hive-position")) == (200, None)
            await load.until(200)
        assert load.check(broker.kafka.brokers, topic)[0] == 1


@pytest.mark.fault(16)
async def test_16_too_few_replicas_are_unknown_and_resolved_later(topic: str, producer: Callable[..., Role]) -> None:
    with kafka_cluster(3) as (*others, third):
        brokers = ",".join(broker.brokers for broker in others)
        admin = AdminClient({"bootstrap.servers": brokers})
        new = NewTopic(topic, 1, replica_assignment=[[1, 2, 3]], config={"min.insync.replicas": "3"})
        admin.create_topics([new])[topic].result(30)
        async with started(role := producer(brokers, REQUEST_TIMEOUT="3000")) as load:
            async with load.running(8):
                await load.until(200)
                await asyncio.to_thread(third.kill)
                await load.until(503)  # first unknown, then refused
                assert load.statuses[504]
                await asyncio.to_thread(third.start)
                await load.until(200)
            assert await asyncio.to_thread(role.stop) == 0, "the unknown ones are written before the end"
        amounts = load.check(brokers, topic)
        assert sum(amounts.values()) == load.statuses[200] + load.statuses[504]


@pytest.mark.fault(38)
async def test_38_a_record_too_large_and_a_full_queue_are_definite(
    own: Kafka, topic: str, producer: Callable[..., Role]
) -> None:
    make_topic(own.brokers, topic, config={"max.message.bytes": "20000"})
    environ = {"KAFKA_QUEUE_BUFFERING_MAX_MESSAGES": "50", "REQUEST_TIMEOUT": "20000"}
    async with started(producer(own.brokers, **environ)) as load:
        assert await load.post(text="x" * 30_000) == 413
        assert await load.post() == 200
        own.pause()
        held = [asyncio.create_task(load.post(load.connection())) for _ in range(120)]
        async with asyncio.timeout(WELL_S):
            while load.statuses[503] < 70:
                await asyncio.sleep(0.02)
        own.resume()
        await asyncio.gather(*held)
        assert load.statuses == Counter({200: 51, 503: 70, 413: 1})
    assert sum(load.check(own.brokers, topic).values()) == 51


@pytest.mark.fault(44)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("ack", ["stored", "queued"])
async def test_44_the_end_of_a_producer_under_load(
    own: Kafka, topic: str, producer: Callable[..., Role], end: signal.Signals, ack: str
) -> None:
    environ = {"CLUSTER_SIZE": "2", "EVENT_STORE_PARTITIONS": "3", "PRODUCER_ACK": ack}
    async with started(role := producer(own.brokers, **environ)) as load, load.running():
        await load.until(200 if ack == "stored" else 202)
        await asyncio.sleep(0.5)  # load
        if end is signal.SIGTERM:
            assert await asyncio.to_thread(role.stop) == 0
        else:
            await asyncio.to_thread(role.kill)
    amounts = load.check(own.brokers, topic, least=1 if ack == "stored" else 0)
    if end is signal.SIGTERM:
        assert load.accepted <= amounts.keys(), "accepted and lost"
        answered = load.accepted | load.stored.keys()
        assert len(amounts.keys() - answered) <= load.statuses[0], "written, and the client was answered otherwise"


@pytest.mark.fault(44)
async def test_44_sigterm_while_the_broker_is_away_flushes_when_it_is_back(
    own: Kafka, topic: str, producer: Callable[..., Role]
) -> None:
    environ = {"PRODUCER_ACK": "queued", "REQUEST_TIMEOUT": "1000", "DRAIN_TIMEOUT": "60000"}
    async with started(role := producer(own.brokers, **environ)) as load:
        await load.until(202)
        own.pause()
        for _ in range(200):
            assert await load.post() == 202
        ending = asyncio.create_task(asyncio.to_thread(role.stop, 70.0))
        await asyncio.sleep(2.0)  # longer than REQUEST_TIMEOUT: it is the drain that bounds it
        assert not ending.done()
        own.resume()
        assert await ending == 0
    assert load.accepted <= load.check(own.brokers, topic, least=0).keys()


def shown(role: Role, line: str) -> None:
    wait_until(lambda: line in httpx.get(role.url + "/metrics").text, what=line)


@pytest.mark.fault(44)
async def test_44_what_cannot_be_flushed_is_said(own: Kafka, topic: str, producer: Callable[..., Role]) -> None:
    environ = {"PRODUCER_ACK": "queued", "DRAIN_TIMEOUT": "3000"}
    async with started(role := producer(own.brokers, **environ)) as load:
        await load.until(202)
        own.pause()
        try:
            for _ in range(10):
                assert await load.post() == 202
            await asyncio.to_thread(shown, role, "hiveio_records_waiting 1")  # and a digit
            began = time.monotonic()
            await asyncio.to_thread(role.stop)
            assert time.monotonic() - began < 10
        finally:
            own.resume()
        (line,) = [line for line in role.logs() if "did not confirm" in line["message"]]
        count = int(line["message"].split()[5])  # the first one may be among them
        assert count in (10, 11)
        assert line["message"].startswith(f"sender: Kafka did not confirm {count} records; they may be")
    load.check(own.brokers, topic, least=0)
