"""Reading a partition from end to end, for the command-line tool. Blocking."""

import time
from collections.abc import Iterator

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from hiveio.config import Settings
from hiveio.errors import NotFound, Unavailable
from hiveio.kafka.tail import LogRecord, _consumer, _record

MOST = 5_000  # records at once
SILENCE_S = 30.0  # after which a broker that should have more to say is away


class Scan:
    """One partition of a topic. Close it after use."""

    def __init__(self, settings: Settings, topic: str, partition: int) -> None:
        self.where = f"{topic}/{partition}"
        self._at = TopicPartition(topic, partition, 0)
        self._consumer: Consumer = _consumer(settings)
        self._assigned = False

    def end(self) -> int:
        """The end offset now. Raises Unavailable."""
        try:
            found = self._consumer.get_watermark_offsets(self._at, timeout=10)
        except KafkaException as error:
            raise Unavailable(f"the end of {self.where}: {error.args[0].str()}") from None
        if found is None:
            raise Unavailable(f"the end of {self.where} was not told")
        return found[1]

    def messages(self, end: int) -> Iterator[Message]:
        """The messages from where it stands (first: the start) to below ``end``. Raises Unavailable."""
        if not self._assigned:
            self._consumer.assign([self._at])
            self._assigned = True
        heard = time.monotonic()
        while self._at.offset < end:
            for message in self._consumer.consume(min(MOST, end - self._at.offset), 1.0):
                if (error := message.error()) is not None:
                    raise Unavailable(f"{self.where}: {error.str()}")
                heard = time.monotonic()
                self._at.offset = (message.offset() or 0) + 1
                yield message
            if time.monotonic() - heard > SILENCE_S:
                raise Unavailable(f"{self.where}: nothing came from offset {self._at.offset} for {SILENCE_S:.0f} s")

    def records(self, end: int) -> Iterator[LogRecord]:
        return map(_record, self.messages(end))

    def close(self) -> None:
        self._consumer.close()


def partitions(settings: Settings, topic: str) -> int:
    """How many partitions a topic has. Raises NotFound, Unavailable."""
    consumer = _consumer(settings)
    try:
        found = consumer.list_topics(topic, timeout=10).topics.get(topic)
    except KafkaException as error:
        raise Unavailable(f"Kafka at {settings.brokers}: {error.args[0].str()}") from None
    finally:
        consumer.close()
    if found is None or found.error is not None:
        raise NotFound(f"there is no topic {topic} at {settings.brokers}")
    return len(found.partitions)
