"""What every benchmark uses: the services, the load, and the table of its results."""

import contextlib
import json
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench.load import Generator, Request
from tests.bench.measure import Measure, Row, Sample, Usage, alternate, total
from tests.bench.report import table
from tests.integration.topics import make_topic, read_all
from tests.process import ROOT, Role
from tests.services import Kafka, Redis

HERE = Path(__file__).parent
EVENTS = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
BULK: dict[str, str | int | bool] = {  # of a producer that fills a topic
    "enable.idempotence": True,
    "linger.ms": 50,
    "batch.num.messages": 50_000,
    "queue.buffering.max.messages": 2_000_000,
}
LOG = EVENTS | {"message.timestamp.type": "LogAppendTime"}


class Lost(Exception):
    """Something that was acknowledged is missing."""


class Served(Role):
    """A role under load. ``acknowledged`` counts answers of success, ``refused`` what its domain refused."""

    def __init__(self, name: str, module: str, environ: Mapping[str, str] | None = None, checkout: Path = ROOT) -> None:
        super().__init__(name, environ, module=module, actor_path=ROOT / "tests" / "actors")
        if checkout != ROOT:
            self.python = checkout / ".venv" / "bin" / "python"
            self.entrypoint = checkout / self.entrypoint.relative_to(ROOT)
        self.acknowledged = self.refused = 0


@dataclass
class Bench:
    kafka: Kafka
    redis: Redis
    generator: Generator
    console: Console
    seconds: float = 3.0
    rounds: int = 3
    clients: Sequence[int] = (1, 64)
    records: int = 400_000  # of the consumer's topic
    aggregates: Sequence[int] = (1_000, 100_000, 1_000_000)
    instances: Sequence[int] = (1, 2, 4, 8)
    partitions: Sequence[int] = (1, 16)
    before: Path = ROOT  # the checkout of another version
    checkout: Path = ROOT  # whose roles are served
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)

    # -- processes

    def role(self, name: str, module: str, **environ: str) -> Served:
        """A role with one worker, on topics of its own unless ``environ`` says otherwise."""
        settings = {
            "EVENT_STORE_BROKERS": self.kafka.brokers,
            "EVENT_STORE_TOPIC": self.topic(),
            "CACHE_URL": self.redis.url,
        }
        return Served(name, module, {} if name == "base" else settings | environ, self.checkout)

    def bare(self, worker: str = "ours") -> Served:
        role = Served("bare", "", {"BARE_WORKER": worker})
        role.entrypoint = HERE / "bare.py"
        role.environ["PYTHONPATH"] = str(ROOT)
        return role

    def topic(self) -> str:
        return f"bench-{uuid.uuid4().hex[:12]}"

    def make_topic(self, name: str = "", config: Mapping[str, str] = EVENTS) -> str:
        name = name or self.topic()
        make_topic(self.kafka.brokers, name, 1, config)
        return name

    def stored(self, topic: str) -> int:
        """The number of events in a topic of one partition, repeats counted once."""
        return len({dict(message.headers() or []).get("hive-id") for message in read_all(self.kafka.brokers, topic)})

    # -- measures

    def http(self, role: Served, request: Request, clients: int) -> Measure:
        """Load on one role. Warmed up now, measured when called."""
        assert role.port is not None
        port = role.port

        def measure() -> Sample:
            usage, first = Usage(role.process.pid), random.randrange(request.population)
            answered = self.generator.run(port, request, clients, self.seconds, first)
            done = answered.requests - answered.failed
            role.acknowledged += done - answered.refused
            role.refused += answered.refused
            spent = usage.each_us(done)
            self.ceilings.append(answered.ceiling)
            whole = spent.pop("all")
            return Sample(done / answered.seconds, answered.p50_ms, answered.p99_ms, whole, answered.failed, spent)

        self._warm_up(role, request, clients)
        return measure

    def _warm_up(self, role: Served, request: Request, clients: int) -> None:
        assert role.port is not None
        answered = self.generator.run(role.port, request, clients, min(1.0, self.seconds))
        role.acknowledged += answered.requests - answered.failed - answered.refused
        role.refused += answered.refused

    def raw(self, what: str, **options: Any) -> Measure:
        """A process of tests.bench.raw."""
        return self.program([sys.executable, "-m", "tests.bench.raw", what], **options)

    def program(self, command: Sequence[str], **options: Any) -> Measure:
        """A process that is given the options as JSON, and prints its result as one line of JSON."""

        def measure() -> Sample:
            whole = [*command, json.dumps(options)]
            done = subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
            r = json.loads(done.stdout)
            parts = {name: value for name, value in r.items() if name in ("begin_ms", "append_ms", "apply_ms")}
            cpu_us = r["cpu_s"] / r["requests"] * 1e6
            return Sample(r["requests"] / r["seconds"], r["p50_ms"], r["p99_ms"], cpu_us, r["failed"], parts)

        return measure

    # -- results

    def compare(
        self,
        bench: str,
        clients: int,
        measures: Mapping[str, Measure],
        raw: str,
        *,
        sums: Mapping[str, Sequence[str]] | None = None,
    ) -> list[Row]:
        """Measure in alternating rounds; every row is compared with ``raw``, which may be one of ``sums``."""
        with self.console.status(bench) as status:
            taken = alternate(measures, self.rounds, lambda text: status.update(f"{bench}, {clients} clients: {text}"))
        for name, parts in (sums or {}).items():
            taken[name] = total(*(taken[part] for part in parts))
        against = tuple(taken[raw])
        rows = [
            Row(bench, name, clients, tuple(samples), () if name == raw else against) for name, samples in taken.items()
        ]
        self.add(rows)
        return rows

    def add(self, rows: Sequence[Row]) -> None:
        self.rows += rows

    def show(self, title: str, against: str = "raw", parts: Sequence[str] = ()) -> None:
        """The table of the rows of this title."""
        self.console.print(table(title, [row for row in self.rows if row.bench == title], against, parts))

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.console.print(f"  {text}", style="dim")

    def check(self, what: str, found: int, acknowledged: int) -> None:
        """At least what was acknowledged is there; more may be: a generator hangs up in the middle. Raises Lost."""
        if found < acknowledged:
            raise Lost(f"{what}: {acknowledged} were acknowledged and {found} are there")
        self.note(f"{what}: all {acknowledged:,} acknowledged are there")


@contextmanager
def services() -> Iterator[tuple[Kafka, Redis]]:
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(Kafka()), stack.enter_context(Redis())
