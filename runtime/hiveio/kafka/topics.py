"""Topics as this runtime needs them: created if missing, with no more rights than needed, and checked."""

import logging
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
from hiveio.errors import backend_away
from hiveio.kafka import replication
from hiveio.kafka.client import COORDINATOR_TIMEOUT_S, answered, client_config, denied, make
from hiveio.kafka.threads import blocking

TIMEOUT_S = 10.0
_REFUSED = (KafkaError._AUTHENTICATION, KafkaError._SSL)
_NO_RIGHT = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
FOREVER = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
REASONS = {
    "min.insync.replicas": "a record that was acknowledged may be on a single broker, and lost with it",
    "unclean.leader.election.enable": "records that were acknowledged would be lost with their broker",
    "message.timestamp.type": "the clock of one instance would decide how long Idempotency-Keys are remembered",
    "max.message.bytes": "larger records would be refused",
}
logger = logging.getLogger("hiveio.kafka")


class Topic(NamedTuple):
    """``id`` changes when a topic is deleted and created again.

    ``assigned`` are the brokers of each partition's replicas, and ``brokers`` those that are up. ``config`` is empty
    if the user may not see it.
    """

    name: str
    id: str
    config: dict[str, str]
    assigned: tuple[tuple[int, ...], ...]
    brokers: tuple[int, ...]

    @property
    def partitions(self) -> int:
        return len(self.assigned)

    def differs(self, expected: Mapping[str, str]) -> dict[str, str]:
        """The properties that are known to have another value, with the expected one."""
        return {name: value for name, value in expected.items() if self.config.get(name, value) != value}

    def doubt(self, name: str, expected: str) -> str:
        """A line about a property that has another value: the thing, the value and the remedy."""
        reason = REASONS.get(name, "events would be lost")
        return f"Topic {self.name} has {name}={self.config.get(name)}: {reason}; set {name}={expected}"


def admin(settings: Settings, **own: Any) -> AdminClient:
    return make(AdminClient, client_config(settings, **own))


def group_members(settings: Settings, group: str, timeout_s: float = TIMEOUT_S) -> tuple[dict[str, int], bool]:
    """How many partitions each member of a group has, by its id, and whether each has been sent its own. Blocking.

    Nobody if there is no such group, or Kafka does not answer.
    """
    client = admin(settings)  # named: its results end with it
    try:
        asked = client.describe_consumer_groups([group], request_timeout=COORDINATOR_TIMEOUT_S)
        found = answered(asked[group], timeout_s)
    except KafkaException:
        return {}, False
    members = [] if found.state == ConsumerGroupState.DEAD else found.members
    assigned = {member.member_id: len(member.assignment.topic_partitions) for member in members}
    return assigned, found.state == ConsumerGroupState.STABLE


async def ensure_topic(settings: Settings, name: str, config: Mapping[str, str] = FOREVER) -> Topic:
    """The topic, created with ``settings.partitions`` partitions if it does not exist.

    It has EVENT_STORE_REPLICATION replicas, or else the brokers' default, at least min(3, brokers); with 3 or more
    ``min.insync.replicas`` is 2 or the brokers' default, if that is more. While fewer brokers are up it is not
    created. A property that a policy of the brokers refuses is left to their defaults. Each call reads the topic, and
    logs each doubt about it with the remedy. An existing topic needs no right to create one. Raises Unavailable when
    Kafka does not answer or refuses.
    """
    return await blocking(_ensure, settings, name, dict(config))


def _ensure(settings: Settings, name: str, config: dict[str, str]) -> Topic:
    refused: list[KafkaError] = []
    with_admin = admin(settings, error_cb=lambda error: refused.append(error) if error.code() in _REFUSED else None)
    try:
        return _ensured(settings, with_admin, name, settings.partitions, config)
    except KafkaException as error:
        with_admin.poll(0)  # its error_cb says why no broker answers
        reason = refused[-1] if refused else error.args[0]
        raise backend_away(f"Kafka at {settings.brokers}: topic {name}: {reason.str()}") from None


async def ensure_companion(settings: Settings, name: str, source: str, config: Mapping[str, str]) -> None:
    """Give the topic at least as many partitions as ``source``: create it, or add partitions.

    Raises Unavailable when Kafka does not answer or refuses.
    """
    await blocking(_ensure_companion, settings, name, source, dict(config))


def _ensure_companion(settings: Settings, name: str, source: str, config: dict[str, str]) -> None:
    try:
        client = admin(settings)
        original = client.list_topics(source, timeout=TIMEOUT_S).topics[source]
        if original.error is not None:
            raise backend_away(f"Kafka at {settings.brokers}: topic {source}: {original.error.str()}")
        partitions = len(original.partitions)
        found = _ensured(settings, client, name, partitions, config)
        if found.partitions < partitions:
            answered(
                client.create_partitions([NewPartitions(name, partitions)], request_timeout=TIMEOUT_S)[name], TIMEOUT_S
            )
    except KafkaException as error:
        reason = denied(error.args[0], f"topic {name}", "Describe, Create or Alter")
        raise backend_away(f"Kafka at {settings.brokers}: {reason or f'topic {name}: {error.args[0].str()}'}") from None


def _describe(client: AdminClient, name: str) -> Topic | None:
    cluster = client.list_topics(timeout=TIMEOUT_S)
    if name not in cluster.topics or cluster.topics[name].error is not None:
        return None
    try:
        described = answered(
            client.describe_topics(TopicCollection([name]), request_timeout=TIMEOUT_S)[name], TIMEOUT_S
        )
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise
    assigned = tuple(tuple(replica.id for replica in partition.replicas) for partition in described.partitions)
    return Topic(name, str(described.topic_id), _config(client, name), assigned, tuple(sorted(cluster.brokers)))


def _config(client: AdminClient, name: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, name)
    try:
        entries = answered(client.describe_configs([resource], request_timeout=TIMEOUT_S)[resource], TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].code() not in _NO_RIGHT:
            raise
        logger.warning("topic %s cannot be checked: the user has no right DescribeConfigs on it", name)
        return {}
    return {key: entry.value for key, entry in entries.items() if entry.value is not None}


def _ensured(settings: Settings, client: AdminClient, name: str, partitions: int, config: dict[str, str]) -> Topic:
    expected: dict[str, str] = {}
    if (found := _describe(client, name)) is None:
        brokers = client.list_topics(timeout=TIMEOUT_S).brokers
        replicas, safe = replication.of_new(settings, client, name, brokers)
        expected = config | safe
        create(client, name, partitions, replicas, expected)
        end = time.monotonic() + TIMEOUT_S  # not every broker knows it at once
        while (found := _describe(client, name)) is None:
            if time.monotonic() > end:
                raise backend_away(f"topic {name} was created, and no broker shows it after {TIMEOUT_S:.0f} s")
            time.sleep(0.05)
    for line in doubts(settings, found, expected):
        logger.warning("%s", line)
    return found


def create(client: AdminClient, name: str, partitions: int, replication: int, config: dict[str, str]) -> None:
    """Create the topic with as much of ``config`` as the brokers accept, unless another instance was faster."""
    remaining = dict(config)
    while True:
        new = NewTopic(name, partitions, replication_factor=replication, config=remaining)
        try:
            answered(client.create_topics([new], request_timeout=TIMEOUT_S)[name], TIMEOUT_S)
            return
        except KafkaException as error:
            code, text = error.args[0].code(), error.args[0].str()
            if code == KafkaError.TOPIC_ALREADY_EXISTS:
                return
            if code in _NO_RIGHT:
                raise backend_away(
                    f"topic {name} does not exist, or the user has no right Describe on it: {text}; create it, or "
                    "grant Describe and Create"
                ) from None
            # INVALID_CONFIG is a property that these brokers do not have.
            if code not in (KafkaError.POLICY_VIOLATION, KafkaError.INVALID_CONFIG) or (
                not remaining and replication < 0
            ):
                raise
            refused = [key for key in remaining if key in text] or [*remaining]
            logger.info("topic %s: the brokers refuse %s: %s", name, ", ".join(refused) or "its replication", text)
            if not refused:
                replication = -1  # the default of the brokers
            remaining = {key: value for key, value in remaining.items() if key not in refused}


def doubts(settings: Settings, topic: Topic, expected: Mapping[str, str]) -> list[str]:
    """What is not as safe as it could be, and the remedy; ``expected`` is for a topic that was just created."""
    few = replication.doubt(settings, topic.name, topic.assigned, topic.brokers)
    safe = {"unclean.leader.election.enable": "false"}
    if replication.required(settings, topic.brokers) >= replication.USUAL and (
        topic.config.get("min.insync.replicas") == "1"
    ):
        safe["min.insync.replicas"] = replication.SAFE
    command = f"kafka-configs.sh --bootstrap-server {settings.brokers} --alter --entity-type topics --entity-name"
    return [few] * bool(few) + [
        f"{topic.doubt(key, value)}: {command} {topic.name} --add-config {key}={value}"
        for key, value in topic.differs({**safe, **expected}).items()
    ]
