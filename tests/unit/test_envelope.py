# ruff: noqa: E501, RUF012
# mypy: disable-error-code="misc, empty-body"
import datetime
import decimal
import enum
import json
import uuid
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from hiveio import Command, Event
from hiveio.envelope import (
    META_LIMIT,
    NESTING,
    Codec,
    Envelope,
    UpcastingCodec,
    encode_message,
    encode_value,
    nesting,
    untouched,
)
from hiveio.errors import Invalid, Malformed, TooLarge


class Line(Command):
    sku: str
    count: int = 1


class Order(Command):
    lines: list[Line]
    type: str = ""
    notes: dict[str, int] = {}


class Cancel(Command):
    pass


class Ordered(Event):
    type: str
    count: int


class Loose(Command):
    x: Any = None


CODEC = Codec([Order, Cancel])
ONE = Codec([Line])
LOG = Codec([Ordered], strict=False)

texts = st.text(st.characters(codec="utf-8"))


@given(texts, st.integers(-(2**63), 2**63 - 1), st.none() | st.dictionaries(texts, texts, max_size=5))
def test_what_is_encoded_is_decoded(type_: str, count: int, meta: dict[str, str] | None) -> None:
    raw = None if meta is None else Raw(json.dumps(meta).encode())
    message, found = LOG.decode(encode_message(Ordered(type_, count), raw))
    assert message == Ordered(type_, count)
    assert (None if found is None else json.loads(bytes(found))) == meta


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "payload", "meta", "sku", "x"]), inner),
)  # fmt: skip


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"type":"Cancel","meta":' + b"[" * 100_000)
@example(b'{"type":"Cancel","meta":{"a":' + b"[" * 3_000 + b"]" * 3_000 + b"}}")
@example(b'{"type":"Cancel","meta":{"\xff":1}}')
@example(b'{"type":"\xff"}')
@example(b'{"type":"\\ud800"}')
@example(b'{"type":"Order","payload":{"notes":{"\\ud800":"x"},"lines":[]}}')
@example(b'{"type":"Cancel","meta":null}')
@example(b'{"type":"Cancel","payload":null}')
@example(b"")
def test_any_bytes_give_a_result_or_one_of_three_errors(body: bytes) -> None:
    for codec in (CODEC, ONE, LOG):
        try:
            message, meta = codec.decode(body)
        except (Malformed, Invalid, TooLarge):
            continue
        assert type(message) in codec.types.values()
        assert meta is None or isinstance(json.loads(bytes(meta)), dict)


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ("{}", "/type", "The message has no type. This path takes: Cancel, Order."),
        ('{"type":"Nope"}', "/type", "The type 'Nope' is unknown. This path takes: Cancel, Order."),
        ('{"type":"Order"}', "/payload/lines", "missing required field `lines`"),
        ('{"type":"Order","payload":{"lines":[],"x":1}}', "/payload/x", "unknown field `x`"),
        ('{"type":"Order","payload":{"lines":[{"sku":5}]}}', "/payload/lines/0/sku", "Expected `str`, got `int`"),
        ('{"type":"Order","payload":{"lines":[],"notes":{"a":"b"}}}', "/payload/notes", "Expected `int`, got `str`"),
        ('{"type":"Cancel","extra":1}', "/extra", "unknown field `extra`"),
        ('{"type":"Cancel","meta":5}', "/meta", "The meta is not a JSON object."),
        ('{"type":5}', "/type", "Expected `str`"),
        ("[]", "", "Expected `object`, got `array`"),
    ],
)
def test_the_pointer_names_the_field(body: str, pointer: str, detail: str) -> None:
    with pytest.raises(Invalid) as caught:
        CODEC.decode(body.encode())
    assert caught.value.members["pointer"] == pointer
    assert detail in caught.value.detail


def test_a_body_without_type_is_the_payload_of_the_only_message() -> None:
    assert ONE.decode(b'{"sku":"a"}') == (Line("a"), None)
    with pytest.raises(Invalid) as caught:
        ONE.decode(b'{"sku":5}')
    assert caught.value.members["pointer"] == "/sku"


def test_a_missing_payload_is_an_empty_one() -> None:
    assert CODEC.decode(b'{"type":"Cancel"}') == (Cancel(), None)


def test_meta_has_a_limit() -> None:
    def body(size: int) -> bytes:
        return b'{"type":"Cancel","meta":{"a":"%s"}}' % (b"x" * (size - len('{"a":""}')))

    assert len(bytes(CODEC.decode(body(META_LIMIT))[1] or b"")) == META_LIMIT
    with pytest.raises(TooLarge):
        CODEC.decode(body(META_LIMIT + 1))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (None, b"null"),
        ({"a": 1}, b'{"a":1}'),
        ([], b"[]"),
        ([1], b"[1]"),
        (Ordered("t", 1), b'{"type":"Ordered","payload":{"type":"t","count":1}}'),
        ([Cancel(), Cancel()], b'[{"type":"Cancel","payload":{}},{"type":"Cancel","payload":{}}]'),
    ],
)
def test_the_body_of_an_answer(value: Any, encoded: bytes) -> None:
    assert encode_value(value) == encoded


def test_the_context_is_made_from_the_envelope() -> None:
    context = Envelope(message=Cancel(), id="a", key="k", meta=Raw(b'{"x":1}')).context(version=3)
    assert (context.id, context.idempotency_key, context.version, context.meta) == ("a", "k", 3, {"x": 1})


def test_an_untouched_payload_is_written_as_it_came() -> None:
    payload = b'{ "count": 1, "type":"a", "price": 1.50, "unknown": {"\xc3\xa4": [1e3]} }'
    body = b'{"meta": {"a": 1}, "payload": %b, "type": "Ordered"}' % payload
    meta = LOG.decode(body)[1]
    assert untouched("Ordered", body, meta) == b'{"type":"Ordered","payload":%b,"meta":{"a": 1}}' % payload
    assert untouched("Line", b'{"sku":"a"}') == b'{"type":"Line","payload":{"sku":"a"}}', "a body without a type is it"
    assert untouched("Cancel", b'{"type":"Cancel"}') == b'{"type":"Cancel","payload":{}}'
    assert LOG.decode(untouched("Ordered", body, meta))[0] == Ordered("a", 1)


def test_what_the_decoder_skipped_is_checked_before_it_is_passed_on() -> None:
    body = b'{"type": "Ordered", "payload": {"type": "a", "count": 1, "unknown": "\xff"}}'
    LOG.decode(body)  # it does not look there
    with pytest.raises(Malformed, match="not UTF-8"):
        untouched("Ordered", body)


@pytest.mark.parametrize("unknown", [b"[" * NESTING + b"]" * NESTING, b'{"a":' * NESTING + b"1" + b"}" * NESTING])
@pytest.mark.parametrize("body", [b'{"type":"Loose","payload":{"x":%b}}', b'{"type":"Loose","meta":{"x":%b}}'])
def test_nothing_from_outside_is_nested_deeper_than_a_record_can_hold(body: bytes, unknown: bytes) -> None:
    Codec([Loose], strict=False).decode(body % unknown)  # it could be read, here
    with pytest.raises(Malformed, match=f"nested deeper than {NESTING}"):
        Codec([Loose]).decode(body % unknown)


def test_many_levels_side_by_side_are_not_deep() -> None:
    body = b'{"type":"Loose","payload":{"x":[%b]}}' % b",".join([b"[]"] * 1000)
    assert Codec([Loose]).decode(body)[0] == Loose([[]] * 1000)


def upcast(type: str, payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return ("Ordered", {"type": "old", "count": payload["n"]}) if type == "Bought" else (type, payload)


def test_old_messages_are_made_todays_before_they_are_decoded() -> None:
    codec = UpcastingCodec([Ordered], upcast)
    old, meta = codec.decode(b'{"type":"Bought","payload":{"n":2,"gone":1},"meta":{"a":1}}')
    assert (old, meta) == (Ordered("old", 2), Raw(b'{"a":1}'))
    assert codec.decode(b'{"type":"Ordered","payload":{"type":"new","count":1,"more":2}}') == (Ordered("new", 1), None)
    with pytest.raises(Invalid, match=r"The type 'Sold' is unknown\. Known types: Ordered"):
        codec.decode(b'{"type":"Sold","payload":{}}')
    with pytest.raises(Invalid, match="count") as caught:
        codec.decode(b'{"type":"Ordered","payload":{"type":"new"}}')
    assert caught.value.members["pointer"] == "/payload/count"


class Colour(enum.IntEnum):
    RED = 1


class Shade(enum.Enum):
    DARK = "dark"


class Counted(Event):
    """Its keys are no texts, and are written to JSON as texts; ``raw`` is anything."""

    numbers: dict[int, dict[float, int]]
    ids: dict[uuid.UUID, int]
    times: dict[datetime.datetime, datetime.date]
    colours: dict[Colour, Shade]
    shades: dict[Shade, set[int]]
    literals: dict[Literal[1, 2], tuple[uuid.UUID, ...]]
    prices: dict[decimal.Decimal, bytes]
    raw: Raw


def test_what_older_versions_wrote_is_read_as_it_was_written() -> None:
    id, now = uuid.uuid4(), datetime.datetime.now(datetime.UTC)
    counted = Counted(
        {-5: {1.5: 2**70}, 7: {}},
        {id: 1},
        {now: now.date()},
        {Colour.RED: Shade.DARK},
        {Shade.DARK: {1, 2}},
        {2: (id,)},
        {decimal.Decimal("1.10"): b"\x00"},
        Raw(b'{"a":[1]}'),
    )
    body = encode_message(counted)
    assert UpcastingCodec([Counted], lambda type, payload: (type, payload)).decode(body) == (counted, None)
    # It may give values as they are in Python, too, and numbers that another program wrote as 7.0.
    made = {name: getattr(counted, name) for name in counted.__struct_fields__} | {"numbers": {7: {"1.5": 7.0}}}
    codec = UpcastingCodec([Counted], lambda type, payload: ("Counted", made))
    message, _ = codec.decode(b'{"type":"Numbered"}')
    assert message == msgspec.structs.replace(counted, numbers={7: {1.5: 7}})
    with pytest.raises(Invalid, match="int"):
        UpcastingCodec([Counted], lambda type, payload: (type, payload)).decode(body.replace(b'"-5"', b'"five"'))


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_nesting_is_the_depth(value: object) -> None:
    def depth(part: object) -> int:
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
        return 0 if parts is None else 1 + max(map(depth, parts), default=0)

    assert nesting(msgspec.json.encode(value)) == nesting(json.dumps(value, indent=1).encode()) == depth(value)


def test_no_type_of_ours_can_be_named() -> None:
    """A union is kept one by a type that nobody has; it had a name that could be sent."""
    for codec in (Codec([Cancel]), Codec([Cancel, Order])):
        with pytest.raises(Invalid, match="is unknown"):
            codec.decode(b'{"type":"\\u0000"}')
