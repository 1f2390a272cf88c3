"""How far topics have come: the ends of all their partitions in one question."""

import time
from collections.abc import Iterable

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from hiveio.config import Settings
from hiveio.errors import backend_away
from hiveio.kafka.assigned import Partition
from hiveio.kafka.topics import admin

TIMEOUT_S = 5.0


class Marks:
    """Asks with one small call for all that is asked for at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.renew()

    def renew(self) -> None:
        """Ask with a client that learns anew who leads. The old one ends when nobody uses it any more."""
        self._admin = admin(self._settings)

    def ends(self, places: Iterable[Partition]) -> dict[Partition, int]:
        """The end offsets of these partitions. Blocking; raises Unavailable."""
        try:
            latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
            asked = {TopicPartition(*place): latest for place in places}
            client = self._admin  # named: its results end with it
            told = client.list_offsets(asked, request_timeout=TIMEOUT_S)
            return {(tp.topic, tp.partition): future.result(2 * TIMEOUT_S).offset for tp, future in told.items()}
        except KafkaException as error:
            raise backend_away(f"the ends of topics: {error.args[0].str()}") from None
        except TimeoutError:
            raise backend_away(f"the ends of topics were not told within {2 * TIMEOUT_S:.0f} s") from None


def age_s(time_ms: int) -> float:
    """How long ago something was stored, by the clock of this machine: for a gauge, and for nothing that counts."""
    return max(0.0, time.time() - time_ms / 1000)
