"""What a command costs a fleet: all of its instances, those that have nothing to do, and Redis."""

import contextlib
import time
from collections.abc import Sequence

from hiveio.transaction.rule import scope_of
from tests.bench.bench import Bench, Served
from tests.bench.load import Request
from tests.bench.measure import RedisUsage, Row, Sample, Usage
from tests.bench.report import THREADS
from tests.bench.stream import ADD

AGGREGATES = 1_000
IDLE = "idle ms"  # CPU of an instance without load, for 1,000 records of the others
IDLE_CORE = "idle %"  # the same, in percent of a core
PARTS = (IDLE, IDLE_CORE, "Redis µs", "Redis in", "Redis out")

Share = Sequence[int]  # the aggregates that one instance gets commands for


def scale_out(bench: Bench) -> None:
    """CPU a command of the whole fleet, routed and not, and with idle instances, against that of one instance."""
    clients = max(bench.clients)
    for partitions in bench.partitions:
        title = f"scale-out, {partitions} partition{'s' * (partitions > 1)}"
        taken: dict[str, list[Sample]] = {}
        unused: dict[str, list[float]] = {}
        # The first commands cost more, whoever takes them: Kafka's JVM has compiled nothing yet.
        measured(bench, f"{title}: warm", partitions, [range(AGGREGATES)], clients)
        for number in range(bench.rounds):
            for name, shares in fleets(bench.instances, partitions).items():
                with bench.console.status(f"{title}: {name}, round {number + 1} of {bench.rounds}"):
                    sample, percent = measured(bench, f"{title}: {name}", partitions, shares, clients)
                taken.setdefault(name, []).append(sample)
                unused.setdefault(f"{len(shares)}", []).append(percent)
        alone = tuple(next(iter(taken.values())))
        bench.add([Row(title, name, clients, tuple(found), alone) for name, found in taken.items()])
        for count, found in unused.items():
            bench.note(f"{count} that have had no command: {sum(found) / len(found):.1f} % of a core each")
        bench.show(title, "one", PARTS)


def fleets(counts: Sequence[int], partitions: int) -> dict[str, list[Share]]:
    """What is compared, by name: the aggregates of each instance."""
    every = range(AGGREGATES)
    found: dict[str, list[Share]] = {"1 instance": [every]}
    for count in counts:
        if count == 1:
            continue
        found[f"{count} instances, {count - 1} idle"] = [every, *[()] * (count - 1)]
        if partitions >= count:  # else it is the row above: an instance has at least one scope
            scopes = [scope_of(str(number), partitions) for number in every]
            found[f"{count} instances, routed"] = [
                [number for number in every if scopes[number] % count == instance] for instance in range(count)
            ]
        found[f"{count} instances, not routed"] = [every] * count
    return found


def measured(bench: Bench, what: str, partitions: int, shares: Sequence[Share], clients: int) -> tuple[Sample, float]:
    """One fleet on a log of its own: commands on these aggregates; and the percent of a core of an instance before its
    first command. An instance follows what it has used for a minute, so each measurement needs a new fleet."""
    environ = {"EVENT_STORE_TOPIC": bench.topic(), "EVENT_STORE_PARTITIONS": str(partitions)}
    with bench.role("stream-processor", "tally:Tallies", **environ):
        pass  # makes the log: an instance follows partitions that Kafka is still making
    roles = [bench.role("stream-processor", "tally:Tallies", **environ) for _ in shares]
    with contextlib.ExitStack() as stack:
        for role in roles:
            role.wait = False
            stack.enter_context(role)
        for role in roles:
            role.ready(120)
        percent = unused(bench, roles)
        load(bench, roles, shares, clients, min(1.0, bench.seconds))  # warm
        sample = load(bench, roles, shares, clients, bench.seconds)
    bench.check(f"{what}: events", bench.stored(environ["EVENT_STORE_TOPIC"]), sum(r.acknowledged for r in roles))
    return sample, percent


def load(bench: Bench, roles: Sequence[Served], shares: Sequence[Share], clients: int, seconds: float) -> Sample:
    """Commands on the aggregates of each instance. Where several have the same, they do not begin at the same."""
    usages = [Usage(role.process.pid) for role in roles]
    cache = RedisUsage(bench.redis.url)
    working = [(role, share) for role, share in zip(roles, shares, strict=True) if share]
    each, began = max(1, clients // len(working)), time.monotonic()
    processes = []
    for index, (role, share) in enumerate(working):
        request = Request("POST", "/tallies/{}", ADD, len(share), numbers=tuple(share))
        processes.append(
            bench.generator.start(role.port or 0, request, each, seconds, index * len(share) // len(working))
        )
    answers = [bench.generator.collect(process) for process in processes]
    done = [answered.requests - answered.failed for answered in answers]
    for (role, _), count in zip(working, done, strict=True):
        role.acknowledged += count
    spent, whole_s = [usage.each_us(sum(done)) for usage in usages], time.monotonic() - began
    parts = {name: sum(found[name] for found in spent) for name in THREADS}
    if idle := [found["all"] for found, share in zip(spent, shares, strict=True) if not share]:
        parts[IDLE] = sum(idle) / len(idle)  # µs a command: ms for a thousand
        parts[IDLE_CORE] = parts[IDLE] * sum(done) / whole_s / 1e4
    return Sample(
        sum(done) / max(answered.seconds for answered in answers),
        max(answered.p50_ms for answered in answers),
        max(answered.p99_ms for answered in answers),
        sum(found["all"] for found in spent),
        sum(answered.failed for answered in answers),
        parts | cache.each(sum(done)),
    )


def unused(bench: Bench, roles: Sequence[Served]) -> float:
    """Percent of a core of an instance while nobody sends anything."""
    usages, began = [Usage(role.process.pid) for role in roles], time.monotonic()
    time.sleep(bench.seconds)
    seconds = time.monotonic() - began
    return sum(usage.each_us(1)["all"] for usage in usages) / len(roles) / seconds / 1e4
