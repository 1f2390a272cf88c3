"""The log of a scope, newest first; one record; and a transaction from its command to who has handled its events."""

from collections.abc import Sequence
from urllib.parse import quote

from hiveio.console.html import Child, Markup, h
from hiveio.console.layout import ago, badge, code, facts, line, link, moment, pages, pretty, section, table
from hiveio.console.records import Row, ScopeRecords
from hiveio.console.steps import type_of
from hiveio.console.trace import Trace
from hiveio.status.text import about
from hiveio.transaction.record import Barrier, Commit, Read, Write

PAGE = 50
MOST = 200  # scopes that are listed
NAMED = 10  # aggregates of a record, and events of one of them


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


def progress_of(scopes: Sequence[ScopeRecords], count: int) -> Child:
    """The same for the first one of these scopes that it is to be said of; and whether there are more of them."""
    found = next((found for scope in scopes if (found := progress(scope)) is not None), None)
    if found is None and len(scopes) < count:
        return h("p", badge("many scopes", "warn"), f" The first {len(scopes)} of {count} scopes are searched here.")
    return found


def searched(scopes: Sequence[ScopeRecords], count: int) -> str:
    """Where a search in these scopes, of ``count``, has looked."""
    parts = []
    if len(scopes) < count:
        parts.append(f"in the first {len(scopes)} of {count} scopes")
    if any(scope.beyond for scope in scopes):
        parts.append("among the first records of a long log")
    return f"{' and '.join(parts)}, which are searched here; `hiveio log` searches all" if parts else "in the log"


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
    if row.record is None:
        return "unknown"
    if isinstance(row.record, Commit):
        return f"commit{', keyed' if row.record.keyed else ''}"
    return about(row.record).split(" ", 1)[0].rstrip(":,")


def touched(row: Row) -> Child:
    """The aggregates that the record names, a few of them, each with what it says about it."""
    record = row.record
    if record is None:
        return "this version does not know it"
    if not isinstance(record, Commit | Barrier):
        return about(record)
    if isinstance(record, Barrier):
        parts: list[Write | Read | str] = [*record.aggregates]
    else:
        parts = [*record.writes, *record.reads]
    found = [h("li", _part(part)) for part in parts[:NAMED]]
    if len(parts) > NAMED:
        found.append(h("li", f"and {len(parts) - NAMED:,} more"))
    if isinstance(record, Commit) and record.refusal is not None:
        found.append(h("li", h("small", line(f"refused: {record.refusal.get('detail', '')}"))))
    return h("ul", found)


def _part(part: Write | Read | str) -> Child:
    name = part if isinstance(part, str) else part.aggregate
    said = _types(part) if isinstance(part, Write) else " read" if isinstance(part, Read) else ""
    return [link("/aggregate", name, name=name), said]


def _types(write: Write) -> str:
    types = [type_of(bytes(event)) for event in write.events[:NAMED]]
    more = f" and {len(write.events) - NAMED:,} more" if len(write.events) > NAMED else ""
    return f" {', '.join(types)}{more}" if types else " no events"


def record_page(scope: ScopeRecords, row: Row) -> list[Child]:
    record, offset = row.record, row.message.offset
    writes: list[Child] = []
    if isinstance(record, Commit):
        for write in record.writes[:PAGE]:
            title = link("/aggregate", write.aggregate, name=write.aggregate)
            after = write.version + len(write.events)
            writes.append(h("h3", title, f" version {write.version} → {after}"))
            shown = [code(pretty(bytes(event))) for event in write.events[:NAMED]]
            writes += shown or [h("p", "no events", class_="empty")]
            if len(write.events) > NAMED:
                writes.append(h("p", f"and {len(write.events) - NAMED:,} more events"))
        if len(record.writes) > PAGE:
            writes.append(h("p", f"and {len(record.writes) - PAGE:,} more aggregates"))
    return [
        facts(
            ("verdict", [verdict(row), f" because {row.reason}" if row.reason and record is not None else ""]),
            ("why", row.reason if record is None else None),
            ("stored", [moment(row.message.time), f" ({ago(row.message.time)})"]),
            ("transaction", link("/transaction", row.message.key, id=row.message.key) if row.message.key else None),
            ("record", about(record) if record is not None else "this version does not know it"),
        ),
        h("div", writes) if writes else None,
        section("As it is stored", code(pretty(row.message.value))),
        pages(
            link(f"/log/{scope.partition}/{offset - 1}", "older →") if offset else None,
            link(f"/log/{scope.partition}/{offset + 1}", "← newer") if offset + 1 < scope.end else None,
            f"{scope.where}/{offset}",
        ),
    ]


def transaction(found: Trace, topic: str, handlers: Sequence[tuple[str, str]]) -> list[Child]:
    """``topic`` is that of the events; ``handlers`` are groups, each with what it has done about them."""
    accepted, events = found.accepted, found.events
    where = f"{topic}/{found.scope.partition}, offsets {events[0]:,} to {events[-1]:,}" if events else "none"
    rows = [(link(f"/groups/{quote(group, safe='')}", group), _handled(said)) for group, said in handlers]
    return [
        facts(
            ("outcome", badge("not on record", "warn") if accepted is None else verdict(accepted)),
            ("attempts", f"{len(found.rows):,}"),
            ("events", where),
        ),
        section("In the log", _attempts(found.scope, found.rows)),
        section("At the consumers", table(("group", "its events"), rows, "It has no events on the topic.")),
    ]


def _handled(said: str) -> Markup:
    return badge(said, "good" if said == "handled" else "quiet" if said.startswith("does") else "warn")


def _attempts(scope: ScopeRecords, rows: Sequence[Row]) -> Markup:
    """All records of one command, oldest first."""
    return table(
        ("offset", "stored", "verdict", "record", "aggregates and events"),
        map(_line, [(scope, row) for row in rows]),
        "No record of it is in the log.",
        right=(0,),
    )
