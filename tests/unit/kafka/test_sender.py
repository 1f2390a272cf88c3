"""The sender over a Kafka client that fails as real ones seldom do."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from hiveio.config import Settings
from hiveio.errors import Forbidden, Invalid, TooLarge, Unavailable, Unknown
from hiveio.kafka import delivery as module
from hiveio.kafka import rules
from hiveio.kafka.delivery import Late
from hiveio.kafka.sender import Sender
from hiveio.types import DeliveryFuture


class Report:
    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 7

    def topic(self) -> str:
        return "t"

    def value(self) -> bytes:
        return b"x"

    def key(self) -> None:
        return None


class FakeProducer:
    made: list["FakeProducer"]

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.held: list[Callable[[Any, Any], None]] = []
        self.reports: list[tuple[Callable[[Any, Any], None], Any]] = []
        self.fails_with: KafkaError | None = None
        self.fatal: KafkaError | None = None
        self.closed = False
        FakeProducer.made.append(self)

    def produce(self, topic: str, value: bytes, key: Any, *, on_delivery: Callable[..., None], **_: Any) -> None:
        if self.fails_with:
            raise KafkaException(self.fails_with)
        self.held.append(on_delivery)

    def report(self, error: KafkaError | None = None) -> None:
        held, self.held = self.held, []
        self.reports.extend((callback, error) for callback in held)

    def poll(self, _: float) -> None:
        import time

        time.sleep(0.001)
        while self.reports:
            callback, error = self.reports.pop()
            callback(error, Report())
        if fatal := self.fatal:
            self.fatal = None
            raise KafkaException(fatal)  # as the real one does

    def purge(self, *, blocking: bool) -> None: ...

    def close(self) -> None:
        self.closed = True


async def no_answer(*_: Any) -> None:
    raise Unavailable("Kafka does not answer")


SETTINGS = Settings(
    brokers="nowhere:1",
    request_timeout_ms=30_000,
    drain_timeout_ms=200,
    buffer_timeout_ms=0,  # one producer is enough
    kafka={"queue.buffering.max.messages": "4"},
)
SOON = 200  # a REQUEST_TIMEOUT that tests of what is late wait for
Start = Callable[..., Awaitable[Sender]]


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts senders with other settings."""
    FakeProducer.made = []
    monkeypatch.setattr(module, "Producer", FakeProducer)
    monkeypatch.setattr(rules, "ensure_topic", no_answer)
    made: list[Sender] = []

    async def start_one(*, shed: bool = False, **settings: Any) -> Sender:
        made.append(Sender(dataclasses.replace(SETTINGS, **settings), shed=shed))
        await made[-1].start()
        return made[-1]

    yield start_one
    for each in made:
        await each.stop()


@pytest.fixture
async def sender(start: Start) -> Sender:
    return await start()


def send(sender: Sender, size: int = 1) -> "DeliveryFuture":
    return sender.send("t", b"x" * size, None, [])


async def stored(future: "DeliveryFuture") -> Any:
    """Where it is stored, also if a machine under load was too late to tell it in time."""
    try:
        return await future
    except Late as late:
        return await late.fate


async def test_stored(sender: Sender) -> None:
    future = send(sender)
    FakeProducer.made[0].report()
    assert await future == (2, 7)


async def test_a_failed_delivery_is_unknown(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    """Clients get a sentence of ours; what the Kafka client says, which may name brokers, is for the log."""
    future = send(sender)
    FakeProducer.made[0].report(KafkaError(KafkaError._MSG_TIMED_OUT, "broker b:9092 timed out"))
    with pytest.raises(Unknown) as unknown:
        await future
    assert unknown.value.detail == "Kafka did not confirm the record. It may be stored all the same."
    assert "broker b:9092 timed out" in caplog.text


async def test_a_late_record_is_unknown_and_keeps_its_room(start: Start) -> None:
    sender = await start(request_timeout_ms=SOON)
    late = [send(sender) for _ in range(4)]
    with pytest.raises(Unavailable, match="full") as refused:
        send(sender)
    assert refused.value.headers["Retry-After"]
    assert "full" in (await sender.ready() or "")
    for future in late:
        with pytest.raises(Unknown, match="within REQUEST_TIMEOUT"):
            await future
    with pytest.raises(Unavailable, match="full"):
        send(sender)
    FakeProducer.made[0].report()
    async with asyncio.timeout(5):
        while sender.unconfirmed:
            await asyncio.sleep(0.001)
    again = send(sender)
    FakeProducer.made[0].report()
    assert await stored(again) == (2, 7)


async def test_silence_of_kafka_sheds_and_a_confirmation_ends_it(start: Start) -> None:
    sender = await start(shed=True, request_timeout_ms=SOON)
    first = send(sender)
    async with asyncio.timeout(5):
        while not sender.shedding:
            await asyncio.sleep(0.001)
    with pytest.raises(Unavailable, match="has confirmed nothing for") as refused:
        send(sender)
    assert int(refused.value.headers["Retry-After"]) >= 1
    assert "has confirmed nothing" in (await sender.ready() or "")
    FakeProducer.made[0].report()
    async with asyncio.timeout(5):
        while sender.shedding:
            await asyncio.sleep(0.001)
    second = send(sender)
    FakeProducer.made[0].report()
    assert await stored(second) == (2, 7)
    assert first.done()


async def test_stopping_waits_for_the_late_too(start: Start) -> None:
    sender = await start(drain_timeout_ms=60_000, request_timeout_ms=SOON)
    late = send(sender)
    with pytest.raises(Unknown):
        await late
    stopping = asyncio.create_task(sender.stop())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    FakeProducer.made[0].report()
    async with asyncio.timeout(10):
        await stopping


async def test_what_is_not_confirmed_leaves_a_line(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    send(sender)
    FakeProducer.made[0].report(KafkaError(KafkaError._MSG_TIMED_OUT))
    async with asyncio.timeout(5):
        while sender.unconfirmed:
            await asyncio.sleep(0.001)
    send(sender)
    await sender.stop()
    assert [
        record.getMessage().partition(": ")[2][:47] for record in caplog.records if record.name == "hiveio.sender"
    ] == [
        "Kafka did not confirm 1 records; they may be st",
        "Kafka did not confirm 1 records; they may be st",
    ]


async def test_a_fatal_error_makes_a_new_producer_and_all_is_unknown(sender: Sender) -> None:
    first = send(sender)
    old = FakeProducer.made[0]
    old.fatal = KafkaError(KafkaError._FATAL)
    with pytest.raises(Unknown, match="producer failed"):
        await first
    second = send(sender)
    assert len(FakeProducer.made) == 2
    FakeProducer.made[1].report()
    assert await second == (2, 7)
    old.report()  # a late report of the old one disturbs nothing
    assert (sender.unconfirmed, sender.unconfirmed_bytes) == (0, 0)


async def test_one_request_of_a_client_is_in_flight_unless_it_is_tuned(sender: Sender, start: Start) -> None:
    """With several librdkafka may begin its sequence anew when a leader changes, and write again what is written."""
    name = "max.in.flight.requests.per.connection"
    tuned = await start(kafka={name: "5"})
    refused = [send(tuned) for _ in range(2)]
    FakeProducer.made[-1].config["logger"].log(10, "%s [%s] %s", NUMBERED[0], "", NUMBERED[1])
    FakeProducer.made[-1].report(KafkaError(KafkaError.INVALID_RECORD))
    async with asyncio.timeout(5):
        while len(FakeProducer.made) < 3:  # the last one sends them again, each alone
            await asyncio.sleep(0.001)
    assert [client.config[name] for client in FakeProducer.made] == [1, "5", 1]
    await tuned.stop()
    assert all(future.done() for future in refused)


async def test_an_error_of_produce_is_definite(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    FakeProducer.made[0].fails_with = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "broker b:9092 says no")
    with pytest.raises(TooLarge) as refused:
        await send(sender)
    assert refused.value.detail == "The topic t does not accept the record: it is too large. Nothing was stored."
    assert "broker b:9092 says no" in caplog.text
    FakeProducer.made[0].fails_with = KafkaError(KafkaError._QUEUE_FULL)
    with pytest.raises(Unavailable):
        await send(sender)
    assert sender.unconfirmed_bytes == 0


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Failed to acquire idempotence PID from broker b/1: Broker: Cluster authorization failed", Forbidden),
        ("Current message sequence number in queue (7) is lower than the last acked", Unavailable),
    ],
)
async def test_a_producer_that_failed_answers_the_same_whoever_hears_of_it_first(
    sender: Sender, caplog: pytest.LogCaptureFixture, reason: str, kind: type[Exception]
) -> None:
    fatal = KafkaError(KafkaError._FATAL, reason)
    FakeProducer.made[0].fails_with = fatal
    for _ in range(2):
        with pytest.raises(kind, match=r"(?i)nothing was stored"):  # produce() tells before the poll thread does
            await send(sender)
    async with asyncio.timeout(5):
        while len(FakeProducer.made) < 2:
            await asyncio.sleep(0.001)
    again = FakeProducer.made[1]
    taken = send(sender)
    again.fatal = again.fails_with = fatal
    with pytest.raises(Unknown):
        await taken
    with pytest.raises(kind, match=r"(?i)nothing was stored"):  # it failed again: the next one waits
        await send(sender)
    assert [
        record.getMessage().count("is replaced") for record in caplog.records if record.name == "hiveio.sender"
    ] == [1, 0, 1]
    assert len(FakeProducer.made) == 2


async def test_too_large_is_refused_before_it_is_sent(sender: Sender) -> None:
    with pytest.raises(TooLarge):
        send(sender, 1_000_000)
    assert not FakeProducer.made[0].held


async def test_all_or_none(sender: Sender) -> None:
    with pytest.raises(Unavailable):
        sender.send_all("t", [(b"x", None, [])] * 5)
    with pytest.raises(TooLarge):
        sender.send_all("t", [(b"x", None, []), (b"x" * 1_000_000, None, [])])
    assert not FakeProducer.made[0].held


async def test_stopping_takes_nothing_more_and_leaves_no_one_waiting(sender: Sender) -> None:
    future = send(sender)
    await sender.stop()
    with pytest.raises(Unknown):
        await future
    with pytest.raises(Unavailable, match="stopping"):
        send(sender)


def log_line(sender: Sender, facility: str, text: str) -> None:
    """A line of librdkafka's log, as the Kafka client hands it over."""
    FakeProducer.made[0].config["logger"].log(10, "%s [%s] %s", facility, "hiveio#producer-1", f"[thrd:b]: {text}")


NUMBERED = ("NEWPID", "t [0] changed PID{Id:0,Epoch:0} -> PID{Id:0,Epoch:1} with base MsgId 6")
GAP = ("ERRSEQ", "b/1: ProduceRequest for t [0] with 2 message(s) failed due to skipped sequence numbers")
RETRY = ("DRAIN", "t [0] beginning partition drain: drain before retrying")


@pytest.mark.parametrize(
    ("lines", "definite"),
    [
        ([], False),  # nothing is logged
        ([NUMBERED], True),
        ([RETRY, NUMBERED], True),  # before the first numbers nothing is sent
        ([NUMBERED, RETRY], False),
        ([NUMBERED, GAP, RETRY], True),  # behind a gap nothing is stored
        ([NUMBERED, GAP, RETRY, NUMBERED, RETRY], False),
        ([NUMBERED, ("DRAIN", "Beginning partition drain in state Assigned for 1 partition(s)")], True),
    ],
)
async def test_a_refusal_is_definite_where_nothing_was_sent_before(
    sender: Sender, lines: list[tuple[str, str]], definite: bool
) -> None:
    future = send(sender)
    for line in lines:
        log_line(sender, *line)
    FakeProducer.made[0].report(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(Forbidden if definite else Unknown):
        await future
    log_line(sender, *NUMBERED)
    later = send(sender)
    FakeProducer.made[0].report(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(Forbidden):
        await later


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError.INVALID_RECORD, Invalid),
        (KafkaError._INVALID_DIFFERENT_RECORD, Invalid),
        (KafkaError.POLICY_VIOLATION, Invalid),
        (KafkaError.MSG_SIZE_TOO_LARGE, TooLarge),
        (KafkaError.RECORD_LIST_TOO_LARGE, TooLarge),
        (KafkaError.INVALID_TIMESTAMP, Unavailable),
    ],
)
async def test_what_may_be_its_neighbours_fault_is_sent_again_alone_and_once(
    start: Start, code: int, kind: type[Exception]
) -> None:
    sender = await start()
    good, bad = send(sender), send(sender)
    log_line(sender, *NUMBERED)
    first = FakeProducer.made[0]
    first.report(KafkaError(code))
    async with asyncio.timeout(5):
        while len(FakeProducer.made) < 2 or len(FakeProducer.made[1].held) < 2:
            await asyncio.sleep(0.001)
    alone = FakeProducer.made[1]
    assert alone.config["batch.num.messages"] == 1
    alone.config["logger"].log(10, "%s [%s] %s", NUMBERED[0], "", NUMBERED[1])
    (one, other), alone.held = alone.held, []
    alone.reports += [(one, None), (other, KafkaError(code))]
    ends = await asyncio.gather(good, bad, return_exceptions=True)
    assert sorted(isinstance(end, kind) for end in ends) == [False, True]
    assert (2, 7) in ends
    assert not alone.held, "it is not sent a third time"


@pytest.mark.parametrize(
    "code",
    [
        KafkaError._MSG_TIMED_OUT,
        KafkaError._PURGE_INFLIGHT,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.UNKNOWN,
    ],
)
async def test_what_is_no_refusal_is_unknown(sender: Sender, code: int) -> None:
    future = send(sender)
    log_line(sender, *NUMBERED)
    FakeProducer.made[0].report(KafkaError(code))
    with pytest.raises(Unknown):
        await future


async def test_clients_that_may_have_stayed_with_a_deposed_leader_are_left_and_keep_what_they_have(
    start: Start,
) -> None:
    sender = await start(shed=True, request_timeout_ms=SOON)
    first = send(sender)
    with pytest.raises(Unknown, match="within REQUEST_TIMEOUT"):
        await first
    assert sender.shedding, "Kafka has confirmed nothing for long"
    await sender.renew({"t"})
    async with asyncio.timeout(5):
        while sender.shedding:
            await asyncio.sleep(0.001)
    assert sender.unconfirmed == 1, "it may still be stored"
    second = send(sender)
    FakeProducer.made[-1].report()
    assert await stored(second) == (2, 7)
    FakeProducer.made[0].report()
    async with asyncio.timeout(5):
        while sender.unconfirmed or not FakeProducer.made[0].closed:
            await asyncio.sleep(0.001)


async def test_what_would_take_the_room_of_others_is_given_up_where_another_broker_leads(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    held = [send(sender) for _ in range(3)]  # of four
    await sender.renew({"t"})
    for future in held:
        with pytest.raises(Unknown, match="did not confirm the record"):
            await future
    reason = "another broker leads the partition now"
    assert re.search(rf"Kafka did not confirm 3 records.*{reason}", caplog.text)
    third = send(sender)
    FakeProducer.made[-1].report()
    assert await third == (2, 7)
