"""HTML that others cannot write into."""

import pytest

from hiveio.console.html import h, joined


def test_what_others_wrote_is_text() -> None:
    evil = "<script>alert(1)</script>"
    assert h("p", evil) == "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"
    assert h("a", "x", href='"><b>') == '<a href="&quot;&gt;&lt;b&gt;">x</a>'
    assert joined([evil, [h("b", "&")]]) == "&lt;script&gt;alert(1)&lt;/script&gt;<b>&amp;</b>"


def test_attributes_are_left_out_or_have_no_value() -> None:
    assert h("input", type="search", class_="a", data_live=2, autofocus=True, hidden=False, id=None) == (
        '<input type="search" class="a" data-live="2" autofocus>'
    )


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x1b[2Jb", "a\\x1b[2Jb"), ("a\u202eb", "a\\u202eb"), ("a\nb", "a\nb"), (3, "3")]
)
def test_what_cannot_be_seen_is_shown(text: str | int, shown: str) -> None:
    assert joined(text) == shown
