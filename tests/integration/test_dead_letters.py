"""Records that cannot be handled: tried, kept with those behind them, tried again in order, on a real Kafka."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from hiveio import Actor, Context, Rejected, Unavailable
from hiveio.config import Settings
from hiveio.consumer.dead_letters.format import forget, headers_of, mark
from tests.integration.consumers import Deposited, Member, Recorder, Withdrawn, member, plain, settings, wire
from tests.integration.topics import Written, committed, make_topic, read_all, write
from tests.services import Kafka

__all__ = ["settings"]

QUICK = {"consumer_attempts": 3, "consumer_backoff_ms": 1}
Made = Callable[..., Settings]


def keyed(*pairs: tuple[str | None, int], partition: int = 0) -> list[Written]:
    return [(partition, key, wire(amount), {}) for key, amount in pairs]


def dead_letters(kafka: Kafka, made: Settings) -> list[dict[str, str]]:
    """The headers of the dead letters and marks, with key and value."""
    found = []
    for message in read_all(kafka.brokers, f"{made.topic}.{made.group_id}.dead"):
        headers = {name: text.decode() for name, text in headers_of(message).items()}
        key, value = message.key(), message.value()
        found.append(
            headers | {"key": str(key), "value": str(value), "at": f"{message.partition()}/{message.offset()}"}
        )
    return found


def ask(kafka: Kafka, made: Settings, kind: str, key: str | None = None) -> None:
    """Mark all dead letters, or those of one key."""
    name = f"{made.topic}.{made.group_id}.dead"
    marks: list[Written] = []
    for message in read_all(kafka.brokers, name):
        if "hive-dead-mark" in headers_of(message) or (key is not None and message.key() != key.encode()):
            continue
        raw = mark(kind, message)
        headers = {n: t.decode() if isinstance(t, bytes) else str(t) for n, t in raw.headers}
        partition = message.partition()
        assert partition is not None
        marks.append((partition, raw.key, None, headers))
    write(kafka.brokers, name, marks)


class Plain(Actor):
    """A method that needs no more than the event: it is called without an envelope."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.attempts = Counter[int]()

    def perform(self, event: Deposited) -> Awaitable[None] | None:
        self.attempts[event.amount] += 1
        if event.amount == 4 or (event.amount == 2 and self.attempts[2] == 1):
            raise ValueError("never, or once")
        if event.amount == 3:
            return self._later(3)
        self.seen.append(event.amount)
        return None

    async def _later(self, amount: int) -> None:
        await asyncio.sleep(0.01)
        self.seen.append(amount)


async def test_a_plain_method_is_tried_again_awaited_and_given_up_on(kafka: Kafka, topic: str, settings: Made) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(*[(f"k{amount}", amount) for amount in range(6)]))
    made = settings(**QUICK)
    async with member(made, Plain, Recorder) as one:
        await one.until(lambda: one.consumer.counts.handled == 5)
        assert one.actor.seen == [0, 1, 2, 3, 5]
        assert one.actor.attempts == {0: 1, 1: 1, 2: 2, 3: 1, 4: 3, 5: 1}
        assert one.actors[1].amounts() == [*range(6)], "each actor has its own failures"
    assert [(dead_letter["key"], dead_letter["hive-dead-actors"]) for dead_letter in dead_letters(kafka, made)] == [
        ("b'k4'", "Plain")
    ]


class Choosy:
    """Fails on some amounts, until it is mended."""

    def __init__(self, one: Member, *bad: int, error: Exception | None = None) -> None:
        self.bad, self.error, self.attempts = set(bad), error or ValueError("never"), Counter[int]()
        one.actor.on_event = self

    async def __call__(self, amount: int, context: Context) -> None:
        self.attempts[amount] += 1
        if amount in self.bad:
            raise self.error


async def test_a_handler_that_raises_is_tried_again(kafka: Kafka, topic: str, settings: Made) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain(range(5)))
    attempts: Counter[int] = Counter()

    async def fail(amount: int, context: Context) -> None:
        attempts[amount] += 1
        if amount == 3 and attempts[3] < 4:
            raise ValueError("not yet")

    async with member(settings(consumer_backoff_ms=1)) as one:
        one.actor.on_event = fail
        await one.until(lambda: one.actor.amounts() == [0, 1, 2, 3, 4])
        assert one.consumer.counts.retried == 3
        assert one.consumer.counts.dead == 0


async def test_the_record_and_those_behind_it_are_kept_and_others_go_on(
    kafka: Kafka, topic: str, settings: Made
) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic, 3)
    value = b'{"type": "Deposited" ,"payload":{"amount":2},"meta":{"x":1}}'
    records: list[Written] = [
        *keyed(("a", 1), ("b", 1)),
        (0, "a", value, {"hive-version": "2", "traceparent": "00-x"}),
        *keyed(("a", 3), ("b", 2), ("a", 4), ("b", 5)),
        *keyed(("a", 7), partition=1),
    ]
    async with member(made) as one:
        failing = Choosy(one, 2)
        write(kafka.brokers, topic, records)
        # "b" 2 fails too: it is the same amount
        await one.until(lambda: len(one.actor.seen) == 3 and one.consumer.counts.parked == 3)
        assert sorted(one.actor.amounts()) == [1, 1, 7]
        await one.ready()  # a dead letter is no reason to take the service away
        await one.until(lambda: committed(kafka.brokers, made.group_id, topic)[0] == 7)
    first, *rest = dead_letters(kafka, made)
    assert first["value"] == str(value)
    assert first["key"] == "b'a'"
    assert first["at"] == "0/0"
    assert (
        first
        | {
            "hive-version": "2",
            "traceparent": "00-x",
            "hive-dead-origin": f"{topic}/0/2",
            "hive-dead-reason": "failed",
            "hive-dead-exception": "ValueError: never",
            "hive-dead-attempts": "3",
            "hive-dead-actors": "Recorder",
        }
        == first
    )
    assert [(r["key"], r["hive-dead-reason"], r["hive-dead-origin"].split("/")[-1]) for r in rest] == [
        ("b'a'", "parked", "3"),
        ("b'b'", "failed", "4"),
        ("b'a'", "parked", "5"),
        ("b'b'", "parked", "6"),
    ]
    assert failing.attempts[2] == 6


@pytest.mark.parametrize("poison", [b"{", wire(1)[:-4], b'{"type":"Deposited","payload":{"amount":"many"}}'])
async def test_what_cannot_be_decoded_is_a_dead_letter(kafka: Kafka, topic: str, settings: Made, poison: bytes) -> None:
    made = settings()
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, [*keyed(("a", 0)), (0, "a", poison, {}), *keyed(("a", 1), ("b", 2))])
    async with member(made) as one:
        await one.until(lambda: one.actor.amounts() == [0, 2])
        await one.until(lambda: one.consumer.counts.parked == 1)
    first, second = dead_letters(kafka, made)
    assert (first["hive-dead-reason"], first["value"]) == ("undecodable", str(poison))
    assert (second["hive-dead-reason"], second["key"]) == ("parked", "b'a'")


async def test_an_actor_may_say_what_is_skipped(kafka: Kafka, topic: str, settings: Made) -> None:
    class Lenient(Recorder):
        undecodable = unknown = "skip"

    made = settings()
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, [(0, None, b"{", {}), (0, None, wire(1, "Closed"), {}), *keyed(("a", 2))])
    async with member(made, Lenient) as one:
        await one.until(lambda: one.actor.amounts() == [2])
        assert one.consumer.counts.skipped == 2
        assert one.consumer.counts.dead == 0
    strict = settings(group_id=made.group_id + "-strict")
    async with member(strict) as one:
        await one.until(lambda: one.actor.amounts() == [2])
        assert one.consumer.counts.dead == 2
    assert [r["hive-dead-reason"] for r in dead_letters(kafka, strict)] == ["undecodable", "unknown"]


async def test_a_type_that_nobody_takes_is_a_dead_letter_and_parks_its_key(
    kafka: Kafka, topic: str, settings: Made, caplog: pytest.LogCaptureFixture
) -> None:
    class Both(Recorder):
        async def perform(self, event: Deposited | Withdrawn, context: Context) -> None:
            await super().perform(Deposited(event.amount), context)

    Both.name = "Recorder"  # the next version of it
    made = settings()
    make_topic(kafka.brokers, topic)
    unknown = [("a", 1), ("b", 2), ("c", 3)]
    withdrawn: list[Written] = [(0, key, wire(amount, "Withdrawn"), {}) for key, amount in unknown]
    write(kafka.brokers, topic, [*withdrawn, *keyed(("a", 4), ("d", 5)), (0, None, wire(6, "Closed"), {})])
    async with member(made) as one:
        await one.until(lambda: one.actor.amounts() == [5] and one.consumer.counts.dead == 4)
        assert one.consumer.counts.parked == 1
        await one.ready()
    first, *rest = dead_letters(kafka, made)
    assert (first["hive-dead-reason"], first["hive-dead-actors"]) == ("unknown", "Recorder")
    assert first["hive-dead-exception"] == "Invalid: no actor takes the type 'Withdrawn'"
    assert [r["hive-dead-reason"] for r in rest] == ["unknown", "unknown", "parked", "unknown"]
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(logged) == 2, "once for each type"
    for text in (f"{topic}/0/0", "'Withdrawn'", "a dead letter for Recorder", 'unknown = "skip"', "Deposited"):
        assert text in logged[0]
    async with member(made, Both) as two:  # it takes them now
        ask(kafka, made, "retry", "a")
        await two.until(lambda: two.actor.amounts() == [1, 4])

    class Some(Recorder):
        name = "Recorder"
        unknown = "skip"

    async with member(made, Some) as three:  # and it does not want them
        ask(kafka, made, "retry")
        await three.until(lambda: three.consumer.counts.redriven == 3)
        await three.until(lambda: not three.consumer.workers[topic, 0].store.fold.entries)
        assert not three.actor.seen


async def test_a_refusal_is_not_tried_again_and_a_backend_away_is_waited_for(
    kafka: Kafka, topic: str, settings: Made
) -> None:
    """While it is away no attempt of those is used up after which a record that fails is a dead letter."""
    made = settings(consumer_attempts=4, consumer_backoff_ms=1, consumer_backoff_limit_ms=2)
    make_topic(kafka.brokers, topic, 3)
    write(kafka.brokers, topic, [line for at in range(3) for line in keyed(("a", 0), partition=at)])
    attempts: Counter[int] = Counter()

    async def fail(amount: int, context: Context) -> None:
        assert context.partition is not None
        attempts[context.partition] += 1
        if context.partition == 0:
            raise Rejected("no")
        if 1 < attempts[context.partition] < 30:
            raise Unavailable("the database is away")
        if context.partition == 2 or attempts[context.partition] == 1:
            raise ValueError("not yet, or never")

    async with member(made) as one:
        one.actor.on_event = fail
        await one.until(lambda: one.actor.seen and one.consumer.counts.dead == 2)
    assert attempts == {0: 1, 1: 30, 2: 1 + 28 + 3}
    reasons = {
        dead_letter["hive-dead-reason"]: dead_letter["hive-dead-attempts"] for dead_letter in dead_letters(kafka, made)
    }
    assert reasons == {"refused": "1", "failed": "4"}


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_backend_that_stays_away_is_told(
    kafka: Kafka, topic: str, settings: Made, caplog: pytest.LogCaptureFixture, concurrency: int
) -> None:
    """It is waited for without an end, and neither readiness nor the log is silent about it."""
    made = settings(
        consumer_attempts=3, consumer_backoff_ms=1, consumer_backoff_limit_ms=5, consumer_concurrency=concurrency
    )
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("b", 1)))
    away, attempts = True, 0

    async def fail(amount: int, context: Context) -> None:
        nonlocal attempts
        if amount == 0 and away:
            attempts += 1
            raise Unavailable("the database is away")

    async with member(made) as one:
        one.actor.on_event = fail
        await one.until(lambda: attempts > 70)
        reason = await one.consumer.ready() or ""
        assert f"{topic}/0/0: attempt" in reason
        assert reason.endswith("failed, and it waits for its backend: the database is away")
        assert one.consumer.alive()
        logged = [r.getMessage() for r in caplog.records if "the next is in" in r.getMessage()]
        assert [int(text.split("attempt ")[1].split()[0]) for text in logged] == [1, 2, 4, 8, 16, 32, 64]
        assert one.actor.amounts() == ([] if concurrency == 1 else [1])
        away = False
        await one.until(lambda: sorted(one.actor.amounts()) == [0, 1])
        await one.ready()
        assert one.consumer.counts.dead == 0


async def test_a_handler_that_hangs_is_ended(kafka: Kafka, topic: str, settings: Made) -> None:
    made = settings(consumer_timeout_ms=100, **QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("b", 1), ("a", 2)))

    async def hang(amount: int, context: Context) -> None:
        if amount == 0:
            await asyncio.Event().wait()

    async with member(made) as one:
        one.actor.on_event = hang
        await one.until(lambda: one.actor.amounts() == [1] and one.consumer.counts.parked)
        assert one.consumer.counts.retried == 2
    assert "CONSUMER_TIMEOUT, 0.1 s" in dead_letters(kafka, made)[0]["hive-dead-exception"]


async def test_a_handler_that_does_not_let_itself_be_ended_is_stuck(
    kafka: Kafka, topic: str, settings: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hiveio.consumer import component

    monkeypatch.setattr(component, "STUCK_S", 0.2)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0)))
    released = asyncio.Event()

    async def clings(amount: int, context: Context) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                pass

    async with member(settings(consumer_timeout_ms=100)) as one:
        one.actor.on_event = clings
        assert one.consumer.alive()
        await one.until(lambda: not one.consumer.alive())
        released.set()
        await one.until(lambda: one.consumer.alive() and one.actor.seen)


async def test_parked_keys_are_known_after_a_restart(kafka: Kafka, topic: str, settings: Made) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("a", 1)))
    async with member(made) as one:
        Choosy(one, 0)
        await one.until(lambda: one.consumer.counts.parked == 1)
    write(kafka.brokers, topic, keyed(("a", 2), ("b", 3)))
    async with member(made) as two:
        await two.until(lambda: two.consumer.counts.parked == 1 and two.actor.amounts() == [3])
    assert [r["hive-dead-origin"].split("/")[-1] for r in dead_letters(kafka, made)] == ["0", "1", "2"]


async def test_a_letter_whose_offset_was_not_committed_is_not_handled_again(
    kafka: Kafka, topic: str, settings: Made
) -> None:
    """What a crash after the dead letter and before the commit leaves."""
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("b", 1), ("a", 2)))
    async with member(made) as one:
        Choosy(one, 0)
        await one.until(lambda: one.consumer.counts.parked == 1)
    again = settings(group_id=made.group_id + "x")
    moved = [
        (0, "a", wire(int(r["hive-dead-origin"][-1])), {n: t for n, t in r.items() if n.startswith("hive-")})
        for r in dead_letters(kafka, made)
    ]
    make_topic(kafka.brokers, f"{topic}.{again.group_id}.dead")
    write(kafka.brokers, f"{topic}.{again.group_id}.dead", moved)
    async with member(again) as two:
        await two.until(lambda: two.actor.amounts() == [1])
        await two.until(lambda: committed(kafka.brokers, again.group_id, topic)[0] == 3)
        assert two.consumer.counts.dead == two.consumer.counts.parked == 0


async def test_retry_goes_in_order_and_the_key_is_free_again(kafka: Kafka, topic: str, settings: Made) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("a", 1), ("b", 2), ("a", 3), (None, 4), ("b", 5)))
    async with member(made) as one:
        failing = Choosy(one, 0, 4)
        await one.until(lambda: one.consumer.counts.dead == 2 and one.consumer.counts.parked == 2)
        await one.until(lambda: one.actor.amounts() == [2, 5])
        ask(kafka, made, "retry", "a")
        await one.until(lambda: dead_letters(kafka, made)[-1].get("hive-dead-mark") == "failed")
        assert one.actor.amounts() == [2, 5], "a key whose first dead letter fails again stays as it is"
        failing.bad = {4}
        ask(kafka, made, "retry", "a")
        await one.until(lambda: one.actor.amounts() == [2, 5, 0, 1, 3])
        write(kafka.brokers, topic, keyed(("a", 6)))
        await one.until(lambda: one.actor.amounts()[-1] == 6 or one.consumer.counts.parked == 3)
        assert one.actor.amounts() == [2, 5, 0, 1, 3, 6]
        failing.bad = set()
        ask(kafka, made, "retry")  # the one without a key too
        await one.until(lambda: one.actor.amounts()[-1] == 4)
        await one.until(lambda: not one.consumer.workers[topic, 0].store.fold.entries)
    async with member(made) as two:  # all is closed for whoever comes next
        write(kafka.brokers, topic, keyed(("a", 7)))
        await two.until(lambda: two.actor.amounts() == [7])


async def test_retry_is_asked_for_while_nobody_is_there(kafka: Kafka, topic: str, settings: Made) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("a", 1)))
    async with member(made) as one:
        Choosy(one, 0)
        await one.until(lambda: one.consumer.counts.parked == 1)
    ask(kafka, made, "retry")
    write(kafka.brokers, topic, keyed(("a", 2), ("b", 3)))
    contexts: list[Context] = []

    async def keep(amount: int, context: Context) -> None:
        contexts.append(context)

    async with member(made) as two:
        two.actor.on_event = keep
        await two.until(lambda: len(two.actor.seen) + two.consumer.counts.parked >= 4)
        if two.consumer.counts.parked:  # it came before the key was free
            ask(kafka, made, "retry")
        await two.until(lambda: [a for a in two.actor.amounts() if a != 3] == [0, 1, 2])
    first = next(context for context in contexts if context.offset == 0)
    assert (first.topic, first.id, first.redriven) == (topic, "a", True)
    assert not [name for name in first.headers if name.startswith("hive-dead")]


async def test_a_stop_while_dead_letters_are_tried_again_waits_only_for_the_handler_that_runs(
    kafka: Kafka, topic: str, settings: Made, caplog: pytest.LogCaptureFixture
) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("a", 1)))
    started = asyncio.Event()

    async def slow(amount: int, context: Context) -> None:
        started.set()
        await one.until(lambda: worker.slots[0].closing)

    async with member(made) as one:
        Choosy(one, 0)
        await one.until(lambda: one.consumer.counts.parked == 1)
        worker = one.consumer.workers[topic, 0]
        one.actor.on_event = slow
        ask(kafka, made, "retry")
        await started.wait()
    assert one.actor.amounts() == [0], "the one in hand is finished, and no other one is started"
    async with member(made) as two:
        await two.until(lambda: two.actor.amounts() == [1])  # the last one: nothing is left to wake the worker
    assert not [record for record in caplog.records if "did not finish" in record.getMessage()]


async def test_what_is_dropped_is_never_handled(kafka: Kafka, topic: str, settings: Made) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("a", 1)))
    async with member(made) as one:
        Choosy(one, 0)
        await one.until(lambda: one.consumer.counts.parked == 1)
        ask(kafka, made, "dropped")
        await one.until(lambda: not one.consumer.workers[topic, 0].store.busy)
        write(kafka.brokers, topic, keyed(("a", 2)))
        await one.until(lambda: one.actor.amounts() == [2])


async def test_beyond_the_limit_the_partition_stops_until_there_is_room(
    kafka: Kafka, topic: str, settings: Made, caplog: pytest.LogCaptureFixture
) -> None:
    made = settings(consumer_parked=2, **QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(*[(f"k{i}", i) for i in range(5)]))
    async with member(made) as one:
        failing = Choosy(one, 0, 1, 2)
        await one.until(lambda: one.consumer.workers and one.consumer.workers[topic, 0].blocked_reason)
        reason = await one.consumer.ready()
        assert reason is not None
        assert f"{topic}/0/2: failed: ValueError: never" in reason
        assert "CONSUMER_PARKED=2" in reason
        assert not one.actor.seen
        failing.bad = set()
        ask(kafka, made, "retry")
        await one.until(lambda: sorted(one.actor.amounts()) == [0, 1, 3, 4])
        assert one.actor.amounts()[:2] == [0, 1]
        await one.ready()
    assert [r["key"] for r in dead_letters(kafka, made) if r.get("hive-dead-reason")] == ["b'k0'", "b'k1'", "b'k2'"]


async def test_only_the_actor_that_failed_misses_out(kafka: Kafka, topic: str, settings: Made) -> None:
    class Sum(Actor):
        def __init__(self) -> None:
            self.amounts: list[int] = []

        def perform(self, event: Deposited | Withdrawn) -> None:
            self.amounts.append(event.amount)

    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("a", 1), ("b", 2)))
    async with member(made, Recorder, Sum) as one:
        failing = Choosy(one, 0)
        await one.until(lambda: one.actors[1].amounts == [0, 1, 2] and one.actor.amounts() == [2])
        failing.bad = set()
        await one.until(lambda: one.consumer.counts.parked == 1)
        ask(kafka, made, "retry")
        await one.until(lambda: one.actor.amounts() == [2, 0, 1])
        assert one.actors[1].amounts == [0, 1, 2]


async def test_forgotten_letters_are_handled_anew(kafka: Kafka, topic: str, settings: Made) -> None:
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("a", 1)))
    async with member(made) as one:
        Choosy(one, 0)
        await one.until(lambda: one.consumer.counts.parked == 1)
        name = f"{topic}.{made.group_id}.dead"
        write(kafka.brokers, name, [(0, None, None, {n: str(t) for n, t in forget().headers})])
        await one.until(lambda: not one.consumer.workers[topic, 0].store.busy)


async def test_the_topic_grows_with_its_source(kafka: Kafka, topic: str, settings: Made) -> None:
    from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

    made = settings(kafka={"topic.metadata.refresh.interval.ms": "300"}, from_start=False, **QUICK)
    make_topic(kafka.brokers, topic)
    async with member(made) as one:
        Choosy(one, 0, 1)
        await one.ready()
        await one.until(lambda: one.partitions() == {0})
        write(kafka.brokers, topic, keyed(("a", 0)))
        await one.until(lambda: one.consumer.counts.dead == 1)
        admin = AdminClient({"bootstrap.servers": kafka.brokers})  # named: its results end with it
        admin.create_partitions([NewPartitions(topic, 3)])[topic].result(10)
        await one.until(lambda: len(admin.list_topics(topic, 10).topics[topic].partitions) == 3)
        await one.until(lambda: one.partitions() == {0, 1, 2})
        write(kafka.brokers, topic, [*keyed(("a", 1), partition=2), *keyed(("b", 5), partition=1)])
        await one.until(lambda: one.actor.amounts() == [5] and one.consumer.counts.dead == 2)
    assert sorted(r["at"] for r in dead_letters(kafka, made)) == ["0/0", "2/0"]


def test_a_group_that_cannot_be_part_of_a_topic(settings: Made) -> None:
    with pytest.raises(Exception, match="dead-letter topic"):
        Member(settings(group_id="my group"))
