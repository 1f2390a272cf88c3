"""``hiveio status``: what is going on, on one screen. It changes nothing and joins no group."""

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Iterable, Sequence

import msgspec

from hiveio.cli.shown import shown
from hiveio.config import Settings
from hiveio.loader import load
from hiveio.status import Collector, Status
from hiveio.status.model import Group, Instance, Scope
from hiveio.status.text import leader, number, ranges, share, span, state
from hiveio.transaction.cache import fingerprint

WATCH_S = 2.0
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help=f"look again every {WATCH_S:g} s, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="one JSON object, with --watch one a line")
    parser.add_argument(
        "--instance",
        action="append",
        default=[],
        metavar="URL",
        help="a service to ask that does not announce itself, as http://HOST:PORT (consumers, producers)",
    )


def run(arguments: argparse.Namespace) -> int:
    """0 if nothing needs attention, 1 if something does."""
    settings = Settings.read()
    return asyncio.run(_run(settings, arguments))


def fingerprints(settings: Settings) -> list[str]:
    """The fingerprint of the actors of ACTOR_MODULE, if it is set: its cache is shown although no instance runs."""
    return [fingerprint(load(settings))] if settings.actor_module else []


async def _run(settings: Settings, arguments: argparse.Namespace) -> int:
    collector = Collector(settings, arguments.instance, fingerprints(settings))
    try:
        while True:
            status = await collector.look()
            if arguments.json:
                print(msgspec.json.encode(status).decode(), flush=True)
            elif arguments.watch and sys.stdout.isatty():
                rows = shutil.get_terminal_size().lines - 1
                lines = list(screen(status))
                if len(lines) > rows:
                    lines = [*lines[: rows - 1], f"… {len(lines) - rows + 1} more lines: make the window higher"]
                print(HOME + "".join(f"{line}{CLEAR_LINE}\n" for line in lines) + CLEAR_REST, end="", flush=True)
            else:
                print("\n".join(screen(status)), flush=True)
            if not arguments.watch:
                return 1 if status.warnings or status.problems else 0
            await asyncio.sleep(WATCH_S)
    finally:
        await collector.stop()


def screen(status: Status) -> Iterable[str]:
    """The lines of one screen. What others wrote is shown with its control characters escaped."""
    yield f"{status.topic}  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(status.time))}"
    for title, lines in (
        ("ATTENTION", [f"! {line}" for line in status.warnings]),
        ("UNKNOWN", [f"? {line}" for line in status.problems]),
        ("SCOPES", _table(SCOPES, map(_scope, status.scopes))),
        ("PROCESSES", _table(PROCESSES, map(_processes, (each for each in status.scopes if each.processes)))),
        ("GROUPS", _table(GROUPS, map(_group, status.groups))),
        ("INSTANCES", _table(INSTANCES, map(_instance, status.instances))),
    ):
        if lines:
            yield ""
            yield title
            yield from map(shown, lines)


SCOPES = ("scope", "end", "judged", "applied", "published", "waits", "leader", "verdicts/s", "void", "quarantined")
PROCESSES = ("scope", "running", "stuck", "with unanswered commands", "oldest unanswered")
GROUPS = ("group", "state", "members", "lag", "oldest", "parked keys", "dead letters")
INSTANCES = ("instance", "service", "where", "version", "fingerprint", "up", "state", "leads", "follows", "in flight")


def _scope(scope: Scope) -> tuple[str, ...]:
    return (
        str(scope.partition),
        number(scope.end),
        number(scope.judged),
        number(scope.applied),
        number(scope.published),
        span(scope.publisher_lag_s),
        leader(scope),
        f"{scope.rate:,.1f}",
        share(scope.void_share),
        number(sum(each.count for each in scope.quarantined)),
    )


def _processes(scope: Scope) -> tuple[str, ...]:
    assert scope.processes is not None
    found = scope.processes
    return (
        str(scope.partition),
        number(found.running),
        number(found.stuck),
        number(found.unanswered),
        span(found.unanswered_s),
    )


def _group(group: Group) -> tuple[str, ...]:
    reasons = ", ".join(f"{count} {reason}" for reason, count in group.dead.reasons.items())
    return (
        group.name,
        group.state.lower(),
        str(len(group.members)),
        number(group.lag),
        span(group.lag_s),
        number(group.dead.keys),
        f"{group.dead.count} ({reasons})" if reasons else number(group.dead.count),
    )


def _instance(instance: Instance) -> tuple[str, ...]:
    return (
        instance.id,
        instance.service,
        instance.url.partition("://")[2],
        instance.version,
        instance.fingerprint,
        span(instance.up_s),
        state(instance),
        ranges(instance.leads),
        number(instance.follows),
        number(instance.commands_in_flight),
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as what is in them; numbers to the right."""
    cells = [tuple(map(shown, row)) for row in rows]
    if not cells:
        return []
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    right = [all(_is_number(row[n]) for row in cells) for n in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()

    return [f"  {line(row)}" for row in (heads, *cells)]


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text in ("-", "nobody")
