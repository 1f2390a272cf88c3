"""How numbers, times and records are written, in a terminal and on a page."""

from collections.abc import Sequence
from datetime import UTC, datetime

from hiveio.status.model import Instance, Scope
from hiveio.transaction.record import Barrier, Commit, Foreign, Record, Upgrade

END_MS = 253_402_300_800_000  # of the year 9999: a producer may write any time, and Python knows no later one


def clock(time_ms: int) -> str:
    """A time in UTC, to the millisecond."""
    if not 0 <= time_ms < END_MS:
        return f"{time_ms} ms"
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def about(record: Record) -> str:
    if isinstance(record, Commit):
        key = f"  Idempotency-Key {record.command.given}" if record.keyed else ""
        by = f"  by {record.command.caller}" if record.command.caller else ""
        refused = f"  refused: {record.refusal.get('detail', '')}" if record.refusal else ""
        return f"commit {record.command.target}{key}{by}{refused}"
    if isinstance(record, Barrier):
        closes = f", closes the command {record.command.given}" if record.command else ""
        return f"barrier {' '.join(record.aggregates)}{closes}"
    if isinstance(record, Foreign):
        return "no record of hiveio, so it is void for every reader"
    if isinstance(record, Upgrade):
        return f"upgrade to format {record.format}"
    kept = f"{record.idempotency_count} records and {record.idempotency_time_ms // 1000} s"
    by = f", made by the service of {', '.join(record.actors)}" if record.actors else ""
    return f"format {record.format}: {record.partitions} scopes, {record.hash}, ids kept for {kept}{by}"


def leader(scope: Scope) -> str:
    """Who leads it, or why nobody does."""
    return scope.leader or ("at rest" if scope.rest else "nobody")


def state(instance: Instance) -> str:
    """In one or two words."""
    if instance.gone and instance.seen_s is not None:
        return f"gone for {span(instance.seen_s)}"
    return {True: "ready", False: "not ready", None: "no answer"}[instance.ready]


def number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def span(seconds: float | None) -> str:
    """A time, in the one or two units that say it."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds else "0 s"
    whole = int(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def ranges(numbers: Sequence[int]) -> str:
    """0-3, 7: the scopes of a leader are often many."""
    found: list[list[int]] = []
    for each in sorted(numbers):
        if found and each == found[-1][1] + 1:
            found[-1][1] = each
        else:
            found.append([each, each])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)
