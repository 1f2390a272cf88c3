"""What needs attention, small charts, and scopes, consumers and instances at a glance; and the last two as pages."""

import time
from collections.abc import Sequence
from urllib.parse import quote

from hiveio.console.history import Sample
from hiveio.console.html import Child, Markup, h
from hiveio.console.layout import (
    ROWS,
    badge,
    chart,
    facts,
    line,
    link,
    number,
    ranges,
    section,
    share,
    some,
    span,
    table,
)
from hiveio.status import Status
from hiveio.status.model import Group, Instance, Scope
from hiveio.status.text import leader, state

MOST = 100  # lines of what needs attention
OLD_S = 30.0  # a status is old when several looks have failed


def overview(status: Status, samples: Sequence[Sample], first: int = 0) -> list[Child]:
    """``first`` is the first scope that is listed."""
    return [
        attention(status),
        h(
            "div",
            chart("Verdicts a second", samples, lambda each: each.rate, lambda value: f"{value:,.1f}"),
            chart("Void share", samples, lambda each: each.void_share, lambda value: f"{value:.1%}"),
            chart("Wait to be published", samples, lambda each: each.publisher_lag_s, span),
            chart("Oldest record to handle", samples, lambda each: each.group_lag_s, span),
            chart("Dead letters", samples, lambda each: each.dead, lambda value: f"{value:,.0f}"),
            chart("Commands in flight", samples, lambda each: each.in_flight, lambda value: f"{value:,.0f}"),
            class_="charts",
        ),
        section("Scopes", scopes(status, first)),
        section("Consumers", groups(status)),
        section("Instances", instances(status)),
    ]


def attention(status: Status) -> Markup:
    warnings, problems = status.warnings, list(status.problems)
    if (old_s := time.time() - status.time) > OLD_S:
        problems.insert(0, f"This is {span(old_s)} old: no later look has ended. The log of the console says why.")
    if not warnings and not problems:
        return h("p", badge("all well", "good"), " Nothing needs attention.")
    found = [h("li", badge("attention", "bad"), " ", line(text)) for text in warnings[:MOST]]
    found += [h("li", badge("unknown", "warn"), " ", line(text)) for text in problems[:MOST]]
    if (more := max(0, len(warnings) - MOST) + max(0, len(problems) - MOST)) > 0:
        found.append(h("li", f"and {more:,} more, which ", h("code", "hiveio status"), " shows"))
    return h("ul", found, class_="attention")


def scopes(status: Status, first: int = 0) -> list[Child]:
    heads = ("scope", "end", "judged", "applied", "published", "waits", "leader", "verdicts/s", "void", "quarantined")

    def row(scope: Scope) -> Sequence[Child]:
        quarantined = sum(each.count for each in scope.quarantined)
        return (
            link(f"/log/{scope.partition}", str(scope.partition)),
            number(scope.end),
            _behind(scope.judged, scope.end),
            _behind(scope.applied, scope.end),
            number(scope.published),
            span(scope.publisher_lag_s),
            scope.leader or badge(leader(scope), "warn" if scope.has_work else "quiet"),
            f"{scope.rate:,.1f}",
            share(scope.void_share),
            badge(number(quarantined), "bad") if quarantined else "0",
        )

    shown, others = some("/", status.scopes, first, "scopes")
    empty = "This service writes no transaction log, or it has not started yet."
    return [table(heads, map(row, shown), empty, right=(1, 2, 3, 4, 5, 7, 8, 9)), others]


def _behind(at: int | None, end: int) -> Child:
    if at is None or at >= end:
        return number(at)
    return [number(at), " ", badge(f"−{end - at:,}", "warn")]


def groups(status: Status) -> Markup:
    heads = ("group", "state", "members", "lag", "oldest", "parked keys", "dead letters")

    def row(group: Group) -> Sequence[Child]:
        dead = link(f"/dead/{quote(group.name, safe='')}", number(group.dead.count)) if group.dead.count else "0"
        return (
            link(f"/groups/{quote(group.name, safe='')}", group.name),
            badge(group.state.lower(), "good" if group.members else "warn"),
            str(len(group.members)),
            number(group.lag),
            span(group.lag_s),
            number(group.dead.keys),
            dead,
        )

    return table(heads, map(row, status.groups), "No consumer group reads these topics.", right=(2, 3, 4, 5, 6))


def group_page(group: Group, first: int = 0) -> list[Child]:
    at = f"/groups/{quote(group.name, safe='')}"
    shown, others = some(at, group.partitions, first, "partitions")
    reasons = ", ".join(f"{count} {reason}" for reason, count in group.dead.reasons.items())
    rows = [
        (
            each.topic,
            str(each.partition),
            number(each.committed),
            number(each.end),
            badge(number(each.lag), "warn") if each.lag else "0",
            span(each.lag_s),
            each.member or badge("nobody", "warn"),
        )
        for each in shown
    ]
    heads = ("topic", "partition", "committed", "end", "lag", "oldest", "member")
    dead = link(f"/dead/{quote(group.name, safe='')}", f"{group.dead.count:,}") if group.dead.count else "none"
    return [
        facts(
            ("state", group.state.lower()),
            ("members", _members(group)),
            ("lag", f"{group.lag:,} records, the oldest {span(group.lag_s)} old"),
            ("dead letters", [dead, f" ({reasons})" if reasons else ""]),
        ),
        section("Partitions", table(heads, rows, "The group has no offsets yet.", right=(1, 2, 3, 4, 5)), others),
    ]


def _members(group: Group) -> Child:
    if not group.members:
        return "none"
    more = f"and {len(group.members) - ROWS:,} more" if len(group.members) > ROWS else None
    return h("ul", [h("li", each) for each in (*group.members[:ROWS], more) if each])


def instances(status: Status, first: int = 0) -> list[Child]:
    heads = ("instance", "service", "where", "version", "fingerprint", "up", "state", "leads", "follows", "in flight")
    versions = {each.version for each in status.instances if each.version and not each.gone}

    def row(each: Instance) -> Sequence[Child]:
        reasons = [h("small", line(f"{check.name}: {check.reason}")) for check in each.not_ready[:MOST]]
        kind = "good" if each.ready and not each.gone else "bad" if each.gone or each.ready is False else "warn"
        return (
            each.id,
            each.service,
            each.url.partition("://")[2],
            badge(each.version, "warn") if len(versions) > 1 and each.version else each.version,
            each.fingerprint,
            span(each.up_s),
            [badge(state(each), kind), *reasons],
            ranges(each.leads),
            number(each.follows),
            number(each.commands_in_flight),
        )

    shown, others = some("/instances", status.instances, first, "instances")
    return [table(heads, map(row, shown), "No instance has announced itself in Redis.", right=(5, 8, 9)), others]


def quarantined(status: Status) -> list[Child]:
    rows = [
        (link(f"/log/{scope.partition}", str(scope.partition)), each.fingerprint,
         h("ul", [h("li", link("/aggregate", name, name=name)) for name in each.names]), number(each.count))
        for scope in status.scopes for each in scope.quarantined
    ]  # fmt: skip
    heads = ("scope", "fingerprint", "some of them", "aggregates")
    more = h("p", f"{len(rows) - ROWS:,} more scopes have some.") if len(rows) > ROWS else None
    return [table(heads, rows[:ROWS], "Every version folds every aggregate.", right=(3,)), more]
