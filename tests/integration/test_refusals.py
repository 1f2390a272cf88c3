"""NotFound, Forbidden and Unauthorized of an actor, in every role: answered, and the same when a key comes again."""

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.topics import make_topic, read_all, write
from tests.process import Role, wait_until
from tests.services import Kafka, Redis

ACTOR = """
from hiveio import Actor, Command, Context, Event, Forbidden, Model, NotFound, Query, Rejected, Unauthorized

class Gone(Rejected):
    status, title = 410, "Gone"
class Careless(Rejected):
    headers = {"Retry-After": 60}
    def __init__(self):
        pass
class Take(Command):
    what: str
class Taken(Event):
    what: str
class Look(Query):
    path = "/look/{what}"
    what: str
class Shelf(Model):
    pass

def refuse(what: str, context: Context) -> None:
    match what:
        case "nothing":
            raise NotFound("there is no such thing", id=context.id)
        case "secret":
            raise Forbidden("not for you")
        case "mine":
            raise Unauthorized("who are you?", challenge='Bearer realm="books"')
        case "sold":
            raise Gone("sold", headers={"Retry-After": "60"})
        case "odd":
            raise Rejected("odd", status=404)
        case "unsaid":
            raise Rejected("unsaid", by=object())
        case "careless":
            raise Careless

class ShelfActor(Actor):
    path = "/shelves/{id}"
"""
DECIDES = """
    def perform(self, state: Shelf | None, command: Take, context: Context) -> Taken:
        refuse(command.what, context)
        return Taken(command.what)
    def replay(self, state: Shelf | None, event: Taken) -> Shelf:
        return Shelf()
"""
ANSWERS = """
    def perform(self, message: Take | Look, context: Context) -> Taken:
        refuse(message.what, context)
        return Taken(message.what)
"""
HEARS = """
    def perform(self, message: Taken | Look, context: Context) -> Taken:
        refuse(message.what, context)
        return Taken(message.what)
"""
REFUSED = {
    "nothing": (404, "Not Found", "urn:hiveio:problem:not-found", {}),
    "secret": (403, "Forbidden", "urn:hiveio:problem:forbidden", {}),
    "mine": (401, "Unauthorized", "urn:hiveio:problem:unauthorized", {"www-authenticate": 'Bearer realm="books"'}),
    "sold": (410, "Gone", "urn:hiveio:problem:gone", {"retry-after": "60"}),
}


@pytest.fixture(scope="module", params=["base", "producer", "stream-processor"])
def role(request: pytest.FixtureRequest) -> Iterator[Role]:
    environ: dict[str, str] = {}
    if request.param != "base":
        kafka: Kafka = request.getfixturevalue("kafka")
        environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": f"test-{uuid.uuid4().hex[:12]}"}
    if request.param == "stream-processor":
        redis: Redis = request.getfixturevalue("redis")
        environ["CACHE_URL"] = redis.url
    with Role(
        request.param, environ, actor=ACTOR + (DECIDES if request.param == "stream-processor" else ANSWERS)
    ) as it:
        yield it


def take(role: Role, what: str, **headers: str) -> httpx.Response:
    body = {"type": "Take", "payload": {"what": what}}
    return httpx.post(f"{role.url}/shelves/a", json=body, headers=headers, timeout=20)


def check(what: str, answer: httpx.Response) -> None:
    status, title, urn, headers = REFUSED[what]
    document: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, document["status"], document["title"], document["type"]) == (status, status, title, urn)
    assert {name: answer.headers.get(name) for name in ("www-authenticate", "retry-after")} == {
        "www-authenticate": None,
        "retry-after": None,
        **headers,
    }


def test_an_actor_refuses(role: Role) -> None:
    for what in REFUSED:
        check(what, take(role, what))
        for _ in range(3):  # with a key the refusal is on record, and comes from there
            check(what, take(role, what, **{"Idempotency-Key": f"key-{what}"}))
    assert take(role, "book").status_code == 200
    responses = httpx.get(f"{role.url}/openapi.json").json()["paths"]["/shelves/{id}"]["post"]["responses"]
    assert {"401", "403", "404"} <= responses.keys()


def test_a_refusal_that_cannot_be_answered_is_a_fault_and_told(role: Role) -> None:
    for what, line in (
        ("odd", "Rejected(status=…)"),
        ("unsaid", "Rejected(by=<object"),
        ("careless", "Careless(headers={'Retry-After': 60})"),
    ):
        assert take(role, what, **{"Idempotency-Key": what}).status_code == 500

        def is_logged(line: str = line) -> bool:
            return any(line in str(found) for found in role.complaints())

        wait_until(is_logged, what=line)
    assert take(role, "book").status_code == 200


def test_a_consumer_refuses_queries_and_keeps_events_at_once(kafka: Kafka, topic: str) -> None:
    make_topic(kafka.brokers, topic)
    write(
        kafka.brokers, topic, [(0, "a", b'{"type":"Taken","payload":{"what":"%b"}}' % w.encode(), {}) for w in REFUSED]
    )
    environ = {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": topic,
        "EVENT_STORE_FROM_START": "true",
    }
    with Role("consumer", environ, actor=ACTOR + HEARS) as role:
        for what in REFUSED:
            check(what, httpx.get(f"{role.url}/look/{what}"))
        dead_letters = wait_until(lambda: read_all(kafka.brokers, f"{topic}.{topic}.dead"), 20)
        headers = dict(dead_letters[0].headers() or [])
        assert (headers["hive-dead-reason"], headers["hive-dead-attempts"]) == (b"refused", b"1")
