"""Processes on a page: however many there are, and whatever others wrote."""

import json
from typing import cast

from msgspec import Raw

from hiveio.console.html import joined
from hiveio.console.layout import ROWS
from hiveio.console.pages.processes import STEPS, confirmation, one, processes
from hiveio.console.records import Row, ScopeRecords
from hiveio.console.steps import moments
from hiveio.kafka.tail import LogRecord
from hiveio.status.processes import Kept
from hiveio.transaction.entry import Entry
from hiveio.transaction.process import Due, Process, Waiting
from hiveio.transaction.record import CommandId, Commit, ProcessStep, Schedule, Send, Write

EVIL = "<script>alert(1)</script>"
NAME = f"Fulfilment/{EVIL}"


def raw(kind: str) -> Raw:
    return Raw(json.dumps({"type": kind, "payload": {"text": EVIL * 1_000}}).encode())


STUCK = Process(
    ("orders/x/0/1",),
    {"Overdue": Due(900_000, raw("Overdue"))},
    waiting=(Waiting("orders/x/0/2", raw("OrderPlaced")), Waiting("Overdue", raw("Overdue"))),
    stuck=EVIL * 1_000,
    sent={"4:0": 1_000},
)


def kept(process: Process, name: str = NAME) -> Kept:
    return Kept(name, 0, Entry(3, "a-1"), process, 61_000)


class Scope:
    partition = 0
    touched = {NAME: [1]}  # noqa: RUF012


SCOPE = cast(ScopeRecords, Scope())


def step(offset: int, found: ProcessStep) -> Row:
    written = Write(NAME, "", 0, (raw(EVIL),))
    return Row(
        LogRecord(offset, f"a-{offset}", b"", offset), Commit(CommandId(NAME, "k"), (written,), process=found), True, ""
    )


def test_they_are_listed_a_page_at_a_time_and_the_stuck_ones_first() -> None:
    many = [kept(Process(("s",)), f"Fulfilment/{number}") for number in range(ROWS)]
    page = joined(processes((10_000, many), (30, [kept(STUCK)] * 20), 0, only_stuck=False))
    assert EVIL not in page
    assert page.count("<tr>") == ROWS + 20 + 2
    assert "1 to 100 of 10,000" in page
    assert "all 30" in page
    assert page.index("stuck</span>") < page.index("runs</span>")
    assert 'href="/processes?first=200"' in joined(processes((10_000, many), (30, []), 100, only_stuck=False))
    only = joined(processes((10_000, []), (300, [kept(STUCK)] * ROWS), 100, only_stuck=True))
    assert 'href="/processes?only=stuck&amp;first=200"' in only
    assert "No process runs." in joined(processes((0, []), (0, []), 0, only_stuck=False))
    assert len(page) < 100_000


def test_one_shows_its_steps_and_what_waits() -> None:
    sends = tuple(Send("payments", EVIL, raw("Reserve")) for _ in range(200))
    rows = [step(4, ProcessStep("orders/x/0/1", sends, (Schedule("Overdue", 900_000, raw("Overdue")),), ("Old",)))]
    rows += [step(at, ProcessStep(f"payments/y/0/{at}", answers="4:0")) for at in range(5, 204)]
    rows += [step(204, ProcessStep(fires="Overdue", due=1)), step(205, ProcessStep(unparks="orders/x/0/2", ends=True))]
    found = moments(NAME, 0, rows)
    page = joined(one(kept(STUCK), SCOPE, found, 100, "retry", write=True))
    assert EVIL not in page
    for said in (
        "took orders/0/1",
        "in 15 min",
        "cancelled <b>Old</b>",
        "not answered for 1 min",
        "by payments/0/203 after",
        "asked: retry",
        "and 100 more",
        "steps 1 to 100 of 202",
        "Try again",
    ):
        assert said in page, said
    assert len(page) < 200_000
    latest = joined(one(kept(Process(ended=True)), SCOPE, found, None, "", write=True))
    assert latest.count("<h3>") == STEPS
    assert "fired <b>Overdue</b>" in latest
    assert "handled or skipped what waited" in latest
    assert "Try again" not in latest
    assert "only reads" in joined(one(kept(STUCK), SCOPE, found, None, "", write=False))


def test_what_is_asked_for_is_confirmed() -> None:
    page = joined(confirmation(kept(STUCK), "skip"))
    assert "OrderPlaced (orders/0/2)" in page
    assert "cannot be undone" in page
    assert 'name="confirmed" value="1"' in page
    assert EVIL not in page
