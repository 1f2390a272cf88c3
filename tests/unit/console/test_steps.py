"""The steps of a process, by its records."""

import json

from msgspec import Raw

from hiveio.console.records import Row
from hiveio.console.steps import moments, place, type_of
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.record import Barrier, CommandId, Commit, ProcessStep, Record, Schedule, Send, Write

NAME = "Fulfilment/7"


def raw(kind: str) -> Raw:
    return Raw(json.dumps({"type": kind, "payload": {}}).encode())


def row(offset: int, record: Record) -> Row:
    return Row(LogRecord(offset, f"a-{offset}", b"", 1_000 * offset), record, True, "")


def took(offset: int, step: ProcessStep | None, *events: str, target: str = NAME) -> Row:
    written = Write(NAME, "", 0, tuple(map(raw, events)))
    return row(offset, Commit(CommandId(target, f"k{offset}"), (written,), process=step))


def test_a_command_has_the_answer_that_a_later_step_has_taken() -> None:
    sends = (Send("payments", "ada", raw("Reserve")), Send("stock", "tea", raw("Pick")))
    found = moments(
        NAME,
        2,
        [
            took(4, ProcessStep("orders/x/0/1", sends, (Schedule("Overdue", 5, raw("Overdue")),)), "Started"),
            row(5, Barrier((NAME,))),
            took(6, ProcessStep("payments/y/0/9", answers="4:0"), "Paid"),
            took(7, None, "Noted"),
            took(8, ProcessStep("z/z/0/0", sends=sends), "Moved", target="Fulfilment/8"),
        ],
    )
    assert [each.row.message.offset for each in found] == [4, 6, 7, 8]
    assert [[type_of(event) for event in each.events] for each in found] == [
        ["Started"],
        ["Paid"],
        ["Noted"],
        ["Moved"],
    ]
    paid, picked = found[0].commands
    assert (paid.position, picked.position, picked.answer) == ("2:4:0", "2:4:1", None)
    assert paid.answer is not None
    assert (paid.answer.row.message.offset, place(paid.answer.source)) == (6, "payments/0/9")
    assert (found[3].step, found[3].commands) == (None, [])  # the step is that of another process


def test_an_input_that_waited_has_its_type_when_it_is_handled() -> None:
    found = moments(
        NAME,
        0,
        [
            took(1, ProcessStep("orders/x/0/1", parks=(raw("OrderPlaced"),), stuck="no such address")),
            took(2, ProcessStep(fires="Overdue", due=7, parks=(raw("Overdue"),))),
            took(3, ProcessStep(stuck="still none")),
            took(4, ProcessStep(unparks="orders/x/0/1"), "Started"),
            took(5, ProcessStep(unparks="Overdue")),
        ],
    )
    assert [each.kind for each in found] == ["OrderPlaced", "Overdue", "", "OrderPlaced", "Overdue"]
    assert place("Overdue") == "Overdue"
    assert place("orders/3HDDUE7mSGec/eEMdwTeSg/0/1") == "orders/0/1", "the id of a topic may have a slash in it"
    assert place("orders//0/1") == "orders/0/1"
