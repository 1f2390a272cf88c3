# ruff: noqa: E501
# mypy: disable-error-code="misc, empty-body"
"""Which actors may share which path, and which resource a path finds."""

from typing import Any

import pytest

from hiveio import Actor, Command, Query
from hiveio.actor import Contract, performing
from hiveio.envelope import Envelope, Outcome
from hiveio.errors import BadAnnotation, PathReserved, PathTaken
from hiveio.http.edge import Edge
from hiveio.http.routes import Route
from tests.unit.http.test_edge import Balance, Deposit, call, routes, service


def actor(path_: str, kind: type[Command | Query] = Deposit) -> Contract:
    class Some(Actor):
        path = path_

        def perform(self, message: Any) -> None: ...

    Some.perform.__annotations__["message"] = kind
    return Contract(Some)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/openapi.json", "/asyncapi.json", "/ping", "/transactions", "/transactions/{id}"])  # fmt: skip
async def test_a_path_of_ours_is_refused(path: str) -> None:
    with pytest.raises(PathReserved, match="is reserved for the service itself; choose another path"):
        Edge(service(), routes(actor(path)))


async def test_two_actors_on_one_path_and_method() -> None:
    with pytest.raises(PathTaken, match=r"Some and Some both take POST /a/\{\w+\}; give one of them another path"):
        Edge(service(), [*routes(actor("/a/{id}")), _named("/a/{name}")])
    assert Edge(service(), [*routes(actor("/a/{id}")), *routes(actor("/a/{id}", Balance))])


def _named(path: str) -> Route:
    contract = actor("/x")
    return Route(
        method="POST", path=path, decode=lambda *_: (None, None), handler=performing(contract), contract=contract
    )


@pytest.mark.parametrize(
    ("path", "kind", "line"),
    [
        ("", Deposit, 'Some takes Deposit over HTTP and has no path; write path = "/…" in it'),
        ("accounts", Deposit, "Some: the path 'accounts' is wrong; it looks like /accounts/{id}"),
        ("/a//b", Deposit, "Some: the path '/a//b' is wrong; it looks like /accounts/{id}"),
        ("/{id}/{id}", Deposit, "Some: the path '/{id}/{id}' names a parameter twice"),
        (
            "/{bank}/{id}",
            Deposit,
            "Some: the path /{bank}/{id} has the parameter bank; that of a message may only have {id}",
        ),
        ("/{bank}/{id}", Balance, "Balance is a query of /{bank}/{id} and has no field bank"),
    ],
)
def test_a_wrong_path_has_its_line(path: str, kind: type[Command | Query], line: str) -> None:
    with pytest.raises(BadAnnotation) as caught:
        routes(actor(path, kind))
    assert str(caught.value) == line


async def test_literals_go_before_parameters_and_a_generic_route_works() -> None:
    async def handle(envelope: Envelope) -> Outcome:
        return Outcome([envelope.id, envelope.message])

    def made(path: str) -> Route:
        return Route(
            method="GET", path=path, decode=lambda body, id, rest, query: (path, None), handler=handle, ours=True
        )

    edge = Edge(
        service(), [made("/{id}"), made("/a/b"), made("/a/{id}"), made("/{x}/b"), made("/transactions/{id}"), made("/")]
    )
    for target, expected in {
        "/a/b": ["", "/a/b"],
        "/a/c": ["c", "/a/{id}"],
        "/c/b": ["", "/{x}/b"],
        "/%61/b": ["", "/a/b"],
        "/z": ["z", "/{id}"],
        "/": ["", "/"],
        "/transactions/5": ["5", "/transactions/{id}"],
    }.items():
        assert (await call(edge, "GET", target)).json == expected
    assert (await call(edge, "GET", "/livez")).body == b"alive"
