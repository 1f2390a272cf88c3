"""Kafka for the command line: blocking, one thing after the other, with a bound on each."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection, TopicPartition

from hiveio.config import Settings
from hiveio.errors import backend_away
from hiveio.kafka.assigned import UNKNOWN, CommitMetadata, Owner, Partition
from hiveio.kafka.client import answered, client_config, denied, make
from hiveio.kafka.session import Outgoing
from hiveio.kafka.topics import TIMEOUT_S, admin, group_members


class Reader:
    """Reads partitions to their present end, writes records, looks at groups. Every method raises Unavailable."""

    def __init__(self, settings: Settings, group: str = "") -> None:
        self._settings = settings
        own = {"group.id": group or f"{settings.client_id}.reader", "enable.auto.commit": False}
        own["enable.partition.eof"] = True  # a partition may end with what is no record: marks of transactions
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
        """None if there is no such topic."""
        found = self._call(self._consumer.list_topics, topic, timeout=TIMEOUT_S).topics[topic]
        return [] if found.error is not None else [(topic, partition) for partition in sorted(found.partitions)]

    def topic_id(self, topic: str) -> str:
        """Another one where the topic was deleted and made anew."""
        client = admin(self._settings)  # named: its results end with it
        asked = client.describe_topics(TopicCollection([topic]), request_timeout=TIMEOUT_S)
        return str(self._call(answered, asked[topic], TIMEOUT_S).topic_id)

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset and end offset."""
        place = TopicPartition(topic, partition)
        found: tuple[int, int] | None = self._call(self._consumer.get_watermark_offsets, place, timeout=TIMEOUT_S)
        if found is None:
            raise backend_away(f"the end of {topic}/{partition} was not told within {TIMEOUT_S:g} s")
        return found

    def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        """The first offset written at or after this time; the end if there is none."""
        (found,) = self._call(self._consumer.offsets_for_times, [TopicPartition(topic, partition, time_ms)], TIMEOUT_S)
        return int(found.offset) if found.offset >= 0 else self.bounds(topic, partition)[1]

    def read(self, topic: str, partition: int, offset: int, end: int | None = None) -> Iterator[Message]:
        """From this offset to ``end``, which is that of now by default."""
        first, present = self.bounds(topic, partition)
        offset, end = max(first, offset), present if end is None else end
        if offset >= end:
            return
        self._consumer.assign([TopicPartition(topic, partition, offset)])
        try:
            while offset < end:
                first_one = self._call(self._consumer.poll, TIMEOUT_S)  # consume would wait for a full batch
                if first_one is None:
                    raise backend_away(f"{topic}/{partition}/{offset}: no answer within {TIMEOUT_S:g} s")
                for message in [first_one, *self._call(self._consumer.consume, 500, 0)]:
                    if (failure := message.error()) is not None:
                        if failure.code() == KafkaError._PARTITION_EOF:
                            return
                        if failure.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                            continue  # the client looks for a coordinator, whom nobody needs here
                        reason = denied(failure, f"topic {topic}", "Read")
                        raise backend_away(reason or f"{topic}/{partition}: {failure.str()}")
                    offset = message.offset() + 1
                    yield message
        finally:
            self._consumer.unassign()

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
            raise backend_away(f"not all was written: {failed[0] if failed else 'no answer'}")

    def members(self, group: str) -> int:
        """How many instances are in the group."""
        return len(group_members(self._settings, group)[0])

    def delete(self, group: str) -> None:
        """Forget a group without members, if Kafka lets us: its offsets expire anyway."""
        client = admin(self._settings)  # named: its results end with it
        try:
            answered(client.delete_consumer_groups([group], request_timeout=TIMEOUT_S)[group], TIMEOUT_S)
        except KafkaException:
            pass

    def committed(self, places: Sequence[Partition]) -> dict[Partition, int]:
        """The group's offsets, where it has some."""
        asked = [TopicPartition(*place) for place in places]
        found = self._call(self._consumer.committed, asked, timeout=TIMEOUT_S)
        return {(p.topic, p.partition): p.offset for p in found if p.offset >= 0}

    def owners(self, places: Sequence[Partition]) -> dict[Partition, Owner]:
        """Who of the group has these partitions, or had them last; where that is known."""
        if not places:
            return {}
        found = self._call(self._consumer.committed, [TopicPartition(*place) for place in places], timeout=TIMEOUT_S)
        for one in found:
            if one.error is not None and (right := denied(one.error, f"topic {one.topic}", "Describe")) is not None:
                raise backend_away(right)
        noted = {(one.topic, one.partition): CommitMetadata.of(one.metadata or "").owner for one in found}
        return {place: owner for place, owner in noted.items() if owner is not None}

    def commit(self, offsets: dict[Partition, int], owners: dict[Partition, Owner]) -> None:
        """Set the offsets of a group without members, each with the id of its topic and who set it."""
        client = admin(self._settings)  # named: its results end with it
        described = client.describe_topics(TopicCollection(sorted({topic for topic, _ in offsets})))
        ids = {topic: str(self._call(found.result).topic_id) for topic, found in described.items()}
        notes = {at: str(CommitMetadata(UNKNOWN, ids[at[0]], owner=owners[at])) for at in offsets}
        noted = [TopicPartition(*at, offset, notes[at]) for at, offset in offsets.items()]
        self._call(self._consumer.commit, offsets=noted, asynchronous=False)

    def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except (KafkaException, BufferError) as error:
            reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            raise backend_away(f"Kafka at {self._settings.brokers}: {reason}") from None
