"""What can be seen of the engine from outside. Counted in plain integers, written to the shared values now and then."""

from collections import Counter as Counts

from hiveio.metrics import Counter, Gauge

_commands = Counter("hiveio_commands_total", "Commands by outcome", ["outcome"])
_voids = Counter("hiveio_void_records_total", "Records of this service that were read back void")
_in_flight = Gauge("hiveio_commands_in_flight", "Commands taken and not answered", multiprocess_mode="livesum")
published = Counter("hiveio_published_events_total", "Events sent to the event topic")


class Tally:
    """The counts of one engine."""

    def __init__(self) -> None:
        self.outcomes: Counts[str] = Counts()
        self.voids = 0

    def flush(self, in_flight: int) -> None:
        for outcome, count in self.outcomes.items():
            _commands.labels(outcome).inc(count)
        self.outcomes.clear()
        if self.voids:
            _voids.inc(self.voids)
            self.voids = 0
        _in_flight.set(in_flight)
