"""How values are written on a page, whatever they are."""

import tracemalloc

import pytest

from hiveio.console.layout import moment, pretty

DEEP = b"[" * 900 + b"1," * 100_000 + b"1" + b"]" * 900  # 200 kB, and with line breaks 180 MB


def test_a_time_that_no_calendar_has_is_a_number() -> None:
    assert "1970-01-01 00:00:00.005" in moment(5)
    assert moment(-1) == "<span>-</span>"
    assert moment(2**62) == f"<span>{2**62} ms</span>"


def test_what_is_large_and_nested_deeply_costs_little() -> None:
    tracemalloc.start()
    try:
        shown = pretty(DEEP)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(shown) < 21_000
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("value", "shown"), [(b'{"a":[1]}', '{\n  "a": [\n    1\n  ]\n}'), (b"\xff", "b'\\xff'"), (b"no", "b'no'")]
)
def test_json_has_line_breaks_and_other_bytes_are_those_of_python(value: bytes, shown: str) -> None:
    assert pretty(value) == shown
