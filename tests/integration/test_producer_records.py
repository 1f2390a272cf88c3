"""What a record of the producer is made of: topic, key, headers, payload."""

import gzip
from typing import Any

import httpx
import msgspec
import pytest

from tests.integration.conftest import Make
from tests.integration.topics import make_topic, read_all
from tests.services import Kafka

ACTOR = """
from hiveio import Actor, Command, Event

class Reading(Event):
    sensor: str
    value: float
class Alarm(Event):
    sensor: str
    value: float
class Report(Command):
    values: dict[str, float]
class Note(Command):
    text: str
class Noted(Event):
    text: str

class Readings(Actor):
    path = "/readings"
    topic = "TOPIC-readings"
    key = "sensor"

    def perform(self, message: Reading | Report) -> Reading | Alarm | list[Alarm]:
        if isinstance(message, Report):
            return [Alarm(sensor, value) for sensor, value in message.values.items()]
        return message if message.value < 100 else Alarm(message.sensor, message.value)

class Notes(Actor):
    path = "/notes"

    def perform(self, message: Note) -> Noted:
        return Noted(message.text)
"""


def headers(message: Any) -> dict[str, str]:
    return {name: value.decode() for name, value in message.headers() or []}


def test_an_actor_names_its_topic_and_its_key(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer() as role:
        reading = httpx.post(role.url + "/readings", json={"type": "Reading", "payload": {"sensor": "a", "value": 1}})
        assert reading.headers["hive-position"] == f"{topic}-readings/0/0"
        report = {"type": "Report", "payload": {"values": {"b": 200.5, "c": 300.5}}}
        assert httpx.post(role.url + "/readings", json=report).status_code == 200
        refused = httpx.post(role.url + "/readings", json={"type": "Reading", "payload": {"sensor": "", "value": 1}})
        assert (refused.status_code, refused.json()["pointer"]) == (422, "/payload/sensor")
        note = httpx.post(role.url + "/notes", json={"type": "Note", "payload": {"text": "n"}})
        assert note.headers["hive-position"] == f"{topic}/0/0"
        assert not role.complaints()
    found = read_all(kafka.brokers, f"{topic}-readings")
    assert [(m.key(), msgspec.json.decode(m.value() or b"")["type"]) for m in found] == [
        (b"a", "Reading"),
        (b"b", "Alarm"),
        (b"c", "Alarm"),
    ]
    (record,) = read_all(kafka.brokers, topic)
    assert record.key() is None


def test_a_payload_that_the_actor_does_not_change_is_written_as_it_came(
    kafka: Kafka, topic: str, producer: Make
) -> None:
    payload = b'{ "sensor": "a", "unit": {"name": "\xc3\xa4", "scale": 1e0}, "value": 1.50 }'
    with producer() as role:
        url = role.url + "/readings"
        answer = httpx.post(url, content=b'{"type":"Reading", "payload": %b, "meta": {"a":1}}' % payload)
        assert answer.status_code == 200
        poison = b'{"type":"Reading","payload":{"sensor":"a","value":1,"unknown":%b}}'
        for unknown in (b'"\xff"', b"[" * 200 + b"]" * 200):
            refused = httpx.post(url, content=poison % unknown)
            assert (refused.status_code, refused.json()["title"]) == (400, "Not JSON")
    (record,) = read_all(kafka.brokers, f"{topic}-readings")
    assert record.value() == answer.content == b'{"type":"Reading","payload":%b,"meta":{"a":1}}' % payload


def test_headers_go_on_by_the_list(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(EVENT_HEADERS="X-Tenant, x-b3-*") as role:
        sent = {"x-tenant": "t1", "X-B3-TraceId": "1", "x-b3-spanid": "2", "authorization": "secret", "x-other": "3"}
        for given in (sent, {}):
            answer = httpx.post(role.url + "/notes", json={"type": "Note", "payload": {"text": "n"}}, headers=given)
            assert answer.status_code == 200
    first, second = map(headers, read_all(kafka.brokers, topic))
    own = {"hive-actor", "hive-id", "content-type"}
    assert {name: value for name, value in first.items() if name not in own} == {
        "x-tenant": "t1",
        "x-b3-traceid": "1",
        "x-b3-spanid": "2",
    }
    assert second.keys() == own


def test_headers_go_on_as_the_bytes_that_came_and_all_of_them(kafka: Kafka, topic: str, producer: Make) -> None:
    sent = [(b"X-Tenant", "zürich".encode()), (b"x-tenant", b"caf\xe9"), (b"X-B3-Flags", b"1"), (b"x-b3-flags", b"2")]
    note = {"type": "Note", "payload": {"text": "n"}}
    with producer(EVENT_HEADERS="x-tenant,x-b3-*") as role:
        assert httpx.post(role.url + "/notes", json=note, headers=sent).status_code == 200
        assert httpx.post(role.url + "/notes", json=[note], headers=sent).status_code == 200
    for message in read_all(kafka.brokers, topic):
        pairs: Any = message.headers()
        passed = [(name, value) for name, value in pairs if name.startswith("x-")]
        assert passed == [(name.lower().decode(), value) for name, value in sent]


def test_a_compressed_body_is_415_in_each_form(kafka: Kafka, topic: str, producer: Make) -> None:
    note = b'{"type":"Note","payload":{"text":"n"}}'
    batch = {"content-type": "application/x-ndjson"}
    with producer() as role:
        for body, form in ((note, {}), (note, batch), (b"[%b]" % note, {})):
            for coding in ("gzip", "deflate", "x-gzip", "identity, gzip"):
                headers = form | {"content-encoding": coding}
                answer = httpx.post(role.url + "/notes", content=gzip.compress(body), headers=headers)
                assert (answer.status_code, answer.headers.get("accept-encoding")) == (415, "identity"), coding
            plain = httpx.post(role.url + "/notes", content=body, headers=form | {"content-encoding": "Identity"})
            assert plain.status_code == 200
        assert not role.complaints()
    assert len(read_all(kafka.brokers, topic)) == 3


@pytest.mark.parametrize("kind", ["gzip", "lz4", "zstd"])
def test_records_are_compressed(kafka: Kafka, topic: str, producer: Make, kind: str) -> None:
    make_topic(kafka.brokers, topic)
    with producer(KAFKA_COMPRESSION_TYPE=kind) as role:
        for _ in range(20):
            note = {"type": "Note", "payload": {"text": "compress me " * 1000}}
            assert httpx.post(role.url + "/notes", json=note).status_code == 200
    found = read_all(kafka.brokers, topic)
    size = sum(path.stat().st_size for path in (kafka.data / f"{topic}-0").glob("*.log"))
    assert len(found) == 20
    assert 0 < size < sum(len(m.value() or b"") for m in found) / 10


def test_queued_answers_at_once_and_its_end_flushes(kafka: Kafka, topic: str, producer: Make) -> None:
    # A linger of 5 s: nothing but the flush at the end can send it sooner.
    with producer(PRODUCER_ACK="queued", KAFKA_LINGER_MS="5000", EVENT_STORE_TIMEOUT="5000") as role:
        for number in range(50):
            answer = httpx.post(role.url + "/notes", json={"type": "Note", "payload": {"text": str(number)}})
            assert answer.status_code == 202
            assert answer.json() == {"type": "Noted", "payload": {"text": str(number)}}
            assert "hive-position" not in answer.headers
        assert "202" in httpx.get(role.url + "/openapi.json").json()["paths"]["/notes"]["post"]["responses"]
        assert not role.complaints()
    assert role.process.returncode == 0
    texts = [msgspec.json.decode(m.value() or b"")["payload"]["text"] for m in read_all(kafka.brokers, topic)]
    assert sorted(texts, key=int) == [str(number) for number in range(50)]


def test_without_a_topic_it_does_not_start(producer: Make) -> None:
    role = producer(EVENT_STORE_TOPIC="")
    role.wait = False
    with role:
        assert role.ended() == 2
    assert any("EVENT_STORE_TOPIC is not set, and Notes names no topic of its own" in line for line in role.errors)
