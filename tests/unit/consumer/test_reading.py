"""What is in a record never stops its partition: arbitrary bytes through a consumer in memory."""

import asyncio
import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiveio import Actor, Context, Event, Tombstone
from hiveio.actor import contracts, performing
from hiveio.consumer.dead_letters.format import PREFIX
from hiveio.consumer.reading import read
from hiveio.consumer.routing import Routing
from hiveio.errors import Problem
from hiveio.kafka.headers import Pairs
from tests.unit.consumer.consumer_memory import Member, Partition, Record


class Deposited(Event, frozen=True):
    amount: int = 0


class Closed(Event, frozen=True):
    reason: str | None = None


class Taker(Actor):
    def __init__(self) -> None:
        self.seen: list[tuple[int | None, Event]] = []

    def perform(self, event: Deposited | Closed | Tombstone, context: Context) -> None:
        self.seen.append((context.offset, event))


class Lists(Actor):
    def __init__(self) -> None:
        self.seen: list[tuple[int | None, Event]] = []

    def perform(self, events: list[Deposited | Closed | Tombstone], context: list[Context]) -> None:
        self.seen += [(one.offset, event) for one, event in zip(context, events, strict=True)]


async def through(records: list[Record], kind: type[Actor], concurrency: int) -> tuple[Partition, Member, Any]:
    """The partition, its consumer, and the worker when all is done."""
    partition = Partition(records)
    async with partition.member(kind, consumer_attempts=1, consumer_concurrency=concurrency) as one:
        (worker,) = one.consumer.workers.values()
        await one.until(lambda: worker.failure or worker.done[0] == len(records))
    return partition, one, worker


HUGE = b"9" * 5_000
NAMES = ["hive-position", "hive-previous", "hive-version", "hive-key", "hive-id", "hive-meta", "hive-dead-origin"]
NAMES += [
    "hive-dead-at",
    "hive-dead-mark",
    "content-type",
    "ce_specversion",
    "ce_type",
    "ce_id",
    "traceparent",
    "\ufffd",
]
VALUES = [b"", b"\xff", HUGE, b"0:1:0", b"0:x:0", b"0:%b:0" % HUGE, b"1.0", b"Deposited", b"com.example.Deposited"]
VALUES += [b"application/json", b"application/cloudevents+json", b"Application/CloudEvents-Batch+JSON; charset=utf-8"]
VALUES += [b"application/cloudevents+avro", b"{}", b'{},"payload":{"amount":666}', b"x" * 5_000]
BODIES = [
    b"",
    b"null",
    b"[]",
    b"[[]]",
    b"{}",
    b"\xff",
    b'"\xff"',
    b"[" * 50_000,
    b'{"a":' * 50_000,
    HUGE,
    b"NaN",
    b"1e999",
]
BODIES += [b'{"type":"Deposited"}', b'{"type":"Deposited","payload":null}', b'{"type":"Deposited","amount":5}']
BODIES += [
    b'{"type":"Deposited","payload":{"amount":%b}}' % HUGE,
    b'{"type":"\\u0000"}',
    b'{"type":null}',
    b'{"type":[]}',
]
BODIES += [
    b'{"type":"Deposited","payload":{"amount":5},"meta":%b}' % m for m in (b"{}", b"[]", b"null", b'{"a":1e999}')
]
BODIES += [b'{"type":"Deposited","payload":{},"meta":{"x":"%b"}}' % (b"y" * 5_000), b'{"type":"Nobodys","payload":{}}']
BODIES += [
    b'{"specversion":"1.0","type":"Closed"}',
    b'[{"specversion":"1.0","type":"Closed"}]',
    b'{"type":"Closed"} {}',
]
odd_records = st.lists(
    st.tuples(
        st.none() | st.sampled_from([b"", b"\xff", b"\xfe", b"a"]) | st.binary(max_size=4),
        st.none() | st.sampled_from(BODIES) | st.binary(max_size=40),
        st.lists(
            st.tuples(
                st.sampled_from(NAMES) | st.text(max_size=3).filter(str.isprintable),
                st.none() | st.sampled_from(VALUES) | st.binary(max_size=20),
            ),
            max_size=5,
        ),
    ),
    max_size=8,
)


@pytest.mark.parametrize("mode", ["in order", "lists", "parallel"])
@given(records=odd_records)
def test_nothing_in_a_record_stops_its_partition(mode: str, records: list[Record]) -> None:
    kind = Lists if mode == "lists" else Taker
    partition, one, worker = asyncio.run(through(records, kind, 2 if mode == "parallel" else 1))
    assert worker.failure is None
    kept = {dict(made.headers)["hive-dead-origin"]: made for made in partition.dead_letters.written}
    handled = len(one.actor.seen) + len(kept) + one.consumer.counts.repeated
    assert handled == len(records), "each is handled, kept, or a repeat"
    for at, (key, value, headers) in enumerate(records):
        if found := kept.get(f"t/0/{at}".encode()):
            own = [pair for pair in found.headers if not pair[0].startswith(PREFIX)]
            theirs = [pair for pair in headers if not pair[0].startswith(PREFIX)]
            assert (found.key, found.value, own) == (key, value, theirs)


def reading(value: bytes | None, headers: Pairs | None = None) -> Any:
    """The event and its meta, or the text of the problem."""
    (contract,) = contracts([Taker])
    found = read(headers or [], value, Routing([(contract, performing(contract))]).codec)
    if isinstance(found, Problem):
        return str(found)
    event, meta = found
    return event, json.loads(bytes(meta)) if meta is not None else None


def test_what_is_no_message_of_ours_is_no_event_with_default_values() -> None:
    bare = b'{"type":"Deposited"}'
    for value in (bare, b'{"type":"Deposited","amount":5}', b'{"type":"Deposited","meta":{}}'):
        assert reading(value) == "The message has no payload."
        assert reading(value, [("content-type", b"application/json"), ("other", b"x")]) == "The message has no payload."
    for name in ("hive-id", "hive-actor"):
        assert reading(bare, [(name, b"x")]) == (Deposited(0), None)
    assert reading(b'{"type":"Deposited","payload":{"amount":"x"}}', [("hive-id", b"x")]).startswith("Expected `int`")
    assert reading(b'{"type":"Deposited","payload":{}}') == (Deposited(0), None)


def test_an_actor_of_one_event_takes_no_body_without_a_type() -> None:
    class One(Actor):
        def perform(self, event: Deposited) -> None:
            """Takes it."""

    (contract,) = contracts([One])
    codec = Routing([(contract, performing(contract))]).codec
    for value in (b"{}", b'{"amount":5}', b'{"a":1}'):
        found = read([], value, codec)
        assert isinstance(found, Problem)
        assert "has no type" in str(found)


STRUCTURED: Pairs = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
BATCHED: Pairs = [("content-type", b"application/cloudevents-batch+json")]
EVENT = {"specversion": "1.0", "id": "e", "source": "/s", "type": "com.example.Deposited", "tenant": "t"}


def test_structured_cloudevents() -> None:
    def structured(changes: dict[str, Any], headers: Pairs = STRUCTURED) -> Any:
        return reading(json.dumps(EVENT | changes).encode(), headers)

    with_type = EVENT | {"datacontenttype": "application/json"}
    assert structured({"data": {"amount": 5}}) == (Deposited(5), EVENT)
    assert structured({"data": {"amount": 5}, "datacontenttype": "application/json"}) == (Deposited(5), with_type)
    assert structured({"data_base64": base64.b64encode(b'{"amount":5}').decode()}) == (Deposited(5), EVENT)
    assert structured({}) == structured({"data": None, "subject": None}) == (Deposited(0), EVENT)
    assert reading(json.dumps([EVENT | {"data": {"amount": 5}}]).encode(), BATCHED) == (Deposited(5), EVENT)
    assert "The batch has 2" in reading(json.dumps([EVENT, EVENT]).encode(), BATCHED)
    assert "only one of them" in structured({"data": {}, "data_base64": ""})
    assert "cannot be read" in structured({"data_base64": "%%"})
    assert "data is not JSON" in structured({"data_base64": base64.b64encode(b"{}, {}").decode()})
    assert "specversion '0.3'" in structured({"specversion": "0.3"})
    assert "attribute type" in structured({"type": 5})
    assert "is not an attribute" in structured({"Tenant": "t"})
    assert "meta has" in structured({"tenant": "t" * 5_000})
    assert "The content type is application/cloudevents+avro" in structured(
        {}, [("content-type", b"application/cloudevents+avro")]
    )


def test_binary_cloudevents() -> None:
    headers: Pairs = [(f"ce_{name}", value.encode()) for name, value in EVENT.items()]
    assert reading(b'{"amount":5}', headers) == (Deposited(5), EVENT)
    assert reading(None, headers) == reading(b"", headers) == (Deposited(0), EVENT), "an event without data"
    typed = [*headers, ("content-type", b"application/json")]
    assert reading(b"{}", typed) == (Deposited(0), EVENT | {"datacontenttype": "application/json"})
    assert reading(b"{}", [*headers, ("hive-meta", b'{"a":1}')]) == (Deposited(0), {"a": 1})
    assert "hive-meta is not JSON" in reading(b"{}", [*headers, ("hive-meta", b'{},"payload":{"amount":666}')])
    assert "not UTF-8" in reading(b"{}", [*headers, ("ce_subject", b"\xff")])
    assert reading(None) == (Tombstone(), None)
