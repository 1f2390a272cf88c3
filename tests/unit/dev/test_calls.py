"""The lines of curl that `hiveio dev` shows are requests that the service takes."""

import json
import shlex
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from hiveio import Actor, Command, Event, Model, Query
from hiveio.actor import Contract, performing
from hiveio.dev.calls import calls
from hiveio.http.openapi import document
from hiveio.http.routes import messages, queries


class Colour(Enum):
    RED = "red"


class Line(Model):
    sku: Annotated[str, Meta(min_length=6)]
    count: Annotated[int, Meta(gt=0)]


class Order(Command):
    lines: Annotated[list[Line], Meta(min_length=2)]
    price: Annotated[float, Meta(gt=0, lt=1)]
    share: Annotated[int, Meta(ge=10, multiple_of=10)]
    code: Annotated[str, Meta(max_length=2)]
    kind: Literal["gift", "own"]
    colour: Colour
    at: datetime
    day: date
    span: timedelta
    reference: UUID
    data: bytes
    notes: dict[str, int]
    pair: tuple[int, str]
    either: int | str
    sure: bool
    maybe: str | None = None
    small: Annotated[int, Meta(le=0)] = 0


class Cancel(Command):
    pass


class Ordered(Event):
    pass


class Search(Query):
    path = "/search/{shop}"
    shop: str
    text: str
    limit: int = 10


class Find(Query):
    path = "/found/{reference}/{code}"
    reference: UUID
    code: Annotated[str, Meta(pattern="^[A-Z]+$")]
    day: date
    text: Annotated[str, Meta(min_length=5)]
    numbers: list[int]
    open: bool


class OrdersActor(Actor):
    path = "/orders/{id}"

    def perform(self, message: Order | Cancel | Search | Find) -> Ordered:
        return Ordered()


def test_each_message_and_query_has_a_line_that_the_service_takes() -> None:
    contract = Contract(OrdersActor)
    routes = [*messages(contract, performing(contract)), *queries(contract, performing(contract))]
    described = document(routes)
    order, cancel, search, find = [shlex.split(line) for line in calls(described, "localhost:3001")]
    assert order[:5] == ["curl", "-s", "localhost:3001/orders/7", "-H", "content-type: application/json"]
    for line, kind in ((order, Order), (cancel, Cancel)):
        assert line[5] == "-d"
        message, _ = next(route for route in routes if route.reads_body).decode(line[6].encode(), "7", {}, b"")
        assert isinstance(message, kind)
    payload = msgspec.convert(json.loads(order[6])["payload"], Order, strict=True)
    assert (payload.kind, payload.code, payload.share, payload.maybe) == ("gift", "te", 10, None)
    assert search == ["curl", "-s", "localhost:3001/search/7?text=7"]
    path, _, query = find[2].partition("?")
    *_, reference, code = path.split("/")
    route = next(route for route in routes if Find in route.takes)
    message, _ = route.decode(b"", "", {"reference": reference, "code": code}, query.encode())
    assert isinstance(message, Find)
