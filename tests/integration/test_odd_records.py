"""Unexpected records, on a real Kafka: their partition goes on, and what is not read is a dead letter."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
from cloudevents.core.bindings import kafka as binding
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Consumer, TopicPartition

from hiveio import Actor, Context, Event, Tombstone
from hiveio.config import Settings
from hiveio.consumer.dead_letters.format import headers_of
from hiveio.kafka.headers import UNREADABLE
from hiveio.kafka.headers import headers_of as all_headers
from tests.integration.conftest import Make
from tests.integration.consumers import Deposited, Recorder, member, settings, wire
from tests.integration.odd_records import Odd, write_odd
from tests.integration.test_dead_letters import QUICK, ask
from tests.integration.test_producer_cloudevents import ACTOR
from tests.integration.topics import committed, make_topic, read_all
from tests.services import Kafka

__all__ = ["ACTOR", "settings"]

Made = Callable[..., Settings]
HUGE = b"9" * 5_000

# What cannot be read, and a part of the reason.
UNREADABLES: list[tuple[Odd, str]] = [
    ((b"a", wire(9), [(b"x", b"1"), (b"\xff", b"2"), (b"\xfe", None), (b"y", b"3")]), "name of a header"),
    ((b"b", wire(9), [(b"hive-position", b"none")]), "hive-position is 'none'"),
    ((b"c", wire(9), [(b"hive-position", b"0:%b:0" % HUGE)]), "hive-position"),
    ((b"d", wire(9), [(b"hive-position", b"\xff"), (b"hive-previous", b"\xff")]), "hive-position"),
    ((b"e", wire(9), [(b"hive-version", HUGE)]), "hive-version"),
    ((b"f", wire(9), [(b"hive-version", b"\xff")]), "hive-version"),
    ((b"g", b'{"type":"Deposited","amount":9}', [(b"content-type", b"application/json")]), "no payload"),
    ((b"h", b'{"amount":9}', []), "has no type"),
    ((b"i", b'{"x":' * 100_000, []), "nested too deeply"),
    ((b"j", b'{"type":"Deposited","payload":{"amount":%b}}' % HUGE, []), "out of range"),
    ((b"k", b'{"type":"Deposited","payload":{"amount":9},"meta":{"x":"%b"}}' % HUGE, []), "The meta has 5008 bytes"),
    ((b"l", b'{"amount":9}', [(b"ce_specversion", b"1.0"), (b"ce_type", b"Deposited"), (b"ce_x", HUGE)]), "meta has"),
    ((b"m", b'{"amount":9}', [(b"ce_specversion", b"1.0"), (b"ce_type", b"\xff")]), "not UTF-8"),
    ((b"n", b'{"type":"\\u0000"}', []), "is unknown"),
    ((b"o", b"\xff\xfe", []), ""),
    ((b"p", b"", []), ""),
]
# What can be read, by the amount.
READABLES: list[Odd] = [
    (b"\xff", wire(1), []),
    (b"\xfe", wire(2), []),
    (b"", wire(3), []),
    (None, wire(4), [(b"name", b"\xff\xfe"), (b"name", b"text"), (b"name", None), (b"", b"")]),
    (b"q", wire(5), [(b"traceparent", b"\xff"), (b"traceparent", b"00-x"), (b"tracestate", HUGE)]),
    (b"r", wire(6), [(b"hive-key", b"1"), (b"hive-key", b"1")]),
    (b"r", wire(7), [(b"hive-key", b"1")]),
]


async def test_nothing_in_a_record_stops_its_partition(kafka: Kafka, topic: str, settings: Made) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    records = [*READABLES, *[record for record, _ in UNREADABLES], (b"z", wire(8), [])]
    write_odd(kafka.brokers, topic, records)
    contexts: dict[int, Context] = {}

    async def keep(amount: int, context: Context) -> None:
        contexts[amount] = context

    async with member(made) as one:
        one.actor.on_event = keep
        await one.until(lambda: one.actor.amounts()[-1:] == [8])
        await one.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == len(records))
        assert await one.consumer.ready() is None
        assert sorted(contexts) == [*range(1, 9)]
        assert one.consumer.counts.dead == len(UNREADABLES)
        assert one.consumer.counts.repeated == 0

    ids = [contexts[amount].id for amount in (1, 2, 3, 4)]
    assert [contexts[amount].key for amount in (1, 2, 3, 4)] == [b"\xff", b"\xfe", b"", None]
    assert len({*ids[:2], "\ufffd"}) == 3, "two keys are two ids"
    assert ids[2:] == [None, None]
    headers = contexts[4].headers
    assert headers.get_all("name") == [b"\xff\xfe", b"text"]
    assert headers.pairs == [("name", b"\xff\xfe"), ("name", b"text"), ("name", None), ("", b"")]
    assert (headers["name"], headers.get("none"), dict(headers)) == ("text", None, {"name": "text", "": ""})

    found = read_all(kafka.brokers, f"{topic}.{made.group_id}.dead")
    for message, (record, reason) in zip(found, UNREADABLES, strict=True):
        key, value, given = record
        own = [(name, text) for name, text in all_headers(message) if not name.startswith("hive-dead-")]
        expected = [(name.decode("utf-8", "replace"), text) for name, text in given]
        assert (message.key(), message.value(), own) == (key, value, expected)
        why = headers_of(message)
        assert why["hive-dead-reason"] == (b"unknown" if key == b"n" else b"undecodable"), key
        assert key == b"n" or reason in why["hive-dead-exception"].decode(), key
    assert UNREADABLE in headers_of(found[0]), "the client reads no such name; the value is kept"


async def test_what_is_below_the_committed_offset_stops_nothing(kafka: Kafka, topic: str, settings: Made) -> None:
    """The look-back reads it to know what was seen: gaps, other logs and what is no position are the past."""
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    past = [(b"0:1:0", None), (b"0:9:0", b"0:8:0"), (b"junk", b"0:9:0"), (b"5:1:0", None), (b"0:12:0", b"0:11:0")]
    steps = [*past, (b"0:11:0", b"0:10:0"), (b"0:13:0", b"0:12:0")]
    positions = [
        (b"a", wire(at), [(b"hive-position", position), *([(b"hive-previous", before)] if before else [])])
        for at, (position, before) in enumerate(steps)
    ]
    write_odd(kafka.brokers, topic, positions)
    offset = TopicPartition(topic, 0, len(past))
    other = Consumer({"bootstrap.servers": kafka.brokers, "group.id": made.group_id})
    other.commit(offsets=[offset], asynchronous=False)  # as kafka-consumer-groups.sh does: without a note of ours
    other.close()
    async with member(made) as one:
        await one.until(lambda: one.actor.amounts() == [6])
        assert one.consumer.counts.repeated == 1, "and what it has seen is known"
        assert one.consumer.counts.dead == 0


async def test_keys_are_parked_by_their_bytes(kafka: Kafka, topic: str, settings: Made) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    keys = [b"\xff", b"\xfe", b"", None, b"\xff", b"\xfe", b"", None]
    write_odd(kafka.brokers, topic, [(key, wire(amount), []) for amount, key in enumerate(keys)])
    bad = {0, 2, 3}

    async def choosy(amount: int, context: Context) -> None:
        if amount in bad:
            raise ValueError(f"never \udcff {context.id!r}")  # a text that is no UTF-8

    async with member(made) as one:
        one.actor.on_event = choosy
        await one.until(lambda: one.consumer.counts.dead == 3 and one.actor.amounts() == [1, 5, 7])
        assert one.consumer.counts.parked == 2
        bad.clear()
        ask(kafka, made, "retry")
        await one.until(lambda: sorted(one.actor.amounts()) == [*range(8)])
        assert [amount for amount in one.actor.amounts() if amount in (2, 6)] == [2, 6]
        await one.until(lambda: not one.consumer.workers[topic, 0].store.busy)


async def test_a_letter_that_its_topic_does_not_take_leaves_the_record_at_its_origin(
    kafka: Kafka, topic: str, settings: Made
) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    dead = f"{topic}.{made.group_id}.dead"
    make_topic(kafka.brokers, dead, config={"max.message.bytes": "2000"})
    large = json.dumps({"type": "Deposited", "payload": {"amount": 1}, "meta": {"text": "x" * 3_000}}).encode()
    write_odd(kafka.brokers, topic, [(b"a", large, [(b"x", b"1")]), (b"a", wire(2), []), (b"b", wire(3), [])])
    bad = {1}
    seen: list[Context] = []

    async def choosy(amount: int, context: Context) -> None:
        if amount in bad:
            raise ValueError("never")
        seen.append(context)

    async with member(made) as one:
        one.actor.on_event = choosy
        await one.until(lambda: one.consumer.counts.dead == 1 and one.actor.amounts() == [3])
        await one.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == 3)
        first, second = read_all(kafka.brokers, dead)
        assert (first.key(), first.value(), headers_of(first)["hive-dead-omitted"]) == (b"a", None, b"%d" % len(large))
        assert (second.key(), second.value()) == (b"a", wire(2))
        bad.clear()
        ask(kafka, made, "retry", "a")
        await one.until(lambda: one.actor.amounts() == [3, 1, 2])
    assert seen[1].meta == {"text": "x" * 3_000}
    assert seen[1].headers.pairs == [("x", b"1")]
    assert seen[1].redriven


class Amounts(Actor):
    """Takes what has no value, too."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes | None, Event]] = []

    def perform(self, event: Deposited | Tombstone, context: Context) -> None:
        self.seen.append((context.key, event))
        if context.key == b"bad":
            raise ValueError("never")


async def test_records_without_a_value_are_given_to_who_takes_them(kafka: Kafka, topic: str, settings: Made) -> None:
    make_topic(kafka.brokers, topic)
    write_odd(kafka.brokers, topic, [(b"a", wire(1), []), (b"a", None, []), (b"bad", None, []), (b"b", wire(2), [])])
    made = settings(**QUICK)
    async with member(made, Amounts, Recorder) as one:
        await one.until(lambda: one.actors[1].amounts() == [1, 2])
        await one.until(lambda: one.consumer.counts.dead == 1)
        deletions = [(b"a", Tombstone()), *[(b"bad", Tombstone())] * 3]
        assert one.actor.seen == [(b"a", Deposited(1)), *deletions, (b"b", Deposited(2))]
    (kept,) = read_all(kafka.brokers, f"{topic}.{made.group_id}.dead")
    assert (kept.key(), kept.value()) == (b"bad", None)


async def test_cloudevents_of_their_sdk_in_both_modes(kafka: Kafka, topic: str, settings: Made, producer: Make) -> None:
    """Read as the SDK writes them, and written as the SDK reads them."""
    attributes = {"source": "/bank/zürich", "type": "com.example.Deposited", "tenant": "t1", "partitionkey": "k"}
    events = [
        CloudEvent({**attributes, "id": "1", "datacontenttype": "application/json"}, {"amount": 1}),
        CloudEvent({**attributes, "id": "2"}, b'{"amount":2}'),
    ]
    made = [write(event, JSONFormat()) for event in events for write in (binding.to_binary, binding.to_structured)]
    make_topic(kafka.brokers, topic)
    records: list[Odd] = [
        (b"k", message.value, [(name.encode(), text) for name, text in message.headers.items()]) for message in made
    ]
    write_odd(kafka.brokers, topic, records)
    contexts: list[Context] = []

    async def keep(amount: int, context: Context) -> None:
        contexts.append(context)

    async with member(settings(**QUICK)) as one:
        one.actor.on_event = keep
        await one.until(lambda: one.actor.amounts() == [1, 1, 2, 2])
    for context, event in zip(contexts, [each for each in events for _ in range(2)], strict=True):
        assert context.meta is not None
        given: dict[str, Any] = {**event.get_attributes()}
        assert dict(context.meta) | {"time": ""} == given | {"time": ""}
        assert (context.id, context.key) == ("k", b"k")

    with producer(EVENT_FORMAT="cloudevents", EVENT_STORE_TOPIC=f"{topic}-out") as role:
        for body in ({"type": "Deposit", "payload": {"amount": 5}}, {"type": "Reading", "payload": {"value": 0.5}}):
            answer = await asyncio.to_thread(httpx.post, role.url + "/accounts/a", json=body)
            assert answer.status_code == 200, answer.text
    read = []
    for message in read_all(kafka.brokers, f"{topic}-out"):
        headers = {name: text for name, text in all_headers(message) if text is not None}
        read.append(
            binding.from_kafka(binding.KafkaMessage(headers, message.key(), message.value() or b""), JSONFormat())
        )
    assert [(event.get_type(), event.get_data()) for event in read] == [
        ("Deposited", {"amount": 5}),
        ("Reading", {"value": 0.5}),
    ]
    assert [event.get_datacontenttype() for event in read] == ["application/json"] * 2
