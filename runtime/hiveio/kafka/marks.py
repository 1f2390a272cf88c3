"""How far topics have come: the ends of all partitions in one question, and single records, for gauges."""

import threading
import time
from collections.abc import Generator, Iterable

from confluent_kafka import KafkaException, Message, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka.tail import brief_consumer
from hiveio.kafka.topics import admin

TIMEOUT_S = 5.0

Place = tuple[str, int]  # topic, partition


class Marks:
    """Blocking; each method raises Unavailable within a bound."""

    def __init__(self, settings: Settings) -> None:
        self._admin = admin(settings)
        self._consumer = brief_consumer(settings)
        self._busy = threading.Lock()

    def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        """The end offsets of these partitions."""
        with self._busy:
            try:
                latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
                asked = {TopicPartition(*place): latest for place in places}
                told = self._admin.list_offsets(asked, request_timeout=TIMEOUT_S)
                return {(tp.topic, tp.partition): future.result(2 * TIMEOUT_S).offset for tp, future in told.items()}
            except KafkaException as error:
                raise Unavailable(f"the ends of topics: {error.args[0].str()}") from None
            except TimeoutError:
                raise Unavailable(f"the ends of topics were not told within {2 * TIMEOUT_S:.0f} s") from None

    def read(self, place: Place, offset: int, end: int) -> Generator[Message]:
        """The records from here to ``end``, which is not beyond the end of the partition. It may be left at any one."""
        with self._busy:
            try:
                self._consumer.assign([TopicPartition(*place, offset)])
                while offset < end:
                    message = self._consumer.poll(TIMEOUT_S)
                    failure = message.error() if message is not None else None
                    if message is None or failure is not None:
                        reason = failure.str() if failure is not None else f"no answer within {TIMEOUT_S:.0f} s"
                        raise Unavailable(f"{place[0]}/{place[1]}/{offset} cannot be read: {reason}")
                    offset = (message.offset() or 0) + 1
                    yield message
            except KafkaException as error:
                raise Unavailable(f"{place[0]}/{place[1]}/{offset}: {error.args[0].str()}") from None
            finally:
                self._consumer.unassign()

    def close(self) -> None:
        with self._busy:
            self._consumer.close()


def age_s(time_ms: int) -> float:
    """How long ago something was stored, by the clock of this machine: for a gauge, and for nothing that counts."""
    return max(0.0, time.time() - time_ms / 1000)
