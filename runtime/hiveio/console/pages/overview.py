"""What needs attention, small charts, and scopes, consumers and instances at a glance; and the last two as pages."""

from collections.abc import Sequence
from urllib.parse import quote

from hiveio.console.history import Sample
from hiveio.console.html import Child, Markup, h
from hiveio.console.layout import badge, chart, facts, link, number, ranges, section, share, span, table
from hiveio.status import Status
from hiveio.status.model import Group, Instance, Scope
from hiveio.status.text import state

MOST = 100  # rows of a table


def overview(status: Status, samples: Sequence[Sample]) -> list[Child]:
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
        section("Scopes", scopes(status)),
        section("Consumers", groups(status)),
        section("Instances", instances(status)),
    ]


def attention(status: Status) -> Markup:
    if not status.warnings and not status.problems:
        return h("p", badge("all well", "good"), " Nothing needs attention.")
    found = [h("li", badge("attention", "bad"), " ", text) for text in status.warnings[:MOST]]
    found += [h("li", badge("unknown", "warn"), " ", text) for text in status.problems[:MOST]]
    return h("ul", found, class_="attention")


def scopes(status: Status) -> Markup:
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
            scope.leader or badge("nobody", "warn"),
            f"{scope.rate:,.1f}",
            share(scope.void_share),
            badge(number(quarantined), "bad") if quarantined else "0",
        )

    return table(
        heads, map(row, status.scopes[:MOST]), "This service writes no transaction log, or it has not started yet.",
        right=(1, 2, 3, 4, 5, 7, 8, 9),
    )  # fmt: skip


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

    return table(heads, map(row, status.groups[:MOST]), "No consumer group reads these topics.", right=(2, 3, 4, 5, 6))


def group_page(group: Group) -> list[Child]:
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
        for each in group.partitions
    ]
    heads = ("topic", "partition", "committed", "end", "lag", "oldest", "member")
    dead = link(f"/dead/{quote(group.name, safe='')}", f"{group.dead.count:,}") if group.dead.count else "none"
    return [
        facts(
            ("state", group.state.lower()),
            ("members", h("ul", [h("li", member) for member in group.members]) if group.members else "none"),
            ("lag", f"{group.lag:,} records, the oldest {span(group.lag_s)} old"),
            ("dead letters", [dead, f" ({reasons})" if reasons else ""]),
        ),
        section("Partitions", table(heads, rows, "The group has no offsets yet.", right=(1, 2, 3, 4, 5))),
    ]


def instances(status: Status) -> Markup:
    heads = ("instance", "service", "where", "version", "fingerprint", "up", "state", "leads", "in flight")
    versions = {each.version for each in status.instances if each.version and not each.gone}

    def row(each: Instance) -> Sequence[Child]:
        reasons = [h("small", f"{check.name}: {check.reason}") for check in each.not_ready]
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
            number(each.commands_in_flight),
        )

    return table(heads, map(row, status.instances[:MOST]), "No instance has announced itself in Redis.", right=(5, 8))


def quarantined(status: Status) -> Markup:
    rows = [
        (link(f"/log/{scope.partition}", str(scope.partition)), each.fingerprint,
         h("ul", [h("li", link("/aggregate", name, name=name)) for name in each.names]), number(each.count))
        for scope in status.scopes for each in scope.quarantined
    ]  # fmt: skip
    heads = ("scope", "fingerprint", "some of them", "aggregates")
    return table(heads, rows, "Every version folds every aggregate.", right=(3,))
