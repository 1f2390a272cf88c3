"""Order, retries, dead letters, lists and keys in parallel, of a real consumer over a partition in memory."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hiveio import Actor, Context, Event, Rejected, Unavailable
from hiveio.consumer.dead_letters.format import dead_letter, headers_of
from tests.garbage import TIMES, nothing_to_collect
from tests.integration.consumers import wire
from tests.unit.consumer.consumer_memory import Member, Partition, Record

MODES = ["in order", "lists", "parallel"]


class Deposited(Event, frozen=True):
    amount: int


class Recorder(Actor):
    """Keeps what it is given, one by one."""

    def __init__(self) -> None:
        self.amounts: list[int] = []
        self.contexts: list[Context] = []
        self.attempts: Counter[int] = Counter()
        self.on_event: Callable[[int], Awaitable[None]] | None = None
        self.bad: set[int] = set()
        self.error: Exception = ValueError("never")

    async def perform(self, event: Deposited, context: Context) -> None:
        await self.take(event.amount, context)

    async def take(self, amount: int, context: Context) -> None:
        self.attempts[amount] += 1
        if self.on_event is not None:
            await self.on_event(amount)
        if amount in self.bad:
            raise type(self.error)(*self.error.args)
        self.amounts.append(amount)
        self.contexts.append(context)


class Lister(Recorder):
    """The same with lists: all of one, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.lists: list[int] = []

    async def perform(self, events: list[Deposited], context: list[Context]) -> None:  # type: ignore[override]
        if bad := [event.amount for event in events if event.amount in self.bad]:
            self.attempts[bad[0]] += 1
            raise type(self.error)(*self.error.args)
        for event, one in zip(events, context, strict=True):
            await self.take(event.amount, one)
        self.lists.append(len(events))


class Failing(Recorder):
    """Another actor of the container, which always fails on 1."""

    def __init__(self) -> None:
        super().__init__()
        self.bad = {1}


def events(*pairs: tuple[str | None, int]) -> list[Record]:
    return [(key.encode() if key is not None else None, wire(amount), []) for key, amount in pairs]


def in_mode(mode: str) -> tuple[type[Recorder], dict[str, Any]]:
    return (Lister if mode == "lists" else Recorder), ({"consumer_concurrency": 3} if mode == "parallel" else {})


def worker(one: Member) -> Any:
    return one.consumer.workers["t", 0]


@pytest.mark.parametrize("mode", MODES)
async def test_each_key_is_in_order_and_everything_is_done(mode: str) -> None:
    kind, more = in_mode(mode)
    partition = Partition(events(*[(f"k{i % 7}", i) for i in range(300)]))
    async with partition.member(kind, buffer=50, **more) as one:
        await one.until(lambda: worker(one).done[0] == 300)
    assert partition.committed is not None
    assert partition.committed[0] == 300
    of_key = defaultdict(list)
    for amount in one.actor.amounts:
        of_key[amount % 7].append(amount)
    assert of_key == {k: [i for i in range(300) if i % 7 == k] for k in range(7)}
    if mode != "parallel":
        assert one.actor.amounts == [*range(300)]


@pytest.mark.parametrize("mode", MODES)
async def test_a_record_that_fails_is_a_dead_letter_and_parks_its_key_alone(mode: str) -> None:
    kind, more = in_mode(mode)
    partition = Partition(events(("a", 0), ("b", 1), ("a", 2), ("b", 3), (None, 4)))
    async with partition.member(kind, **more) as one:
        one.actor.bad = {0}
        await one.until(lambda: worker(one).done[0] == 5)
        assert sorted(one.actor.amounts) == [1, 3, 4]
        assert one.actor.attempts[0] == (4 if mode == "lists" else 3)
        assert partition.kept() == [(0, "failed"), (2, "parked")]
        counts = one.consumer.counts
        assert (counts.handled, counts.dead, counts.parked) == (3, 1, 1)
        # It is tried again in order, and then the key is free.
        one.actor.bad = set()
        await partition.mark("retry", b"a")
        await one.until(lambda: counts.redriven == 2)
        partition.write(*events(("a", 5)))
        await one.until(lambda: one.actor.amounts[-1] == 5)
        assert one.actor.amounts[-3:] == [0, 2, 5]
        assert [context.redriven for context in one.actor.contexts[-3:]] == [True, True, False]
    async with partition.member(kind, **more) as two:  # for whoever comes next, too
        partition.write(*events(("a", 6)))
        await two.until(lambda: two.actor.amounts == [6])


@pytest.mark.parametrize("mode", MODES)
async def test_a_backend_that_is_away_is_waited_for(mode: str) -> None:
    kind, more = in_mode(mode)
    partition = Partition(events(("a", 0), ("a", 1)))
    async with partition.member(kind, consumer_backoff_limit_ms=1, **more) as one:
        one.actor.bad, one.actor.error = {0}, Unavailable("the database is away")
        await one.until(lambda: one.actor.attempts[0] > 5)
        assert "it waits for its backend: the database is away" in (one.consumer.stopped() or "")
        one.actor.bad = set()
        await one.until(lambda: one.actor.amounts == [0, 1])
        assert one.consumer.stopped() is None
        assert one.consumer.counts.dead == 0


async def test_a_refusal_is_not_tried_again() -> None:
    partition = Partition(events(("a", 0)))
    async with partition.member(Recorder) as one:
        one.actor.bad, one.actor.error = {0}, Rejected("no")
        await one.until(lambda: one.consumer.counts.dead == 1)
    assert one.actor.attempts[0] == 1
    assert partition.kept() == [(0, "refused")]


@pytest.mark.parametrize("mode", ["in order", "lists"])
async def test_an_actor_that_fails_holds_up_no_other(mode: str) -> None:
    kind, _ = in_mode(mode)
    partition = Partition(events(("a", 0), ("a", 1), ("a", 2), ("b", 3)))
    async with partition.member(kind, Failing) as one:
        failing = one.actors[1]
        await one.until(lambda: worker(one).done[0] == 4)
        assert one.actor.amounts == [0, 1, 2, 3]
        assert failing.amounts == [0, 3]
        assert {headers_of(dead_letter)["hive-dead-actors"] for dead_letter in partition.dead_letters.messages} == {
            b"Failing"
        }
        failing.bad = set()
        await partition.mark("retry")
        await one.until(lambda: failing.amounts == [0, 3, 1, 2])
        assert one.actor.amounts == [0, 1, 2, 3]


@pytest.mark.parametrize("mode", MODES)
async def test_beyond_the_limit_the_partition_stops_until_there_is_room(mode: str) -> None:
    kind, more = in_mode(mode)
    partition = Partition(events(*[(f"k{i}", i) for i in range(5)]))
    async with partition.member(kind, consumer_parked=2, **more) as one:
        one.actor.bad = {0, 1, 2}
        await one.until(one.consumer.stopped)
        assert "CONSUMER_PARKED=2" in (one.consumer.stopped() or "")
        one.actor.bad = set()
        await partition.mark("retry")
        # The third is a dead letter by then: it had failed.
        await one.until(lambda: worker(one).done[0] == 5 and one.consumer.counts.redriven == 2)
        assert len(partition.kept()) == 3
        (left,) = {0, 1, 2} - set(one.actor.amounts)
        assert partition.kept()[2] == (left, "failed")
        assert sorted(one.actor.amounts) == sorted({0, 1, 2, 3, 4} - {left})
        assert one.consumer.stopped() is None


async def test_a_handler_that_hangs_is_cancelled_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    partition = Partition(events(("a", 0), ("b", 1)))

    async def hang(amount: int) -> None:
        if amount == 0:
            await asyncio.Event().wait()

    async with partition.member(Recorder, consumer_timeout_ms=20, consumer_attempts=2) as one:
        one.actor.on_event = hang
        await one.until(lambda: one.actor.amounts == [1])
        assert one.actor.attempts[0] == 2
    (found,) = [headers_of(dead_letter) for dead_letter in partition.dead_letters.messages]
    assert b"CONSUMER_TIMEOUT, 0.02 s" in found["hive-dead-exception"]


async def test_the_offset_stays_at_the_oldest_that_is_not_done() -> None:
    partition = Partition(events(("a", 0), ("slow", 1), *[("b", i) for i in range(2, 20)]))
    released = asyncio.Event()

    async def handle(amount: int) -> None:
        if amount == 1:
            await released.wait()

    async with partition.member(Recorder, consumer_concurrency=3) as one:
        one.actor.on_event = handle
        await one.until(lambda: len(one.actor.amounts) == 19)
        assert worker(one).done[0] == 1
        assert worker(one).lag[0] == 19
        released.set()
        await one.until(lambda: worker(one).done[0] == 20)


@pytest.mark.parametrize("mode", MODES)
async def test_a_stop_finishes_the_handlers_that_run_and_begins_nothing_else(mode: str) -> None:
    kind, more = in_mode(mode)
    partition = Partition(events(*[(f"k{i}", i) for i in range(50)]))
    began, go_on = asyncio.Event(), asyncio.Event()

    async def handle(amount: int) -> None:
        began.set()
        await go_on.wait()

    async with partition.member(kind, buffer=5, **more) as one:
        one.actor.on_event = handle
        await began.wait()
        asyncio.get_running_loop().call_later(0.01, go_on.set)
    assert sorted(one.actor.amounts) == [*range({"in order": 1, "lists": 5, "parallel": 3}[mode])]
    async with partition.member(kind, **more) as two:
        await two.until(lambda: len(two.actor.amounts) + len(one.actor.amounts) == 50)
        assert sorted([*one.actor.amounts, *two.actor.amounts]) == [*range(50)]


async def test_lists_hold_what_came_at_once() -> None:
    partition = Partition(events(*[("a", i) for i in range(25)]))
    async with partition.member(Lister, buffer=10) as one:
        await one.until(lambda: worker(one).done[0] == 25)
    assert one.actor.lists == [10, 10, 5]


async def test_a_letter_that_came_late_is_void_and_its_record_is_handled(caplog: pytest.LogCaptureFixture) -> None:
    """The owner had written that the dead letter is void, and ended before it handled the record."""
    caplog.set_level(logging.WARNING)
    partition = Partition(events(("a", 0), ("a", 1)))
    async with partition.member(Recorder) as one:
        await one.until(lambda: worker(one).owner)
        record = partition.messages[1]
        late = dead_letter(
            record, "failed", "ValueError: no", 1, frozenset({"Recorder"}), owner="before", topic_id="id"
        )
        await partition.dead_letters.write("t", 0, [late])
        await one.until(lambda: one.actor.amounts == [0, 1])
    assert partition.committed is not None
    ended_early = partition.committed[1]
    partition.committed = 1, ended_early
    for _ in range(2):
        async with partition.member(Recorder) as two:
            await two.until(lambda: two.actor.amounts == [1])
            assert worker(two).parked == 0
        partition.committed = 1, partition.committed[1]
    assert sum("came late" in line for line in caplog.messages) == 1
    marks = [headers_of(one).get("hive-dead-mark") for one in partition.dead_letters.messages]
    assert marks == [None, b"void"]


async def test_the_outcome_of_a_command_is_no_event_and_leaves_no_gap() -> None:
    def at(number: int, *further: tuple[str, bytes]) -> Record:
        previous = [("hive-previous", b"0:%d:0" % (number - 1))] if number > 1 else []
        return b"k", wire(number), [("hive-position", b"0:%d:0" % number), *previous, *further]

    outcome = (b"k", b'{"type":"CommandRefused","payload":{}}', at(2, ("hive-outcome", b"refused"))[2])
    partition = Partition([at(1), outcome, at(3)])
    async with partition.member(Recorder) as member:
        await member.until(lambda: len(member.actor.amounts) == 2)
        assert member.actor.amounts == [1, 3]
        assert (member.consumer.counts.skipped, member.consumer.counts.dead) == (1, 0)


@pytest.mark.parametrize("value", [b"nonsense", wire(1, "Unheard"), wire(1)], ids=["undecodable", "unknown", "bad"])
async def test_what_it_puts_away_leaves_nothing_to_the_collector(value: bytes) -> None:
    partition = Partition()
    async with partition.member(Recorder, consumer_attempts=1) as member:
        member.actors[0].bad = {1}

        async def put_away(count: int) -> None:
            for _ in range(count):
                partition.write((b"a", value, []))
                await member.until(lambda: len(partition.kept()) == len(partition.messages))

        await put_away(TIMES)
        with nothing_to_collect():
            await put_away(TIMES)
