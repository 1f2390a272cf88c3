"""Verdicts with their reasons: every void record has one, whatever the log is."""

from hypothesis import HealthCheck, given, settings

from hiveio.console.records import judge
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.record import Barrier, CommandId, Commit, Foreign, Format, Read, Record, Upgrade, Write
from hiveio.transaction.rule import ReferenceFold
from tests.unit.transaction.test_rule import Log, logs

FORMAT = Format(2, 1, "crc32", 100, 60_000)


def reasons(*records: tuple[str, Record]) -> list[str]:
    """Of each record the reason, "" for one that is accepted."""
    fold = ReferenceFold()
    judge(fold, LogRecord(0, "format", b"", 0), FORMAT)
    return [judge(fold, LogRecord(at, tx, b"", at), record)[1] for at, (tx, record) in enumerate(records, 1)]


def commit(name: str, head: str, key: str = "", reads: tuple[Read, ...] = ()) -> Commit:
    return Commit(CommandId(name, key or f"{name}{head}"), (Write(name, head, 0),), reads)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs())
def test_it_judges_as_the_rule_does_and_says_why(log: Log) -> None:
    judged, reference = ReferenceFold(), ReferenceFold()
    for offset, (transaction, record, time) in enumerate(log):
        verdict, reason = judge(judged, LogRecord(offset, transaction, b"", time), record)
        assert verdict == reference.append(transaction, record, time)
        assert verdict == (not reason)
        assert reason not in ("the rule says so", "it is no record of hiveio")
    assert judged.aggregates == reference.aggregates


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
