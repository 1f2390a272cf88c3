"""The metrics of a consumer. They are counted in plain integers, and written to the shared values now and then."""

from hiveio.consumer.routing import Counts
from hiveio.metrics import Counter, Gauge

_EVERY = ["topic", "partition"]
_events = Counter("hiveio_consumer_events_total", "Records that were read, by what became of them", ["outcome"])
# One worker owns a partition at a time, so the sum over the workers is its owner's value.
_records = Gauge("hiveio_consumer_lag_records", "Records that are not handled yet", _EVERY, multiprocess_mode="livesum")
_seconds = Gauge(
    "hiveio_consumer_lag_seconds", "Age of the oldest record not handled yet", _EVERY, multiprocess_mode="livesum"
)
_parked = Gauge(
    "hiveio_consumer_parked_keys", "Keys that wait behind dead letters", _EVERY, multiprocess_mode="livesum"
)


class ConsumerMetrics:
    """The counts of one consumer, and how far its partitions are."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._flushed = dict.fromkeys(Counts.__slots__, 0)

    def flush(self) -> None:
        for outcome, flushed in self._flushed.items():
            now = getattr(self._counts, outcome)
            if now > flushed:
                _events.labels(outcome).inc(now - flushed)
                self._flushed[outcome] = now

    @staticmethod
    def set(topic: str, partition: int, records: int = 0, seconds: float = 0.0, parked: int = 0) -> None:
        partition_labels = (topic, str(partition))
        _records.labels(*partition_labels).set(records)
        _seconds.labels(*partition_labels).set(seconds)
        _parked.labels(*partition_labels).set(parked)
