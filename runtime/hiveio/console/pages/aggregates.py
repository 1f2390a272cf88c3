"""All aggregates by name; and one of them: each event beside the state after it."""

from bisect import bisect_right
from collections.abc import Sequence

from hiveio.console.html import Child, Markup, h
from hiveio.console.layout import badge, facts, link, moment, pages, pretty, process_path, table
from hiveio.console.records import ScopeRecords
from hiveio.console.states import Step
from hiveio.transaction.record import Commit

PAGE = 100
STEPS = 100  # events of one page
MOST_TEXT = 4_000  # characters of one of them, and of one state


def aggregates(scopes: Sequence[ScopeRecords], begins: str, after: str) -> list[Child]:
    """Those whose names begin with ``begins``, by name, from the first one after ``after`` on."""
    names = sorted(
        ((name, scope) for scope in scopes for name in list(scope.touched) if name.startswith(begins)),
        key=lambda found: found[0],
    )
    first = bisect_right([name for name, _ in names], after) if after else 0
    shown = names[first : first + PAGE]
    rows = [
        (
            link("/aggregate", name, name=name),
            link(f"/log/{scope.partition}", str(scope.partition)),
            f"{len(scope.touched[name]):,}",
            link(f"/log/{scope.partition}/{scope.touched[name][-1]}", f"{scope.touched[name][-1]:,}"),
        )
        for name, scope in shown
    ]
    search = h(
        "form",
        h("input", type="search", name="begins", value=begins, placeholder="Actor/ and the beginning of an id",
          aria_label="Names that begin with", autocomplete="off", spellcheck="false"),
        " ", h("button", "Find"), action="/aggregates", class_="choices",
    )  # fmt: skip
    more = first + PAGE < len(names)
    return [
        search,
        table(("aggregate", "scope", "records", "latest record"), rows, "There are none.", right=(2, 3)),
        pages(
            link("/aggregates", "next →", begins=begins, after=shown[-1][0]) if more else None,
            link("/aggregates", "← first", begins=begins) if first else None,
            f"{first + 1:,} to {first + len(shown):,} of {len(names):,}" if shown else "none",
        ),
    ]


def aggregate(name: str, scope: ScopeRecords, found: Sequence[Step], total: int, last: int | None) -> list[Child]:
    """``found`` are all steps; ``last`` is the version at which the page ends."""
    end = len(found) if last is None else max(0, min(last, len(found)))
    begin = max(0, end - STEPS)
    items = []
    before: list[str] = pretty(found[begin - 1].state or b"null", MOST_TEXT).splitlines() if begin else []
    for step in found[begin:end]:
        state = pretty(step.state, MOST_TEXT) if step.state is not None else ""
        items.append(_step(scope, step, state, set(before)))
        before = state.splitlines()
    return [
        facts(
            ("scope", link(f"/log/{scope.partition}", str(scope.partition))),
            ("records", f"{total:,} accepted ones wrote or moved it"),
            ("version", f"{found[-1].version:,}" if found else None),
            ("process", link(process_path(name), "its steps") if any(map(_is_of_process, found)) else None),
        ),
        h("div", class_="slider", data_slider=True),
        h("ol", items, class_="steps") if items else h("p", "It has no events.", class_="empty"),
        pages(
            link("/aggregate", "earlier →", name=name, last=begin) if begin else None,
            link("/aggregate", "← latest", name=name) if end < len(found) else None,
            f"events {begin + 1:,} to {end:,} of {len(found):,}" if len(items) < len(found) else "",
        ),
    ]


def _is_of_process(step: Step) -> bool:
    return isinstance(step.row.record, Commit) and step.row.record.process is not None


def _step(scope: ScopeRecords, step: Step, state: str, before: set[str]) -> Markup:
    offset = step.row.message.offset
    lines = [
        h("span", f"{line}\n", class_="new" if line not in before and line.strip("{}[], ") else None)
        for line in state.splitlines()
    ]
    shown = h("pre", h("code", lines), tabindex="0") if state else h("p", badge("no state", "warn"), " ", step.fault)
    return h(
        "li",
        h("h3", f"Version {step.version:,} ", h("small", moment(step.row.message.time), " ",
          link(f"/log/{scope.partition}/{offset}", f"{scope.partition}:{offset}"))),
        h("div", h("div", h("h4", "event"), h("pre", h("code", pretty(step.event, MOST_TEXT)), tabindex="0")),
          h("div", h("h4", "state after it"), shown), class_="beside"),
    )  # fmt: skip
