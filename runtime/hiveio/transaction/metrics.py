"""What can be seen of the engine from outside."""

from hiveio.metrics import Counter, Gauge, Histogram

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

commands = Counter("hiveio_commands_total", "Commands by outcome", ["outcome"])
voids = Counter("hiveio_void_records_total", "Records read back void")
lock_seconds = Histogram("hiveio_lock_seconds", "Time to lock and begin", buckets=_FAST)
in_flight = Gauge("hiveio_commands_in_flight", "Commands taken and not answered", multiprocess_mode="livesum")
published = Counter("hiveio_published_events_total", "Events sent to the event topic")
