"""What a command costs a fleet: all of its instances, those that have nothing to do, and Redis."""

import contextlib
import time
from collections.abc import Sequence
from functools import partial

from tests.bench.bench import Bench, Served
from tests.bench.load import Request
from tests.bench.measure import Measure, RedisUsage, Row, Sample, Usage, alternate
from tests.bench.stream import ADD

AGGREGATES = 1_000
REST_S = 75.0  # after which an instance follows nothing that it does not use
IDLE = "idle ms"  # CPU of an instance without load, for 1,000 records of the others
PARTS = (IDLE, "Redis µs", "Redis in", "Redis out")


def scale_out(bench: Bench) -> None:
    """CPU a command of the whole fleet, routed and not, and with idle instances, against that of one instance."""
    clients = max(bench.clients)
    for partitions in bench.partitions:
        title = f"scale-out, {partitions} partition{'s' * (partitions > 1)}"
        environ = {"EVENT_STORE_TOPIC": bench.topic(), "EVENT_STORE_PARTITIONS": str(partitions)}
        roles: list[Served] = []
        alone: tuple[Sample, ...] = ()
        with contextlib.ExitStack() as stack, bench.console.status(title) as status:
            for count in bench.instances:
                status.update(f"{title}: {count} instances start")
                for _ in range(count - len(roles)):
                    roles.append(bench.role("stream-processor", "tally:Tallies", **environ))
                    roles[-1].wait = False
                    stack.enter_context(roles[-1])
                for role in roles:
                    role.ready(120)
                measures: dict[str, Measure] = {"1 instance": partial(load, bench, roles, 1, clients, True)}
                if count > 1:
                    measures = {
                        f"{count} instances, {count - 1} idle": partial(load, bench, roles, 1, clients, True),
                        f"{count} instances, routed": partial(load, bench, roles, count, clients, True),
                        f"{count} instances, not routed": partial(load, bench, roles, count, clients, False),
                    }
                load(bench, roles, 1, clients, True)  # warm
                time.sleep(REST_S)
                taken = alternate(measures, bench.rounds, lambda text: status.update(f"scale-out: {text}"))
                alone = alone or tuple(next(iter(taken.values())))
                bench.add([Row(title, name, clients, tuple(found), alone) for name, found in taken.items()])
                bench.note(f"{count} without load: {unused(bench, roles):.1f} % of a core each")
        bench.show(title, "one", PARTS)
        bench.check(f"{title}: events", bench.stored(environ["EVENT_STORE_TOPIC"]), sum(r.acknowledged for r in roles))


def load(bench: Bench, roles: Sequence[Served], working: int, clients: int, routed: bool) -> Sample:
    """Commands on the same number of aggregates: each instance has its own, or all have all."""
    usages = [Usage(role.process.pid) for role in roles]
    cache = RedisUsage(bench.redis.url)
    processes = []
    for number, role in enumerate(roles[:working]):
        request = Request("POST", "/tallies/{}", ADD, AGGREGATES)
        if routed:
            request = Request("POST", f"/tallies/{number}-{{}}", ADD, AGGREGATES // working)
        first = number * AGGREGATES // working  # so that not all are at the same aggregate
        processes.append(
            bench.generator.start(role.port or 0, request, max(1, clients // working), bench.seconds, first)
        )
    answers = [bench.generator.collect(process) for process in processes]
    done = [answered.requests - answered.failed for answered in answers]
    for role, count in zip(roles, done, strict=False):
        role.acknowledged += count
    spent = [usage.each_us(sum(done))["all"] for usage in usages]  # µs a command: ms for a thousand
    idle = {IDLE: sum(spent[working:]) / (len(roles) - working)} if len(roles) > working else {}
    return Sample(
        sum(done) / max(answered.seconds for answered in answers),
        max(answered.p50_ms for answered in answers),
        max(answered.p99_ms for answered in answers),
        sum(spent),
        sum(answered.failed for answered in answers),
        idle | cache.each(sum(done)),
    )


def unused(bench: Bench, roles: Sequence[Served]) -> float:
    """Percent of a core of an instance while nobody sends anything."""
    usages, began = [Usage(role.process.pid) for role in roles], time.monotonic()
    time.sleep(bench.seconds)
    seconds = time.monotonic() - began
    return sum(usage.each_us(1)["all"] for usage in usages) / len(roles) / seconds / 1e4
