"""What one version cannot fold concerns that aggregate and no other: two versions on one log and one cache."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from hiveio import Actor, Command, Event, Model, Transaction
from hiveio.config import Settings
from hiveio.errors import Problem, Quarantined
from hiveio.testing.memory import MemoryCache
from hiveio.testing.service import Service
from hiveio.transaction import quarantine, review
from hiveio.transaction.entry import Entry
from tests.unit.transaction.test_engine import hold


class Add(Command):
    amount: int


class Double(Command):
    and_add_to: str = ""


class Look(Command):
    at: str


class Added(Event):
    amount: int


class Doubled(Event):
    pass


class Counter(Model):
    sum: int = 0


class Old(Actor):
    path = "/counters/{id}"
    name = "Counter"

    async def perform(self, counter: Counter | None, command: Add | Look, tx: Transaction) -> Added:
        if isinstance(command, Look):
            return Added((await tx.get(type(self), command.at) or Counter()).sum)
        return Added(command.amount)

    def replay(self, counter: Counter | None, event: Added) -> Counter:
        return Counter((counter.sum if counter else 0) + event.amount)


class New(Actor):
    path = "/counters/{id}"
    name = "Counter"

    async def perform(self, counter: Counter | None, command: Add | Double, tx: Transaction) -> Added | Doubled:
        if isinstance(command, Add):
            return Added(command.amount)
        if command.and_add_to:
            tx.emit(New, command.and_add_to, Added(1))
        return Doubled()

    def replay(self, counter: Counter | None, event: Added | Doubled) -> Counter:
        sum = counter.sum if counter else 0
        return Counter(2 * sum if isinstance(event, Doubled) else sum + event.amount)


class Ill(New):
    """Raises what is no Exception."""

    def replay(self, counter: Counter | None, event: Added | Doubled) -> Counter:
        if isinstance(event, Doubled):
            raise SystemExit("never mind\x00\ud800")
        return Counter((counter.sum if counter else 0) + event.amount)


class Order(Actor):
    path = "/orders/{id}"

    def perform(self, order: Counter | None, command: Add) -> Added:
        return Added(command.amount)

    def replay(self, order: Counter | None, event: Added) -> Counter:
        return Counter((order.sum if order else 0) + event.amount)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review, "REVIEW_S", 0.02)


@pytest.fixture
async def new() -> AsyncIterator[Service]:
    async with Service(New) as service:
        yield service


def instance(service: Service, *actors: type[Actor], cache: MemoryCache | None = None) -> Service:
    """Another instance on the same log and, unless another one is given, the same cache."""
    return Service(*actors, log=service.log, cache=cache or service.cache)


def other_cache() -> MemoryCache:
    return MemoryCache(Settings(), "another")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def held(service: Service) -> dict[str, quarantine.QuarantinedAggregate]:
    return service.transactions.scopes[0].quarantine.entries


async def refused(service: Service, actor: type[Actor], id: str, command: Command | None = None) -> Problem:
    with pytest.raises(Quarantined) as raised:
        await (service.submit(actor, id, command) if command else service.read(actor, id))
    assert (raised.value.status, raised.value.headers["Retry-After"]) == (503, "10")
    for internal in ("Counter/", "offset", "transactions", "Doubled", "is unknown"):
        assert internal not in raised.value.detail
    return raised.value


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.CRITICAL) -> list[Any]:
    return [line for line in caplog.records if line.levelno == level]


@pytest.mark.parametrize("shared", [True, False], ids=["one cache", "a cache each"])
async def test_one_aggregate_is_refused_and_all_else_goes_on(
    new: Service, shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with instance(new, Old, cache=None if shared else other_cache()) as old:
        for id in ("x", "y"):
            await new.submit(New, id, Add(5))
        assert await old.read(Old, "x") == (Counter(5), 1)
        # One record writes both, and only x cannot be folded.
        await new.submit(New, "x", Double(and_add_to="y"))
        assert await old.read(Old, "y") == (Counter(6), 2)
        if not shared:
            await until(lambda: "Counter/x" in held(old))
            problem = await refused(old, Old, "x")
            assert problem.detail.startswith("x cannot be used for now")
            await refused(old, Old, "x", Add(1))
            problem = await refused(old, Old, "z", Look("x"))
            assert "x" not in problem.detail.split()
            with pytest.raises(Quarantined):
                await old.submit(Old, "x", Add(1), key="with a key")
            (line,) = lines(caplog)
            assert (line.aggregate, line.topic, line.partition, line.offset) == (
                "Counter/x", "memory.transactions", 0, 3,
            )  # fmt: skip
            assert "The type 'Doubled' is unknown" in line.reason
            assert held(old)["Counter/x"].offset == 3
            (shown,) = old.transactions.details()["quarantined"]
            assert (shown["aggregate"], shown["offset"]) == ("Counter/x", 3)
            assert await old.transactions.ready() is None
        assert (await old.submit(Old, "y", Add(1))).version == 3
        assert (await new.submit(New, "x", Add(1))).version == 3
        assert await new.read(New, "x") == (Counter(11), 3)
        if shared:  # whoever was faster has applied
            await until(lambda: not held(old))
            assert await old.read(Old, "x") == (Counter(11), 3)


async def test_whoever_can_fold_it_goes_on_from_where_it_stopped(caplog: pytest.LogCaptureFixture) -> None:
    async with Service(New) as first:
        await first.submit(New, "x", Add(5))
        await first.submit(New, "x", Double())
        await first.submit(New, "x", Add(1))
    cache = other_cache()
    async with instance(first, Old, cache=cache) as old:
        await refused(old, Old, "x")
        scope = cache.scopes[0]
        await until(lambda: scope.watermark.offset == 4 and scope.unfolded == {"Counter/x"})
    entry = Entry.parse(scope.entries["Counter/x"], 0)
    assert (entry.version, entry.snapshot, entry.unfolded_from) == (3, b'{"sum":5}', 2)
    assert entry.text == scope.entries["Counter/x"]
    # The same version again has nothing of it in memory: the cache tells.
    caplog.clear()
    async with instance(first, Old, cache=cache) as old:
        await until(lambda: held(old))
        assert held(old)["Counter/x"].offset == 2
        assert len(lines(caplog)) == 1
        (await old.submit(Old, "y", Add(1)))
        async with instance(first, New, cache=cache) as new:
            assert await new.read(New, "x") == (Counter(11), 3), "from the cache alone: nothing is folded anew"
            await until(lambda: scope.unfolded == set())
            assert scope.entries["Counter/x"].endswith(b' {"sum":11}')
            await until(lambda: not held(old))
            assert await old.read(Old, "x") == (Counter(11), 3), "and serves the other version too"
            assert len(lines(caplog)) == 1


async def test_what_is_no_exception_is_one_too(new: Service, caplog: pytest.LogCaptureFixture) -> None:
    await new.submit(New, "x", Add(5))
    await new.submit(New, "x", Double())
    async with instance(new, Ill, cache=other_cache()) as ill:
        await refused(ill, Ill, "x")
        assert held(ill)["Counter/x"].reason == "SystemExit: never mind\x00\\ud800"
        assert (await ill.submit(Ill, "y", Add(1))).version == 1


@pytest.mark.parametrize("bound", ["MAX_AGGREGATES", "MAX_EVENT_BYTES"])
async def test_beyond_a_bound_the_scope_stops_loudly(
    new: Service, bound: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quarantine, bound, 3 if bound == "MAX_AGGREGATES" else 200)
    for number in range(8):
        await new.submit(New, f"n{number}", Double())
    async with instance(new, Old, cache=other_cache()) as old:
        reason = await old.transactions.ready()
        assert reason is not None
        assert "start a version that can fold them" in reason
        with pytest.raises(Problem) as raised:
            await old.submit(Old, "y", Add(1))
        assert raised.value.status == 503
        assert "Counter" not in raised.value.detail
    assert len(held(old)) < 8, "it goes no further"
    assert (await new.submit(New, "y", Add(1))).version == 1


async def test_aggregates_of_actors_that_are_not_here_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with Service(New, Order) as both:
        await both.submit(Order, "o", Add(1))
        await both.submit(New, "x", Add(1))
    cache = other_cache()
    for _ in range(2):  # the second one has nothing to fold
        caplog.clear()
        async with instance(both, New, cache=cache) as one:
            assert await one.read(New, "x") == (Counter(1), 1)
            (line,) = lines(caplog, logging.WARNING)
            assert line.getMessage().startswith("the log has aggregates of Order and no actor of that name")
            assert one.transactions.details() == {"actors_not_here": ["Order"]}
            assert await one.transactions.ready() is None
    async with instance(both, New, Order) as again:
        assert (await again.submit(Order, "o", Add(1))).version == 2


async def test_a_snapshot_that_is_none_concerns_its_aggregate(new: Service) -> None:
    for id in ("x", "y"):
        await new.submit(New, id, Add(5))
    entries = new.cache.scopes[0].entries
    await until(lambda: len(entries) == 2)
    entries["Counter/x"] = entries["Counter/x"].replace(b"5", b"{")
    async with instance(new, New) as other:
        await refused(other, New, "x")
        assert (await other.submit(New, "y", Add(1))).version == 2


async def test_what_others_write_to_it_does_not_end_its_quarantine(
    new: Service, caplog: pytest.LogCaptureFixture
) -> None:
    cache = other_cache()
    async with instance(new, Old, cache=cache) as old, instance(new, Old, cache=cache):
        await new.submit(New, "x", Add(5))
        await new.submit(New, "x", Double())
        await until(lambda: cache.scopes[0].watermark.offset == 3 and "Counter/x" in held(old))
        (scope,) = old.transactions.scopes
        release = hold(old)
        await new.submit(New, "x", Add(1))
        await until(lambda: cache.scopes[0].watermark.offset == 4)  # the other one has applied it
        scope.mirror.observe_watermark((await cache.read(0)).watermark)
        caplog.clear()
        release()
        await until(lambda: scope.view.next == 4)
        assert held(old).keys() == {"Counter/x"}
        await until(lambda: scope.view.entry("Counter/x"))  # looked at again
        assert held(old)["Counter/x"].offset == 2
        assert not caplog.records, "nothing has changed for those who operate it"


async def test_what_is_folded_again_after_the_scope_was_begun_anew_is_told_and_so_is_its_next_quarantine(
    new: Service, caplog: pytest.LogCaptureFixture
) -> None:
    view = new.transactions.scopes[0].view
    ill = Entry(1, "tx", fault="it cannot be folded", unfolded=b"{}", unfolded_from=2)
    view.keep("Counter/x", ill)
    for _ in range(2):
        view.begin(0, view.state)
        view.keep("Counter/x", ill)
    assert len(lines(caplog)) == 1, "it is the same"
    view.begin(0, view.state)
    view.keep("Counter/x", Entry(1, "tx"))
    assert ["its quarantine ends" in line.getMessage() for line in lines(caplog, logging.WARNING)] == [True]
    view.keep("Counter/x", ill)
    assert len(lines(caplog)) == 2
