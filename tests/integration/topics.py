"""A topic as tests see it: made, written and read with clients of their own."""

from collections.abc import Iterable, Mapping

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from tests.process import wait_until

Written = tuple[int, str | bytes | None, bytes | None, Mapping[str, str]]  # partition, key, value, headers


def make_topic(brokers: str, topic: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 4})
    admin.create_topics([NewTopic(topic, partitions, 1, config=dict(config or {}))])[topic].result(30)


def write(brokers: str, topic: str, records: Iterable[Written]) -> None:
    """Write and return when all is stored."""
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})
    failed = []
    for partition, key, value, headers in records:
        producer.produce(
            topic,
            value,
            key,
            partition,
            headers=list(headers.items()),
            on_delivery=lambda error, message: failed.append(error) if error else None,
        )
        producer.poll(0)
    assert producer.flush(30) == 0
    assert not failed


def read_all(brokers: str, topic: str) -> list[Message]:
    """Everything that is in a topic now, read by a fresh client."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "reader", "enable.auto.commit": False})
    try:
        partitions = [TopicPartition(topic, p, 0) for p in consumer.list_topics(topic, 10).topics[topic].partitions]
        ends = {p.partition: consumer.get_watermark_offsets(p, 10)[1] for p in partitions}
        consumer.assign(partitions)
        found: list[Message] = []
        while len(found) < sum(ends.values()):
            first = consumer.poll(10)
            assert first is not None, f"{topic}: {len(found)} of {sum(ends.values())} records"
            for message in [first, *consumer.consume(500, 0)]:
                assert message.error() is None
                found.append(message)
        return found
    finally:
        consumer.close()


def committed(brokers: str, group: str, topic: str, partition: int = 0) -> tuple[int, str]:
    """Offset and note; -1001 when there is none."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": group})
    try:
        (found,) = consumer.committed([TopicPartition(topic, partition)], 10)
        return found.offset, found.metadata or ""
    finally:
        consumer.close()


def configure(brokers: str, topic: str, config: Mapping[str, str]) -> None:
    """Set these properties of a topic, leave the others as they are, and return when the broker knows them."""
    entries = [ConfigEntry(name, text, incremental_operation=AlterConfigOpType.SET) for name, text in config.items()]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin = AdminClient({"bootstrap.servers": brokers})  # named: its results end with it
    admin.incremental_alter_configs([resource])[resource].result(30)
    asked = ConfigResource(ResourceType.TOPIC, topic)

    def are_known() -> bool:
        """The controller confirms them, and the broker comes to know them a moment later."""
        found = admin.describe_configs([asked])[asked].result(30)
        return all(found[name].value == text for name, text in config.items())

    wait_until(are_known, 20, f"{dict(config)} of {topic}")


def largest_record(brokers: str, topic: str, size: int) -> None:
    """Set the bytes of the largest record that the topic takes."""
    configure(brokers, topic, {"max.message.bytes": str(size)})
