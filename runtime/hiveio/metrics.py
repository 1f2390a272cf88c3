"""Prometheus over all workers of a process.

``prometheus_client`` decides at its import whether its values are shared between processes, so it is imported here, in
one place, after the folder for the shared values was made. Import ``Counter``, ``Gauge`` and ``Histogram`` from here.
"""

import atexit
import os
import platform
import shutil
import tempfile
from bisect import bisect_left
from collections import defaultdict

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # with which the client finds the folder


def _folder() -> str:
    """An empty folder of this process and its workers, in memory where that is possible.

    Always a new one: a folder inherited with the environment belongs to another process.
    """
    memory = "/dev/shm"
    made = tempfile.mkdtemp(prefix="hiveio-metrics-", dir=memory if os.access(memory, os.W_OK) else None)
    os.environ[VARIABLE] = made
    return made


folder = _folder()
_owner = os.getpid()


def remove() -> None:
    """Remove the shared values. What is counted later is lost."""
    shutil.rmtree(folder, ignore_errors=True)


# Workers are forks and run exit handlers too: only the owner removes the folder.
atexit.register(lambda: remove() if os.getpid() == _owner else None)

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest  # noqa: E402
from prometheus_client.exposition import CONTENT_TYPE_LATEST  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

__all__ = [
    "CONTENT_TYPE_LATEST",
    "Counter",
    "Gauge",
    "Histogram",
    "ProcessMetrics",
    "RequestMetrics",
    "Timings",
    "exposition",
    "flush",
    "gauges",
    "remove",
    "worker_gone",
]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_requests = Counter("hiveio_http_requests_total", "HTTP requests that were answered", ["method", "route", "status"])
_seconds = Histogram(
    "hiveio_http_request_seconds", "Time from a request to its answer, in seconds", ["method", "route"], buckets=SECONDS
)
_build = Gauge(
    "hiveio_build_info", "The version of hiveio and of Python", ["version", "python", "service"],
    multiprocess_mode="livemax",
)  # fmt: skip
# prometheus_client's own registry has metrics of these names for one process; that of all workers has no others.
_cpu = Counter("process_cpu_seconds_total", "CPU time of the workers, in seconds", registry=None)
_process = {
    name: Gauge(name, text, multiprocess_mode=mode, registry=None)  # type: ignore[arg-type]
    for name, text, mode in (
        ("process_resident_memory_bytes", "Resident memory of the workers; they share some of it", "livesum"),
        ("process_open_fds", "Open files of the workers", "livesum"),
        ("process_max_fds", "Files that the workers may open", "livesum"),
        ("process_start_time_seconds", "When the newest worker started, in seconds since the epoch", "livemax"),
    )
}
_own = ProcessCollector(registry=None)
_timings: list["Timings"] = []


class Timings:
    """Observes times for a histogram with the buckets SECONDS, in plain numbers.

    A shared value costs a lock and a write to a mapped file, several of them an observation; so they are written in
    groups, by ``flush``, a few times a second.
    """

    __slots__ = ("_counts", "_histogram", "_sum")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0
        _timings.append(self)

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def flush(self) -> None:
        if not self._sum:
            return
        # prometheus_client has no way to add a group of observations: its own fields, pinned and covered by a test.
        histogram = self._histogram
        for index, count in enumerate(self._counts):
            if count:
                histogram._buckets[index].inc(count)
                self._counts[index] = 0
        histogram._sum.inc(self._sum)
        self._sum = 0.0


class RequestMetrics(Timings):
    """Counts and times the requests of one method and route."""

    __slots__ = ("_counters", "_labels", "_statuses")

    def __init__(self, method: str, route: str) -> None:
        super().__init__(_seconds.labels(method, route))
        self._labels = (method, route)
        self._counters: dict[int, Counter] = {}
        self._statuses: dict[int, int] = defaultdict(int)

    def add(self, status: int, seconds: float) -> None:
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds
        self._statuses[status] += 1

    def flush(self) -> None:
        statuses, self._statuses = self._statuses, defaultdict(int)
        for status, count in statuses.items():
            counter = self._counters.get(status)
            if counter is None:
                counter = self._counters[status] = _requests.labels(*self._labels, str(status))
            counter.inc(count)
        super().flush()


def flush() -> None:
    """Write all observations to the shared values."""
    for timings in _timings:
        timings.flush()


class ProcessMetrics:
    """What a worker process needs of its machine. prometheus_client measures one process, and shows it of one that has
    no others."""

    def __init__(self, version: str, service: str) -> None:
        self._cpu_s = 0.0
        _build.labels(version, platform.python_version(), service).set(1)

    def measure(self) -> None:
        for family in _own.collect():
            value = family.samples[0].value
            if family.name == "process_cpu_seconds":
                _cpu.inc(max(0.0, value - self._cpu_s))
                self._cpu_s = value
            elif family.name in _process:
                _process[family.name].set(value)


def exposition() -> bytes:
    """The metrics of all workers, as text; those of the other workers up to a fraction of a second old."""
    flush()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def gauges(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The gauges of hiveio in an exposition, each with its labels and values. Raises ValueError."""
    return {
        family.name: [(sample.labels, sample.value) for sample in family.samples]
        for family in text_string_to_metric_families(text)
        if family.name.startswith("hiveio_") and family.type == "gauge"
    }


def worker_gone(pid: int) -> None:
    """Forget the live gauges of a worker that ended."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
