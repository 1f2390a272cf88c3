"""Dead letters on a page: what a retry has changed, and what may be done."""

from hiveio.console.dead import Found, by_key
from hiveio.console.html import joined
from hiveio.console.pages.dead import confirmation, difference, group


def test_a_retry_that_fails_for_the_same_reason_says_so() -> None:
    assert "For the same reason" in difference("ValueError: never\n", "ValueError: never")


def test_a_retry_that_fails_otherwise_shows_what_has_changed() -> None:
    shown = difference("ValueError: <a>\nat 1", "KeyError: <b>\nat 1")
    assert '<span class="old">-ValueError: &lt;a&gt;' in shown
    assert '<span class="new">+KeyError: &lt;b&gt;' in shown


def test_only_a_console_that_writes_has_buttons_and_each_asks_first() -> None:
    assert by_key([]) == []
    for write in (False, True):
        page = joined(group("g", Found([], 0, {}), 0, write=write))
        assert "There are no open dead letters." in page
        assert "<button" not in page  # nothing to do
    page = joined(confirmation("a/b", "dropped", "all", 3))
    assert "3 dead letters of the group a/b will be dropped" in page
    assert 'action="/dead/a%2Fb"' in page
    assert 'name="confirmed" value="3"' in page
