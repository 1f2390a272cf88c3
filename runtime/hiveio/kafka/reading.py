"""Reads partitions with one client, blocking: their bounds, their committed offsets, their messages; all with a bound.

All that read single records or stretches of a topic do it with these functions; `tail` follows one for good.
"""

from collections.abc import Generator, Iterable, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from hiveio.errors import backend_away
from hiveio.kafka.assigned import CommitMetadata, Partition
from hiveio.kafka.client import denied


def bounds(client: Consumer, topic: str, partition: int, timeout_s: float) -> tuple[int, int]:
    """First offset and end offset. Raises KafkaException, also when Kafka does not answer in time."""
    found: tuple[int, int] | None = client.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout_s)
    if found is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return found


def committed(
    client: Consumer, partitions: Iterable[Partition], timeout_s: float
) -> dict[Partition, tuple[int, CommitMetadata]]:
    """The offsets of the client's group and what is committed with them; partitions without an offset are left out.
    Raises KafkaException, also for a failure that concerns one partition."""
    found: list[TopicPartition] = client.committed([TopicPartition(*key) for key in partitions], timeout=timeout_s)
    for one in found:
        if one.error is not None:
            raise KafkaException(one.error)
    return {(p.topic, p.partition): (p.offset, CommitMetadata.of(p.metadata or "")) for p in found if p.offset >= 0}


def messages(
    client: Consumer,
    topic: str,
    partition: int,
    offset: int,
    timeout_s: float,
    *,
    end: int | None = None,
    at_once: int = 1,
) -> Generator[Message]:
    """The messages from this offset up to ``end``, or to the partition's end when the client comes to it.

    The client reads ahead until the generator is closed. It must report ends (``enable.partition.eof``): the last
    offsets may hold transaction markers, which are no messages. Up to ``at_once`` messages are kept in memory, besides
    what the client keeps. Raises Unavailable when Kafka refuses, or sends nothing for ``timeout_s``.
    """
    try:
        client.assign([TopicPartition(topic, partition, offset)])
        while True:
            first = client.poll(timeout_s)  # consume alone would wait for all of at_once
            if first is None:
                raise backend_away(
                    f"{topic}/{partition}/{offset} cannot be read: Kafka gave no answer within {timeout_s:g} s"
                )
            for message in [first, *(client.consume(at_once - 1, 0) if at_once > 1 else ())]:
                if (failure := message.error()) is None:
                    offset = (message.offset() or 0) + 1
                    if end is None or offset <= end:
                        yield message
                    if end is not None and offset >= end:
                        return
                elif failure.code() == KafkaError._PARTITION_EOF:
                    return
                elif failure.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:  # no coordinator is needed here
                    reason = denied(failure, f"topic {topic}", "Read")
                    raise backend_away(reason or f"{topic}/{partition}/{offset} cannot be read: {failure.str()}")
    except KafkaException as error:
        raise backend_away(f"{topic}/{partition}/{offset} cannot be read: {error.args[0].str()}") from None
    finally:
        client.unassign()


def messages_at(client: Consumer, offsets: Mapping[Partition, int], timeout_s: float) -> dict[Partition, Message]:
    """For each partition the message at this offset, or the first one after it (transaction markers are no messages);
    partitions that end before are left out. They are read together. The client must report ends.

    Raises Unavailable when Kafka refuses, or sends nothing for ``timeout_s``.
    """
    found: dict[Partition, Message] = {}
    missing = set(offsets)

    def where() -> str:
        topic, partition = min(missing)
        return f"{topic}/{partition}/{offsets[topic, partition]}"

    try:
        client.assign([TopicPartition(*at, offset) for at, offset in offsets.items()])
        while missing:
            message = client.poll(timeout_s)
            if message is None:
                raise backend_away(f"{where()} cannot be read: Kafka gave no answer within {timeout_s:g} s")
            failure, at = message.error(), (message.topic() or "", message.partition() or 0)
            if failure is None or failure.code() == KafkaError._PARTITION_EOF:
                if failure is None and at in missing:
                    found[at] = message
                missing.discard(at)
            elif failure.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:  # no coordinator is needed here
                reason = denied(failure, f"topic {at[0]}", "Read")
                raise backend_away(reason or f"{where()} cannot be read: {failure.str()}")
    except KafkaException as error:
        raise backend_away(f"{where()} cannot be read: {error.args[0].str()}") from None
    finally:
        client.unassign()
    return found
