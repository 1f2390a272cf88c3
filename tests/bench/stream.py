"""The stream processor: against its raw parts, on one instance and several, and over the number of aggregates."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, median

import httpx

from tests.actors.purses import FULL
from tests.bench.bench import LOG, Bench, Lost, Served
from tests.bench.load import Request
from tests.bench.log import fill, until_ready
from tests.bench.measure import Measure, Row, Sample, Usage

ADD = '{"type":"Add","payload":{"amount":5}}'
DISTINCT = Request("POST", "/tallies/{}", ADD, 1_000_000)
STEPS = {"begin_ms": "lock and begin", "append_ms": "append and read back", "apply_ms": "apply and unlock"}
HOT = Request("POST", "/tallies/hot", ADD)
REPEATS = 50
JSON = {"content-type": "application/json"}
PURSES = 20
SEND = Request("POST", "/purses/{}", '{"type":"Send","payload":{"to":"{other}","amount":300}}', PURSES, refusable=True)
PARTS = "raw parts, one after the other"


def stream(bench: Bench) -> None:
    """Commands answered after their verdict, against their Redis calls, append and read-back, one after the other."""
    topic, own = bench.topic(), bench.make_topic(config=LOG)
    environ = {"EVENT_STORE_TOPIC": topic}
    with bench.bare() as bare, bench.role("stream-processor", "tally:Tallies", **environ) as role:
        for clients in bench.clients:
            measures = {
                PARTS: bench.raw(
                    "parts", brokers=bench.kafka.brokers, url=bench.redis.url, topic=own, clients=clients,
                    seconds=bench.seconds, population=1_000_000,
                ),
                "bare ASGI": bench.http(bare, DISTINCT, clients),
                "hiveio/stream-processor, distinct aggregates": bench.http(role, DISTINCT, clients),
                "hiveio/stream-processor, one aggregate": bench.http(role, HOT, clients),
            }  # fmt: skip
            sums = {"raw parts + bare ASGI": (PARTS, "bare ASGI")}
            rows = bench.compare("stream processor", clients, measures, PARTS, sums=sums)
            parts = ", ".join(f"{text} {rows[0].part(name) or 0:.2f} ms" for name, text in STEPS.items())
            bench.note(f"raw parts, {clients} at once: {parts} (p50 of a round)")
        bench.note(f"a repeat of an executed command is answered in {repeat_ms(role):.1f} ms (p50 of {REPEATS})")
    bench.show("stream processor")
    bench.check("stream processor: events", bench.stored(topic), role.acknowledged)


def repeat_ms(role: Served) -> float:
    """What was answered is read from its record in the log."""
    taken = []
    with httpx.Client(base_url=role.url, timeout=30) as client:
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            answer = client.post("/tallies/repeated", content=ADD, headers=JSON | {"idempotency-key": "once"})
            taken.append((time.perf_counter() - began) * 1000)
            if answer.status_code != 200:
                raise Lost(f"stream processor: a repeat was answered {answer.status_code}")
    role.acknowledged += 1
    return median(taken[1:])


def purses(bench: Bench) -> None:
    """Transfers between few aggregates, some refused, against commands on one aggregate each, and on two instances.

    Of one instance alone no record may be void.
    """
    clients = max(bench.clients)
    with contextlib.ExitStack() as stack:
        distinct = stack.enter_context(bench.role("stream-processor", "tally:Tallies"))
        alone, two = (fleet_of(bench, stack, count, "purses") for count in (1, 2))
        measures = {
            "distinct aggregates": bench.http(distinct, DISTINCT, clients),
            f"transfers over {PURSES} aggregates": bench.http(alone.roles[0], SEND, clients),
        }
        bench.compare("purses", clients, measures, "distinct aggregates")
        bench.show("purses")
        numbers = httpx.get(f"{alone.roles[0].url}/metrics", timeout=30).text
        void = next(float(line.split()[1]) for line in numbers.splitlines() if line.startswith("hiveio_void_records"))
        if void:
            raise Lost(f"purses: {void:.0f} records of the only instance are void")
        title = f"transfers over {PURSES} aggregates"
        _compare(bench, title, (alone, two), clients, SEND)
        for fleet in (alone, two):
            url = fleet.roles[0].url
            sums = [httpx.get(f"{url}/purses/{number}", timeout=30) for number in range(PURSES)]
            found = sum(answer.json()["payload"]["balance"] if answer.status_code == 200 else FULL for answer in sums)
            if found != PURSES * FULL:
                raise Lost(f"purses: {PURSES * FULL} were in them and {found} are")
            refused = sum(role.refused for role in fleet.roles)
            bench.note(f"purses, {fleet}: {refused / max(1, refused + fleet.acknowledged):.0%} were refused")
    for fleet in (alone, two):  # they have ended: events are published after their commands are answered
        bench.check(f"purses, {fleet}: events", bench.stored(fleet.topic), 2 * fleet.acknowledged)


def shared(bench: Bench) -> None:
    """One hot aggregate: of one instance, of two and of three at once, with the same number of clients in all."""
    clients = max(bench.clients)
    with contextlib.ExitStack() as stack:
        fleets = [fleet_of(bench, stack, count, "tally:Tallies") for count in (1, 2, 3)]
        rows = _compare(bench, "shared aggregate", fleets, clients, HOT)
        shares = [mean(sample.parts[f"share {number}"] for sample in rows[-1].samples) for number in (1, 2, 3)]
        bench.note("share of each of the three: " + ", ".join(f"{share:.0%}" for share in shares))
        for fleet in fleets:
            state = httpx.get(f"{fleet.roles[0].url}/tallies/hot", timeout=30).json()["payload"]
            bench.check(f"shared aggregate, {fleet}: commands", state["count"], fleet.acknowledged)


@dataclass(frozen=True)
class Fleet:
    """Instances of one service, on a log of their own: what one alone does must not depend on what others did there."""

    roles: Sequence[Served]
    topic: str

    def __str__(self) -> str:
        return f"{len(self.roles)} instance{'s' * (len(self.roles) > 1)}"

    @property
    def acknowledged(self) -> int:
        return sum(role.acknowledged for role in self.roles)


def fleet_of(bench: Bench, stack: contextlib.ExitStack, count: int, module: str) -> Fleet:
    topic = bench.topic()
    roles = [bench.role("stream-processor", module, EVENT_STORE_TOPIC=topic) for _ in range(count)]
    return Fleet([stack.enter_context(role) for role in roles], topic)


def _compare(bench: Bench, title: str, fleets: Sequence[Fleet], clients: int, request: Request) -> list[Row]:
    """The same load on each fleet, against that on the first."""
    measures: dict[str, Measure] = {
        str(fleet): partial(together, bench, fleet.roles, clients, request) for fleet in fleets
    }
    for warm in measures.values():
        warm()
    rows = bench.compare(title, clients, measures, str(fleets[0]))
    bench.show(title)
    return rows


def together(bench: Bench, roles: Sequence[Served], clients: int, request: Request) -> Sample:
    """Load on several instances at once."""
    usages = [Usage(role.process.pid) for role in roles]
    processes = [
        bench.generator.start(role.port or 0, request, max(1, clients // len(roles)), bench.seconds) for role in roles
    ]
    answers = [bench.generator.collect(process) for process in processes]
    done = [answered.requests - answered.failed for answered in answers]
    for role, count, answered in zip(roles, done, answers, strict=True):
        role.acknowledged += count - answered.refused
        role.refused += answered.refused
    cpu_us = sum(usage.each_us(sum(done))["all"] for usage in usages)
    seconds = max(answered.seconds for answered in answers)
    shares = {f"share {number}": count / max(1, sum(done)) for number, count in enumerate(done, 1)}
    return Sample(
        sum(done) / seconds,
        max(answered.p50_ms for answered in answers),
        max(answered.p99_ms for answered in answers),
        cpu_us,
        sum(answered.failed for answered in answers),
        shares,
    )


def scale(bench: Bench) -> None:
    """What a command costs with few aggregates and with many. The log is filled directly, and folded at the start."""
    clients = max(bench.clients)
    raw: tuple[Sample, ...] = ()
    for count in bench.aggregates:
        topic = bench.topic()
        with bench.console.status(f"scale: writing a log of {count:,} aggregates"):
            fill(bench, topic, count)
        role = bench.role("stream-processor", "tally:Tallies", EVENT_STORE_TOPIC=topic)
        role.wait = False
        with role, bench.console.status(f"scale: folding {count:,} records"):
            folded = until_ready(bench, role, count)
            request = Request("POST", "/tallies/{}", ADD, count)
            measure = bench.http(role, request, clients)
            samples = tuple(measure() for _ in range(bench.rounds))
        bench.add([Row("scale", f"{count:,} aggregates", clients, samples, raw)])
        raw = raw or samples
        bench.note(
            f"{count:,} aggregates: {folded.rate:,.0f} records/s folded at the start, at {folded.cpu_us:.1f} µs of CPU"
        )
        bench.check("scale: events", bench.stored(topic) - 1, role.acknowledged)
    bench.show("scale")
