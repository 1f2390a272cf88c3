"""Records are found in a batch wherever the network cuts it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiveio.errors import Malformed, Problem
from hiveio.producer.split import Items, Lines, Splitter

texts = st.text(st.characters(codec="utf-8") | st.sampled_from('"\\[]{},\n'), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


def split(splitter: Splitter, body: bytes, sizes: list[int]) -> list[Any]:
    """The records of a body that comes in parts of these sizes, over and over."""
    found: list[Any] = []
    at = turn = 0
    while at < len(body):
        size = sizes[turn % len(sizes)]
        found += splitter.feed(body[at : at + size])
        at, turn = at + size, turn + 1
    return [*found, *splitter.close()]


sizes = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@given(st.lists(values, max_size=6), sizes, st.sampled_from([None, 1]), st.booleans())
def test_the_items_of_an_array(items: list[Any], sizes: list[int], indent: int | None, ascii: bool) -> None:
    body = json.dumps(items, indent=indent, ensure_ascii=ascii).encode()
    assert [json.loads(item) for item in split(Items(10_000), body, sizes)] == items


@given(st.lists(values, max_size=6), sizes, st.booleans())
def test_the_lines(items: list[Any], sizes: list[int], end: bool) -> None:
    body = b"\r\n\n".join(json.dumps(item).encode() for item in items) + (b"\n" if end else b"")
    assert [json.loads(item) for item in split(Lines(10_000), body, sizes)] == items


@given(st.binary(max_size=60) | st.text('[]{},"\\ a', max_size=60).map(str.encode), sizes)
def test_any_bytes_are_split_or_refused(body: bytes, sizes: list[int]) -> None:
    for kind in (Items, Lines):
        whole: list[Any] | None
        try:
            whole = split(kind(30), body, [1000])
        except Problem:
            whole = None
        try:
            parts = split(kind(30), body, sizes)
        except Problem:
            parts = None
        if whole is not None and parts is not None:
            assert [isinstance(item, Problem) or item for item in parts] == [
                isinstance(item, Problem) or item for item in whole
            ]
        assert (whole is None) == (parts is None)


@pytest.mark.parametrize(
    ("body", "before"),
    [
        (b"", 0),
        (b'{"a":1}', 0),
        (b"[", 0),
        (b'[{"a":1}', 1),
        (b'[{"a":1},', 1),
        (b'[{"a":1},]', 1),
        (b"[,]", 0),
        (b'[{"a":1} {"b":2}]', 1),
        (b"[1] 2", 1),
        (b'["a', 0),
        (b'[{"a":"', 0),
    ],
)
def test_a_broken_array_gives_what_comes_before(body: bytes, before: int) -> None:
    found: list[Any] = []
    items = Items(100)

    def read() -> None:
        found.extend(items.feed(body))
        found.extend(items.close())

    with pytest.raises(Malformed, match="The JSON array is malformed"):
        read()
    assert len(found) == before


def test_a_broken_item_is_an_item() -> None:
    assert split(Items(100), b'[{"a":1}, {bad}, {"a" "b"}, nul, {"a":2}]', [3]) == [
        b'{"a":1}',
        b"{bad}",
        b'{"a" "b"}',
        b"nul",
        b'{"a":2}',
    ]


@pytest.mark.parametrize(
    "large", [b'{"a":"%b"}' % (b'x\\"[' * 1000), b"{%b}" % (b'"a":1,' * 1000), b"[" * 99 + b"]" * 99]
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_record_too_large_spoils_no_other_and_is_not_kept(large: bytes, size: int) -> None:
    for splitter, body in ((Items(50), b"[1,%b,2]" % large), (Lines(50), b"1\n%b\n2" % large)):
        found: list[Any] = []
        for at in range(0, len(body), size):
            found += splitter.feed(body[at : at + size])
            assert len(splitter.kept) <= 50 + size
        found += splitter.close()
        assert [item if isinstance(item, bytes) else item.status for item in found] == [b"1", 413, b"2"]
