"""The end offsets of all partitions of topics, in one request."""

import time
from collections.abc import Iterable

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from hiveio.config import Settings
from hiveio.errors import Unavailable, backend_away
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
        return self._all(partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def known(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The end offsets of those partitions whose leaders answer. Blocking; raises Unavailable where none does."""
        found, failure = self._ask(partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        if failure is not None and not found:
            raise failure
        return found

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The first offsets. Blocking; raises Unavailable."""
        return self._all(partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def since(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int]:
        """The first offsets that were written at this time or later; partitions without one are left out. Blocking;
        raises Unavailable."""
        spec = OffsetSpec.for_timestamp(time_ms)
        return {at: offset for at, offset in self._all(partitions, spec).items() if offset >= 0}

    def _all(self, partitions: Iterable[Partition], spec: OffsetSpec) -> dict[Partition, int]:
        found, failure = self._ask(partitions, spec)
        if failure is not None:
            raise failure
        return found

    def _ask(
        self, partitions: Iterable[Partition], spec: OffsetSpec
    ) -> tuple[dict[Partition, int], Unavailable | None]:
        asked = {TopicPartition(*partition): spec for partition in partitions}
        found: dict[Partition, int] = {}
        failure: Unavailable | None = None
        if not asked:
            return found, failure
        client = self._admin  # named: its results end with it
        try:
            results = client.list_offsets(asked, request_timeout=TIMEOUT_S)
        except KafkaException as error:
            return found, _unknown(error)
        for tp, future in results.items():
            try:
                found[tp.topic, tp.partition] = future.result(2 * TIMEOUT_S).offset
            except KafkaException as error:
                failure = _unknown(error)
            except TimeoutError:
                failure = backend_away(f"Kafka did not say within {2 * TIMEOUT_S:.0f} s where partitions end")
                break  # no answer comes for the others either
        return found, failure


def _unknown(error: KafkaException) -> Unavailable:
    return backend_away(f"Kafka did not say where partitions end: {error.args[0].str()}")


def age_s(time_ms: int) -> float:
    """How long ago something was stored, by the clock of this machine: for a gauge, and for no decision."""
    return max(0.0, time.time() - time_ms / 1000)
