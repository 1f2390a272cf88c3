"""hiveio/producer as a real process on a real Kafka: what was answered as stored is stored."""

import asyncio
import signal
from collections import Counter
from typing import Any

import httpx
import msgspec
import pytest

from tests.integration.conftest import Make
from tests.integration.topics import make_topic, read_all
from tests.process import Role, wait_until
from tests.services import Kafka

ACTOR = """
from hiveio import Actor, Command, Event, Rejected

class Deposit(Command):
    amount: int
    text: str = ""
class Split(Command):
    amounts: list[int]
class Deposited(Event):
    amount: int
    text: str = ""

class Account(Actor):
    path = "/accounts/{id}"

    def perform(self, message: Deposit | Split) -> Deposited | list[Deposited] | None:
        match message:
            case Deposit(amount=amount) if amount < 0:
                raise Rejected("less than nothing")
            case Deposit(amount=amount, text=text):
                return Deposited(amount, text)
            case Split(amounts=amounts):
                return [Deposited(amount) for amount in amounts]
"""


def deposit(amount: int, text: str = "") -> dict[str, Any]:
    return {"type": "Deposit", "payload": {"amount": amount, "text": text}, "meta": {"source": "test"}}


def headers(message: Any) -> dict[str, str]:
    return {name: value.decode() for name, value in message.headers() or []}


def amounts(brokers: str, topic: str) -> Counter[int]:
    return Counter(msgspec.json.decode(m.value() or b"")["payload"]["amount"] for m in read_all(brokers, topic))


def test_the_record_and_the_answer(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(EVENT_STORE_PARTITIONS="2") as role:
        sent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Idempotency-Key": "k1"}
        answer = httpx.post(role.url + "/accounts/a%C3%A91", json=deposit(5), headers=sent)
        assert answer.status_code == 200
        assert answer.json() == {"type": "Deposited", "payload": {"amount": 5, "text": ""}, "meta": {"source": "test"}}
        several = httpx.post(role.url + "/accounts/b", json={"type": "Split", "payload": {"amounts": [1, 2, 3]}})
        assert [event["payload"]["amount"] for event in several.json()] == [1, 2, 3]
        nothing = httpx.post(role.url + "/accounts/b", json={"type": "Split", "payload": {"amounts": []}})
        assert nothing.status_code == 200
        assert "hive-position" not in nothing.headers
        assert httpx.post(role.url + "/accounts/b", json=deposit(-1)).status_code == 422
        complaints = role.complaints()
    assert role.process.returncode == 0
    assert not complaints
    found = {(m.partition(), m.offset()): m for m in read_all(kafka.brokers, topic)}
    assert len(found) == 4
    name, partition, offset = answer.headers["hive-position"].split("/")
    record = found[int(partition), int(offset)]
    assert (name, record.key()) == (topic, "aé1".encode())
    assert record.value() == answer.content
    shown = headers(record)
    assert shown.pop("hive-id").endswith(".0")
    assert shown == {
        "hive-actor": "Account",
        "content-type": "application/json",
        "traceparent": sent["traceparent"],
        "hive-key": "k1",
    }
    split = sorted((m for m in found.values() if m.key() == b"b"), key=lambda m: m.offset() or 0)
    ids = [headers(m)["hive-id"] for m in split]
    assert [i.rpartition(".")[2] for i in ids] == ["0", "1", "2"]
    assert len({i.rpartition(".")[0] for i in ids}) == 1
    assert several.headers["hive-position"].endswith(f"/{split[-1].offset()}")


def test_a_record_too_large_is_413_and_nothing_is_written(kafka: Kafka, topic: str, producer: Make) -> None:
    make_topic(kafka.brokers, topic, config={"max.message.bytes": "20000"})
    with producer() as role, httpx.Client(timeout=10) as client:
        assert client.post(role.url + "/accounts/1", json=deposit(1, "x" * 30_000)).status_code == 413
        assert client.post(role.url + "/accounts/1", json=deposit(2)).status_code == 200, "the connection goes on"
    assert amounts(kafka.brokers, topic) == Counter([2])


async def load(role: Role, clients: int, until: asyncio.Event, statuses: Counter[int], stored: Counter[int]) -> None:
    """Posts until the event, and counts the statuses (0: no answer), and the amounts answered as stored."""
    numbers = iter(range(10**9))

    async def client(http: httpx.AsyncClient) -> None:
        while not until.is_set():
            amount = next(numbers)
            try:
                answer = await http.post(role.url + f"/accounts/{amount % 50}", json=deposit(amount))
            except httpx.TransportError:
                statuses[0] += 1
                return
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                stored[amount] += 1

    async with httpx.AsyncClient(timeout=20) as http, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client(http))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_an_end_under_load_loses_nothing_answered(
    kafka: Kafka, topic: str, producer: Make, end: signal.Signals
) -> None:
    role = await asyncio.to_thread(producer(CLUSTER_SIZE="2", EVENT_STORE_PARTITIONS="3").__enter__)
    until = asyncio.Event()
    statuses: Counter[int] = Counter()
    stored: Counter[int] = Counter()
    running = asyncio.create_task(load(role, 32, until, statuses, stored))
    await asyncio.sleep(1.0)  # load
    async with asyncio.timeout(30):
        while not stored:
            await asyncio.sleep(0.01)
    if end is signal.SIGTERM:
        assert await asyncio.to_thread(role.stop) == 0
    else:
        await asyncio.to_thread(role.kill)
    until.set()
    await running
    assert stored, statuses
    assert set(statuses) <= {0, 200, 503}, statuses
    found = amounts(kafka.brokers, topic)
    assert not stored.keys() - found.keys(), "answered and not there"
    assert max(found.values()) == 1, "there twice"
    if end is signal.SIGTERM:
        assert not found.keys() - stored.keys() or statuses[0], "written, and the client was not answered"


async def test_a_broker_away_fills_the_queue_and_recovers(own_kafka: Kafka, topic: str, producer: Make) -> None:
    environ = {"KAFKA_QUEUE_BUFFERING_MAX_MESSAGES": "40", "REQUEST_TIMEOUT": "4000"}
    role = await asyncio.to_thread(producer(own_kafka.brokers, **environ).__enter__)
    try:
        async with httpx.AsyncClient(timeout=20) as http:

            async def post(amount: int) -> tuple[int, httpx.Response]:
                return amount, await http.post(role.url + "/accounts/1", json=deposit(amount))

            assert (await post(0))[1].status_code == 200
            await asyncio.to_thread(own_kafka.pause)
            answers = await asyncio.gather(*(post(amount) for amount in range(1, 101)))
            unknown = {amount: answer for amount, answer in answers if answer.status_code == 504}
            full = {amount: answer for amount, answer in answers if answer.status_code == 503}
            assert (len(unknown), len(full)) == (40, 60)
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in full.values())
            assert all("full" in answer.json()["detail"] for answer in full.values())
            assert all(answer.json()["id"] for answer in unknown.values())
            assert (await http.get(role.url + "/readyz")).status_code == 503
            assert (await http.get(role.url + "/livez")).status_code == 200
            await asyncio.to_thread(own_kafka.resume)
            await asyncio.to_thread(role.ready)
            assert (await post(1000))[1].status_code == 200
            assert await asyncio.to_thread(role.stop) == 0
        found = amounts(own_kafka.brokers, topic)
        assert max(found.values()) == 1
        assert found.keys() == {0, 1000} | unknown.keys(), "a refused one is never written; an unknown one was, later"
    finally:
        own_kafka.resume()
        role.kill()


def test_it_starts_without_kafka_and_is_ready_when_kafka_is(own_kafka: Kafka, topic: str, producer: Make) -> None:
    own_kafka.stop()
    with producer(own_kafka.brokers, wait=False) as role:
        wait_until(lambda: role.port, what="listening")
        wait_until(lambda: httpx.get(role.url + "/livez").status_code == 200, 30, "alive")
        refused = httpx.post(role.url + "/accounts/1", json=deposit(1))
        assert refused.status_code == 503
        own_kafka.start()
        role.ready(60)
        assert httpx.post(role.url + "/accounts/1", json=deposit(2)).status_code == 200
    assert amounts(own_kafka.brokers, topic) == Counter([2])


def test_a_wrong_property_stops_the_start(producer: Make) -> None:
    with producer(KAFKA_NO_SUCH="1", wait=False) as role:
        assert role.ended() == 2
    assert any("KAFKA_NO_SUCH" in line for line in role.errors)
