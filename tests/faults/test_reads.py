"""Faults of a cluster of brokers: 50, a broker that was the leader names an old end of the log, and 60, too few are up
when topics are made."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer

from tests.conftest import required
from tests.faults.proxy import FETCH, LIST_OFFSETS, Passing, kafka
from tests.faults.stage import Broker, Stage
from tests.integration.accounts import ACTOR, send
from tests.integration.test_topics import own_config
from tests.process import Role, wait_until
from tests.services import Kafka, Redis, kafka_cluster

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]
WRITES_S = 15.0  # until commands are taken again, after another leader is elected
NOT_READY_S = 5.0  # until an instance whose verdicts do not come says so
LATEST = b"\xff" * 8  # the time stamp that asks for the end
FETCH_WAIT_S = 0.1  # the longest that Kafka keeps a fetch of a tail
HEAD = 8  # bytes of an answer that belong to its request: the length and the correlation id


@contextlib.asynccontextmanager
async def an_old_end_is_named(stage: Stage) -> AsyncIterator[None]:
    """From here on the victim sees the end that the log has now, and no record that comes later."""
    ends: list[bytes] = []
    asks_for_the_end = kafka(LIST_OFFSETS, stage.log_topic)

    def asks(message: Passing) -> bool:
        return asks_for_the_end(message) and LATEST in message.request

    def note(message: Passing) -> bool:
        if asks(message):
            ends.append(message.data)
        return False

    stage.kafka_proxy.down.edit(bytes, note, times=-1)
    await stage.read("Account/a")
    assert ends, "the end was asked for"
    stage.kafka_proxy.up.hold(kafka(FETCH))
    await asyncio.sleep(3 * FETCH_WAIT_S)  # those that had passed are answered
    stage.kafka_proxy.down.edit(lambda answer: answer[:HEAD] + ends[0][HEAD:], asks, times=-1)
    began = time.monotonic()
    try:
        yield
    finally:
        stage.kafka_proxy.open()
        stage.watched.deposed.append((began, time.monotonic()))


@pytest.mark.fault(50)
async def test_50_a_leader_that_lies_is_believed_by_current_reads_and_not_by_linearizable_ones(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", at=1, amount=1)
        assert (await stage.read("Account/a")).version == 1
        async with an_old_end_is_named(stage):
            await stage.accepted("Deposit", "Account/a", at=1, amount=1)
            assert (await stage.read("Account/a", level="current")).version == 1, "the stated exception"
            proved = asyncio.create_task(stage.read("Account/a", level="linearizable"))
            await asyncio.sleep(0.3)  # time enough to answer, if it did not wait for its record
            assert not proved.done()
            stage.kafka_proxy.up.open()
            assert (await proved).version == 2
        await stage.well("Account/a")


@pytest.fixture(scope="module")
def brokers() -> Iterator[list[Kafka]]:
    with required("kafka"), kafka_cluster(3) as made:
        yield made


def leader(bootstrap: str, topic: str) -> int:
    client = Consumer({"bootstrap.servers": bootstrap, "group.id": "leader"})
    try:
        return int(client.list_topics(topic, timeout=10).topics[topic].partitions[0].leader)
    finally:
        client.close()


class Reading(threading.Thread):
    """Linearizable reads of one account, one after the other, each compared with what was acknowledged before it."""

    def __init__(self, role: Role, acknowledged: list[int]) -> None:
        super().__init__(daemon=True)
        self.role, self.acknowledged = role, acknowledged
        self.answered, self.stale = 0, list[tuple[int, int]]()
        self.over = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.role.url, timeout=30) as client:
            while not self.over.is_set():
                least = self.acknowledged[-1]
                read = client.get("/accounts/ada", params={"consistency": "linearizable"})
                if read.status_code == 200:
                    self.answered += 1
                    version = int(read.headers["etag"].strip('"'))
                    if version < least:
                        self.stale.append((version, least))


@pytest.mark.fault(50)
def test_50_a_leader_that_was_paused_while_another_was_elected(brokers: list[Kafka], redis: Redis, topic: str) -> None:
    """Reads go on all the time, also those that it answers before it knows that it was deposed."""
    environ = {
        "EVENT_STORE_BROKERS": ",".join(broker.brokers for broker in brokers),
        "CACHE_URL": redis.url,
        "EVENT_STORE_TOPIC": topic,
    }
    log, acknowledged = f"{topic}.transactions", [0]
    with Role("stream-processor", environ, actor=ACTOR) as one, Role("stream-processor", environ, actor=ACTOR) as two:

        def write(kind: str, **payload: Any) -> bool:
            answer = send(two, "ada", kind, **payload)
            if answer.status_code == 200:
                acknowledged.append(int(answer.headers["etag"].strip('"')))
            return answer.status_code == 200

        assert write("Open", owner="ada")
        reading = Reading(one, acknowledged)
        reading.start()
        deposed = leader(brokers[0].brokers, log)
        paused = next(broker for broker in brokers if broker.node == deposed)
        others = [broker for broker in brokers if broker is not paused]
        paused.pause()
        try:
            writing = threading.Thread(target=write, args=("Deposit",), kwargs={"amount": 1}, daemon=True)
            writing.start()
            wait_until(lambda: httpx.get(f"{two.url}/readyz", timeout=30).status_code == 503, NOT_READY_S, "not ready")
            wait_until(lambda: leader(others[0].brokers, log) not in (-1, deposed), 40, "another leader")
            wait_until(lambda: write("Deposit", amount=1), WRITES_S, "writing again")
        finally:
            paused.resume()
        answered = reading.answered
        for _ in range(20):
            wait_until(lambda: write("Deposit", amount=1))
        wait_until(lambda: reading.answered > answered + 20, 30, "reading again")
        reading.over.set()
        reading.join(30)
        assert not reading.stale


def replicas(bootstrap: str, topic: str) -> int:
    """The fewest of any partition; 0 where there is no such topic."""
    client = Consumer({"bootstrap.servers": bootstrap, "group.id": "replicas"})
    try:
        found = client.list_topics(timeout=10).topics.get(topic)
        return min((len(partition.replicas) for partition in found.partitions.values()), default=0) if found else 0
    finally:
        client.close()


def up(bootstrap: str) -> int:
    client = Consumer({"bootstrap.servers": bootstrap, "group.id": "up"})
    try:
        return len(client.list_topics(timeout=10).brokers)
    finally:
        client.close()


@pytest.mark.fault(60)
def test_60_two_of_three_brokers_are_up_at_the_first_start(brokers: list[Kafka], redis: Redis, topic: str) -> None:
    bootstrap, third = ",".join(broker.brokers for broker in brokers[:2]), brokers[2]
    asking = {
        "EVENT_STORE_BROKERS": bootstrap,
        "CACHE_URL": redis.url,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_REPLICATION": "3",
    }
    two = f"{topic}-two"
    taking = {name: value for name, value in asking.items() if name != "EVENT_STORE_REPLICATION"}
    taking["EVENT_STORE_TOPIC"] = two
    third.kill()
    wait_until(lambda: up(bootstrap) == 2, 30, "two brokers")
    with Role("stream-processor", taking, actor=ACTOR):
        pass
    with Role("stream-processor", asking, actor=ACTOR, wait=False) as role:
        line = "is to be made with 3 replicas (EVENT_STORE_REPLICATION), and 2 brokers are up"
        wait_until(lambda: line in role.text(), 20, "waiting")
        third.start()
        role.ready()
        assert [line["message"] for line in role.complaints()] == []
    for name in (topic, f"{topic}.transactions"):
        assert (replicas(bootstrap, name), own_config(bootstrap, name)["min.insync.replicas"]) == (3, "2")
    with Role("stream-processor", taking, actor=ACTOR) as role:
        lines = [line["message"] for line in role.complaints()]
    advice = "has 2 replicas, and 3 are wanted (there are 3 brokers)"
    names = (f"{two}.transactions", two)
    assert [line.partition(":")[0] for line in lines] == [
        text for name in names for text in (f"Topic {name} {advice}", f"Topic {name} has min.insync.replicas=1")
    ]
    for line, name in zip(lines[::2], names, strict=True):
        (part,) = json.loads(line[line.index("{") :])["partitions"]
        assert (part["topic"], part["partition"], sorted(part["replicas"])) == (name, 0, [1, 2, 3])
