# mypy: disable-error-code="misc"
"""Requests that need a token, at the edge: who is let in, what others are answered, and what stays open."""

from typing import Any

import httpx
import openapi_spec_validator
import pytest

from hiveio import Actor, Command, Context, Event, Identity, Query
from hiveio.actor import Contract, performing
from hiveio.auth import enabled
from hiveio.config import Settings
from hiveio.errors import BadAnnotation, ConfigError, Unauthorized, Unavailable
from hiveio.http.edge import Edge
from hiveio.http.openapi import document
from hiveio.http.routes import Route, messages, queries
from hiveio.service import Service

ON = Settings(auth_jwks_url="https://issuer.example/keys", auth_issuer="i", auth_audience="a")
CALLERS = {
    b"Bearer ada": Identity.of("ada", "accounts:write accounts:read", tenant="north"),
    b"Bearer bob": Identity.of("bob", "accounts:read"),
}


class Deposit(Command):
    amount: int


class Deposited(Event):
    by: str


class Whoami(Query):
    path = "/whoami"


class Account(Actor):
    path = "/accounts/{id}"
    requires = "accounts:write"

    def perform(self, message: Deposit, context: Context) -> Deposited:
        assert context.identity is not None
        return Deposited(context.identity.subject)


class Open(Actor):
    def perform(self, message: Whoami, context: Context) -> Any:
        return context.identity and context.identity.claims.get("tenant", "")


class Callers:
    async def identify(self, authorization: bytes | None) -> Identity:
        if authorization == b"Bearer later":
            raise Unavailable("Tokens cannot be verified at the moment. Try again.")
        if authorization not in CALLERS:
            raise Unauthorized("The request has no bearer token.")
        return CALLERS[authorization]


def service(authenticated: bool = True) -> Service:
    made = Service(ON if authenticated else Settings(), [Contract(Account), Contract(Open)])
    made.authenticator = Callers() if authenticated else None
    made.started = True
    return made


def routes(made: Service) -> list[Route]:
    return [
        route
        for contract in made.contracts
        for route in (*messages(contract, performing(contract)), *queries(contract, performing(contract)))
    ]


async def ask(method: str, path: str, token: str | None = None, *more: tuple[str, str], body: Any = None) -> Any:
    made = service()
    transport = httpx.ASGITransport(app=Edge(made, routes(made)))
    given = [] if token is None else [("authorization", f"Bearer {token}")]
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.request(method, path, headers=[*given, *more], json=body)


DEPOSIT = {"type": "Deposit", "payload": {"amount": 1}}


async def test_the_actor_knows_who_sent_the_message() -> None:
    answer = await ask("POST", "/accounts/1", "ada", body=DEPOSIT)
    assert (answer.status_code, answer.json()["payload"]) == (200, {"by": "ada"})
    assert (await ask("GET", "/whoami", "ada")).json() == "north"


@pytest.mark.parametrize(
    ("status", "token", "challenge"),
    [
        (401, None, "Bearer"),
        (401, "eve", "Bearer"),
        (403, "bob", 'Bearer error="insufficient_scope", scope="accounts:write"'),
        (503, "later", None),
    ],
)
async def test_others_are_refused_with_a_problem(status: int, token: str | None, challenge: str | None) -> None:
    answer = await ask("POST", "/accounts/1", token, body=DEPOSIT)
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers.get("www-authenticate") == challenge


async def test_who_is_refused_learns_nothing_of_what_was_sent() -> None:
    """The token comes first: neither the body nor the id is looked at for who is not let in."""
    assert (await ask("POST", "/accounts/%zz", "eve", body={"type": "Nope"})).status_code == 401
    assert (await ask("POST", "/accounts/1", "bob", body={"type": "Nope"})).status_code == 403


async def test_two_tokens_are_refused() -> None:
    answer = await ask("POST", "/accounts/1", "ada", ("Authorization", "Bearer bob"), body=DEPOSIT)
    assert (answer.status_code, "authorization" in answer.json()["detail"]) == (400, True)


async def test_an_actor_that_requires_nothing_takes_each_token_that_counts() -> None:
    assert (await ask("GET", "/whoami", "bob")).status_code == 200
    assert (await ask("GET", "/whoami")).status_code == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/ping", "/openapi.json"])
async def test_probes_are_open(path: str) -> None:
    assert (await ask("GET", path)).status_code == 200


async def test_what_says_nothing_of_the_service_is_open_too() -> None:
    assert [(await ask(*each)).status_code for each in (("GET", "/no"), ("DELETE", "/accounts/1"))] == [404, 405]
    assert (await ask("OPTIONS", "/accounts/1")).status_code == 204


async def test_the_description_names_the_token_and_the_scopes() -> None:
    described = (await ask("GET", "/openapi.json")).json()
    openapi_spec_validator.validate(described)
    assert described["components"]["securitySchemes"]["token"]["bearerFormat"] == "JWT"
    deposit, whoami = described["paths"]["/accounts/{id}"]["post"], described["paths"]["/whoami"]["get"]
    assert (deposit["security"], whoami["security"]) == ([{"token": ["accounts:write"]}], [{"token": []}])
    assert {"401", "403"} <= deposit["responses"].keys()
    assert "securitySchemes" not in document(routes(service(False)))["components"]


# -- settings and actors


def test_a_scope_that_nobody_would_ask_for_stops_the_start() -> None:
    with pytest.raises(ConfigError, match=r"Account\.requires is 'accounts:write', and AUTH_JWKS_URL is not set"):
        enabled.check(Settings(), [Contract(Account)])
    enabled.check(ON, [Contract(Account)])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (Settings(auth_issuer="i"), "AUTH_ISSUER is set and AUTH_JWKS_URL is not"),
        (Settings(auth_audience="a"), "AUTH_AUDIENCE is set and AUTH_JWKS_URL is not"),
        (Settings(auth_jwks_url="https://x/k", auth_audience="a"), "AUTH_ISSUER is not set"),
        (Settings(auth_jwks_url="https://x/k", auth_issuer="i"), "AUTH_AUDIENCE is not set"),
    ],
)
def test_half_of_the_settings_stop_the_start(settings: Settings, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        enabled.check(settings, [])


@pytest.mark.parametrize(
    ("settings", "level", "text"),
    [
        (Settings(), "INFO", "requests are not authenticated"),
        (Settings(auth_jwks_url="http://x/k", auth_issuer="i", auth_audience="a"), "WARNING", "is not https"),
        (Settings(auth_jwks_url="http://127.0.0.1/k", auth_issuer="i", auth_audience="a"), "", ""),
        (ON, "", ""),
    ],
)
def test_the_start_says_whether_requests_are_authenticated(
    settings: Settings, level: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    enabled.check(settings, [])
    assert [(record.levelname, text in record.message) for record in caplog.records] == (
        [(level, True)] if text else []
    )


@pytest.mark.parametrize("requires", ['a"b', "a\\b", "a\nb", "ä", " a", None, ["a"]])
def test_a_scope_that_cannot_be_one_stops_the_start(requires: Any) -> None:
    made = type("Account", (Account,), {"requires": requires})
    with pytest.raises(BadAnnotation, match=r"Account\.requires is"):
        Contract(made)


def test_several_scopes() -> None:
    made: Any = type("Account", (Account,), {"requires": "a:read  b/*"})
    assert Contract(made).requires == {"a:read", "b/*"}
