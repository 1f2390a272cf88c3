"""Topics: made with what is needed and no more, also where a policy refuses some of it; or taken as they are."""

import asyncio
import dataclasses
import json
import logging
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    ConfigSource,
    ResourceType,
)

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka import replication, topics
from hiveio.kafka.topics import FOREVER, Topic, ensure_topic
from tests.integration.accounts import TAKES_DEPOSITS
from tests.integration.conftest import Make
from tests.integration.topics import make_topic
from tests.process import Role
from tests.services import Kafka

ACTOR = TAKES_DEPOSITS
TWO_TOPICS = """
from hiveio import Actor, Event

class Reading(Event):
    value: float
class Alarm(Event):
    value: float

class Readings(Actor):
    path, topic = "/readings", "TOPIC-readings"

    def perform(self, message: Reading) -> Reading:
        return message

class Alarms(Actor):
    path, topic = "/alarms", "TOPIC-alarms"

    def perform(self, message: Alarm) -> Alarm:
        return message
"""


def own_config(brokers: str, topic: str) -> dict[str, str]:
    """What is set on the topic itself."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    client = AdminClient({"bootstrap.servers": brokers})
    entries = client.describe_configs([resource])[resource].result(30)
    own = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
    return {name: entry.value for name, entry in entries.items() if entry.source == own}


def test_a_topic_is_made_with_what_is_needed_and_no_more(kafka: Kafka, topic: str, processor: Make) -> None:
    with processor() as role:
        assert httpx.post(role.url + "/accounts/1", json={"amount": 1}).status_code == 200
        assert role.complaints() == []
    assert own_config(kafka.brokers, topic) == FOREVER
    assert own_config(kafka.brokers, f"{topic}.transactions") == FOREVER | {"message.timestamp.type": "LogAppendTime"}


def test_a_property_that_the_brokers_refuse_is_left_out(
    kafka: Kafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = Settings(brokers=kafka.brokers, partitions=2)
    made = asyncio.run(ensure_topic(settings, topic, FOREVER | {"flush.ms": "-5"}))
    assert (made.partitions, made.assigned, made.differs(FOREVER)) == (2, ((1,), (1,)), {})
    assert own_config(kafka.brokers, topic) == FOREVER
    lines = [record.getMessage() for record in caplog.records if record.name == "hiveio.kafka"]
    assert any("the brokers refuse flush.ms" in line for line in lines)
    assert any(
        line.startswith(f"Topic {topic} has flush.ms=9") and "set flush.ms=-5: kafka-configs.sh" in line
        for line in lines
    )


class Strict:
    """An AdminClient of brokers with a policy: ``allows`` says what of replication and properties it takes."""

    def __init__(self, allows: Any) -> None:
        self.allows, self.asked = allows, 0

    def create_topics(self, new: list[Any], request_timeout: float) -> dict[str, Any]:
        self.asked += 1
        refusal = self.allows(new[0].replication_factor, new[0].config)
        future: Future[None] = Future()
        if refusal:
            future.set_exception(KafkaException(KafkaError(KafkaError.POLICY_VIOLATION, refusal)))
        else:
            future.set_result(None)
        return {new[0].topic: future}


@pytest.mark.parametrize(
    ("allows", "asked"),
    [
        (lambda replication, config: "", 1),
        (lambda replication, config: "retention.bytes is ours" if "retention.bytes" in config else "", 2),
        (lambda replication, config: "no properties here" if config else "", 2),
        (lambda replication, config: "replication is ours" if replication > 0 else "", 3),
        (lambda replication, config: "no topics here", 3),
    ],
)
def test_what_a_policy_refuses_is_left_to_the_brokers_and_the_end_is_bounded(allows: Any, asked: int) -> None:
    client: Any = Strict(allows)
    if allows(-1, {}):
        with pytest.raises(KafkaException, match="no topics here"):
            topics.create(client, "t", 1, 3, FOREVER)
    else:
        topics.create(client, "t", 1, 3, FOREVER)
    assert client.asked == asked


SETTINGS = Settings(brokers="kafka:9092")
CONFIGS = "kafka-configs.sh --bootstrap-server kafka:9092 --alter --entity-type topics --entity-name t --add-config"


def test_each_doubt_about_a_topic_has_its_line() -> None:
    config = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1", "retention.ms": "1000"}
    topic = Topic("t", "id", config, ((1, 2, 3),), (1, 2, 3, 4, 5))
    lines = topics.doubts(SETTINGS, topic, {"retention.ms": "-1"})
    assert [(line.partition(": ")[0], line.rpartition(": ")[2]) for line in lines] == [
        ("Topic t has unclean.leader.election.enable=true", f"{CONFIGS} unclean.leader.election.enable=false"),
        ("Topic t has min.insync.replicas=1", f"{CONFIGS} min.insync.replicas=2"),
        ("Topic t has retention.ms=1000", f"{CONFIGS} retention.ms=-1"),
    ]
    assert topics.doubts(SETTINGS, Topic("t", "id", {"min.insync.replicas": "1"}, ((1,),), (1,)), {}) == []


def test_too_few_replicas_are_told_with_what_mends_them() -> None:
    def doubt(replication: int, brokers: int, *assigned: tuple[int, ...]) -> str:
        asking = dataclasses.replace(SETTINGS, replication=replication)
        return "".join(topics.doubts(asking, Topic("t", "id", {}, assigned, tuple(range(1, brokers + 1))), {}))

    line = doubt(0, 3, (1, 2), (3, 1, 2), (2,))
    assert line.startswith("Topic t has 1 replicas, and 3 are wanted (there are 3 brokers): ")
    plan = [
        {"topic": "t", "partition": 0, "replicas": [1, 2, 3]},
        {"topic": "t", "partition": 2, "replicas": [2, 1, 3]},
    ]
    assert json.loads(line[line.index("{") :]) == {"version": 1, "partitions": plan}
    assert "kafka-reassign-partitions.sh --bootstrap-server kafka:9092 --execute " in line
    assert doubt(3, 2, (1, 2)) == (
        "Topic t has 2 replicas, and 3 are wanted (EVENT_STORE_REPLICATION): records are lost with their brokers; "
        "2 brokers are up: start the others"
    )
    assert "(the first 50 of 60 partitions)" in doubt(2, 2, *[(1,)] * 60)
    assert doubt(1, 3, (1,)) == doubt(2, 3, (1, 2, 3)) == doubt(0, 2, (1, 2)) == ""


class Configured:
    """An AdminClient of brokers with these defaults, or that fail when they are asked for them."""

    def __init__(self, defaults: dict[str, str] | int) -> None:
        self.defaults = defaults

    def describe_configs(self, resources: list[Any], request_timeout: float) -> dict[Any, Any]:
        future: Future[Any] = Future()
        if isinstance(self.defaults, int):
            future.set_exception(KafkaException(KafkaError(self.defaults)))
        else:
            future.set_result({name: SimpleNamespace(value=value) for name, value in self.defaults.items()})
        return {resources[0]: future}


DENIED = KafkaError.CLUSTER_AUTHORIZATION_FAILED


@pytest.mark.parametrize(
    ("asked", "brokers", "defaults", "replicas", "in_sync"),
    [
        (0, 1, {}, 1, None),
        (0, 2, {"default.replication.factor": "1"}, 2, None),
        (0, 3, {"default.replication.factor": "1", "min.insync.replicas": "1"}, 3, "2"),
        (0, 5, {"default.replication.factor": "5", "min.insync.replicas": "3"}, 5, None),
        (0, 3, DENIED, 3, "2"),
        (1, 3, {"default.replication.factor": "3"}, 1, None),
        (4, 5, {}, 4, "2"),
        (3, 2, {}, "3 replicas (EVENT_STORE_REPLICATION), and 2 brokers are up", None),
        (0, 2, {"default.replication.factor": "3"}, "3 replicas (default.replication.factor of the brokers)", None),
    ],
)
def test_a_new_topic_has_as_many_replicas_as_asked_for(
    asked: int, brokers: int, defaults: dict[str, str] | int, replicas: int | str, in_sync: str | None
) -> None:
    settings, client = dataclasses.replace(SETTINGS, replication=asked), Configured(defaults)

    def made() -> tuple[int, dict[str, str]]:
        return replication.of_new(settings, cast("Any", client), "t", range(1, brokers + 1))

    if isinstance(replicas, str):
        with pytest.raises(Unavailable) as raised:
            made()
        assert replicas in str(raised.value)
    else:
        assert made() == (replicas, {"min.insync.replicas": in_sync} if in_sync else {})
    client.defaults = KafkaError._TIMED_OUT  # that is no answer
    with pytest.raises(KafkaException):
        made()


def test_topics_of_one_producer_may_have_different_partitions(kafka: Kafka, topic: str) -> None:
    for kind, partitions in (("readings", 2), ("alarms", 5)):
        make_topic(kafka.brokers, f"{topic}-{kind}", partitions)
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_PARTITIONS": "3"}
    with Role("producer", environ, actor=TWO_TOPICS.replace("TOPIC", topic)) as role:
        for kind in ("readings", "alarms"):
            answer = httpx.post(f"{role.url}/{kind}", json={"value": 1})
            assert answer.headers["hive-position"].startswith(f"{topic}-{kind}/")
        assert role.complaints() == []


def test_an_event_topic_with_too_few_partitions_stops_the_start(kafka: Kafka, topic: str, processor: Make) -> None:
    make_topic(kafka.brokers, topic, 1, FOREVER)
    with processor(wait=False, EVENT_STORE_PARTITIONS="2") as role:
        assert role.ended(30) == 20, role.text()
    assert f"add partitions to {topic}" in role.text()
