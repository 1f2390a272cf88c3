"""The metrics of the engine. They are counted as plain numbers and copied to the shared values now and then.

docs/operations.md says what each of them is for.
"""

import logging
import time
from collections import Counter as Counts

from hiveio.metrics import SECONDS, Counter, Gauge, Histogram, Timings

logger = logging.getLogger("hiveio.transaction")

REPORT_S = 30.0  # between two lines about records of others

_KIND = ["actor", "command"]
_commands = Counter("hiveio_commands_total", "Commands by actor, type and outcome", [*_KIND, "outcome"])
_seconds = Histogram("hiveio_command_seconds", "Time from a command to its answer, in seconds", _KIND, buckets=SECONDS)
_models = Gauge(
    "hiveio_models_info", "The fingerprint of the models, which names the cache", ["fingerprint"],
    multiprocess_mode="livemax",
)  # fmt: skip
_retries = Counter("hiveio_command_retries_total", "Attempts of commands beyond the first")
_voids = Counter("hiveio_void_records_total", "Records of this service that were read back void")
_lock_waits = Counter("hiveio_lock_waits_total", "Times that the lock of an aggregate was held by another instance")
_in_flight = Gauge(
    "hiveio_commands_in_flight", "Commands that were accepted and are not answered yet", multiprocess_mode="livesum"
)
_cancelled = Counter("hiveio_performs_cancelled_total", "Performs that had not ended at the deadline of their command")
_abandoned = Gauge(
    "hiveio_performs_abandoned", "Performs that go on after their cancellation", multiprocess_mode="livesum"
)
_phases = Histogram("hiveio_command_phase_seconds", "Time of a phase of commands", ["phase"], buckets=SECONDS)
_behind = Gauge("hiveio_fold_lag_records", "Records to fold until caught up", ["scope"], multiprocess_mode="livemax")
_unapplied = Gauge(
    "hiveio_watermark_lag_records",
    "Records judged and not in the cache",
    ["scope"],
    multiprocess_mode="livemax",
)
_unpublished = Gauge(
    "hiveio_publisher_lag_records",
    "Records of the log from the first one whose events are not on the event topic",
    ["scope"],
    multiprocess_mode="livemax",
)
_unpublished_s = Gauge(
    "hiveio_publisher_lag_seconds",
    "Age of the oldest event that is not on the event topic",
    ["scope"],
    multiprocess_mode="livemax",
)
_quarantined = Gauge(
    "hiveio_quarantined_aggregates",
    "Aggregates that this version cannot fold and refuses",
    ["scope"],
    multiprocess_mode="livemax",
)
_due = Gauge(
    "hiveio_processes_due",
    "Processes with a deadline that is due and has not fired",
    ["scope"],
    multiprocess_mode="livemax",
)
_failing = Gauge(
    "hiveio_processes_failing",
    "Processes whose deadline could not be fired and is tried again",
    ["scope"],
    multiprocess_mode="livemax",
)
_running = Gauge(
    "hiveio_processes_running", "Processes that have begun and not ended", ["scope"], multiprocess_mode="livemax"
)
_unanswered = Gauge(
    "hiveio_command_oldest_unanswered_seconds",
    "How long ago the oldest command was sent that is not answered, by the log's clock",
    ["scope"],
    multiprocess_mode="livemax",
)
_stuck = Gauge(
    "hiveio_processes_stuck", "Processes that cannot go on until somebody looks", ["scope"], multiprocess_mode="livemax"
)
_stuck_total = Counter("hiveio_stuck_total", "Inputs at which a process was stuck")
_foreign = Counter("hiveio_foreign_records_total", "Records of others on a topic of this service", ["partition"])
published = Counter("hiveio_published_events_total", "Events sent to the event topic")
sent = Counter("hiveio_published_commands_total", "Commands of processes sent to the topic of commands")
outbox_behind = Gauge(
    "hiveio_outbox_lag_records",
    "Records of the log whose commands are not on the topic of commands, as far as its leader knows",
    ["scope"],
    multiprocess_mode="livemax",
)
followed = Gauge("hiveio_followed_scopes", "Scopes that are used, led or looked after", multiprocess_mode="livesum")


class ForeignRecords:
    """Records that others wrote where only this service may write. They are counted, and logged at most every
    ``REPORT_S``."""

    def __init__(self, where: str, what: str) -> None:
        self._where, self._what = where, what
        self._count, self._next = 0, 0.0
        self._total = _foreign.labels(where)

    def met(self, offset: int) -> None:
        self._total.inc()
        self._count += 1
        if (now := time.monotonic()) > self._next:
            self._next = now + REPORT_S
            text = "%s/%s is %s. There are %s such records since the last line; find out who writes to this topic"
            logger.critical(text, self._where, offset, self._what, self._count)
            self._count = 0


class CommandMetrics:
    """The numbers of one engine. A command has the phases ``begin`` (queue, lock and read), ``perform`` (the actor) and
    ``verdict`` (append and read back); ``apply`` is one call that applies a group of records to the cache."""

    def __init__(self) -> None:
        self._outcomes: Counts[tuple[str, str, str]] = Counts()
        self._seconds: dict[tuple[str, str], Timings] = {}
        self._voids = self._retries = self._lock_waits = self._cancelled = 0
        self.begin, self.perform, self.verdict = map(phase, ("begin", "perform", "verdict"))

    def over(self, actor: str, command: str, outcome: str, seconds: float, retries: int) -> None:
        """A command of this type is answered."""
        self._outcomes[actor, command, outcome] += 1
        self._retries += retries
        timings = self._seconds.get((actor, command))
        if timings is None:
            timings = self._seconds[actor, command] = Timings(_seconds.labels(actor, command))
        timings.observe(seconds)

    def void(self) -> None:
        """A record of a command was read back void."""
        self._voids += 1

    def lock_busy(self) -> None:
        """Another instance had the lock."""
        self._lock_waits += 1

    def perform_cancelled(self) -> None:
        self._cancelled += 1

    def stuck(self) -> None:
        _stuck_total.inc()

    def flush(self, in_flight: int, abandoned: int) -> None:
        for labels, count in self._outcomes.items():
            _commands.labels(*labels).inc(count)
        self._outcomes.clear()
        for counter, count in (
            (_voids, self._voids),
            (_retries, self._retries),
            (_lock_waits, self._lock_waits),
            (_cancelled, self._cancelled),
        ):
            if count:
                counter.inc(count)
        self._voids = self._retries = self._lock_waits = self._cancelled = 0
        _in_flight.set(in_flight)
        _abandoned.set(abandoned)


class ProcessGauges:
    """The processes of one scope. Its leader shows them."""

    def __init__(self, scope: int) -> None:
        gauges = (_due, _failing, _running, _stuck, _unanswered)
        self._due, self._failing, *self._listed = [gauge.labels(str(scope)) for gauge in gauges]

    def due(self, due: int, failing: int) -> None:
        self._due.set(due)
        self._failing.set(failing)

    def listed(self, running: int, stuck: int, unanswered_s: float) -> None:
        for gauge, value in zip(self._listed, (running, stuck, unanswered_s), strict=True):
            gauge.set(value)

    def clear(self) -> None:
        """Another instance leads."""
        self.due(0, 0)
        self.listed(0, 0, 0.0)


class LagGauges:
    """How far one scope is behind."""

    def __init__(self, scope: int) -> None:
        gauges = (_behind, _unapplied, _unpublished, _unpublished_s, _quarantined)
        self._gauges = [gauge.labels(str(scope)) for gauge in gauges]

    def set(self, behind: int, unapplied: int, unpublished: int, unpublished_s: float, quarantined: int) -> None:
        values = (behind, unapplied, unpublished, unpublished_s, quarantined)
        for gauge, value in zip(self._gauges, values, strict=True):
            gauge.set(max(0, value))

    def clear(self) -> None:
        """The scope is not followed any more."""
        self.set(0, 0, 0, 0.0, 0)


def models(fingerprint: str) -> None:
    """Show the fingerprint of this version of the models."""
    _models.labels(fingerprint).set(1)


def phase(name: str) -> Timings:
    return Timings(_phases.labels(name))
