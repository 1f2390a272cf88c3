"""Dead letters by key, one of them with all that is known, and what may be done about them."""

import difflib
from collections.abc import Sequence
from urllib.parse import quote

from hiveio.console.dead import Found, by_key
from hiveio.console.html import Child, Markup, h
from hiveio.console.layout import action, ago, badge, code, facts, line, link, moment, pretty, section, some, table
from hiveio.consumer.dead_letters.format import ACTORS, ATTEMPTS, EXCEPTION, PREFIX, REASON, headers_of, time_of
from hiveio.consumer.dead_letters.opened import DeadLetter
from hiveio.kafka import Message
from hiveio.status import Status

ACTIONS = {"retry": "Try again", "dropped": "Drop"}


def text(dead: DeadLetter, name: str) -> str:
    return dead.headers.get(name, b"").decode("utf-8", "replace")


def key(dead: DeadLetter) -> str:
    return dead.key.decode("utf-8", "backslashreplace") if isinstance(dead.key, bytes) else "no key"


def place(dead: DeadLetter) -> str:
    return f"{dead.topic}/{dead.partition}/{dead.message.offset()}"


def groups(status: Status) -> list[Child]:
    rows = [
        (
            link(f"/dead/{quote(group.name, safe='')}", group.name),
            ", ".join(f"{count:,} {reason}" for reason, count in group.dead.reasons.items()),
            f"{group.dead.keys:,}",
            f"{group.dead.count:,}",
        )
        for group in status.groups
        if group.dead.count
    ]
    return [table(("group", "reasons", "keys", "dead letters"), rows, "There are no open dead letters.", right=(2, 3))]


def group(name: str, found: Found, first: int, *, write: bool) -> list[Child]:
    keys = by_key(found.listed)
    at = f"/dead/{quote(name, safe='')}"
    shown, others = some(at, keys, first, "keys")

    def row(together: list[DeadLetter]) -> Sequence[Child]:
        dead = together[0]
        again = found.failed.get(dead.origin)
        return (
            link(f"{at}/{place(dead)}", key(dead)),
            [
                badge(text(dead, REASON), "bad"),
                " ",
                line(text(dead, EXCEPTION)),
                h("small", line(f"again: {again}")) if again else None,
            ],
            text(dead, ATTEMPTS),
            ago(time_of(dead.headers)),
            f"{len(together) - 1:,}",
            dead.origin,
        )

    more = f" {found.total:,} are open, and the first {len(found.listed):,} are listed." if (
        found.total > len(found.listed)
    ) else ""  # fmt: skip
    return [
        h("p", f"{len(keys):,} {'key waits' if len(keys) == 1 else 'keys wait'}.{more} A key is handled in order: its "
          "first dead letter has failed, and later events of the key are parked behind it."),
        table(("key", "why", "attempts", "written", "behind it", "record"), map(row, shown),
              "There are no open dead letters.", right=(2, 4)),
        _forms(at, "all", write=write, label=f" all {len(found.listed):,}") if found.listed else None,
        others,
    ]  # fmt: skip


def one(name: str, dead: DeadLetter, original: Message | None, behind: int, again: str, *, write: bool) -> list[Child]:
    value = (original.value() if original is not None else None) or b""
    at = f"/dead/{quote(name, safe='')}"
    others = {n: v for n, v in headers_of(original).items() if not n.startswith(PREFIX)} if original else {}
    rows = [(header, raw.decode("utf-8", "backslashreplace")) for header, raw in others.items()]
    return [
        facts(
            ("key", key(dead)),
            ("reason", badge(text(dead, REASON), "bad")),
            ("attempts", text(dead, ATTEMPTS)),
            ("actors", text(dead, ACTORS)),
            ("written", [moment(time_of(dead.headers)), f" ({ago(time_of(dead.headers))})"]),
            ("record", dead.origin),
            ("lies in", place(dead)),
            ("behind it", f"{behind:,} more of this key"),
        ),
        section("Why it failed", code(text(dead, EXCEPTION) or "no exception")),
        section("Why the retry failed", difference(text(dead, EXCEPTION), again)) if again else None,
        section("What can be done", _forms(at, place(dead), write=write, label=" this key")),
        section("The record", code(pretty(value)) if value else h("p", "It has no value.", class_="empty")),
        section("Its headers", table(("header", "value"), rows, "It has none.")),
    ]


def difference(before: str, after: str) -> Markup:
    """What a retry has changed of the reason, line by line."""
    if before.strip() == after.strip():
        return h("p", "For the same reason: ", h("code", after))
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), "first", "retry", lineterm="", n=2))[2:]
    kinds = {"+": "new", "-": "old"}
    return h("pre", h("code", [h("span", f"{line}\n", class_=kinds.get(line[:1])) for line in lines]), tabindex="0")


def _forms(at: str, which: str, *, write: bool, label: str) -> Markup:
    if not write:
        text = "The console only reads. With --write it can try again and drop; "
        return h("p", text, h("code", "hiveio dead"), " can in any case.", class_="note")
    return h("p", [[_form(at, kind, which, f"{verb}{label}", confirmed=0), " "] for kind, verb in ACTIONS.items()],
             class_="choices")  # fmt: skip


def _form(at: str, kind: str, which: str, label: str, *, confirmed: int) -> Markup:
    return action(at, kind, which, label, confirmed=confirmed, danger=kind == "dropped")


def confirmation(name: str, kind: str, which: str, count: int) -> list[Child]:
    at = f"/dead/{quote(name, safe='')}"
    what = f"{count:,} dead letter{'' if count == 1 else 's'} of the group {name}"
    said = {
        "retry": f"{what} will be tried again, with what waits behind them, by the consumer that has their partition.",
        "dropped": f"{what} will be dropped: their events are never handled. This cannot be undone.",
    }[kind]
    return [
        h("p", said),
        h("p", _form(at, kind, which, ACTIONS[kind], confirmed=count), " ", link(at, "Cancel"), class_="choices"),
    ]
