"""The log of a scope, newest first; one record; and a transaction from its command to who has handled its events."""

from collections.abc import Sequence

import msgspec

from hiveio.console.html import Child, Markup, h
from hiveio.console.layout import ago, badge, code, facts, link, moment, pages, pretty, section, table
from hiveio.console.records import Row, ScopeRecords
from hiveio.status.text import about
from hiveio.transaction.record import Barrier, Commit

PAGE = 50
MOST = 200  # scopes that are listed


def verdict(row: Row) -> Markup:
    if row.accepted is None:
        return badge("not judged", "quiet")
    if not row.accepted:
        return badge("void", "bad")
    refused = isinstance(row.record, Commit) and row.record.refusal is not None
    return badge("refused", "warn") if refused else badge("accepted", "good")


def progress(scope: ScopeRecords) -> Child:
    """How far the scope is judged, while it is not, and what stops it."""
    if scope.failure:
        return h("p", badge("stopped", "bad"), " ", scope.failure)
    if not scope.complete:
        text = f" {scope.judged:,} of {scope.end:,} records are judged; the page is renewed as it goes on."
        return h("p", badge("judging", "warn"), text)
    if scope.beyond:
        text = f" The log has {scope.end:,} records, and the first {scope.judged:,} are judged here. "
        return h("p", badge("long log", "warn"), text, h("code", "hiveio log"), " judges all of them.")
    return None


def scope_log(scope: ScopeRecords, rows: Sequence[Row], count: int, below: int | None, *, void: bool) -> list[Child]:
    """``rows`` are newest first. ``below``: only records below this offset."""
    at = f"/log/{scope.partition}"
    scopes = [
        h("b", each) if each == scope.partition else link(f"/log/{each}", each) for each in range(min(count, MOST))
    ]
    last = rows[-1].message.offset if rows else 0
    only = "1" if void else None
    older = link(at, "older →", below=last, void=only) if last > 0 else None
    newer = link(at, "← newest", void=only) if below is not None else None
    between = f"{last:,} to {rows[0].message.offset:,} of {scope.end:,}" if rows else "none"
    filtered = link(at, "all records") if void else link(at, f"only void ones ({len(scope.voids):,})", void=1)
    heads = ("offset", "stored", "verdict", "record", "aggregates and events")
    return [
        h("p", "Scope ", [[each, " "] for each in scopes], " · ", filtered, class_="choices"),
        progress(scope),
        table(heads, map(_line, [(scope, row) for row in rows]), "There are no such records.", right=(0,)),
        pages(older, newer, between),
    ]


def _line(found: tuple[ScopeRecords, Row]) -> Sequence[Child]:
    scope, row = found
    return (
        link(f"/log/{scope.partition}/{row.message.offset}", f"{row.message.offset:,}"),
        moment(row.message.time),
        [verdict(row), h("small", row.reason) if row.reason else None],
        kind(row),
        touched(row),
    )


def kind(row: Row) -> str:
    if isinstance(row.record, Commit):
        return f"commit{', keyed' if row.record.keyed else ''}"
    return about(row.record).split(" ", 1)[0].rstrip(":,")


def touched(row: Row) -> Child:
    record = row.record
    if isinstance(record, Barrier):
        return h("ul", [h("li", link("/aggregate", name, name=name)) for name in record.aggregates])
    if not isinstance(record, Commit):
        return about(record)
    found = []
    for write in record.writes:
        types = [msgspec.json.decode(event, type=_Typed).type for event in write.events]
        what = ", ".join(types) if types else "no events"
        found.append(h("li", link("/aggregate", write.aggregate, name=write.aggregate), " ", what))
    found += [h("li", link("/aggregate", read.aggregate, name=read.aggregate), " read") for read in record.reads]
    if record.refusal is not None:
        found.append(h("li", h("small", f"refused: {record.refusal.get('detail', '')}")))
    return h("ul", found)


class _Typed(msgspec.Struct):
    type: str = "?"


def record_page(scope: ScopeRecords, row: Row) -> list[Child]:
    record, offset = row.record, row.message.offset
    writes: list[Child] = []
    if isinstance(record, Commit):
        for write in record.writes:
            title = link("/aggregate", write.aggregate, name=write.aggregate)
            after = write.version + len(write.events)
            writes.append(h("h3", title, f" version {write.version} → {after}"))
            writes += [code(pretty(bytes(event))) for event in write.events] or [h("p", "no events", class_="empty")]
    return [
        facts(
            ("verdict", [verdict(row), f" because {row.reason}" if row.reason else ""]),
            ("stored", [moment(row.message.time), f" ({ago(row.message.time)})"]),
            ("transaction", link("/transaction", row.message.key, id=row.message.key) if row.message.key else None),
            ("record", about(record)),
        ),
        h("div", writes) if writes else None,
        section("As it is stored", code(pretty(row.message.value))),
        pages(
            link(f"/log/{scope.partition}/{offset - 1}", "older →") if offset else None,
            link(f"/log/{scope.partition}/{offset + 1}", "← newer") if offset + 1 < scope.end else None,
            f"{scope.where}/{offset}",
        ),
    ]


def attempts(scope: ScopeRecords, rows: Sequence[Row]) -> Markup:
    """All records of one command, oldest first."""
    return table(
        ("offset", "stored", "verdict", "record", "aggregates and events"),
        map(_line, [(scope, row) for row in rows]),
        "No record of it is in the log.",
        right=(0,),
    )
