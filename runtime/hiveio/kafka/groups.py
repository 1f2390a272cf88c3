"""Consumer groups as an onlooker sees them: who is in them, and how far they have come. Blocking calls with a bound."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition

from hiveio.config import Settings
from hiveio.errors import backend_away
from hiveio.kafka.assigned import CommitMetadata, Owner, Partition
from hiveio.kafka.client import COORDINATOR_TIMEOUT_S, answered, denied
from hiveio.kafka.end_offsets import EndOffsets
from hiveio.kafka.reading import messages_at
from hiveio.kafka.tail import reading_client
from hiveio.kafka.topics import TIMEOUT_S, admin


class Member(NamedTuple):
    """A member of a group, and the partitions that it has."""

    client_id: str
    host: str
    partitions: tuple[Partition, ...]


class Group(NamedTuple):
    """``state`` is Kafka's word: STABLE, EMPTY and others."""

    name: str
    state: str
    members: tuple[Member, ...]


class Committed(NamedTuple):
    """The next offset that a group handles, and who has the partition."""

    offset: int
    owner: Owner | None


class Groups:
    """Looks at consumer groups. Every method raises Unavailable."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._times = reading_client(
            settings, **{"enable.partition.eof": True, "queued.min.messages": 1, "fetch.wait.max.ms": 10}
        )

    def close(self) -> None:
        self._times.close()

    def names(self) -> list[str]:
        """Of all groups that the user may see."""
        client = admin(self._settings)  # named: its results end with it
        found = self._call(answered, client.list_consumer_groups(request_timeout=COORDINATOR_TIMEOUT_S), TIMEOUT_S)
        return sorted(group.group_id for group in found.valid)

    def described(self, names: Sequence[str]) -> dict[str, Group]:
        """The groups of these names; those that Kafka does not describe are left out."""
        if not names:
            return {}
        client = admin(self._settings)
        asked = client.describe_consumer_groups(list(names), request_timeout=COORDINATOR_TIMEOUT_S)
        found = {}
        for name, future in asked.items():
            try:
                group = answered(future, TIMEOUT_S)
            except KafkaException:
                continue
            members = [Member(m.client_id, m.host.lstrip("/"), _partitions(m)) for m in group.members]
            found[name] = Group(name, group.state.name, tuple(members))
        return found

    def committed(self, names: Iterable[str], partitions: Sequence[Partition]) -> dict[str, dict[Partition, Committed]]:
        """For each group its offsets of these partitions; what has no offset is left out, and so is what fails."""
        client = admin(self._settings)
        of = [TopicPartition(*at) for at in partitions]
        asked = {
            name: client.list_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(name, of)], request_timeout=COORDINATOR_TIMEOUT_S
            )[name]
            for name in (names if partitions else ())
        }
        found: dict[str, dict[Partition, Committed]] = {}
        for name, future in asked.items():
            try:
                offsets = answered(future, TIMEOUT_S).topic_partitions
            except KafkaException:
                continue
            found[name] = {
                (each.topic, each.partition): Committed(each.offset, CommitMetadata.of(each.metadata or "").owner)
                for each in offsets
                if each.error is None and each.offset >= 0
            }
        return found

    def times(self, offsets: Mapping[Partition, int], ends: EndOffsets) -> dict[Partition, int]:
        """When the records at these offsets were stored, in ms since the epoch. Where a topic has lost a record to its
        retention, the first that it has counts."""
        if not offsets:
            return {}
        starts = ends.starts(offsets)
        at = {partition: max(offset, starts[partition]) for partition, offset in offsets.items()}
        found = messages_at(self._times, at, TIMEOUT_S)
        return {partition: message.timestamp()[1] for partition, message in found.items()}

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except KafkaException as error:
            text = denied(error.args[0], "the consumer groups", "Describe") or error.args[0].str()
            raise backend_away(f"Kafka at {self._settings.brokers}: {text}") from None


def _partitions(member: Any) -> tuple[Partition, ...]:
    assignment = getattr(member.assignment, "topic_partitions", None) or ()
    return tuple(sorted((each.topic, each.partition) for each in assignment))
