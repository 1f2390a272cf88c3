"""Looks at a run while it goes on: an independent consumer of the event topic, and what the instances say and use."""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Self, cast

import httpx
import psutil  # type: ignore[import-untyped]
from confluent_kafka import Consumer, TopicPartition

from tests.faults.bounds import Sample
from tests.services import Service

SAMPLED_S = 0.2
PROBED_S = 0.05


class _Watch(threading.Thread):
    """A thread that looks again and again. A context manager."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(30)

    def run(self) -> None:
        while not self._over.is_set():
            self._look()

    def _look(self) -> None:
        raise NotImplementedError


class Arrivals(_Watch):
    """When the event of each position was received for the first time, from the topic's first partition."""

    def __init__(self, brokers: str, topic: str) -> None:
        super().__init__()
        self.times: dict[str, float] = {}
        self._next = 0
        self._consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": "arrivals",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
                # It has to find a new leader sooner than the publishers do.
                "socket.timeout.ms": 3_000,
                "topic.metadata.refresh.interval.ms": 1_000,
                "reconnect.backoff.max.ms": 200,
                "log_level": 0,  # brokers are away: that is what the tests are for
            }
        )
        self._consumer.assign([TopicPartition(topic, 0, 0)])

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._consumer.close()

    def _look(self) -> None:
        for message in self._consumer.consume(1_000, 0.05):
            if message.error() is not None:
                continue
            headers = dict(cast("list[tuple[str, bytes]]", message.headers() or []))
            self.times.setdefault(headers.get("hive-position", b"").decode("utf-8", "replace"), time.monotonic())
            self._next = (message.offset() or 0) + 1

    def wait(self, end: int, within_s: float) -> dict[str, float]:
        """The times, once everything below this offset was received; after ``within_s`` as they are then."""
        until = time.monotonic() + within_s
        while self._next < end and time.monotonic() < until:
            time.sleep(0.02)
        return dict(self.times)


class Memory(_Watch):
    """Samples of the memory of each process of these services."""

    def __init__(self, services: Sequence[Service], requests: Callable[[], int]) -> None:
        super().__init__()
        self.samples: dict[str, list[Sample]] = defaultdict(list)
        self._services, self._requests = services, requests

    def _look(self) -> None:
        self._over.wait(SAMPLED_S)
        for number, service in enumerate(self._services):
            process = service.process
            try:
                running = psutil.Process(process.pid) if process is not None else None
                for part in [running, *running.children(recursive=True)] if running is not None else []:
                    name = f"instance {number}, process {part.pid}"
                    self.samples[name].append(Sample(self._requests(), part.memory_info().rss))
            except psutil.NoSuchProcess:
                continue  # it was killed meanwhile


class Readiness(_Watch):
    """What ``/readyz`` of an instance says, and since when: None where it is ready."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.said: list[tuple[float, str | None]] = []
        self._client = httpx.Client(base_url=url, timeout=10)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._client.close()

    def _look(self) -> None:
        self._over.wait(PROBED_S)
        answer = self._client.get("/readyz?verbose").json()
        reason = None if answer["ready"] else "; ".join(filter(None, (each["reason"] for each in answer["checks"])))
        if not self.said or self.said[-1][1] != reason:
            self.said.append((time.monotonic(), reason))

    def unready(self, since: float, until: float) -> list[str]:
        """The reasons for which it was not ready between these times."""
        ends = [*(began for began, _ in self.said[1:]), math.inf]
        return [
            reason
            for (began, reason), end in zip(self.said, ends, strict=True)
            if reason and began < until and end > since
        ]
