"""Topics as this runtime needs them: made when missing, checked when there."""

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from hiveio.config import Settings
from hiveio.errors import Unavailable, Unsafe
from hiveio.kafka.client import client_config, make

TIMEOUT_S = 10.0
_REFUSED = (KafkaError._AUTHENTICATION, KafkaError._SSL)
FOREVER = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}


class Topic(NamedTuple):
    """``id`` changes when a topic is deleted and made anew under its old name."""

    name: str
    id: str
    partitions: int
    config: dict[str, str]


def admin(settings: Settings, **own: Any) -> AdminClient:
    return make(AdminClient, client_config(settings, **own))


def group_members(settings: Settings, group: str, timeout_s: float = TIMEOUT_S) -> tuple[set[str], bool]:
    """The member ids of a group, and whether all have what they are assigned. Blocking.

    Nobody where there is no such group, or Kafka does not say.
    """
    client = admin(settings)  # named: its results end with it
    try:
        found = client.describe_consumer_groups([group], request_timeout=timeout_s)[group].result()
    except KafkaException:
        return set(), False
    members = set() if found.state == ConsumerGroupState.DEAD else {member.member_id for member in found.members}
    return members, found.state == ConsumerGroupState.STABLE


async def ensure_topic(settings: Settings, name: str, config: Mapping[str, str] = FOREVER) -> Topic:
    """The topic, made with ``settings.partitions`` partitions if it is not there.

    Replication is min(3, brokers) with ``min.insync.replicas`` 2 where there are 3 brokers, unclean election off.
    Raises Unavailable when Kafka does not answer, Unsafe when the topic has another number of partitions.
    """
    return await asyncio.to_thread(_ensure, settings, name, dict(config))


def _ensure(settings: Settings, name: str, config: dict[str, str]) -> Topic:
    refused: list[KafkaError] = []
    with_admin = admin(settings, error_cb=lambda error: refused.append(error) if error.code() in _REFUSED else None)
    try:
        found = _made(with_admin, settings, name, config)
    except KafkaException as error:
        with_admin.poll(0)  # says why nobody answers
        reason = refused[-1] if refused else error.args[0]
        raise Unavailable(f"Kafka at {settings.brokers}: topic {name}: {reason.str()}") from None
    if found.partitions != settings.partitions:
        raise Unsafe(
            f"topic {name} has {found.partitions} partitions and EVENT_STORE_PARTITIONS is {settings.partitions}: "
            f"the number is fixed when a topic is made; set EVENT_STORE_PARTITIONS={found.partitions}"
        )
    return found


async def ensure_beside(settings: Settings, name: str, source: str, config: Mapping[str, str]) -> None:
    """The topic, with at least as many partitions as ``source``: made, or grown, if it is not so.

    Raises Unavailable when Kafka does not answer or refuses.
    """
    await asyncio.to_thread(_ensure_beside, settings, name, source, dict(config))


def _ensure_beside(settings: Settings, name: str, source: str, config: dict[str, str]) -> None:
    try:
        client = admin(settings)
        original = _describe(client, source)
        if original is None:
            raise Unavailable(f"Kafka at {settings.brokers}: topic {source} is gone")
        found = _made(client, dataclasses.replace(settings, partitions=original.partitions), name, config)
        if found.partitions < original.partitions:
            grown = client.create_partitions([NewPartitions(name, original.partitions)], request_timeout=TIMEOUT_S)
            grown[name].result()
    except KafkaException as error:
        raise Unavailable(f"Kafka at {settings.brokers}: topic {name}: {error.args[0].str()}") from None


def _describe(client: AdminClient, name: str) -> Topic | None:
    cluster = client.list_topics(timeout=TIMEOUT_S)
    if name not in cluster.topics or cluster.topics[name].error is not None:
        return None
    try:
        described = client.describe_topics(TopicCollection([name]), request_timeout=TIMEOUT_S)[name].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise
    resource = ConfigResource(ResourceType.TOPIC, name)
    entries = client.describe_configs([resource], request_timeout=TIMEOUT_S)[resource].result()
    config = {key: entry.value for key, entry in entries.items() if entry.value is not None}
    return Topic(name, str(described.topic_id), len(described.partitions), config)


def _made(client: AdminClient, settings: Settings, name: str, config: dict[str, str]) -> Topic:
    if (found := _describe(client, name)) is not None:
        return found
    brokers = len(client.list_topics(timeout=TIMEOUT_S).brokers)
    config = {"unclean.leader.election.enable": "false"} | config
    if brokers >= 3:
        config["min.insync.replicas"] = "2"
    new = NewTopic(name, settings.partitions, replication_factor=min(3, brokers), config=config)
    try:
        client.create_topics([new], request_timeout=TIMEOUT_S)[name].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another instance was faster
            raise
    end = time.monotonic() + TIMEOUT_S  # it is not at once known to every broker
    while time.monotonic() < end:
        if (found := _describe(client, name)) is not None:
            return found
        time.sleep(0.05)
    raise Unavailable(f"topic {name} was made and is not there after {TIMEOUT_S:.0f} s")
