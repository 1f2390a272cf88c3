# ruff: noqa: RUF012
# mypy: disable-error-code="misc, empty-body"
"""The edge, called in process."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from msgspec import Struct

from hiveio import Actor, Command, Event, Query, Rejected
from hiveio.actor import Contract, performing
from hiveio.config import Settings
from hiveio.envelope import Envelope, Handler, Outcome
from hiveio.errors import Unknown
from hiveio.http import in_flight
from hiveio.http.edge import Edge
from hiveio.http.routes import Route, messages, queries
from hiveio.logs import request_id
from hiveio.service import Service
from hiveio.types import App


class Deposit(Command):
    amount: int


class Deposited(Event):
    amount: int


class Balance(Query):
    id: str
    currency: str = "EUR"


class History(Query):
    id: str
    since: int = 0


class Search(Query):
    path = "/search/{bank}/accounts"
    bank: str
    name: list[str] = []
    type: str = ""


RELEASED = asyncio.Event()


class Account(Actor):
    path = "/accounts/{id}"

    async def perform(self, message: Deposit | Balance | History | Search) -> Any:
        match message:
            case Deposit(amount=13):
                raise Rejected("unlucky", balance=5)
            case Deposit(amount=500):
                raise KeyError("a secret")
            case Deposit(amount=0):
                return None
            case Deposit(amount=-1):
                await asyncio.sleep(60)
            case Deposit(amount=-4):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
                await asyncio.sleep(60)
            case Deposit(amount=-5):
                while not RELEASED.is_set():
                    with suppress(asyncio.CancelledError):
                        await RELEASED.wait()
            case Deposit(amount=-2):
                return object()
            case Deposit(amount=-3):
                raise Rejected("\ud800")
            case Deposit(amount=amount):
                return Deposited(amount)
        return {name: getattr(message, name) for name in message.__struct_fields__}


class Answer(Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def service(**environ: str) -> Service:
    made = Service(Settings.read(environ), [Contract(Account)])
    made.started = True
    return made


def routes(contract: Contract, handler: Handler | None = None) -> list[Route]:
    handle = handler or performing(contract)
    return [*messages(contract, handle), *queries(contract, handle)]


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    made = service(REQUEST_TIMEOUT="200", BODY_LIMIT="1000")
    edge = Edge(made, routes(made.contracts[0]))
    edge.watch()
    yield edge
    edge.unwatch()
    assert edge.in_flight == 0


async def call(
    edge: App,
    method: str,
    target: str,
    body: bytes | list[bytes] = b"",
    headers: dict[str, str] | None = None,
    hang: bool = False,
    sent: list[Any] | None = None,
) -> Answer:
    path, _, query = target.partition("?")
    chunks = [body] if isinstance(body, bytes) else list(body)
    sent = [] if sent is None else sent

    async def receive() -> Any:
        if hang and not chunks:
            await asyncio.sleep(60)
        chunk = chunks.pop(0) if chunks else b""
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks) or hang}

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [
        (name.lower().encode(), value.encode("latin-1")) for name, value in {"Host": "a", **(headers or {})}.items()
    ]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "headers": pairs,
        "fields": dict(pairs),
    }
    await edge(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    if found.get("content-type") == "application/problem+json" and method != "HEAD":
        problem = json.loads(sent[1]["body"])
        assert problem["status"] == sent[0]["status"]
        assert problem["title"]
    return Answer(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))


def deposit(amount: int, meta: Any = None) -> bytes:
    return json.dumps({"type": "Deposit", "payload": {"amount": amount}, **({"meta": meta} if meta else {})}).encode()


async def test_a_message_is_answered_with_its_envelope(edge: Edge) -> None:
    answer = await call(edge, "POST", "/accounts/1", deposit(5, {"a": [1]}))
    assert answer.status == 200
    assert answer.json == {"type": "Deposited", "payload": {"amount": 5}, "meta": {"a": [1]}}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))


async def test_none_is_null(edge: Edge) -> None:
    assert (await call(edge, "POST", "/accounts/1", deposit(0))).body == b"null"


async def test_the_envelope_holds_what_the_request_says() -> None:
    seen: list[Envelope] = []

    async def handle(envelope: Envelope) -> Outcome:
        seen.append(envelope)
        return Outcome(status=202, headers={"Hive-Position": "t/0/1"}, encoded=b"{}")

    made = service()
    edge = Edge(made, routes(made.contracts[0], handle))
    headers = {
        "Idempotency-Key": '"a \\"b\\""',
        "traceparent": "00-x",
        "content-type": "application/a+json",
    }
    answer = await call(edge, "POST", "/accounts/a%2Fb%C3%A4", [deposit(1)[:5], deposit(1)[5:]], headers)
    assert (answer.status, answer.body, answer.headers["hive-position"]) == (202, b"{}", "t/0/1")
    (envelope,) = seen
    assert (envelope.id, envelope.key) == ("a/bä", 'a "b"')
    assert envelope.headers["Traceparent"] == "00-x"
    assert envelope.body == deposit(1)


@pytest.mark.parametrize(
    ("status", "method", "target", "body", "headers"),
    [
        (400, "POST", "/accounts/1", b"{", {}),
        (400, "POST", "/accounts/1", b"", {}),
        (400, "POST", "/accounts/1", b'{"meta":' + b"[" * 900, {}),
        (400, "POST", "/accounts/1", b'{"type":"\xff"}', {}),
        (400, "POST", "/accounts/%zz", deposit(1), {}),
        (400, "POST", "/accounts/%FF", deposit(1), {}),
        (400, "POST", "/accounts/", deposit(1), {}),
        (400, "POST", "/accounts/" + "x" * 256, deposit(1), {}),
        (400, "POST", "/accounts/" + "%C3%A4" * 128, deposit(1), {}),
        (400, "POST", "/accounts/1", deposit(1), {"Idempotency-Key": ""}),
        (400, "POST", "/accounts/1", deposit(1), {"Idempotency-Key": '"'}),
        (400, "POST", "/accounts/1", deposit(1), {"Idempotency-Key": "ä"}),
        (400, "POST", "/accounts/1", deposit(1), {"Idempotency-Key": "x" * 256}),
        (412, "POST", "/accounts/1", deposit(1), {"If-Match": "*"}),
        (412, "POST", "/accounts/1", deposit(1), {"If-None-Match": "*"}),
        (400, "POST", "/accounts/1", deposit(1), {"If-Match": "5"}),
        (412, "GET", "/accounts/1?type=Balance", b"", {"If-Match": '"1"'}),
        (400, "GET", "/accounts/1?type=Balance", b"", {"If-None-Match": '"1'}),
        (400, "GET", "/accounts/1?type=Balance&currency=%zz", b"", {}),
        (400, "GET", "/accounts/1?type=Balance&currency=%FF", b"", {}),
        (400, "GET", "/accounts/1?" + "a=1&" * 1001, b"", {}),
        (404, "POST", "/nowhere", deposit(1), {}),
        (404, "POST", "/accounts/1/2", deposit(1), {}),
        (405, "DELETE", "/accounts/1", b"", {}),
        (405, "POST", "/livez", b"", {}),
        (413, "POST", "/accounts/1", b"x" * 1001, {}),
        (413, "POST", "/accounts/1", [b"x" * 600, b"x" * 600], {}),
        (413, "POST", "/accounts/1", b"", {"Content-Length": "1001"}),
        (415, "POST", "/accounts/1", deposit(1), {"Content-Type": "text/plain"}),
        (415, "POST", "/accounts/1", deposit(1), {"Content-Type": "application/json; charset=latin-1"}),
        (415, "POST", "/accounts/1", deposit(1), {"Content-Encoding": "gzip"}),
        (415, "POST", "/accounts/1", deposit(1), {"Content-Encoding": "identity, br"}),
        (422, "POST", "/accounts/1", deposit(13), {}),
        (422, "POST", "/accounts/1", deposit(-3), {}),
        (422, "POST", "/accounts/1", b'{"type":"Nope"}', {}),
        (422, "GET", "/accounts/1", b"", {}),
        (422, "GET", "/accounts/1?type=Nope", b"", {}),
        (422, "GET", "/accounts/1?type=Balance&x=1", b"", {}),
        (422, "GET", "/accounts/1?type=Balance&id=2", b"", {}),
        (422, "GET", "/accounts/1?type=History&since=x", b"", {}),
    ],
)
async def test_a_fault_of_the_client_is_a_4xx_problem(
    edge: Edge, status: int, method: str, target: str, body: bytes | list[bytes], headers: dict[str, str]
) -> None:
    answer = await call(edge, method, target, body, headers)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await call(edge, "POST", "/accounts/1", deposit(1))).status == 200


async def test_problems_say_what_to_do(edge: Edge) -> None:
    answer = await call(edge, "POST", "/accounts/1", deposit(13))
    assert answer.json == {
        "type": "urn:hiveio:problem:rejected",
        "title": "Rejected",
        "status": 422,
        "detail": "unlucky",
        "balance": 5,
    }
    answer = await call(edge, "POST", "/accounts/1", b'{"type":"Deposit","payload":{"amount":"x"}}')
    assert answer.json["pointer"] == "/payload/amount"
    assert (await call(edge, "PUT", "/accounts/1")).headers["allow"] == "GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize("amount", [500, -2])
async def test_a_fault_of_the_actor_is_a_500_without_internals(
    edge: Edge, amount: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await call(edge, "POST", "/accounts/1", deposit(amount))
    assert answer.status == 500
    assert answer.json == {"type": "about:blank", "title": "Internal Server Error", "status": 500}
    (record,) = caplog.records
    assert record.exc_info


async def test_head_and_options(edge: Edge) -> None:
    got = await call(edge, "GET", "/accounts/1?type=Balance")
    head = await call(edge, "HEAD", "/accounts/1?type=Balance")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", got.headers["content-length"])
    options = await call(edge, "OPTIONS", "/accounts/1")
    assert (options.status, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")


async def test_queries_are_decoded_from_path_and_query_string(edge: Edge) -> None:
    assert (await call(edge, "GET", "/accounts/a%2Fb?type=Balance&currency=US+D")).json == {
        "id": "a/b",
        "currency": "US D",
    }
    assert (await call(edge, "GET", "/accounts/1?type=History&since=5")).json == {"id": "1", "since": 5}
    answer = await call(edge, "GET", "/search/b%201/accounts?name=x&name=y&type=free")
    assert answer.json == {"bank": "b 1", "name": ["x", "y"], "type": "free"}
    assert (await call(edge, "GET", "/se%61rch/b/accounts?name=x")).json["name"] == ["x"]


async def test_the_request_id_is_echoed_or_made(edge: Edge) -> None:
    assert (await call(edge, "POST", "/accounts/1", deposit(1), {"X-Request-Id": "abc-1"})).headers[
        "x-request-id"
    ] == "abc-1"
    assert request_id.get() == "abc-1"
    made = [
        (await call(edge, "POST", "/accounts/1", deposit(1), {"X-Request-Id": "a b"})).headers["x-request-id"]
        for _ in "12"
    ]
    assert len(set(made)) == 2
    assert "a b" not in made
    assert (await call(edge, "GET", "/livez", headers={"X-Request-Id": "abc-2"})).headers["x-request-id"] == "abc-2"


async def test_a_slow_actor_is_answered_504(edge: Edge) -> None:
    answer = await call(edge, "POST", "/accounts/1", deposit(-1))
    assert answer.status == 504
    assert answer.json["title"] == "Outcome Unknown"
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_an_actor_that_catches_its_cancellation_is_cancelled_again(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_flight, "AGAIN_S", 0.05)
    async with asyncio.timeout(5):
        assert (await call(edge, "POST", "/accounts/1", deposit(-4))).status == 504
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_client_is_answered_though_the_actor_catches_every_cancellation(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(in_flight, "AGAIN_S", 0.05)
    sent: list[Any] = []
    task = asyncio.create_task(call(edge, "POST", "/accounts/1", deposit(-5), sent=sent))
    async with asyncio.timeout(5):
        while len(sent) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # it is cancelled again and again, and its client is not answered again
        assert not task.done()
        assert edge.in_flight == 1, "it counts as long as it goes on"
        RELEASED.set()
        answer = await task
    assert len(sent) == 2
    assert (answer.status, answer.json["title"]) == (504, "Outcome Unknown")
    assert answer.headers["connection"] == "close"
    (line,) = [record.message for record in caplog.records if "goes on" in record.message]
    assert line == "POST /accounts/{id}: the actor caught its cancellation and goes on; its client is answered 504"


async def test_a_condition_of_a_query_asks_for_what_exists(edge: Edge) -> None:
    """RFC 9110, 13.1: ``*`` is any current representation, also one without an entity tag."""
    balance = "/accounts/1?type=Balance"
    assert (await call(edge, "GET", balance, headers={"If-None-Match": "*"})).status == 304
    assert (await call(edge, "GET", balance, headers={"If-Match": "*"})).status == 200
    assert (await call(edge, "GET", balance, headers={"If-None-Match": '"1"'})).status == 200
    assert (await call(edge, "GET", balance, headers={"If-Match": '"1"'})).status == 412


async def test_a_slow_client_is_answered_408(edge: Edge) -> None:
    assert (await call(edge, "POST", "/accounts/1", [b"{"], hang=True)).status == 408


async def test_a_handler_may_say_itself_what_is_unknown() -> None:
    async def handle(envelope: Envelope) -> Outcome:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise Unknown("ask again", transaction="t1") from None
        return Outcome()

    made = service(REQUEST_TIMEOUT="20")
    edge = Edge(made, routes(made.contracts[0], handle))
    edge.watch()
    answer = await call(edge, "POST", "/accounts/1", deposit(1))
    edge.unwatch()
    assert (answer.status, answer.json["transaction"]) == (504, "t1")


async def test_a_fault_whose_outcome_is_unknown_has_its_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Another instance may execute the command all the same."""

    async def handle(envelope: Envelope) -> Outcome:
        raise Unknown("ask again", transaction="t1") from KeyError("a secret")

    made = service()
    with caplog.at_level(logging.ERROR):
        answer = await call(Edge(made, routes(made.contracts[0], handle)), "POST", "/accounts/1", deposit(1))
    assert (answer.status, answer.json["transaction"]) == (504, "t1")
    assert "secret" not in answer.body.decode()
    (record,) = caplog.records
    assert record.message == "Account failed at Deposit: KeyError: 'a secret'"


async def test_a_cancellation_from_outside_goes_on(edge: Edge) -> None:
    task = asyncio.create_task(call(edge, "POST", "/accounts/1", deposit(-1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_more_than_the_bound_is_503(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "MAX_REQUESTS", 1)
    task = asyncio.create_task(call(edge, "POST", "/accounts/1", deposit(-1)))
    await asyncio.sleep(0)
    answer = await call(edge, "POST", "/accounts/1", deposit(1))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert (await call(edge, "GET", "/livez")).status == 200
    assert (await task).status == 504


async def test_draining(edge: Edge) -> None:
    edge.service.draining = True
    answer = await call(edge, "POST", "/accounts/1", deposit(1))
    assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
    assert (await call(edge, "GET", "/readyz")).status == 503
    assert (await call(edge, "GET", "/livez")).status == 200


class Broken:
    name = "broken"

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def ready(self) -> str | None:
        return "no broker"

    def alive(self) -> bool:
        return False


async def test_the_probes_name_what_is_wrong(edge: Edge) -> None:
    assert (await call(edge, "GET", "/readyz")).status == 200
    assert (await call(edge, "GET", "/ping")).status == 200
    edge.service.use(Broken())
    assert (await call(edge, "GET", "/readyz")).status == 503
    checks = (await call(edge, "GET", "/readyz?verbose")).json["checks"]
    assert {"name": "broken", "ready": False, "reason": "no broker"} in checks
    assert {"name": "Account", "ready": True, "reason": None} in checks
    answer = await call(edge, "GET", "/livez")
    assert (answer.status, answer.json) == (503, {"alive": False, "stuck": ["broken"]})


async def test_metrics_count_by_route_and_status(edge: Edge) -> None:
    def count(text: str, status: int) -> float:
        wanted = f'hiveio_http_requests_total{{method="POST",route="/accounts/{{id}}",status="{status}"}} '
        return next((float(line[len(wanted) :]) for line in text.splitlines() if line.startswith(wanted)), 0)

    before = (await call(edge, "GET", "/metrics")).body.decode()
    await call(edge, "POST", "/accounts/1", deposit(1))
    await call(edge, "POST", "/accounts/2", deposit(13))
    after = (await call(edge, "GET", "/metrics")).body.decode()
    assert count(after, 200) == count(before, 200) + 1
    assert count(after, 422) == count(before, 422) + 1
    assert 'hiveio_http_request_seconds_bucket{le="+Inf",method="POST",route="/accounts/{id}"}' in after


async def test_openapi_describes_messages_queries_and_problems(edge: Edge) -> None:
    described = (await call(edge, "GET", "/openapi.json")).json
    assert described["openapi"] == "3.1.0"
    post = described["paths"]["/accounts/{id}"]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"]["anyOf"][0] == {
        "$ref": "#/components/schemas/DepositMessage"
    }
    kind = described["components"]["schemas"]["DepositMessage"]["properties"]["type"]
    assert kind == {"type": "string", "enum": ["Deposit"]}
    assert described["components"]["schemas"]["DepositMessage"]["required"] == ["type", "payload"]
    assert post["parameters"][0]["schema"] == {"type": "string", "minLength": 1, "maxLength": 255}
    assert re.fullmatch(post["parameters"][1]["schema"]["pattern"], "order 7")
    assert set(post["responses"]) >= {"200", "400", "413", "415", "422", "503", "504"}
    search = described["paths"]["/search/{bank}/accounts"]["get"]
    assert {(p["name"], p["in"]) for p in search["parameters"]} == {
        ("bank", "path"),
        ("name", "query"),
        ("type", "query"),
    }
    references = set(json.dumps(described).split('"$ref": "#/components/schemas/')[1:])
    assert {text.split('"')[0] for text in references} <= set(described["components"]["schemas"])


OURS = ("/livez", "/readyz", "/metrics", "/openapi.json")


async def test_with_a_port_of_their_own_probes_are_there_and_nowhere_else() -> None:
    made = service(ADMIN_PORT="3001")
    edge = Edge(made, routes(made.contracts[0]))
    for path in OURS:
        assert (await call(edge, "GET", path)).status == 404
        assert (await call(edge.admin, "GET", path)).status == 200
    for side in (edge, edge.admin):
        assert (await call(side, "GET", "/ping")).body == b"pong"
    assert (await call(edge, "POST", "/accounts/1", deposit(5))).status == 200
    answer = await call(edge.admin, "POST", "/accounts/1", deposit(5))
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.headers["x-request-id"]
    assert (await call(edge.admin, "GET", "/livez", headers={"Host": "a b"})).status == 400


async def test_without_a_port_of_their_own_probes_are_beside_the_actors(edge: Edge) -> None:
    for path in OURS:
        assert (await call(edge, "GET", path)).status == 200
