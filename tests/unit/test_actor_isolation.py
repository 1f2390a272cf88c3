"""What an actor does to the objects that it is given reaches no other actor or attempt."""

import asyncio
from typing import Any

import msgspec
import pytest

from hiveio import Actor, Command, Event, Model, Rejected, Transaction, testing
from hiveio.actor import Contract
from hiveio.errors import Problem


class Put(Command):
    item: str
    then: str = ""
    tags: list[str] = msgspec.field(default_factory=list)


class Peek(Command):
    at: str


class Added(Event):
    item: str
    tags: list[str] = msgspec.field(default_factory=list)


class Basket(Model):
    items: list[str] = msgspec.field(default_factory=list)
    prices: dict[str, int] = msgspec.field(default_factory=dict)


class Baskets(Actor):
    path = "/baskets/{id}"
    name = "Basket"

    async def perform(self, basket: Basket | None, command: Put | Peek, tx: Transaction) -> Added | None:
        if isinstance(command, Peek):
            other = await tx.get(Baskets, command.at)
            other.items.append("of a reader")
            raise Rejected(f"has {','.join((await tx.get(Baskets, command.at)).items)}")
        if basket is not None:
            basket.items.append(command.item)
            basket.prices[command.item] = 1
        command.tags.append("by perform")
        match command.then:
            case "reject":
                raise Rejected("not today")
            case "nothing":
                return None
            case "fault":
                raise ZeroDivisionError
        return Added(command.item, command.tags)

    def replay(self, basket: Basket | None, event: Added) -> Basket:
        basket = basket or Basket()
        basket.items.append(event.item)  # its own
        if event.item == "never folded":
            raise ZeroDivisionError
        return basket


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("then", ["reject", "nothing", "fault"])
async def test_what_perform_does_to_its_state_stays_there(then: str, key: str | None) -> None:
    async with testing.Service(Baskets) as service:
        first = await service.submit(Baskets, "a", Put("one"))
        assert first.events == [Added("one", ["by perform"])]
        try:
            await service.submit(Baskets, "a", Put("never", then), key=key)
        except (Problem, ZeroDivisionError):
            pass
        assert (await service.read(Baskets, "a"))[0] == Basket(["one"])
        await service.submit(Baskets, "a", Put("two"))
        assert (await service.read(Baskets, "a"))[0] == Basket(["one", "two"])
    async with testing.Service(Baskets, log=service.log, cache=service.cache) as later:  # by what is in the cache
        assert (await later.read(Baskets, "a"))[0] == Basket(["one", "two"])


async def test_what_replay_does_to_its_state_before_it_fails_stays_there() -> None:
    async with testing.Service(Baskets) as service:
        await service.submit(Baskets, "a", Put("one"))
        with pytest.raises(ZeroDivisionError):
            await service.submit(Baskets, "a", Put("never folded"))
        assert (await service.read(Baskets, "a"))[0] == Basket(["one"])
        await service.submit(Baskets, "a", Put("two"))
        assert (await service.read(Baskets, "a"))[0] == Basket(["one", "two"])


async def test_a_chain_of_pending_states_is_not_changed_by_those_who_perform_on_it() -> None:
    async with testing.Service(Baskets) as service:
        await service.submit(Baskets, "a", Put("first"))
        puts = [Put(str(n), ("", "reject", "fault", "nothing")[n % 4]) for n in range(40)]
        await asyncio.gather(*[service.submit(Baskets, "a", put) for put in puts], return_exceptions=True)
        state, version = await service.read(Baskets, "a")
        assert state.items == ["first", *[put.item for put in puts if not put.then]]
        assert version == 11
        assert all(logged.verdict for logged in service.records())


async def test_what_a_reader_does_to_another_aggregate_stays_with_it() -> None:
    async with testing.Service(Baskets) as service:
        await service.submit(Baskets, "a", Put("one"))
        with pytest.raises(Rejected, match=r"has one$"):
            await service.submit(Baskets, "b", Peek("a"))
        assert (await service.read(Baskets, "a"))[0] == Basket(["one"])


async def test_a_command_that_is_performed_again_is_as_it_came() -> None:
    async with (
        testing.Service(Baskets) as one,
        testing.Service(Baskets, log=one.log, cache=one.cache) as two,
    ):
        for n in range(8):  # both at once: one of them performs again
            answers = await asyncio.gather(
                one.submit(Baskets, "a", Put(f"one {n}", tags=["x"])),
                two.submit(Baskets, "a", Put(f"two {n}", tags=["x"])),
            )
            one.cache.locks.clear()
            for answer in answers:
                assert [event.tags for event in answer.events if isinstance(event, Added)] == [["x", "by perform"]]


async def test_a_perform_that_is_begun_anew_is_given_the_command_as_it_came() -> None:
    class Slow(Baskets):
        async def perform(self, basket: Basket | None, command: Put, tx: Transaction) -> Added:  # type: ignore[override]
            if command.then == "slowly":
                command.tags.append("by perform")
                await tx.get(Slow, "b")
                await asyncio.sleep(0.02)
            return Added(command.item, command.tags)

    async with testing.Service(Slow) as service:
        engine = service.transactions.engine
        slow = asyncio.create_task(service.submit(Slow, "a", Put("one", "slowly", ["x"])))
        async with asyncio.timeout(5):
            while not ((pipeline := engine.pipelines.get("Basket/b")) and pipeline.tip):
                await asyncio.sleep(0)
        await service.submit(Slow, "b", Put("moves it"))
        assert (await slow).events == [Added("one", ["x", "by perform"])]


def test_what_nobody_can_change_is_not_copied() -> None:
    class Opened(Event):
        owner: str

    class Account(Model):
        owner: str
        limits: tuple[int, ...] = ()

    class Open(Command):
        owner: str

    class Accounts(Actor):
        path = "/accounts/{id}"

        def perform(self, account: Account | None, command: Open) -> Opened:
            return Opened(command.owner)

        def replay(self, account: Account | None, event: Opened) -> Account:
            return Account(event.owner)

    contract = Contract(Accounts)
    state = Account("ada")
    assert contract.own_state(state, b"") is state
    assert not contract.mutable
    mutable, basket = Contract(Baskets), Basket(["one"])
    copy: Any = mutable.own_state(basket, msgspec.json.encode(basket))
    assert copy == basket
    assert copy is not basket
    assert mutable.own_state(None, b"") is None
    assert mutable.mutable == {Put}
