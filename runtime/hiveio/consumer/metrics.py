"""What can be seen of a consumer from outside. Counted in plain integers, written to the shared values now and then."""

from hiveio.consumer.routing import Counts
from hiveio.metrics import Counter, Gauge

_EVERY = ["topic", "partition"]
_events = Counter("hiveio_consumer_events_total", "Records by what became of them", ["outcome"])
# A partition is one worker's at a time, so the sum over the workers is its owner's value.
_records = Gauge("hiveio_consumer_lag_records", "Records not handled yet", _EVERY, multiprocess_mode="livesum")
_seconds = Gauge("hiveio_consumer_lag_seconds", "Age of the oldest of them", _EVERY, multiprocess_mode="livesum")
_parked = Gauge("hiveio_consumer_parked_keys", "Keys with dead letters", _EVERY, multiprocess_mode="livesum")


class Tally:
    """The counts of one consumer."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._told = dict.fromkeys(Counts.__slots__, 0)

    def flush(self) -> None:
        for outcome, told in self._told.items():
            now = getattr(self._counts, outcome)
            if now > told:
                _events.labels(outcome).inc(now - told)
                self._told[outcome] = now

    @staticmethod
    def set(topic: str, partition: int, records: int = 0, seconds: float = 0.0, parked: int = 0) -> None:
        place = (topic, str(partition))
        _records.labels(*place).set(records)
        _seconds.labels(*place).set(seconds)
        _parked.labels(*place).set(parked)
