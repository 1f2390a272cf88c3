"""What is kept of a process, in the cache and in the view."""

from collections.abc import Mapping

import pytest
from msgspec import Raw

from hiveio.kafka.tail import LogRecord
from hiveio.transaction import record as records
from hiveio.transaction.cache import LAYOUT
from hiveio.transaction.entry import Entry, Watermark
from hiveio.transaction.process import NEVER, RUNNING, WAITS, Due, Process, advanced, listed
from hiveio.transaction.quarantine import Quarantine
from hiveio.transaction.record import (
    FORMAT,
    Cause,
    CommandId,
    Commit,
    Format,
    ProcessStep,
    Record,
    Schedule,
    Send,
    Write,
    decode,
    encode,
)
from hiveio.transaction.rule import IdWindow
from hiveio.transaction.view import View

EVENT = Raw(b'{"type":"Late","payload":{}}')
LATE = Schedule("Late", 5_000, EVENT)


def stepping(head: str, step: ProcessStep) -> Commit:
    return Commit(CommandId("P/p", "k" + head), (Write("P/p", head, 0),), process=step)


def test_a_record_with_a_step_is_read_as_it_was_written() -> None:
    step = ProcessStep("topic/id/3/14", (Send("payments", "o1", EVENT),), (LATE,), ("Other",), "Third", 99)
    assert decode(encode(stepping("w-1", step))) == stepping("w-1", step)
    assert b"process" not in encode(Commit(CommandId("A/a", "k"), ()))


def test_an_input_is_kept_once_and_a_deadline_is_put_off_by_the_next_one_of_its_name() -> None:
    kept = b""
    for time, step in enumerate(
        (
            ProcessStep("a", schedules=(LATE,)),
            ProcessStep("b"),
            ProcessStep("a"),
            ProcessStep("", schedules=(LATE, Schedule("Other", 1, EVENT))),
        )
    ):
        kept = advanced(kept, step, None, 100 * time, time)
    process = Process.of(kept)
    assert process == Process(("a", "b"), {"Late": Due(5_300, EVENT), "Other": Due(301, EVENT)})
    assert process.due == 301
    fired = process.after(ProcessStep(fires="Other", due=301), None, 400, 9)
    assert (fired.due, Process().due) == (5_300, None)
    # Of one step: what it cancels is pending before it, what it schedules after it.
    assert (
        process.after(ProcessStep(cancels=("Late",), schedules=(LATE,)), None, 1_000, 9).deadlines["Late"].at == 6_000
    )


def test_a_command_waits_for_its_answer_and_an_ended_process_keeps_the_positions_that_it_has_taken() -> None:
    send, cause = Send("payments", "o1", EVENT), Cause("s", 7, 0, "P/q", "Ask")
    kept = advanced(b"", ProcessStep("a", (send, send), (LATE,)), cause, 100, 4)
    assert Process.of(kept).sent == {"4:0": 100, "4:1": 100}
    kept = advanced(kept, ProcessStep("b", (send,), answers="4:0"), None, 200, 5)
    assert Process.of(kept).sent == {"4:1": 100, "5:0": 200}
    assert [place for _, place in listed("P/p", kept)] == [5_100, WAITS + 100, RUNNING, NEVER]
    ended = advanced(kept, ProcessStep("c", (send,), (LATE,), parks=(EVENT,), ends=True), None, 300, 6)
    assert Process.of(ended) == Process(taken={"s": (7, 0)}, ended=True)
    assert {place for _, place in listed("P/p", ended)} == {NEVER}
    assert advanced(ended, ProcessStep("d", (send,)), None, 400, 7) == ended


@pytest.mark.parametrize("unfolded", [b"", b'{"type":"New"},{"type":"New"}'])
@pytest.mark.parametrize("snapshot", [b"", b'{"a":"= ~ 1"}', b"null"])
@pytest.mark.parametrize("process", [b"", advanced(b"", ProcessStep("a ~", schedules=(LATE,)), None, 1, 0)])
def test_an_entry_of_the_cache_is_read_as_it_was_written(process: bytes, snapshot: bytes, unfolded: bytes) -> None:
    entry = Entry(3, "w-1", None, snapshot, 9, unfolded, 7 if unfolded else 0, process=process)
    assert Entry.parse(entry.text, 9) == entry


def test_a_watermark_names_the_newest_format_that_is_known() -> None:
    """By that ``hiveio upgrade`` finds instances of older versions, and these do not take it for one of theirs."""
    watermark = Watermark(5, 6, "topic id", "gen", 2, 7, 8, transaction="w-1")
    assert watermark.text == f"5|6|topic id|gen|2|7|8|{FORMAT}|w-1"
    assert Watermark.parse(watermark.text.encode()) == watermark
    assert Watermark.parse(b"5|6|topic id|gen|2|7|8|w-1") is None, "of layout 3"
    assert LAYOUT > 3


def test_the_view_keeps_what_the_rule_says_with_records_of_its_own_and_of_others() -> None:
    """An instance that has performed a command has the entry already, but not the time at which its record is."""

    def judged(own: Mapping[int, dict[str, Entry]]) -> Entry:
        view = View({}, Quarantine("log", 0), IdWindow(0, 0))
        view.complete = True
        log: list[Record] = [Format(FORMAT, 1, "crc32", 10, 3_600_000)]
        log.append(stepping("", ProcessStep("a", schedules=(LATE,))))
        log.append(stepping("w-1", ProcessStep("b")))
        log.append(Commit(CommandId("P/p", "k3"), (Write("P/p", "w-2", 0),)))
        view.keep("P/p", Entry())
        for offset, record in enumerate(log):
            message = LogRecord(offset, f"w-{offset}", encode(record), 1_000 * (offset + 1))
            assert view.judge(message, records.decode(message.value), own.get(offset)).verdict
        return view.entries["P/p"]

    of_others = judged({})
    assert Process.of(of_others.process) == Process(("a", "b"), {"Late": Due(1_000 + 1_000 + 5_000, EVENT)})
    guessed = {number: {"P/p": Entry(0, f"w-{number}", process=b"guessed")} for number in (1, 2, 3)}
    assert judged(guessed) == of_others
