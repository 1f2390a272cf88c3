"""The log on a page: bounded, whatever a record holds, and readable where a version does not know a record."""

import pytest
from msgspec import Raw

from hiveio.config import Settings
from hiveio.console import records
from hiveio.console.html import joined
from hiveio.console.pages.log import PAGE, progress_of, record_page, scope_log, searched, transaction
from hiveio.console.records import Row, ScopeRecords
from hiveio.console.trace import Trace
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


def test_a_search_says_where_it_has_looked(scope: ScopeRecords) -> None:
    assert searched([scope], 1) == "in the log"
    assert progress_of([scope], 1) is None
    assert searched([scope], 128) == "in the first 1 of 128 scopes, which are searched here; `hiveio log` searches all"
    assert "The first 1 of 128 scopes are searched here." in joined(progress_of([scope], 128))
    scope.end = scope.most + 1
    assert searched([scope], 1).startswith("among the first records of a long log, which are searched here")


def test_a_transaction_shows_who_has_handled_its_events(scope: ScopeRecords) -> None:
    found = Trace(scope, [row(large())], [3, 4])
    page = joined(transaction(found, "bank", [("a", "handled"), ("<b>", "waits: it is at 3, and the events end at 4")]))
    assert "bank/0, offsets 3 to 4" in page
    assert '<span class="badge good">handled</span>' in page
    assert '<a href="/groups/%3Cb%3E">&lt;b&gt;</a>' in page
    assert "It has no events on the topic." in joined(transaction(Trace(scope, [], []), "bank", []))
