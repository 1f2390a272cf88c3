"""CloudEvents 1.0: taken over HTTP in each mode, written to Kafka in the binary mode of its binding."""

import base64
import json
import uuid
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Make
from tests.integration.topics import read_all
from tests.process import Role
from tests.services import Kafka

ACTOR = """
from hiveio import Actor, Command, Event

class Deposit(Command):
    amount: int
class Deposited(Event):
    amount: int
class Reading(Event):
    value: float

class Account(Actor):
    path = "/accounts/{id}"

    def perform(self, message: Deposit | Reading) -> Deposited | Reading:
        return Deposited(message.amount) if isinstance(message, Deposit) else message
"""
ATTRIBUTES = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/bank/zürich",
    "type": "com.example.Deposit",
    "time": "2026-11-25T10:00:00Z",
    "tenant": "t1",
}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}
BATCH = {"content-type": "application/cloudevents-batch+json"}


def binary(attributes: dict[str, str]) -> dict[str, str]:
    shown = {f"ce-{name}": value.replace("ü", "%C3%BC") for name, value in attributes.items()}
    return {**shown, "content-type": "application/json"}


def headers(message: Any) -> dict[str, str]:
    return {name: value.decode() for name, value in message.headers() or []}


def test_each_mode_is_taken_and_the_attributes_are_meta(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer() as role:
        url = role.url + "/accounts/a"
        data = {"amount": 5}
        in_binary = ATTRIBUTES | {"datacontenttype": "application/json"}  # its Content-Type, in that mode
        encoded = base64.b64encode(b'{"amount":5}').decode()
        answers = [
            httpx.post(url, content=b'{"amount":5}', headers=binary(ATTRIBUTES)),
            httpx.post(url, content=json.dumps({**ATTRIBUTES, "data": data}), headers=STRUCTURED),
            httpx.post(url, content=json.dumps({**ATTRIBUTES, "data_base64": encoded}), headers=STRUCTURED),
        ]
        for answer, meta in zip(answers, [in_binary, ATTRIBUTES, ATTRIBUTES], strict=True):
            assert answer.status_code == 200, answer.text
            assert answer.json() == {"type": "Deposited", "payload": data, "meta": meta}
        several = [{**ATTRIBUTES, "data": data}, {**ATTRIBUTES, "id": "", "data": data}, {**ATTRIBUTES, "data": {}}]
        batch = httpx.post(url, content=json.dumps(several), headers=BATCH)
        assert batch.status_code == 207
        assert [each["status"] for each in batch.json()] == [200, 422, 422]
        assert [each.get("pointer") for each in batch.json()] == [None, "/id", "/payload/amount"]
        assert not role.complaints()
    records = [json.loads(m.value() or b"") for m in read_all(kafka.brokers, topic)]
    metas = [in_binary, *[ATTRIBUTES] * 3]
    assert records == [{"type": "Deposited", "payload": data, "meta": meta} for meta in metas]


@pytest.mark.parametrize(
    ("change", "data", "status", "pointer"),
    [
        ({"specversion": "0.3"}, b"{}", 422, "/specversion"),
        ({"source": ""}, b"{}", 422, "/source"),
        ({"type": "com.example.Nothing"}, b"{}", 422, "/type"),
        ({"Bad_Name": "x"}, b"{}", 422, None),
        ({}, b'{"amount":1},"evil":{}', 400, None),
        ({}, b'{"amount":', 400, None),
        ({}, b"", 422, "/payload/amount"),
    ],
)
def test_what_is_none_is_refused(
    one: Role, change: dict[str, str], data: bytes, status: int, pointer: str | None
) -> None:
    url = one.url + "/accounts/a"
    attributes = {**ATTRIBUTES, **change}
    sent = {f"ce-{name}": value.replace("ü", "%C3%BC") for name, value in attributes.items()}
    sent = {name: value for name, value in sent.items() if "bad" not in name.lower()}
    if "Bad_Name" not in change:
        answer = httpx.post(url, content=data, headers={**sent, "content-type": "application/json"})
        assert (answer.status_code, answer.json().get("pointer")) == (status, pointer), answer.text
    body = json.dumps(attributes).encode()[:-1] + (b',"data":%b}' % data if data else b"}")
    answer = httpx.post(url, content=body, headers=STRUCTURED)
    if b"evil" not in data:  # there it is an attribute, and no object
        assert (answer.status_code, answer.json().get("pointer")) == (status, pointer), answer.text
    assert 400 <= answer.status_code < 500
    assert not one.complaints()


@pytest.fixture(scope="module")
def one(kafka: Kafka) -> Any:
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": f"test-{uuid.uuid4().hex[:12]}"}
    with Role("producer", environ, actor=ACTOR) as role:
        yield role


def test_other_bodies_are_refused(one: Role) -> None:
    url = one.url + "/accounts/a"
    assert httpx.post(url, content=b"[]", headers=STRUCTURED).status_code == 422
    assert httpx.post(url, content=b"{", headers=STRUCTURED).status_code == 400
    bad = json.dumps({**ATTRIBUTES, "data_base64": "?"})
    assert httpx.post(url, content=bad, headers=STRUCTURED).json()["pointer"] == "/data_base64"
    latin = {"content-type": "application/cloudevents+json; charset=latin-1"}
    assert httpx.post(url, content=b"{}", headers=latin).status_code == 415
    text = {**binary(ATTRIBUTES), "content-type": "text/plain"}
    assert httpx.post(url, content=b"{}", headers=text).status_code == 415


def test_the_kafka_binding(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(EVENT_FORMAT="cloudevents", EVENT_STORE_ID="the bank") as role:
        url = role.url + "/accounts/a"
        passed = {**ATTRIBUTES, "type": "com.example.Reading"}
        assert httpx.post(url, content=b'{ "value": 1.50 }', headers=binary(passed)).status_code == 200
        assert httpx.post(url, content=b'{"amount":5}', headers=binary(ATTRIBUTES)).status_code == 200
        action = {"type": "Deposit", "payload": {"amount": 6}, "meta": {"source": "web"}}
        answer = httpx.post(url, json=action, headers={"Idempotency-Key": "k", "traceparent": TRACE})
        assert answer.json() == {**action, "type": "Deposited"}, "over HTTP it stays an action"
        assert not role.complaints()
    first, second, third = read_all(kafka.brokers, topic)
    assert [m.key() for m in (first, second, third)] == [b"a"] * 3
    assert [m.value() for m in (first, second, third)] == [b'{ "value": 1.50 }', b'{"amount":5}', b'{"amount":6}']
    shown = headers(first)
    assert {name: value for name, value in shown.items() if name.startswith("ce_")} == {
        **{f"ce_{name}": value for name, value in passed.items()},
        "ce_subject": "a",
    }
    assert shown["content-type"] == "application/json"
    shown = headers(second)
    new = (shown["ce_id"], shown["ce_source"], shown["ce_type"], shown["ce_tenant"])
    assert new == (shown["hive-id"], "the%20bank/Account", "Deposited", "t1"), "another event than the one that came"
    shown = headers(third)
    assert json.loads(shown["hive-meta"]) == {"source": "web"}
    assert (shown["hive-key"], shown["traceparent"], shown["ce_specversion"]) == ("k", TRACE, "1.0")
    assert shown["ce_time"].endswith("+00:00")


@pytest.mark.parametrize("form", ["action", "cloudevents"])
def test_content_type_and_trace_of_an_event_are_kept(kafka: Kafka, topic: str, producer: Make, form: str) -> None:
    kind = "application/vnd.reading+json; charset=UTF-8"
    attributes = {**ATTRIBUTES, "type": "com.example.Reading", "traceparent": TRACE, "datacontenttype": kind}
    bare = {name: value for name, value in attributes.items() if name != "datacontenttype"}
    event = {**attributes, "data": {"value": 1.5}}
    with producer(EVENT_FORMAT=form) as role:
        url = role.url + "/accounts/a"
        sent = [
            httpx.post(url, content=b'{"value":1.5}', headers=binary(bare) | {"content-type": kind}),
            httpx.post(url, content=json.dumps(event), headers=STRUCTURED),
            httpx.post(url, content=json.dumps([event]), headers=BATCH),
        ]
        assert [answer.status_code for answer in sent] == [200] * 3, [answer.text for answer in sent]
        other = TRACE.replace("b7ad", "0000")
        httpx.post(url, content=json.dumps(event), headers=STRUCTURED | {"traceparent": other})
    *found, last = [headers(message) for message in read_all(kafka.brokers, topic)]
    assert last["traceparent"] == other, "the request's own is nearer"
    for message, shown in zip(read_all(kafka.brokers, topic), found, strict=False):
        assert shown["traceparent"] == TRACE
        if form == "action":
            assert json.loads(message.value() or b"")["meta"] == attributes
            assert shown["content-type"] == "application/json"  # of the action
        else:
            assert (shown["content-type"], shown["ce_traceparent"]) == (kind, TRACE)
            assert "ce_datacontenttype" not in shown
