"""This version in turn with another one: what a change costs or saves, on whatever machine and at whatever load."""

import contextlib
import itertools
import tempfile
from dataclasses import replace
from functools import partial

from tests.bench.bench import Bench
from tests.bench.measure import Measure, Sample
from tests.bench.roles import consumed, fill
from tests.bench.stream import DISTINCT, HOT, SEND, fleet_of, together

BEFORE = ", before"


def before(bench: Bench) -> None:
    """Commands, transfers and a projection: those of the checkout --before, where `make setup` has run, and ours."""
    versions, most = {BEFORE: replace(bench, checkout=bench.before), "": bench}, max(bench.clients)
    cases = [
        *[("distinct aggregates", "tally:Tallies", DISTINCT, 1, clients) for clients in bench.clients],
        ("one aggregate", "tally:Tallies", HOT, 1, most),
        ("one aggregate, two instances", "tally:Tallies", HOT, 2, most),
        ("transfers", "purses", SEND, 1, most),
        ("transfers, two instances", "purses", SEND, 2, most),
    ]
    for name, module, request, instances, clients in cases:
        with contextlib.ExitStack() as stack:
            fleets = {name + which: fleet_of(version, stack, instances, module) for which, version in versions.items()}
            commands: dict[str, Measure] = {
                title: partial(together, bench, fleet.roles, clients, request) for title, fleet in fleets.items()
            }
            for warm in commands.values():
                warm()
            bench.compare("before", clients, commands, name + BEFORE)
        for title, fleet in fleets.items():  # they have ended: events are published after their commands are answered
            events = fleet.acknowledged * (2 if request is SEND else 1)
            bench.check(f"{title}: events", bench.stored(fleet.topic), events)
    records, topic, numbers = max(1_000, bench.records // 20), bench.make_topic(), itertools.count()
    fill(bench, topic, records)
    with tempfile.TemporaryDirectory(prefix="hiveio-bench-") as folder:

        def projection(version: Bench) -> Sample:
            return consumed(version, topic, "stored:Sqlite", records, BENCH_DATABASE=f"{folder}/{next(numbers)}")

        name = "SqliteProjection, one event at a time"
        projections: dict[str, Measure] = {
            name + which: partial(projection, version) for which, version in versions.items()
        }
        bench.compare("before", 0, projections, name + BEFORE)
    bench.show("before", "before")
