"""/asyncapi.json of every role that touches Kafka, checked against the published schema of AsyncAPI 3."""

import gzip
import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.integration.topics import make_topic
from tests.process import Role
from tests.services import Kafka, Redis

DATA = Path(__file__).parents[1] / "data"
ACTOR = """
from datetime import datetime
from typing import Annotated
from msgspec import Meta
from hiveio import Actor, Command, Event, Model

class Deposit(Command):
    amount: Annotated[int, Meta(gt=0)]
class Line(Model):
    text: str
class Deposited(Event):
    amount: int
    at: datetime | None = None
    lines: list[Line] = []
class Closed(Event):
    type: str
class Account(Model):
    balance: int = 0

class AccountActor(Actor):
    path = "/accounts/{id}"

    def perform(self, account: Account | None, command: Deposit) -> Deposited | Closed:
        return Deposited(command.amount)

    def replay(self, account: Account | None, event: Deposited | Closed) -> Account:
        return Account()

class Register(Actor):
    def perform(self, event: Deposited) -> None: ...

class Audit(Actor):
    def perform(self, event: Deposited | Closed) -> None: ...
"""


@pytest.fixture(scope="module")
def valid() -> Callable[[Any], None]:
    schema = json.loads(gzip.decompress((DATA / "asyncapi-3.0.0.json.gz").read_bytes()))
    validate: Callable[[Any], None] = jsonschema.Draft7Validator(schema).validate
    return validate


def described(name: str, module: str, **environ: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with Role(name, environ, actor=ACTOR, module=module) as role:
        answer = httpx.get(role.url + "/asyncapi.json")
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
    return document, [dict(operation) for operation in document["operations"].values()]


def followed(document: Any, pointer: str) -> Any:
    return reduce(lambda at, part: at[part], pointer.removeprefix("#/").split("/"), document)


def references(document: Any) -> list[str]:
    if isinstance(document, dict):
        own = [document["$ref"]] if isinstance(document.get("$ref"), str) else []
        return own + [reference for value in document.values() for reference in references(value)]
    return [reference for value in document for reference in references(value)] if isinstance(document, list) else []


@pytest.mark.parametrize("role", ["producer", "stream-processor"])
def test_what_is_sent(kafka: Kafka, redis: Redis, topic: str, valid: Callable[[Any], None], role: str) -> None:
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic, "CACHE_URL": redis.url}
    document, (operation,) = described(role, "accounts:AccountActor", **environ)
    valid(document)
    assert all(followed(document, reference) for reference in references(document))
    assert operation["action"] == "send"
    channel = followed(document, operation["channel"]["$ref"])
    assert channel["address"] == topic
    assert set(channel["messages"]) == {"Deposited", "Closed"}
    message = followed(document, channel["messages"]["Deposited"]["$ref"])
    event = {"type": "Deposited", "payload": {"amount": 5, "at": None, "lines": []}, "meta": {"source": "web"}}
    payload = {**message["payload"], "components": document["components"]}
    jsonschema.validate(event, payload)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(event | {"payload": {"amount": "five"}}, payload)
    assert "hive-id" in followed(document, message["headers"]["$ref"])["properties"]


def test_a_cloudevent_is_its_payload(kafka: Kafka, topic: str, valid: Callable[[Any], None]) -> None:
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic, "EVENT_FORMAT": "cloudevents"}
    document, _ = described("producer", "accounts:AccountActor", **environ)
    valid(document)
    message = document["components"]["messages"]["Deposited"]
    assert "amount" in followed(document, message["payload"]["$ref"])["properties"]
    assert "ce_type" in followed(document, message["headers"]["$ref"])["properties"]


def test_what_is_received_by_whom(kafka: Kafka, topic: str, valid: Callable[[Any], None]) -> None:
    make_topic(kafka.brokers, topic)
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_GROUP_ID": topic}
    document, (operation,) = described("consumer", "accounts:Audit", EVENT_STORE_TOPIC=topic, **environ)
    valid(document)
    assert operation["action"] == "receive"
    assert operation["bindings"]["kafka"]["groupId"]["enum"] == [topic]
    assert len(operation["messages"]) == 2
    pattern = f"^{topic}.*"
    document, (operation,) = described("consumer", "accounts:Register", EVENT_STORE_CONSUMER_TOPIC=pattern, **environ)
    valid(document)
    channel = followed(document, operation["channel"]["$ref"])
    assert channel["address"] is None
    assert pattern in channel["description"]


def test_the_base_role_has_none() -> None:
    with Role("base", actor=ACTOR, module="accounts:AccountActor") as role:
        assert httpx.get(role.url + "/asyncapi.json").status_code == 404
