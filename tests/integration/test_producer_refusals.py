"""What Kafka refuses for certain is answered so, its neighbours in a batch are stored, and no key is burnt."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import msgspec
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.conftest import required
from tests.faults.proxy import PRODUCE
from tests.faults.proxy import kafka as kafka_requests
from tests.faults.stage import Broker
from tests.integration.conftest import Make
from tests.integration.test_security import AUTHORIZER, allow
from tests.integration.topics import configure, make_topic, read_all
from tests.process import Role, wait_until
from tests.services import Kafka, Redis, Security

ACTOR = """
from hiveio import Actor, Event

class Reading(Event):
    number: int
    sensor: str | None = None
    text: str = ""

class Readings(Actor):
    path = "/readings"
    key = "sensor"

    def perform(self, message: Reading) -> Reading:
        return message
"""
CLIENTS, EACH = 64, 20
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240, func_only=True)]


class Load:
    """64 clients that post numbered readings, of which each fourth is odd."""

    def __init__(self, role: Role, odd: Mapping[str, Any]) -> None:
        self.url, self._odd = role.url + "/readings", odd
        self.answers: dict[int, httpx.Response] = {}

    def body(self, number: int) -> dict[str, Any]:
        return {"number": number, "sensor": f"s{number % 10}"} | dict(self._odd if number % 4 == 0 else {})

    async def run(self, first: int = 0) -> None:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=CLIENTS)) as http:

            async def client(index: int) -> None:
                for number in range(first + index * EACH, first + (index + 1) * EACH):
                    key = {"Idempotency-Key": f"k{number}"}
                    self.answers[number] = await http.post(self.url, json=self.body(number), headers=key)

            async with asyncio.TaskGroup() as group:
                for index in range(CLIENTS):
                    group.create_task(client(index))

    def statuses(self, *, odd: bool) -> set[int]:
        return {answer.status_code for number, answer in self.answers.items() if (number % 4 == 0) is odd}

    def check(self, kafka: Kafka, topic: str) -> None:
        """Each answer says what is true: a fresh client finds what is stored, once and where it says, and no more. None
        has a text of Kafka or of its client, or says where a broker is."""
        texts = "\n".join(answer.text for answer in self.answers.values())
        assert not re.search(r"Broker:|Local:|(?i:authorization failed)|_[A-Z]+_|127\.0\.0\.1|localhost", texts), texts
        found: dict[int, str] = {}
        for message in read_all(kafka.brokers, topic):
            number = msgspec.json.decode(message.value() or b"")["payload"]["number"]
            assert number not in found, f"{number} is there twice"
            found[number] = f"{topic}/{message.partition()}/{message.offset()}"
        stored = {n: a.headers["hive-position"] for n, a in self.answers.items() if a.status_code == 200}
        assert stored == found


@pytest.fixture
def made(producer: Make, redis: Redis) -> Iterator[Role]:
    with producer(CACHE_URL=redis.url) as role:
        yield role


async def test_a_compacted_topic_takes_no_record_without_a_key(kafka: Kafka, topic: str, producer: Make) -> None:
    make_topic(kafka.brokers, topic, 2, {"cleanup.policy": "compact"})
    with producer() as role:
        load = Load(role, {"sensor": None})
        await load.run()
        assert (load.statuses(odd=False), load.statuses(odd=True)) == ({200}, {422})
        assert "compacted" in load.answers[0].json()["detail"]
        assert not role.complaints(), "it is known beforehand"
    load.check(kafka, topic)


@pytest.mark.parametrize(
    ("config", "back", "odd", "status"),
    [
        ({"cleanup.policy": "compact"}, {"cleanup.policy": "delete"}, {"sensor": None}, 422),
        ({"max.message.bytes": "6000"}, {"max.message.bytes": "1000000"}, {"text": "x" * 8000}, 413),
    ],
    ids=["compacted", "size"],
)
async def test_a_rule_that_changes_meanwhile_refuses_what_it_concerns(
    kafka: Kafka,
    topic: str,
    made: Role,
    config: Mapping[str, str],
    back: Mapping[str, str],
    odd: Mapping[str, Any],
    status: int,
) -> None:
    load = Load(made, odd)
    running = asyncio.create_task(load.run())
    while len(load.answers) < CLIENTS * 2:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(configure, kafka.brokers, topic, config)
    await running
    first = 0
    while status not in load.statuses(odd=True):  # the rule may come into force when all have their answers
        first += CLIENTS * EACH
        assert first < 10 * CLIENTS * EACH, "the rule comes into force"
        await load.run(first)
    assert load.statuses(odd=False) == {200}, "neighbours are stored"
    assert load.statuses(odd=True) == {200, status}
    load.check(kafka, topic)
    assert "Kafka refused 1 records" in made.text()
    assert not made.logs("sender: the producer failed")
    refused = next(number for number, answer in load.answers.items() if answer.status_code == status)

    def again() -> bool:
        key = {"Idempotency-Key": f"k{refused}"}
        load.answers[refused] = httpx.post(made.url + "/readings", json=load.body(refused), headers=key)
        return load.answers[refused].status_code == 200

    configure(kafka.brokers, topic, back)
    # The rule is looked up again, and the key is not burnt.
    await asyncio.to_thread(wait_until, again, 30, "the odd one is stored")
    load.check(kafka, topic)


async def test_a_refusal_after_an_attempt_without_an_answer_is_unknown(topic: str, producer: Make) -> None:
    """The first attempt is stored and its answer lost; by the second one the topic takes no such record any more."""
    with Broker() as broker:
        make_topic(broker.kafka.brokers, topic)
        with producer(broker.proxied, REQUEST_TIMEOUT="8000") as role:
            load = Load(role, {"sensor": None})
            for number in (1, 2, 3):
                first = await asyncio.to_thread(httpx.post, load.url, json=load.body(number), timeout=30)
                assert first.status_code == 200
            lost = broker.proxy.down.cut(kafka_requests(PRODUCE), times=1)
            posting = asyncio.create_task(asyncio.to_thread(httpx.post, load.url, json=load.body(4), timeout=30))
            await asyncio.to_thread(lost.struck.wait, 10)
            broker.proxy.up.hold(kafka_requests(PRODUCE))
            await asyncio.to_thread(configure, broker.kafka.brokers, topic, {"cleanup.policy": "compact"})
            broker.proxy.up.open()
            answer = await posting
            # Kafka may find that it has the record before it looks at its key.
            assert answer.status_code in (200, 504), answer.text
        found = [
            msgspec.json.decode(m.value() or b"")["payload"]["number"] for m in read_all(broker.kafka.brokers, topic)
        ]
        assert found == [1, 2, 3, 4]


async def test_missing_rights_are_403_and_nothing_is_stored(
    tmp_path_factory: pytest.TempPathFactory, topic: str
) -> None:
    security = Security(tmp_path_factory.mktemp("security"))
    with required("kafka"), Kafka(security=security, properties=AUTHORIZER) as guarded:
        read = [AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS, AclOperation.READ]
        make_topic(guarded.brokers, topic, 2)
        allow(guarded, security.user, topic, read)
        settings = {
            "EVENT_STORE_BROKERS": guarded.secure,
            "EVENT_STORE_TOPIC": topic,
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SSL_CA_LOCATION": str(security.ca),
            "KAFKA_SASL_MECHANISM": "PLAIN",
            "KAFKA_SASL_USERNAME": security.user,
            "KAFKA_SASL_PASSWORD": security.password,
        }
        with Role("producer", settings, actor=ACTOR) as role:
            load = Load(role, {})

            def post() -> int:
                number = 100_000 + len(load.answers)
                load.answers[number] = httpx.post(role.url + "/readings", json=load.body(number), timeout=30)
                return load.answers[number].status_code

            # 503 while a client that may not write is made anew: it was not stored either.
            wait_until(lambda: post() == 403, 10, "the missing right is reported")
            assert {answer.status_code for answer in load.answers.values()} <= {403, 503}
            allow(guarded, security.user, topic, [AclOperation.WRITE])
            wait_until(lambda: post() == 200, 30, "the right is noticed")
            running = asyncio.create_task(load.run())
            while len(load.answers) < CLIENTS * 2:
                await asyncio.sleep(0.01)
            write = AclBindingFilter(
                *(ResourceType.TOPIC, topic, ResourcePatternType.PREFIXED, f"User:{security.user}", "*"),
                *(AclOperation.WRITE, AclPermissionType.ALLOW),
            )
            admin = AdminClient({"bootstrap.servers": guarded.brokers})
            admin.delete_acls([write])[write].result(30)
            await running
            # 504 where librdkafka, which gets the same refusal, had begun to send again.
            assert {answer.status_code for answer in load.answers.values()} <= {200, 403, 503, 504}
            assert post() in (403, 503)
            assert "Traceback" not in role.text()
        load.check(guarded, topic)
