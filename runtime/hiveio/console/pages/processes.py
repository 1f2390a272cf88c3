"""Processes that run and that are stuck; and one of them, its steps as a timeline."""

from collections.abc import Sequence

from hiveio.console.html import Child, Markup, h
from hiveio.console.layout import (
    ROWS,
    action,
    badge,
    code,
    facts,
    line,
    link,
    moment,
    pages,
    pretty,
    process_path,
    section,
    span,
    table,
)
from hiveio.console.records import Row, ScopeRecords
from hiveio.console.steps import READ, Answer, Command, ProcessMoment, place, type_of
from hiveio.status.processes import Kept
from hiveio.transaction.record import Commit, ProcessStep

ACTIONS = {"retry": "Try again", "skip": "Skip"}
FEW = 20  # stuck processes that are listed before those that run
STEPS = 100  # of one page
MOST_TEXT = 1_000  # characters of one event
MOST_LISTED = 100  # commands, deadlines and inputs that are listed of a process


def processes(
    running: tuple[int, Sequence[Kept]], stuck: tuple[int, Sequence[Kept]], first: int, *, only_stuck: bool
) -> list[Child]:
    """``running`` and ``stuck``: how many there are, and those that are shown."""
    choices = [
        link("/processes", f"all that run ({running[0]:,})")
        if only_stuck
        else h("b", f"all that run ({running[0]:,})"),
        " · ",
        h("b", f"stuck ({stuck[0]:,})") if only_stuck else link("/processes", f"stuck ({stuck[0]:,})", only="stuck"),
    ]
    shown = [h("p", choices, class_="choices")]
    if only_stuck:
        return [*shown, _table(stuck[1], "No process is stuck."), _pages(first, stuck[0], "stuck")]
    if stuck[0] and not first:
        more = link("/processes", f"all {stuck[0]:,}", only="stuck") if stuck[0] > FEW else None
        shown.append(section("Stuck", _table(stuck[1][:FEW], ""), more))
    listed = _table(running[1], "No process runs.")
    return [*shown, section("All that run", listed), _pages(first, running[0], "")]


def _table(found: Sequence[Kept], empty: str) -> Markup:
    heads = ("process", "scope", "is", "version", "inputs taken", "waiting", "unanswered", "next deadline")
    return table(heads, map(_line, found), empty, right=(3, 4, 5, 6))


def _line(each: Kept) -> Sequence[Child]:
    process = each.process
    due = min((deadline.at for deadline in process.deadlines.values()), default=None)
    return (
        link(process_path(each.name), each.name),
        link(f"/log/{each.partition}", str(each.partition)),
        [_state(each), h("small", line(process.stuck)) if process.stuck else None],
        f"{each.entry.version:,}",
        f"{len(process.sources):,}",
        f"{len(process.waiting):,}",
        f"{len(process.sent):,}",
        _until(due, each.now) if due is not None else "-",
    )


def _state(each: Kept) -> Markup:
    if each.process.ended:
        return badge("ended", "quiet")
    if each.process.stuck:
        return badge("stuck", "bad")
    return badge("runs", "good") if each.process.running else badge("has nothing to do", "quiet")


def _until(due: int, now: int) -> str:
    return f"in {span((due - now) / 1000)}" if due > now else f"due for {span((now - due) / 1000)}"


def _pages(first: int, total: int, only: str) -> Markup | None:
    if total <= ROWS and not first:
        return None
    return pages(
        link("/processes", "next →", only=only, first=first + ROWS) if first + ROWS < total else None,
        link("/processes", "← previous", only=only, first=max(0, first - ROWS) or None) if first else None,
        f"{first + 1:,} to {min(first + ROWS, total):,} of {total:,}" if first < total else "no more processes",
    )


def one(
    each: Kept, scope: ScopeRecords, found: Sequence[ProcessMoment], last: int | None, asked: str, *, write: bool
) -> list[Child]:
    """``found`` are its steps, oldest first; ``last`` is the number of the one at which the page ends. ``asked`` is
    what the leader was asked to do and has not done."""
    process, total = each.process, len(found)
    end = total if last is None else max(0, min(last, total))
    begin = max(0, end - STEPS)
    at = process_path(each.name)
    records = len(scope.touched.get(each.name, ()))
    items = [_moment(scope.partition, step, ended=process.ended) for step in found[begin:end]]
    return [
        facts(
            ("now", [_state(each), " ", badge(f"asked: {asked}", "warn") if asked else None]),
            ("why", code(process.stuck) if process.stuck else None),
            ("state", link("/aggregate", "its events and states", name=each.name)),
            ("scope", link(f"/log/{each.partition}", str(each.partition))),
            ("version", f"{each.entry.version:,}"),
            ("inputs taken", f"{len(process.sources):,}" if not process.ended else None),
        ),
        _waiting(each, at, write=write) if process.waiting else None,
        _pending(each) if process.deadlines or process.sent else None,
        section(
            "Steps",
            h("p", f"It has {records:,} records; steps of the latest {READ:,} are shown.") if records > READ else None,
            h("ol", items, class_="timeline") if items else h("p", "None is known.", class_="empty"),
        ),
        pages(
            link(at, "earlier →", last=begin) if begin else None,
            link(at, "← latest") if end < total else None,
            f"steps {begin + 1:,} to {end:,} of {total:,}" if len(items) < total else "",
        ),
    ]


def _waiting(each: Kept, at: str, *, write: bool) -> Markup:
    waiting = each.process.waiting
    rows = [
        (place(input.name), type_of(bytes(input.event)), h("code", line(bytes(input.event).decode("utf-8", "replace"))))
        for input in waiting[:MOST_LISTED]
    ]
    more = h("p", f"and {len(waiting) - len(rows):,} more") if len(waiting) > len(rows) else None
    if write:
        forms: Child = [[_form(at, kind, waiting[0].name, confirmed=0), " "] for kind in ACTIONS]
        what: Markup = h("p", forms, class_="choices")
    else:
        text = "The console only reads. With --write it can try again and skip; "
        what = h("p", text, h("code", "hiveio saga"), " can in any case.", class_="note")
    return section(
        "Inputs that wait", table(("input", "type", "event"), rows, ""), more, what if each.process.stuck else None
    )


def _form(at: str, kind: str, which: str, *, confirmed: int) -> Markup:
    return action(at, kind, which, ACTIONS[kind], confirmed=confirmed, danger=kind == "skip")


def confirmation(each: Kept, kind: str) -> list[Child]:
    at, first = process_path(each.name), each.process.waiting[0]
    what = f"{type_of(bytes(first.event))} ({place(first.name)})"
    said = {
        "retry": f"{each.name} will be given {what} again, and what waits behind it if that works.",
        "skip": f"{each.name} will never be given {what}, and goes on with what waits behind it. "
        "This cannot be undone.",
    }[kind]
    return [
        h("p", said),
        h("p", _form(at, kind, first.name, confirmed=1), " ", link(at, "Cancel"), class_="choices"),
    ]


def _pending(each: Kept) -> Markup:
    process = each.process
    deadlines = sorted(process.deadlines.items(), key=lambda pair: pair[1].at)
    rows = [("deadline", name, _until(due.at, each.now)) for name, due in deadlines[:MOST_LISTED]]
    rows += [
        ("command", f"{each.partition}:{position}", f"not answered for {span(max(0, each.now - sent) / 1000)}")
        for position, sent in [*process.sent.items()][:MOST_LISTED]
    ]
    more = len(process.deadlines) + len(process.sent) - len(rows)
    text = h("p", f"and {more:,} more") if more else None
    return section("What it waits for", table(("", "which", "by the log's clock"), rows, ""), text)


def _moment(partition: int, found: ProcessMoment, *, ended: bool) -> Markup:
    offset, time = found.row.message.offset, found.row.message.time
    step = found.step or ProcessStep()
    lines = [
        *_taken(partition, found.row, step, found.kind),
        *([[badge("stuck", "bad"), " ", line(step.stuck)]] if step.stuck else []),
        *[["wrote ", h("b", type_of(event)), " ", _payload(event)] for event in found.events[:MOST_LISTED]],
        *[_command(found.row, each, ended=ended) for each in found.commands[:MOST_LISTED]],
        *[
            [
                "scheduled ", h("b", each.name), f" in {span(each.after_ms / 1000)}"
            ]
            for each in step.schedules[:MOST_LISTED]
        ],
        *[["cancelled ", h("b", name)] for name in step.cancels[:MOST_LISTED]],
        *([badge("ended", "quiet")] if step.ends else []),
    ]  # fmt: skip
    every = len(found.events), len(found.commands), len(step.schedules), len(step.cancels)
    if more := sum(max(0, number - MOST_LISTED) for number in every):
        lines.append(f"and {more:,} more")
    title = h("h3", moment(time), h("small", link(f"/log/{partition}/{offset}", f"{partition}:{offset}")))
    return h("li", title, h("ul", [h("li", each) for each in lines]))


def _taken(partition: int, row: Row, step: ProcessStep, kind: str) -> list[Child]:
    """What it was given, a line each."""
    name = h("b", kind) if kind else None
    if step.unparks:
        what: Child = ["handled or skipped what waited: ", name, f" {place(step.unparks)}"]
    elif step.parks:
        what = ["waits: ", name, f" {place(step.source)}" if step.source else ""]
    elif step.fires:
        what = ["fired ", h("b", step.fires)]
    elif step.source:
        what = ["took ", place(step.source)]
    elif step.answers:
        what = "an answer was noted, of which perform is not told"
    elif step.stuck:
        what = "tried again what waits"
    elif isinstance(row.record, Commit) and row.record.cause is not None:
        what = ["took ", h("b", row.record.cause.command), f", a command of {row.record.cause.process}"]
    else:
        what = "a command of a client"
    answers = [f"which answers the command {partition}:{step.answers}"] if step.answers else []
    return [what, *answers]


def _payload(event: bytes) -> Markup:
    return h("code", line(pretty(event, MOST_TEXT).replace("\n", " ")))


def _command(row: Row, each: Command, *, ended: bool) -> Child:
    sent = each.sent
    what = ["sent ", h("b", type_of(bytes(sent.message))), f" to {sent.service}/{sent.id} ({each.position}): "]
    if each.answer is not None:
        return [*what, badge("answered", "good"), f" {_answered(row, each.answer)}"]
    return [*what, badge("not answered" if not ended else "no answer before the end", "quiet" if ended else "warn")]


def _answered(row: Row, answer: Answer) -> str:
    took = span(max(0, answer.row.message.time - row.message.time) / 1000)
    return f"by {place(answer.source)} after {took}" if answer.source else f"after {took}"
