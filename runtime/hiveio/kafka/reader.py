"""Kafka for the command line: blocking calls, one after the other, each with a bound."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Self, cast

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicCollection, TopicPartition

from hiveio.config import Settings
from hiveio.errors import backend_away
from hiveio.kafka.assigned import UNKNOWN, CommitMetadata, Owner, Partition
from hiveio.kafka.client import COORDINATOR_TIMEOUT_S, answered, client_config, denied, make
from hiveio.kafka.reading import bounds, committed, messages
from hiveio.kafka.session_clients import Outgoing
from hiveio.kafka.topics import TIMEOUT_S, admin, group_members

AT_ONCE = 500  # messages that are kept while they are handed out


class Reader:
    """Reads partitions to their present end, writes records, looks at groups. Every method raises Unavailable."""

    def __init__(self, settings: Settings, group: str = "") -> None:
        self._settings = settings
        own = {"group.id": group or f"{settings.client_id}.reader", "enable.auto.commit": False}
        own["enable.partition.eof"] = True  # a partition may end with transaction markers, which are no records
        self._consumer = make(Consumer, client_config(settings) | own | {"auto.offset.reset": "error"})
        self._producer: Producer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._consumer.close()

    def topics(self) -> list[str]:
        return sorted(self._call(self._consumer.list_topics, timeout=TIMEOUT_S).topics)

    def partitions(self, topic: str) -> list[Partition]:
        """An empty list if there is no such topic."""
        found = self._call(self._consumer.list_topics, topic, timeout=TIMEOUT_S).topics[topic]
        return [] if found.error is not None else [(topic, partition) for partition in sorted(found.partitions)]

    def topic_id(self, topic: str) -> str:
        """It changes when the topic is deleted and created again."""
        client = admin(self._settings)  # named: its results end with it
        asked = client.describe_topics(TopicCollection([topic]), request_timeout=TIMEOUT_S)
        return str(self._call(answered, asked[topic], TIMEOUT_S).topic_id)

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset and end offset."""
        return cast(tuple[int, int], self._call(bounds, self._consumer, topic, partition, TIMEOUT_S))

    def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        """The first offset written at or after this time; the end if there is none."""
        (found,) = self._call(self._consumer.offsets_for_times, [TopicPartition(topic, partition, time_ms)], TIMEOUT_S)
        return int(found.offset) if found.offset >= 0 else self.bounds(topic, partition)[1]

    def read(self, topic: str, partition: int, offset: int, end: int | None = None) -> Iterator[Message]:
        """The messages from this offset up to ``end``, which is the present end by default."""
        first, present = self.bounds(topic, partition)
        offset, end = max(first, offset), present if end is None else end
        if offset >= end:
            return
        with closing(messages(self._consumer, topic, partition, offset, TIMEOUT_S, end=end, at_once=AT_ONCE)) as found:
            yield from found

    def write(self, records: Sequence[tuple[str, int, Outgoing]]) -> None:
        """Return when all are stored."""
        if self._producer is None:
            own = {"enable.idempotence": True, "acks": "all"}
            self._producer = make(Producer, client_config(self._settings) | own)
        failed: list[str] = []

        def report(error: Any, message: Message) -> None:
            if error is not None:
                failed.append(error.str())

        for topic, partition, (key, value, headers) in records:
            self._call(self._producer.produce, topic, value, key, partition, headers=headers, on_delivery=report)
            self._producer.poll(0)
        if self._producer.flush(TIMEOUT_S * 3) or failed:
            raise backend_away(
                f"not all records were written: {failed[0] if failed else 'Kafka gave no answer in time'}"
            )

    def members(self, group: str) -> int:
        """How many instances are in the group."""
        return len(group_members(self._settings, group)[0])

    def delete(self, group: str) -> None:
        """Forget a group without members, if Kafka lets us: its offsets expire anyway."""
        client = admin(self._settings)  # named: its results end with it
        try:
            asked = client.delete_consumer_groups([group], request_timeout=COORDINATOR_TIMEOUT_S)
            answered(asked[group], TIMEOUT_S)
        except KafkaException:
            pass

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The group's offsets; partitions without one are left out."""
        return {key: offset for key, (offset, _) in self._committed(partitions).items()}

    def owners(self, partitions: Sequence[Partition]) -> dict[Partition, Owner]:
        """The members that have these partitions, or had them last, as far as that is known."""
        found = self._committed(partitions) if partitions else {}
        return {key: metadata.owner for key, (_, metadata) in found.items() if metadata.owner is not None}

    def _committed(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, CommitMetadata]]:
        def ask() -> dict[Partition, tuple[int, CommitMetadata]]:
            try:
                return committed(self._consumer, partitions, TIMEOUT_S)
            except KafkaException as error:
                what = f"the group's offsets of {', '.join(sorted({topic for topic, _ in partitions}))}"
                if (right := denied(error.args[0], what, "Describe")) is not None:
                    raise backend_away(right) from None
                raise

        return cast(dict[Partition, tuple[int, CommitMetadata]], self._call(ask))

    def commit(self, offsets: dict[Partition, int], owners: dict[Partition, Owner]) -> None:
        """Set the offsets of a group without members, each with the id of its topic and its owner."""
        client = admin(self._settings)  # named: its results end with it
        described = client.describe_topics(TopicCollection(sorted({topic for topic, _ in offsets})))
        ids = {topic: str(self._call(found.result).topic_id) for topic, found in described.items()}
        metadata = {at: str(CommitMetadata(UNKNOWN, ids[at[0]], owner=owners[at])) for at in offsets}
        found_owners = [TopicPartition(*at, offset, metadata[at]) for at, offset in offsets.items()]
        self._call(self._consumer.commit, offsets=found_owners, asynchronous=False)

    def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except (KafkaException, BufferError) as error:
            reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            raise backend_away(f"Kafka at {self._settings.brokers}: {reason}") from None
