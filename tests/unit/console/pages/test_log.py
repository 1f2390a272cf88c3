"""The log on a page: bounded, whatever a record holds, and readable where a version does not know a record."""

import pytest
from msgspec import Raw

from hiveio.config import Settings
from hiveio.console import records
from hiveio.console.html import joined
from hiveio.console.pages.log import PAGE, record_page, scope_log
from hiveio.console.records import Row, ScopeRecords
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.record import Barrier, CommandId, Commit, Record, Write


class NoReader:
    def __init__(self, settings: Settings) -> None:
        pass


@pytest.fixture
def scope(monkeypatch: pytest.MonkeyPatch) -> ScopeRecords:
    monkeypatch.setattr(records, "Reader", NoReader)
    return ScopeRecords(Settings(topic="bank"), 0)


def row(record: Record | None, value: bytes = b"{}") -> Row:
    return Row(LogRecord(7, "a-1", value, 1), record, True, "")


def large() -> Commit:
    event = Raw(b'{"type":"Deposited","payload":"%s"}' % (b"x" * 50_000))
    writes = tuple(Write(f"Account/{at}", "", 0, (event,) * 100) for at in range(1_000))
    return Commit(CommandId("Account/0", "k"), writes)


def test_a_page_is_bounded_whatever_a_record_holds(scope: ScopeRecords) -> None:
    found = [row(large()), row(Barrier(tuple(f"Account/{at}" for at in range(1_000))))] * (PAGE // 2)
    page = joined(scope_log(scope, found, 1_000, None, void=False))
    assert "and 990 more" in page
    assert "Deposited and 90 more" in page
    assert len(page) < 250_000
    page = joined(record_page(scope, row(large(), b"x" * 900_000)))
    assert "and 90 more events" in page
    assert "and 950 more aggregates" in page
    assert len(page) < 50 * 10 * 21_000


@pytest.mark.parametrize("event", [b"1", b'{"type":1}', b"[]"])
def test_an_event_that_is_none_is_shown_all_the_same(scope: ScopeRecords, event: bytes) -> None:
    written = row(Commit(CommandId("Account/0", "k"), (Write("Account/0", "", 0, (Raw(event),)),)))
    assert "Account/0</a> ?" in joined(scope_log(scope, [written], 1, None, void=False))


def test_a_record_of_a_newer_version_is_shown_and_stops_the_scope(scope: ScopeRecords) -> None:
    found = scope.row(LogRecord(7, "a-1", b'{"kind":"novel"}', 1))
    assert found.record is None
    page = joined(scope_log(scope, [found], 1, None, void=False)) + joined(record_page(scope, found))
    assert "this version does not know it" in page
    assert "a newer version may have written it" in page
    assert "not judged" in page
