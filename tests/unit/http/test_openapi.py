# ruff: noqa: RUF012
"""The description of a service and its decoders say the same: what fits the one is taken by the other."""

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema  # type: ignore[import-untyped]
import msgspec
import openapi_spec_validator
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from hiveio import Actor, Command, Event, Model, Query
from hiveio.actor import Contract, performing
from hiveio.config import Settings
from hiveio.envelope import encode_json, encode_value
from hiveio.errors import Refused
from hiveio.http.openapi import document
from hiveio.http.routes import messages, queries
from hiveio.service import Service


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(Model, frozen=True):
    sku: str
    count: Annotated[int, Meta(ge=1)] = 1
    at: datetime | None = None


class Everything(Command, frozen=True):
    number: int
    real: float = 0.0
    text: Annotated[str, Meta(max_length=3)] = ""
    flag: bool = False
    price: Decimal = Decimal(0)
    data: bytes = b""
    colour: Colour = Colour.RED
    kind: Literal["gift", "own"] = "own"
    at: datetime = datetime(2026, 1, 1)
    day: date | None = None
    hour: time | None = None
    span: timedelta = timedelta()
    reference: UUID | None = None
    lines: list[Line] = []
    notes: dict[str, int] = {}
    some: set[int] = set()
    pair: tuple[int, str] = (0, "")
    either: int | str = 0
    whatever: Any = None


class Nothing(Command, frozen=True):
    """Takes no fields."""


class Alone(Command, frozen=True):
    number: int | None = None


class Typed(Command, frozen=True):
    type: str


class Loose(Event, frozen=True):
    number: int


class Happened(Event, frozen=True):
    number: int


class Summary(Model, frozen=True):
    tags: list[str]


class Find(Query, frozen=True):
    id: str
    word: str
    limit: int = 5
    tags: list[str] = []


class Search(Query, frozen=True):
    path = "/search"
    word: str
    limit: int = 5


class Look(Query, frozen=True):
    path = "/search"
    limit: str = ""


class Several(Actor):
    path = "/several/{id}"

    def perform(
        self, message: Everything | Nothing | Find | Search | Look
    ) -> Happened | list[Happened | Loose] | Summary | dict[str, int] | None:
        return None


class One(Actor):
    path = "/one"

    def perform(self, message: Alone) -> tuple[Happened, ...] | None:
        return None


class OneTyped(Actor):
    path = "/typed"

    def perform(self, message: Typed) -> None: ...


class OneLoose(Actor):
    path = "/loose"

    def perform(self, message: Loose) -> Loose:
        return message


KINDS: tuple[type[Actor], ...] = (Several, One, OneTyped, OneLoose)
CONTRACTS = {kind: Contract(kind) for kind in KINDS}
DESCRIBED = document(
    [
        route
        for contract in CONTRACTS.values()
        for route in (*messages(contract, performing(contract)), *queries(contract, performing(contract)))
    ]
)
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


def operation(path: str, method: str = "post") -> dict[str, Any]:
    found: dict[str, Any] = DESCRIBED["paths"][path][method]
    return found


def content(described: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = described["content"]["application/json"]["schema"]
    return found


def fits(schema: dict[str, Any], value: Any) -> bool:
    whole = {**schema, "components": DESCRIBED["components"]}
    return bool(jsonschema.Draft202012Validator(whole, format_checker=CHECKER).is_valid(value))


def decodes(kind: type[Actor], value: Any) -> bool:
    try:
        CONTRACTS[kind].command_codec.decode(msgspec.json.encode(value))
    except Refused:
        return False
    return True


LEAVES: list[Any] = [
    0, 1, 5, -1, 5.0, -0.0, 1e3, 5.5, 2**70, True, None, "", "x", "long text", "red", "own", "1.5", "-1e3", "YQ==",
    "YQ", "é", "2026-01-01T10:00:00Z", "2026-01-01T10:00:00.5+02:00", "2026-13-01T10:00:00Z", "2026-01-01", "10:00:00Z",
    "P1D", "P1DT2H", "PT1.5S", "P1Y", "P", "12345678-1234-5678-1234-567812345678", [], [1], [1.0, 2], ["x"], [1, "x"],
    [5.5, "x"], {}, {"a": 1}, {"a": 1.0}, {"a": "x"}, [{"sku": "a"}], [{"sku": "a", "count": 2.0}],
    [{"sku": "a", "count": 0}], [{"sku": 5}], [{"sku": "a", "at": "2026-01-01T10:00:00Z"}], [{"sku": "a", "at": "x"}],
]  # fmt: skip
FIELDS = [field.encode_name for field in msgspec.structs.fields(Everything)]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_takes_what_its_schema_says(name: str) -> None:
    for leaf in LEAVES:
        body = {"type": "Everything", "payload": {"number": 5, name: leaf}}
        assert decodes(Several, body) == fits(content(operation("/several/{id}")["requestBody"]), body), leaf


PAYLOADS: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(LEAVES),
    st.dictionaries(st.sampled_from([*FIELDS, "type", "payload", "other"]), st.sampled_from(LEAVES), max_size=4),
)
BODIES = st.one_of(
    PAYLOADS,
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["Everything", "Nothing", "Alone", "Typed", "Loose", "Unknown", None, 5]),
            "payload": PAYLOADS,
            "meta": st.sampled_from([None, {}, {"a": 5.5}, [], "x"]),
            "more": st.just(1),
        },
    ),
)


@settings(max_examples=400, derandomize=True)
@given(BODIES)
def test_a_body_is_taken_exactly_where_the_schema_says(body: Any) -> None:
    for kind, contract in CONTRACTS.items():
        assert contract.path
        assert decodes(kind, body) == fits(content(operation(contract.path)["requestBody"]), body), contract.name


@pytest.mark.parametrize("number", ["5.0", "5e0", "50e-1"])
def test_a_whole_float_is_an_integer(number: str) -> None:
    for codec in (CONTRACTS[OneLoose].command_codec, CONTRACTS[OneLoose].event_codec):
        message, meta = codec.decode(b'{"type":"Loose","payload":{"number":%b},"meta":{"a":1.5}}' % number.encode())
        assert message == Loose(5)
        assert type(message.number) is int
        assert bytes(meta or b"") == b'{"a":1.5}'


@pytest.mark.parametrize("rest", [b'"\xff"', b"1e400", b"nan", b"[" * 2000])
def test_what_follows_a_whole_float_is_refused_all_the_same(rest: bytes) -> None:
    with pytest.raises(Refused):
        CONTRACTS[OneLoose].command_codec.decode(b'{"type":"Loose","payload":{"number":5.0,"more":%b}}' % rest)


def answers() -> Iterator[tuple[str, Any, bool]]:
    yield "/several/{id}", Happened(1), True
    yield "/several/{id}", [Happened(1), Loose(2)], True
    yield "/several/{id}", [], True
    yield "/several/{id}", Summary(["a"]), True
    yield "/several/{id}", {"found": 1}, True
    yield "/several/{id}", None, True
    yield "/several/{id}", "text", False
    yield "/one", (Happened(1), Happened(2)), True
    yield "/one", Happened(1), False
    yield "/typed", None, True
    yield "/typed", {}, False


@pytest.mark.parametrize(("path", "value", "expected"), [*answers()])
def test_an_answer_is_as_described(path: str, value: Any, expected: bool) -> None:
    schema = content(operation(path)["responses"]["200"])
    assert fits(schema, msgspec.json.decode(encode_value(value))) is expected


def test_the_document_is_valid_and_refers_to_what_it_has() -> None:
    openapi_spec_validator.validate(msgspec.json.decode(encode_json(DESCRIBED)))
    assert "FindMessage" not in DESCRIBED["components"]["schemas"], "a query has no envelope"
    text = encode_json(DESCRIBED).decode()
    references = {part.partition('"')[0] for part in text.split('"$ref":"#/components/')[1:]}
    assert references
    for reference in references:
        section, name = reference.split("/")
        assert name in DESCRIBED["components"][section]


def test_several_messages_are_distinguished_by_their_type() -> None:
    described = content(operation("/several/{id}")["requestBody"])
    assert described["discriminator"]["propertyName"] == "type"
    assert set(described["discriminator"]["mapping"]) == {"Everything", "Nothing"}
    assert [*described] == ["oneOf", "discriminator"] or [*described] == ["discriminator", "oneOf"]


def test_an_operation_has_the_parameters_of_its_own_queries() -> None:
    found = {each["name"]: each for each in operation("/several/{id}", "get")["parameters"]}
    assert found["id"]["in"] == "path"
    assert found["tags"]["schema"]["type"] == "array", "repeated"
    assert [found[name]["required"] for name in ("word", "limit", "tags")] == [True, False, False]
    found = {each["name"]: each for each in operation("/search", "get")["parameters"]}
    assert set(found) == {"type", "word", "limit"}
    assert found["type"]["schema"]["enum"] == ["Search", "Look"]
    assert found["limit"]["schema"]["anyOf"] == [
        {"type": "integer", "default": 5},
        {"type": "string", "default": ""},
    ]
    assert "Search, Look" in found["limit"]["description"]


def test_problems_are_open_and_tell_their_headers() -> None:
    components = DESCRIBED["components"]
    assert components["schemas"]["Problem"]["additionalProperties"] is True
    assert set(components["responses"]["Unavailable"]["headers"]) == {"Retry-After", "X-Request-Id"}
    assert set(components["responses"]["MethodNotAllowed"]["headers"]) == {"Allow", "X-Request-Id"}
    responses = operation("/one")["responses"]
    assert {"200", "400", "404", "405", "408", "413", "415", "422", "500", "503", "504", "default"} <= set(responses)


@pytest.mark.parametrize(
    ("environ", "title"),
    [
        ({"ACTOR_MODULE": "shop.orders:Orders"}, "shop.orders"),
        ({"ACTOR_MODULE": "orders", "EVENT_STORE_ID": "shop"}, "shop"),
        ({"ACTOR_MODULE": "orders", "EVENT_STORE_ID": "shop", "TELEMETRY_SERVICE_NAME": "the shop"}, "the shop"),
    ],
)
def test_the_title_is_the_name_of_the_service(environ: dict[str, str], title: str) -> None:
    about = Service(Settings.read(environ), [CONTRACTS[One]]).about()
    assert about["title"] == title
    assert about["version"] == "0.0.0"
    assert about["description"].startswith("The description of a service")
