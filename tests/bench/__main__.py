"""`make bench`: run the benchmarks named, or all of them, and show the results."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tests.bench.before import before
from tests.bench.bench import Bench, Lost, services
from tests.bench.fleet import scale_out
from tests.bench.idle import idle, partitions
from tests.bench.load import Generator
from tests.bench.log import fold
from tests.bench.peers import peers
from tests.bench.report import ceiling, machine
from tests.bench.roles import base, consumer, consumer_memory, producer, projections
from tests.bench.sagas import sagas
from tests.bench.stream import purses, scale, shared, stream
from tests.process import ROOT
from tests.services import ServiceFailed, ServiceUnavailable

BENCHES: dict[str, Callable[[Bench], None]] = {
    "base": base,
    "producer": producer,
    "consumer": consumer,
    "consumer-memory": consumer_memory,
    "projections": projections,
    "stream": stream,
    "purses": purses,
    "shared": shared,
    "scale": scale,
    "scale-out": scale_out,
    "fold": fold,
    "idle": idle,
    "partitions": partitions,
    "sagas": sagas,
    "peers": peers,
    "before": before,
}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.replace("_", "").split(",")]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Each role against its bare parts, side by side in one run.",
        epilog="\n".join(f"{name:16} {function.__doc__}" for name, function in BENCHES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("names", nargs="*", metavar="name", help="one or several of the below; all without a name")
    made.add_argument("--seconds", type=float, default=3.0, help="of one measurement (3)")
    made.add_argument("--rounds", type=int, default=3, help="of each; the median counts (3)")
    made.add_argument("--clients", type=numbers, default=[1, 64], help="numbers of clients (1,64)")
    made.add_argument("--records", type=int, default=400_000, help="in the consumer's topic (400000)")
    made.add_argument("--aggregates", type=numbers, default=[1_000, 100_000, 1_000_000], help="of scale and of fold")
    made.add_argument("--instances", type=numbers, default=[1, 2, 4, 8], help="of scale-out (1,2,4,8)")
    made.add_argument("--partitions", type=numbers, default=[1, 16], help="of scale-out (1,16)")
    made.add_argument("--before", type=Path, metavar="DIR", help="a checkout of another version, for before")
    made.add_argument("--generator", choices=("wrk", "own"), default="", help="wrk where it is installed, else our own")
    made.add_argument("--json", metavar="FILE", help="write the results there too")
    return made


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 150
    names = options.names or [name for name in BENCHES if name != "before" or options.before]
    if "before" in names and not (options.before and (options.before / ".venv").is_dir()):
        console.print("[red]✗[/] before needs --before DIR, a checkout in which `make setup` has run")
        return 2
    if unknown := set(options.names) - set(BENCHES):
        console.print(f"[red]✗[/] no benchmark is named {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
        return 2
    try:
        generator = Generator(options.generator)
        with console.status("Kafka and Valkey start"), services() as (kafka, redis):
            console.print(f"load by {generator.name}; Kafka, Valkey, load and service share the machine", style="dim")
            bench = Bench(
                kafka, redis, generator, console, options.seconds, options.rounds, options.clients, options.records,
                options.aggregates, options.instances, options.partitions, before=options.before or ROOT,
            )  # fmt: skip
            about = machine()
            console.print(", ".join(f"{name} {value}" for name, value in about.items()), style="dim")
            for name in names:
                BENCHES[name](bench)
    except (ValueError, ServiceUnavailable, ServiceFailed, Lost) as error:
        console.print(f"[red]✗[/] {escape(str(error))}")
        return 1
    top = ceiling(bench.ceilings)
    if top:
        console.print(f"the generator's own ceiling, on a core of its own: {top:,.0f} requests/s", style="dim")
    if options.json:
        found = {
            "machine": about,
            "generator": {"name": generator.name, "ceiling": top},
            "options": vars(options) | {"before": str(options.before or "")},
            "rows": [row.plain() for row in bench.rows],
            "notes": bench.notes,
        }
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
    failed = sum(row.failed for row in bench.rows)
    if failed:
        console.print(f"[red]✗[/] {failed} requests failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
