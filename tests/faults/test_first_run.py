"""The first fault run: many clients, many faults, and the checker. That it finds a broken engine: test_broken.py.

``HIVEIO_FAULT_SECONDS`` (20) and ``HIVEIO_FAULT_SEED`` set it; ``HIVEIO_FAULT_KINDS`` is a comma list.
"""

import asyncio
import contextlib
import os
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.conftest import required
from tests.faults.bounds import Watched
from tests.faults.chaos import Chaos, System
from tests.faults.checker import Call, Result, check
from tests.faults.client import NotSent
from tests.faults.evidence import gather
from tests.faults.fold import Finding, Fold, Record
from tests.faults.opinion import second_opinion
from tests.faults.watching import Arrivals, Memory
from tests.faults.workload import HOT, Client, Workload

pytestmark = [pytest.mark.fault, pytest.mark.kafka, pytest.mark.redis]

SECONDS = float(os.environ.get("HIVEIO_FAULT_SECONDS", "20"))
WELL_WITHIN_S = 20.0
PUBLISHED_S = 30.0  # Kafka is paused, and whoever publishes is killed, or folds a lost cache
CLIENTS = 64


@dataclass
class Report:
    """What a run has shown."""

    seed: int
    findings: list[Finding] = field(default_factory=list)
    history: list[Call] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    records: int = 0
    voids: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        results = Counter(str(call.result) for call in self.history)
        lines = [
            f"seed {self.seed}: {len(self.history)} requests in {self.seconds:.0f} s",
            f"  results: {dict(results)}, {dict(self.other)}",
            f"  log: {self.records} records, {self.voids} void; faults: {dict(self.injected)}",
            *(f"  note: {note[:9000]}" for note in self.notes[:20]),
            f"  findings: {len(self.findings)}, by point {dict(Counter(f.point for f in self.findings))}",
            *(f"    {str(finding)[:700]}" for finding in self.findings[:40]),
        ]
        return "\n".join(lines)


def play(
    seed: int,
    seconds: float,
    *,
    broken: tuple[str, ...] = ("", "", ""),
    kinds: tuple[str, ...] = Chaos.KINDS,
) -> Report:
    """One run: the load and the faults, recovery, the checker."""
    report = Report(seed)
    with required("kafka"), System(f"fault-{seed}", broken) as system:
        started = time.monotonic()
        with (
            Arrivals(system.kafka.brokers, system.topic) as arrivals,
            Memory(system.instances, lambda: len(report.history)) as memory,
        ):
            asyncio.run(_load(system, report, seconds, kinds))
            evidence = gather(system.kafka.brokers, system.redis.url, system.topic, 20)
            arrived = arrivals.wait(evidence.events[-1].offset + 1 if evidence.events else 0, 20)
        evidence.watched = Watched(arrived=arrived, published_s=PUBLISHED_S, memory=memory.samples)
        report.seconds = time.monotonic() - started
        for number, instance in enumerate(system.instances):
            report.notes += [f"instance {number}: {line}" for line in instance.faults()[:5]]
    report.findings += check(evidence, report.history)
    report.records = len(evidence.log)
    report.voids = _voids(evidence.log)
    return report


def _voids(log: list[Record]) -> int:
    fold = Fold()
    return sum(not fold.take(record) for record in log)


async def _load(system: System, report: Report, seconds: float, kinds: tuple[str, ...]) -> None:
    workload = Workload(system.ports, report.seed, clients=CLIENTS, most=int(3000 * seconds))
    chaos = Chaos(system, random.Random(report.seed), kinds)
    report.history, report.other, report.injected = workload.history, workload.sent, chaos.injected
    clients = asyncio.create_task(workload.run())
    try:
        await chaos.run(seconds)
    finally:
        workload.stop.set()
    await clients
    await _well_again(system, workload, report)


async def _well_again(system: System, workload: Workload, report: Report) -> None:
    """Every instance becomes ready, and takes a command for every hot aggregate and for one of its own."""
    until = time.monotonic() + WELL_WITHIN_S
    for number, instance in enumerate(system.instances):
        while not await asyncio.to_thread(instance.is_ready):
            if time.monotonic() > until:
                report.findings.append(Finding(0, f"instance {number}", f"is not ready again: {instance.why()}"))
                break
            await asyncio.sleep(0.05)
    await asyncio.gather(
        *[
            _takes(workload, report, number, name, time.monotonic() + WELL_WITHIN_S)
            for number in range(len(system.instances))
            for name in (*HOT, f"Account/last{number}")
        ]
    )


async def _takes(workload: Workload, report: Report, instance: int, name: str, until: float) -> None:
    client = Client(workload, 1000, random.Random(instance))
    with contextlib.closing(client):
        await _is_taken(client, report, instance, name, until)


async def _is_taken(client: Client, report: Report, instance: int, name: str, until: float) -> None:
    kind = {"Tally": "Add", "Pair": "Give", "Account": "Deposit"}[name.partition("/")[0]]
    last: Call | None = None
    attempt = 0
    while time.monotonic() < until:
        attempt += 1
        marker = f"last-{instance}-{name}-{attempt}"
        command = {"type": kind, "payload": {"amount": 1, "marker": marker}}
        try:
            last = await client.send(marker, name, command, None, None, instance)
        except NotSent:
            last = None
        if last is not None and last.result is Result.ACCEPTED:
            read = await client.read(name, instance)
            if read is not None:
                return
        await asyncio.sleep(0.1)
    answer = "nobody listens" if last is None else f"{last.status} {last.answer}"
    text = f"not well again after the faults, a command and a read; the last command: {answer}"
    report.findings.append(Finding(0, f"instance {instance} {name}", text))


def _seed() -> int:
    return int(os.environ.get("HIVEIO_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize("locks", ["kept", "bypassed by one"])
def test_nothing_is_lost(locks: str) -> None:
    """In the second run, a cache is soon far behind as well, so that instances wait for each other."""
    kinds = tuple(os.environ.get("HIVEIO_FAULT_KINDS", ",".join(Chaos.KINDS)).split(","))
    broken = ("", "", "") if locks == "kept" else ("hasty", "hasty", "lockless,hasty")
    report = play(_seed(), SECONDS if locks == "kept" else SECONDS / 2, broken=broken, kinds=kinds)
    print(f"\nlocks {locks}, {report}")
    assert not report.findings, str(report)
    assert any(call.result is Result.ACCEPTED for call in report.history)
    if shutil.which("go"):
        legal, opinion = second_opinion(report.history)
        assert legal, opinion
