"""What is measured, and how: samples in rounds that alternate, so that what disturbs one disturbs the other."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil  # type: ignore[import-untyped]
import redis


@dataclass(frozen=True)
class Sample:
    """One measurement. CPU is that of the measured process and its workers, a request; 0 where it is not known."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    failed: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)  # further figures, by name


@dataclass(frozen=True)
class Row:
    """One side of a comparison: the medians of its rounds, and medians of the ratios, round by round."""

    bench: str
    what: str
    clients: int
    samples: tuple[Sample, ...]
    raw: tuple[Sample, ...] = ()  # of the same rounds

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(sample, name) for sample in self.samples))

    def ratio(self, name: str) -> float | None:
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(self.samples, self.raw, strict=False)]
        ratios = [mine / raw for mine, raw in pairs if raw]
        return statistics.median(ratios) if ratios else None

    def part(self, name: str) -> float | None:
        found = [sample.parts[name] for sample in self.samples if name in sample.parts]
        return statistics.median(found) if found else None

    @property
    def parts(self) -> list[str]:
        return list(dict.fromkeys(name for sample in self.samples for name in sample.parts))

    @property
    def failed(self) -> int:
        return sum(sample.failed for sample in self.samples)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        figures = ("rate", "p50_ms", "p99_ms", "cpu_us")
        return {
            "bench": self.bench,
            "what": self.what,
            "clients": self.clients,
            "failed": self.failed,
            **{name: self.median(name) for name in figures},
            **{f"{name}_of_raw": self.ratio(name) for name in figures if self.raw},
            "parts": {name: self.part(name) for name in self.parts},
            "samples": [asdict(sample) for sample in self.samples],
        }


Measure = Callable[[], Sample]


def alternate(measures: Mapping[str, Measure], rounds: int, report: Callable[[str], None]) -> dict[str, list[Sample]]:
    """Each measure once a round; the order turns around every round."""
    taken: dict[str, list[Sample]] = {name: [] for name in measures}
    names: Sequence[str] = list(measures)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            report(f"{name}, round {number + 1} of {rounds}")
            taken[name].append(measures[name]())
    return taken


def total(*sides: Sequence[Sample]) -> list[Sample]:
    """The sum of measures that run one after the other: times and CPU added, round by round. It has no p99."""
    return [
        Sample(
            1 / sum(1 / sample.rate for sample in samples),
            sum(sample.p50_ms for sample in samples),
            0.0,
            sum(sample.cpu_us for sample in samples),
        )
        for samples in zip(*sides, strict=True)
    ]


class Usage:
    """CPU of a process tree between two moments, and where its workers spent it.

    ``loop`` is the workers' main thread, ``kafka`` librdkafka's own threads, ``threads`` ours that call it. A process
    without children is its own worker. Threads that have ended in between are in ``all`` alone.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._processes, self._threads = self._read()

    def _read(self) -> tuple[dict[int, float], dict[tuple[int, int], float]]:
        """CPU seconds of each process, and of each thread of the workers."""
        top = psutil.Process(self._pid)
        workers = top.children(recursive=True)
        times = {process.pid: process.cpu_times() for process in (top, *workers)}
        threads = {
            (process.pid, thread.id): thread.user_time + thread.system_time
            for process in workers or [top]
            for thread in process.threads()
        }
        return {pid: spent.user + spent.system for pid, spent in times.items()}, threads

    def each_us(self, requests: int) -> dict[str, float]:
        """Microseconds a request since the start."""
        processes, threads = self._read()
        found = {"all": 0.0, "loop": 0.0, "kafka": 0.0, "threads": 0.0}
        # One by one: at the start there may be no worker yet, and threads come and end.
        for pid, spent in processes.items():
            found["all"] += spent - self._processes.get(pid, 0.0)
        for (pid, thread), spent in threads.items():
            found[_kind(pid, thread)] += spent - self._threads.get((pid, thread), 0.0)
        return {name: seconds / max(requests, 1) * 1e6 for name, seconds in found.items()}


class RedisUsage:
    """What a Redis did since the start: CPU of its process, and bytes that it was sent and sent itself."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        found: Any = self._client.info()
        return {
            "Redis µs": (found["used_cpu_user"] + found["used_cpu_sys"]) * 1e6,
            "Redis in": float(found["total_net_input_bytes"]),
            "Redis out": float(found["total_net_output_bytes"]),
        }

    def each(self, records: int) -> dict[str, float]:
        """For each record."""
        now = self._read()
        return {name: (now[name] - self._before[name]) / max(records, 1) for name in now}


def _kind(pid: int, thread: int) -> str:
    if thread == pid:
        return "loop"
    try:
        with open(f"/proc/{pid}/task/{thread}/comm") as file:
            return "kafka" if file.read().startswith("rdk:") else "threads"
    except OSError:
        return "threads"


def memory_mb(pid: int) -> dict[str, float]:
    """Resident and proportional set size; shared pages count in part for the latter."""
    full = psutil.Process(pid).memory_full_info()
    return {"rss_mb": full.rss / 2**20, "pss_mb": getattr(full, "pss", full.rss) / 2**20, "uss_mb": full.uss / 2**20}
