"""Verdicts with their reasons: every void record has one, whatever the log is."""

import threading
import tracemalloc
from time import monotonic

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec import Raw

from hiveio.config import Settings
from hiveio.console import records as judged
from hiveio.console.records import AT_ONCE, NEAR, Books, judge, stretches
from hiveio.kafka.tail import LogRecord
from hiveio.transaction import record as records
from hiveio.transaction.record import Barrier, CommandId, Commit, Foreign, Format, Read, Record, Upgrade, Write
from hiveio.transaction.rule import ReferenceFold
from tests.unit.transaction.test_engine import until
from tests.unit.transaction.test_rule import Log, logs

FORMAT = Format(2, 1, "crc32", 100, 60_000)


def reasons(*records: tuple[str, Record]) -> list[str]:
    """Of each record the reason, "" for one that is accepted."""
    fold = ReferenceFold()
    judge(fold, LogRecord(0, "format", b"", 0), FORMAT)
    return [judge(fold, LogRecord(at, tx, b"", at), record)[1] for at, (tx, record) in enumerate(records, 1)]


def commit(name: str, head: str, key: str = "", reads: tuple[Read, ...] = ()) -> Commit:
    return Commit(CommandId(name, key or f"{name}{head}"), (Write(name, head, 0),), reads)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(logs())
def test_it_judges_as_the_rule_does_and_says_why(log: Log) -> None:
    fold, reference = ReferenceFold(), ReferenceFold()
    for offset, (transaction, record, time) in enumerate(log):
        verdict, reason = judge(fold, LogRecord(offset, transaction, b"", time), record)
        assert verdict == reference.append(transaction, record, time)
        assert verdict == (not reason)
        assert reason not in ("the rule says so", "it is no record of hiveio")
    assert fold.aggregates == reference.aggregates


def test_a_void_record_says_what_it_was_decided_after_and_what_came_between() -> None:
    stale = "has changed: it was decided after no transaction, and the latest one is transaction a-1"
    read = commit("Account/bob", "", reads=(Read("Account/ada", ""),))
    assert reasons(("a-1", commit("Account/ada", "")), ("b-1", commit("Account/ada", "", "other")), ("b-2", read)) == [
        "",
        f"Account/ada, which it writes, {stale}",
        f"Account/ada, which it reads, {stale}",
    ]


def test_a_repeat_a_copy_and_bytes_of_others_have_reasons_of_their_own() -> None:
    once = commit("Account/ada", "", "key")
    again = commit("Account/ada", "a-1", "key")
    assert reasons(
        ("a-1", once),
        ("b-1", again),
        ("a-1", once),
        ("x", Foreign()),
        ("a-2", Barrier(("Account/ada",))),
        ("c-1", Upgrade(2)),
    ) == [
        "",
        "its command was executed or closed before, by the record at 1",
        "its writer has written a later record before, at 1, so it is a copy or too late",
        "it is no record of hiveio",
        "",
        "the log has format 2 already",
    ]


async def test_many_scopes_are_opened_in_the_time_of_one_and_judged_a_few_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away, judging = threading.Event(), list[int]()

    class Away:
        """A scope of a Kafka that does not answer."""

        def __init__(self, settings: Settings, partition: int, most: int) -> None:
            self.partition = partition

        def follow(self) -> None:
            judging.append(self.partition)
            away.wait(30)

    monkeypatch.setattr(judged, "ScopeRecords", Away)
    monkeypatch.setattr(judged, "FOLLOW_S", 0.5)
    books, begun = Books(Settings(topic="bank")), monotonic()
    try:
        for _ in range(2):  # a page and its renewal
            assert [scope.partition for scope in await books.first(20, 40)] == list(range(20))
        assert monotonic() - begun < 8  # one after the other they would take 20 s
        await until(lambda: len(judging) >= AT_ONCE)  # whichever have their turn first
        assert len(judging) == len(set(judging)) == AT_ONCE
    finally:
        away.set()


def test_what_lies_together_is_read_together_and_nothing_else_is() -> None:
    assert list(stretches([])) == []
    assert list(stretches([7, 8, 9 + NEAR, 9 + 2 * NEAR])) == [
        (7, 9),
        (9 + NEAR, 10 + NEAR),
        (9 + 2 * NEAR, 10 + 2 * NEAR),
    ]
    assert list(stretches([7, 6 + NEAR])) == [(7, 7 + NEAR)]


def test_a_record_that_is_known_costs_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/operations.md says how many: with ids of 36 characters, and ten records of an aggregate."""
    log = [LogRecord(0, "format-0", records.encode(FORMAT), 1)]
    for number in range(20_000):
        name = f"Account/0190b3c4-0000-7000-8000-{number % 2_000:012}"
        head = f"5f0c1d2e3a4b-{number - 1_999:x}" if number >= 2_000 else ""
        written = Write(name, head, number // 2_000, (Raw(b'{"type":"Deposited","payload":{}}'),))
        value = records.encode(Commit(CommandId(name, f"0190b3c4-{number:027}"), (written,), seen=number))
        log.append(LogRecord(number + 1, f"5f0c1d2e3a4b-{number + 1:x}", value, number))
    monkeypatch.setattr(judged, "Reader", lambda settings: None)
    scope = judged.ScopeRecords(Settings(topic="bank"), 0)
    tracemalloc.start()
    for message in log:
        scope.add(message)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert (scope.judged, scope.voids) == (20_001, [])
    assert held / len(log) < 600
