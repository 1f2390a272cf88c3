"""Headers as they came: text by name, bytes of all, and the trace that they carry."""

import pytest

from hiveio.headers import Headers, HeaderView, trace_context
from hiveio.transaction import record

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_the_headers_of_a_record() -> None:
    pairs = [("a", b"1"), ("b", "ü".encode()), ("a", b"2"), ("c", b"\xfc"), ("a", None), ("n", None)]
    headers = Headers.wrapping(pairs)
    assert (headers["a"], headers["b"], headers["c"]) == ("2", "ü", "ü")
    assert headers.get_all("a") == [b"1", b"2"]
    assert (headers.get("A"), headers.get("n"), "n" in headers, headers.get_all("n")) == (None, None, False, [])
    assert (list(headers), len(headers), headers.pairs) == (["a", "b", "c"], 3, pairs)
    assert headers.replacing({"a": "3", "b": "", "d": "4"}).pairs == [*pairs[3:4], pairs[5], ("a", b"3"), ("d", b"4")]
    assert Headers({"a": "ü"}).pairs == [("a", "ü".encode())]
    with pytest.raises(KeyError):
        headers["n"]


def test_the_headers_of_a_request() -> None:
    pairs = [(b"a", b"1"), (b"b", "ü".encode()), (b"a", b"2"), (b"c", b"\xfc")]
    headers = HeaderView(dict(pairs), pairs)
    assert (headers["A"], headers["b"], headers["C"], headers.get("d", "x")) == ("1, 2", "ü", "ü", "x")
    assert headers.get_all("A") == [b"1", b"2"]
    assert dict(headers) == {"a": "1, 2", "b": "ü", "c": "ü"}
    assert headers.pairs == [(name.decode(), value) for name, value in pairs]
    assert headers.replacing({"a": "3"}).pairs == [("b", "ü".encode()), ("c", b"\xfc"), ("a", b"3")]
    crumbs = [(b"cookie", b"a=b"), (b"cookie", b"c=d, e")]
    assert HeaderView(dict(crumbs), crumbs)["Cookie"] == "a=b; c=d, e"


@pytest.mark.parametrize(
    "parents",
    [
        (),
        (PARENT, PARENT),
        ("x",),
        (PARENT.upper(),),
        (PARENT + "-more",),
        ("ff" + PARENT[2:],),
        (PARENT[:3] + "0" * 32 + PARENT[35:],),
        (PARENT[:36] + "0" * 16 + PARENT[52:],),
    ],
)
def test_no_trace(parents: tuple[str, ...]) -> None:
    given = [*(("traceparent", parent) for parent in parents), ("tracestate", "a=1")]
    raw = [(name.encode(), value.encode()) for name, value in given]
    assert trace_context(Headers(given)) == trace_context(HeaderView(dict(raw), raw)) == {}


def test_a_trace() -> None:
    parent = ("traceparent", PARENT)
    assert trace_context(Headers([parent])) == {"traceparent": PARENT}
    several = [("tracestate", "a=1"), parent, ("tracestate", "b=2,c=3")]
    assert trace_context(Headers(several)) == {"traceparent": PARENT, "tracestate": "a=1,b=2,c=3"}
    for state in ("x" * 513, "a=\u00fc", "a=1\n"):
        assert trace_context(Headers([parent, ("tracestate", state)])) == {"traceparent": PARENT}


def test_a_transaction_record_without_a_tracestate_is_what_it_was() -> None:
    commit = record.Commit(record.CommandId("A/1", "k"), (), trace=PARENT)
    assert b"tracestate" not in record.encode(commit)
    assert record.decode(record.encode(commit)) == commit
    newer = record.encode(record.Commit(commit.command, (), trace=PARENT, tracestate="a=1"))
    assert record.decode(newer.replace(b"tracestate", b"whatever")) == commit, "what a version does not know it ignores"
