"""What stands in a record never stops its partition: arbitrary bytes through the lanes, with dead letters in memory."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiveio import Actor, Context, Event, Tombstone
from hiveio.actor import contracts, performing
from hiveio.config import Settings
from hiveio.consumer.batch import BatchLane
from hiveio.consumer.careful import Opening
from hiveio.consumer.dead import DeadLetters
from hiveio.consumer.lane import WorkLane
from hiveio.consumer.letters import OURS
from hiveio.consumer.parallel import ParallelLane
from hiveio.consumer.progress import Progress, Window
from hiveio.consumer.reading import read
from hiveio.consumer.retry import Retry
from hiveio.consumer.routing import Routing
from hiveio.consumer.shelf import Shelf
from hiveio.errors import Problem
from hiveio.kafka import CommitMetadata, Message, Start
from hiveio.kafka.assigned import Owner
from hiveio.kafka.headers import Pairs
from hiveio.kafka.session import Outgoing


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


class Memory:
    """The dead-letter topic, and its tail."""

    def __init__(self) -> None:
        self.written: list[Outgoing] = []
        self._deliver: Callable[[list[Message]], None] | None = None

    async def write(self, topic: str, partition: int, group: list[Outgoing]) -> None:
        first = len(self.written)
        self.written += group
        if self._deliver is not None:
            self._deliver([self._message(offset) for offset in range(first, len(self.written))])

    def _message(self, offset: int) -> Message:
        key, value, headers = self.written[offset]
        pairs: Any = [(name, text.encode() if isinstance(text, str) else text) for name, text in headers]
        make: Any = Message
        # As the client does, an empty key is written as none.
        message: Message = make(
            topic="t.g.dead", partition=0, offset=offset, key=key or None, value=value, headers=pairs, timestamp=(1, 0)
        )
        return message

    def tail(self, topic: str) -> "Memory":
        return self

    def follow(self, partition: int, offset: int, on_records: Any, on_error: Any) -> None:
        self._deliver = on_records
        if offset < len(self.written):
            on_records([self._message(at) for at in range(offset, len(self.written))])

    def unfollow(self, partition: int) -> None:
        self._deliver = None

    def taken(self, partition: int, count: int) -> None:
        """Nothing waits."""


Record = tuple[bytes | None, bytes | None, Pairs]  # key, value, headers


async def claimed(lane: object) -> None:
    """Nobody else wants the partition."""


async def through(records: list[Record], kind: type[Actor], make: Any) -> tuple[list[tuple[int, Event]], Memory, Any]:
    """What the actor has seen, the dead letters, and the lane when all is done."""
    (contract,) = contracts([kind])
    configured = Settings(brokers="none:1", topic="t", group_id="g", consumer_attempts=1)
    routing, memory = Routing([(contract, performing(contract))]), Memory()
    start = Start("t", 0, "", 0, CommitMetadata(), 0, 0, len(records), Owner("me", 0))
    letters = cast("DeadLetters", memory)
    lane = make(
        Opening(start, 0, 0, Progress(), None, {}),
        routing=routing,
        retry=Retry(configured),
        window=Window(100),
        shelf=lambda news: Shelf(letters, start, start=0, limit=1000, everybody=routing.names, news=news),
        finished=lambda: None,
        claim=claimed,
    )
    message: Any = Message
    chunk = [
        message(topic="t", partition=0, offset=at, key=key, value=value, headers=headers or None, timestamp=(1, 7))
        for at, (key, value, headers) in enumerate(records)
    ]
    lane.take(chunk)
    async with asyncio.timeout(10):
        while lane.failure is None and lane.done[0] < len(records):
            await asyncio.sleep(0)
    await lane.close(1.0)
    return contract.actor.seen, memory, lane  # type: ignore[attr-defined]


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


@pytest.mark.parametrize("lane", ["in order", "lists", "parallel"])
@given(records=odd_records)
@settings(deadline=None)
def test_nothing_in_a_record_stops_its_partition(lane: str, records: list[Record]) -> None:
    makes: dict[str, Any] = {
        "in order": WorkLane,
        "lists": BatchLane,
        "parallel": lambda *a, **n: ParallelLane(*a, concurrency=2, **n),
    }
    seen, memory, done = asyncio.run(through(records, Lists if lane == "lists" else Taker, makes[lane]))
    assert done.failure is None
    counts = done.routing.counts
    kept = {dict(one.headers)["hive-dead-origin"]: one for one in memory.written}
    assert len(seen) + len(kept) + counts.repeated == len(records), "each is handled, kept, or a repeat"
    for at, (key, value, headers) in enumerate(records):
        if found := kept.get(f"t/0/{at}".encode()):
            own = [pair for pair in found.headers if not pair[0].startswith(OURS)]
            theirs = [pair for pair in headers if not pair[0].startswith(OURS)]
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
        assert reading(value) == "the message has no payload"
        assert reading(value, [("content-type", b"application/json"), ("other", b"x")]) == "the message has no payload"
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
    assert "the batch has 2" in reading(json.dumps([EVENT, EVENT]).encode(), BATCHED)
    assert "only one of them" in structured({"data": {}, "data_base64": ""})
    assert "cannot be read" in structured({"data_base64": "%%"})
    assert "data is not JSON" in structured({"data_base64": base64.b64encode(b"{}, {}").decode()})
    assert "specversion '0.3'" in structured({"specversion": "0.3"})
    assert "attribute type" in structured({"type": 5})
    assert "is not an attribute" in structured({"Tenant": "t"})
    assert "meta has" in structured({"tenant": "t" * 5_000})
    assert "the content type is application/cloudevents+avro" in structured(
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
