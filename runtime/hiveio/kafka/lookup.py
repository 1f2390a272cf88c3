"""Looks up topics and a group, with clients of its own: the client that is polled must not wait."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import Consumer, ConsumerGroupState, KafkaError, KafkaException, TopicCollection
from confluent_kafka import ConsumerGroupTopicPartitions as GroupOffsets
from confluent_kafka.admin import AdminClient

from hiveio.config import Settings
from hiveio.errors import ConfigError, Unavailable, backend_away
from hiveio.kafka.assigned import CommitMetadata, Partition
from hiveio.kafka.client import COORDINATOR_TIMEOUT_S, answered, client_config, denied, make
from hiveio.kafka.guard import text, tried
from hiveio.kafka.reading import bounds, committed

CALL_S = 10.0  # one request to Kafka
PROBE_S = 1.0
OWN_SUFFIXES = (".dead", ".transactions")  # dead letters, and the log of a stream processor: no events
T = TypeVar("T")


class TopicInfo(NamedTuple):
    """A topic. ``id`` changes when it is deleted and created again; empty with brokers before 2.8."""

    id: str
    partitions: int


class Expression:
    """``EVENT_STORE_CONSUMER_TOPIC``: names, or one expression, which begins with ^ and describes whole names."""

    def __init__(self, topics: Sequence[str]) -> None:
        """Raises ConfigError."""
        self.names = tuple(topics)
        self._pattern: re.Pattern[str] | None = None
        if not any(name.startswith("^") for name in topics):
            return
        what = f"EVENT_STORE_CONSUMER_TOPIC={','.join(topics)!r} is wrong"
        if len(topics) > 1:
            raise ConfigError(f"{what}: an expression, which begins with ^, must be the only entry; write it as ^(a|b)")
        try:
            self._pattern = re.compile(topics[0])
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"{what}: it is not a regular expression: {error}") from None

    @property
    def by_pattern(self) -> bool:
        return self._pattern is not None

    def matches(self, topic: str) -> bool:
        if self._pattern is None:
            return topic in self.names
        return (
            not (topic.endswith(OWN_SUFFIXES) or topic.startswith("__")) and self._pattern.fullmatch(topic) is not None
        )


class Lookup:
    """All methods block, so call them on other threads than the loop's. Each raises Unavailable."""

    def __init__(self, settings: Settings, config: dict[str, Any]) -> None:
        """``config`` is the consumer's, without callbacks."""
        self._settings = settings
        self._config = config | {"log_level": 0, "client.id": f"{settings.client_id}.lookup"}
        self._clients: tuple[Consumer, AdminClient] | None = None

    def topics(self, topics: Expression) -> tuple[dict[str, TopicInfo], dict[str, str]]:
        """The topics that exist, and for each other one that is named, why it is missing."""
        names: Iterable[str] = topics.names
        if topics.by_pattern:
            found = self._call(lambda consumer, _: consumer.list_topics(timeout=CALL_S).topics, "the topics")
            names = [name for name, one in found.items() if one.error is None and topics.matches(name)]
        return self.describe(names)

    def describe(self, names: Iterable[str]) -> tuple[dict[str, TopicInfo], dict[str, str]]:
        there: dict[str, TopicInfo] = {}
        missing: dict[str, str] = {}
        asked = sorted(names)
        if not asked:
            return there, missing
        results = self._call(
            lambda _, admin: admin.describe_topics(TopicCollection(asked), request_timeout=CALL_S), "the topics"
        )
        for name in asked:
            try:
                found = answered(results[name], CALL_S)
                there[name] = TopicInfo(_id(found.topic_id), len(found.partitions))
            except KafkaException as error:
                reason = error.args[0]
                if reason.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_EXCEPTION):
                    missing[name] = f"there is no topic {name}"
                elif (right := denied(reason, f"topic {name}", "Describe")) is not None:
                    missing[name] = right
                else:
                    raise self._failed(error, "the topics") from None
        return there, missing

    def group_is_left(self) -> bool:
        """Whether Kafka knows the group, and it has no members."""
        group = self._settings.group_id
        results = self._call(
            lambda _, admin: admin.describe_consumer_groups([group], request_timeout=COORDINATOR_TIMEOUT_S),
            f"the group {group}",
        )
        try:
            return bool(answered(results[group], CALL_S).state == ConsumerGroupState.EMPTY)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return False
            raise self._failed(error, f"the group {group}") from None

    def group_metadata(self) -> dict[Partition, CommitMetadata]:
        """The metadata of each offset of the group, on all topics."""
        group = self._settings.group_id
        results = self._call(
            lambda _, admin: admin.list_consumer_group_offsets(
                [GroupOffsets(group)], request_timeout=COORDINATOR_TIMEOUT_S
            ),
            f"the offsets of the group {group}",
        )
        try:
            found = answered(results[group], CALL_S).topic_partitions
        except KafkaException as error:
            raise self._failed(error, f"the offsets of the group {group}") from None
        return {(p.topic, p.partition): CommitMetadata.of(p.metadata or "") for p in found if p.offset >= 0}

    def committed(self, keys: Iterable[Partition]) -> dict[Partition, tuple[int, CommitMetadata]]:
        """The group's offsets; partitions without one are left out."""
        what = f"the offsets of the group {self._settings.group_id}"
        return self._call(lambda consumer, _: committed(consumer, keys, CALL_S), what)

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset and end offset."""
        what = f"the end offset of {topic}/{partition}"
        return self._call(lambda consumer, _: bounds(consumer, topic, partition, CALL_S), what)

    def answer(self) -> str | None:
        """None when Kafka answers, else the reason."""
        try:
            self._call(lambda consumer, _: consumer.list_topics(timeout=PROBE_S), "")
        except Unavailable as error:
            return str(error)
        return None

    def _call(self, ask: Callable[[Consumer, AdminClient], T], what: str) -> T:
        found: list[T] = []
        clients = self._clients
        if clients is None:
            config = client_config(self._settings)
            brokers = {"bootstrap.servers": config["bootstrap.servers"]}
            clients = self._clients = make(Consumer, self._config | brokers), make(AdminClient, config)
        failure = tried(lambda: found.append(ask(*clients)))
        if failure is not None:
            raise self._failed(failure, what)
        return found[0]

    def _failed(self, failure: object, what: str) -> Unavailable:
        # A client can keep what it learned while its broker was away for many minutes, so the next call makes another.
        # This one ends when nothing uses it any more.
        self._clients = None
        error = failure.args[0] if isinstance(failure, KafkaException) else failure
        where = f"Kafka at {self._settings.brokers}"
        if isinstance(error, KafkaError) and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return backend_away(f"{where}: {denied(error, f'group {self._settings.group_id}', 'Read')}")
        if (right := denied(error, what, "Describe or Read")) is not None:
            return backend_away(f"{where}: {right}")
        return backend_away(f"{where}{f': {what}' if what else ' does not answer'}: {text(failure)}")

    def close(self) -> None:
        """The clients end when nothing uses them any more: closed during a call, that call would never return."""
        self._clients = None


def _id(found: object) -> str:
    text = str(found)
    return "" if text == "AAAAAAAAAAAAAAAAAAAAAA" else text
