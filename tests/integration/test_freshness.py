"""Queries of a consumer as a process: how fresh they are, and that one can read one's writes."""

import asyncio
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from confluent_kafka import Producer

from hiveio.consumer.dead_letters.format import mark
from tests.integration.consumers import plain, positioned, wire
from tests.integration.topics import make_topic, read_all, write
from tests.process import Role, wait_until
from tests.services import Kafka

ACTOR = """
import asyncio
from hiveio import Actor, Event, Query

class Deposited(Event):
    amount: int
class Total(Query):
    path = "/total"

class Sums(Actor):
    def __init__(self):
        self.amounts = []
    async def perform(self, message: Deposited | Total) -> list[int] | None:
        if isinstance(message, Total):
            return self.amounts
        if message.amount < 0:
            await asyncio.sleep(-message.amount / 1000)
        self.amounts.append(message.amount)
        return None
"""


@pytest.fixture
def role(kafka: Kafka, topic: str) -> Iterator[Role]:
    make_topic(kafka.brokers, topic, 2)
    environ = {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": topic,
        "EVENT_STORE_FROM_START": "true",
        "REQUEST_TIMEOUT": "8000",
    }
    with Role("consumer", environ, actor=ACTOR) as made:
        wait_until(lambda: len(consumer(made)["partitions"]) == 2, 30, "the assignment")
        yield made


def consumer(role: Role) -> dict[str, list[dict[str, int | float | str]]]:
    checks = httpx.get(role.url + "/readyz?verbose").json()["checks"]
    return next(check for check in checks if check["name"] == "consumer")


def ask(role: Role, position: str, prefer: str = "wait=7") -> httpx.Response:
    return httpx.get(role.url + "/total", headers={"Hive-Position": position, "Prefer": prefer}, timeout=20)


def test_a_query_waits_for_the_position_it_carries(kafka: Kafka, topic: str, role: Role) -> None:
    write(kafka.brokers, topic, plain([-300, 1]))
    assert ask(role, f"{topic}/0/1").json() == [-300, 1]
    later = threading.Timer(0.5, write, (kafka.brokers, topic, plain([2])))
    later.start()
    assert ask(role, f"{topic}/0/2").json() == [-300, 1, 2]
    later.join()
    began = time.monotonic()
    late = ask(role, f"{topic}/0/0, {topic}/0/99", "wait=1")
    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
    assert f"has not reached the position {topic}/0/99 within 1 s" in late.json()["detail"]
    assert 0.9 < time.monotonic() - began < 6
    for wrong in ("nonsense", f"{topic}/0/{10**30}", f"{topic}/{10**10}/0", f"{topic}/-1/0", f"{topic}/0/1_0"):
        assert ask(role, wrong, "wait=0").status_code == 400, wrong
    assert ask(role, "another/0/1").status_code == 400
    assert ask(role, f"{topic}/7/1").status_code == 503


def test_a_position_in_the_transaction_log_is_understood(kafka: Kafka, topic: str, role: Role) -> None:
    write(kafka.brokers, topic, positioned([0, 1, 2]))
    assert ask(role, f"{topic}.transactions/0/2").json() == [0, 1, 2]
    assert ask(role, f"{topic}.transactions/0/3", "wait=0").status_code == 503
    several = [
        (0, "a", wire(i), {"hive-position": f"0:4:{i}", "hive-previous": f"0:4:{i - 1}" if i else "0:2:0"})
        for i in range(3)
    ]

    def publish() -> None:
        """In one batch, as a publisher does: a flush, or the third one, sends them."""
        producer = Producer({"bootstrap.servers": kafka.brokers, "linger.ms": 60_000, "batch.num.messages": 3})
        for partition, key, value, headers in several:
            producer.produce(topic, value, key, partition, headers=list(headers.items()))
        assert producer.flush(30) == 0

    later = threading.Timer(0.3, publish)
    later.start()
    assert ask(role, f"{topic}.transactions/0/4").json() == [0, 1, 2, 0, 1, 2]
    later.join()


def test_lag_in_records_and_seconds(kafka: Kafka, topic: str, role: Role) -> None:
    assert "age" not in httpx.get(role.url + "/total").headers
    write(kafka.brokers, topic, plain([-4000, 1, 2, 3]))

    def behind() -> dict[str, int | float | str] | None:
        (one,) = (p for p in consumer(role)["partitions"] if p["partition"] == 0)
        return one if float(one["lag_seconds"]) > 1.5 else None

    found = wait_until(behind, 10, "the lag in seconds")
    assert found["lag_records"] == 4
    answer = httpx.get(role.url + "/total")
    assert int(answer.headers["age"]) >= 1
    metrics = httpx.get(role.url + "/metrics").text
    assert f'hiveio_consumer_lag_records{{partition="0",topic="{topic}"}} 4.0' in metrics
    assert f'hiveio_consumer_lag_seconds{{partition="1",topic="{topic}"}} 0.0' in metrics
    wait_until(lambda: httpx.get(role.url + "/total").json() == [-4000, 1, 2, 3], 20, "all handled")

    def caught_up() -> bool:
        text = httpx.get(role.url + "/metrics").text
        return (
            f'hiveio_consumer_lag_records{{partition="0",topic="{topic}"}} 0.0' in text
            and 'hiveio_consumer_events_total{outcome="handled"} 4.0' in text
        )

    wait_until(caught_up, 10, "no lag any more")


def test_it_does_not_hold_up_the_loop(kafka: Kafka, topic: str, role: Role) -> None:
    """Many queries may wait at once."""

    async def many() -> list[int]:
        async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=100)) as client:
            headers = {"Hive-Position": f"{topic}/0/0", "Prefer": "wait=7"}
            waiting = [asyncio.create_task(client.get(role.url + "/total", headers=headers)) for _ in range(100)]
            await asyncio.sleep(0.3)
            await asyncio.to_thread(write, kafka.brokers, topic, plain([5]))
            return [answer.status_code for answer in await asyncio.gather(*waiting)]

    assert asyncio.run(many()) == [200] * 100


PARKING = """
from hiveio import Actor, Context, Event, Query

class Deposited(Event):
    amount: int
class Total(Query):
    pass
class Balance(Query):
    account: str
class Fed:
    def __init__(self):
        self.sums = {}
    def add(self, event, context):
        if event.amount == 13:
            raise ValueError("never")
        self.sums[context.id] = self.sums.get(context.id, 0) + event.amount
class Totals(Fed, Actor):
    path = "/totals/{id}"
    def perform(self, message: Deposited | Total, context: Context) -> int | None:
        return self.sums.get(context.id) if isinstance(message, Total) else self.add(message, context)
class Balances(Fed, Actor):
    path = "/balances/{account}"
    parked = "unavailable"
    def perform(self, message: Deposited | Balance, context: Context) -> int | None:
        return self.sums.get(message.account) if isinstance(message, Balance) else self.add(message, context)
"""


def test_a_query_about_a_key_that_is_parked_says_so(kafka: Kafka, topic: str) -> None:
    make_topic(kafka.brokers, topic)
    keys = [("adä", 1), ("bob", 2), ("adä", 13), ("adä", 3), ("bob", 4)]
    write(kafka.brokers, topic, [(0, key, wire(amount), {}) for key, amount in keys])
    settings = {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": topic,
        "EVENT_STORE_FROM_START": "true",
        "CONSUMER_ATTEMPTS": "1",
    }
    with Role("consumer", settings, actor=PARKING) as role:
        wait_until(lambda: httpx.get(role.url + "/totals/bob").text == "6", 20, "all is handled")
        answer = httpx.get(role.url + "/totals/adä")
        assert (answer.text, answer.headers.get("hive-parked")) == ("1", "1")
        refused = httpx.get(role.url + "/balances/adä")
        assert (refused.status_code, refused.headers.get("hive-parked")) == (503, "1")
        assert "Events of adä wait as dead letters" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        for path in ("/totals/bob", "/balances/bob", "/totals/nobody"):
            answer = httpx.get(role.url + path)
            assert (answer.status_code, answer.headers.get("hive-parked")) == (200, None), path
        described = httpx.get(role.url + "/openapi.json").json()["paths"]["/totals/{id}"]["get"]["responses"]["200"]
        assert "Hive-Parked" in described["headers"]
        dead_letters = f"{topic}.{topic}.dead"
        wait_until(lambda: len(read_all(kafka.brokers, dead_letters)) == 2, what="both are dead letters")
        dropped = [mark("dropped", dead_letter) for dead_letter in read_all(kafka.brokers, dead_letters)]
        marks = [
            (0, made.key, None, {n: t.decode() if isinstance(t, bytes) else str(t) for n, t in made.headers})
            for made in dropped
        ]
        write(kafka.brokers, dead_letters, marks)
        wait_until(lambda: "hive-parked" not in httpx.get(role.url + "/totals/adä").headers, 20, "it is free")
        assert httpx.get(role.url + "/balances/adä").status_code == 200
