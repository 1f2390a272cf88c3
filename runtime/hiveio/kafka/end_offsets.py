"""The end offsets of all partitions of topics, in one request."""

import time
from collections.abc import Iterable

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from hiveio.config import Settings
from hiveio.errors import backend_away
from hiveio.kafka.assigned import Partition
from hiveio.kafka.topics import admin

TIMEOUT_S = 5.0


class EndOffsets:
    """Looks up many end offsets with one small request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.renew()

    def renew(self) -> None:
        """Replace the client, so that it looks up the leaders. The old one ends when nothing uses it any more."""
        self._admin = admin(self._settings)

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The end offsets of these partitions. Blocking; raises Unavailable."""
        return self._offsets(partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The first offsets. Blocking; raises Unavailable."""
        return self._offsets(partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def since(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int]:
        """The first offsets that were written at this time or later; partitions without one are left out. Blocking;
        raises Unavailable."""
        spec = OffsetSpec.for_timestamp(time_ms)
        return {at: offset for at, offset in self._offsets(partitions, spec).items() if offset >= 0}

    def _offsets(self, partitions: Iterable[Partition], spec: OffsetSpec) -> dict[Partition, int]:
        try:
            asked = {TopicPartition(*partition): spec for partition in partitions}
            if not asked:
                return {}
            client = self._admin  # named: its results end with it
            results = client.list_offsets(asked, request_timeout=TIMEOUT_S)
            return {(tp.topic, tp.partition): future.result(2 * TIMEOUT_S).offset for tp, future in results.items()}
        except KafkaException as error:
            raise backend_away(f"Kafka did not say where partitions end: {error.args[0].str()}") from None
        except TimeoutError:
            raise backend_away(f"Kafka did not say within {2 * TIMEOUT_S:.0f} s where partitions end") from None


def age_s(time_ms: int) -> float:
    """How long ago something was stored, by the clock of this machine: for a gauge, and for no decision."""
    return max(0.0, time.time() - time_ms / 1000)
