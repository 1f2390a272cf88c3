"""What becomes of an Idempotency-Key when the time of its request is over sooner than what was done for it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from hiveio import Actor, Command, Event
from hiveio.actor import Contract, performing
from hiveio.config import Settings
from hiveio.envelope import Envelope
from hiveio.errors import Unavailable, Unknown
from hiveio.producer.keys import Claim, Keys
from hiveio.producer.publishing import Publishing
from hiveio.redis.node import Node
from hiveio.types import RecordMetadata

CLAIM = Claim("hive:keys:{t/id}:", b"name", "token", "hash")


class Deposit(Command):
    wait: bool = False


class Deposited(Event):
    pass


class Account(Actor):
    path = "/accounts/{id}"

    async def perform(self, message: Deposit) -> list[Deposited]:
        await asyncio.sleep(60 if message.wait else 0)
        return [Deposited(), Deposited()]


class RecordedKeys(Keys):
    """Keeps what would be stored in Redis."""

    def __init__(self) -> None:
        super().__init__(Settings(topic="t", cache_url="redis://localhost"))
        self.entries: list[tuple[bytes, bytes]] = []

    async def _store(self, claim: Claim, entry: bytes) -> None:
        self.entries.append((claim.name, entry))

    async def until_stored(self) -> tuple[bytes, bytes]:
        async with asyncio.timeout(5):
            while not self.entries:
                await asyncio.sleep(0.01)
        (only,) = self.entries
        return only


class Late:
    """A sender whose records are stored when the test says so."""

    def __init__(self) -> None:
        self.stored: list[asyncio.Future[Any]] = []
        self.rules = SimpleNamespace(topic_id=lambda topic: "id")

    def send_all(self, topic: str, records: list[Any], *, gather: bool) -> list[asyncio.Future[Any]]:
        self.stored = [asyncio.get_running_loop().create_future() for _ in records]
        return self.stored


async def over(task: "asyncio.Task[Any]") -> None:
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
async def keys() -> RecordedKeys:
    return RecordedKeys()


@pytest.fixture
async def sender() -> Late:
    return Late()


@pytest.fixture
async def publishing(keys: RecordedKeys, sender: Late) -> Publishing:
    contract = Contract(Account)
    made: Any = sender
    return Publishing(performing(contract), contract, made, Settings(topic="t"), keys)


def envelope(*, wait: bool) -> Envelope:
    return Envelope(message=Deposit(wait), id="a", key="k", body=b"{}")


async def test_while_its_actor_is_at_work_it_is_given_back(publishing: Publishing, keys: RecordedKeys) -> None:
    await over(asyncio.create_task(publishing.submit(envelope(wait=True), CLAIM)))
    assert await keys.until_stored() == (b"name", b"")


async def test_while_its_records_are_on_their_way_it_is_answered_by_what_becomes_of_them(
    publishing: Publishing, keys: RecordedKeys, sender: Late
) -> None:
    submission = await publishing.submit(envelope(wait=False), CLAIM)
    task = asyncio.create_task(publishing.settled(submission))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(Unknown) as unknown:
        await task
    assert unknown.value.members["id"] == "token", "its records can be found"
    assert not keys.entries
    for offset, stored in enumerate(sender.stored):
        stored.set_result(RecordMetadata(0, offset))
    name, entry = await keys.until_stored()
    assert (name, entry[:2]) == (b"name", b"D\n")
    assert b'"Hive-Position":"t/0/1"' in entry


@pytest.mark.parametrize("claim", [None, CLAIM])
async def test_an_answer_that_came_in_the_same_turn_is_given(
    publishing: Publishing, keys: RecordedKeys, sender: Late, claim: Claim | None
) -> None:
    """As where the event loop had no CPU between the confirmation and the end of the request's time."""
    submission = await publishing.submit(envelope(wait=False), claim)
    task = asyncio.create_task(publishing.settled(submission))
    await asyncio.sleep(0)
    for offset, stored in enumerate(sender.stored):
        stored.set_result(RecordMetadata(0, offset))
    task.cancel()
    assert (await task).headers["Hive-Position"] == "t/0/1"
    assert [name for name, _ in keys.entries] == ([b"name"] if claim else [])


@pytest.mark.parametrize("ends", [None, Unavailable("away")])
async def test_while_it_is_claimed_it_is_given_back(
    publishing: Publishing, keys: RecordedKeys, ends: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(Node, "call", lambda *_: asked)
    task = asyncio.create_task(publishing.claim(envelope(wait=False)))
    if ends is None:
        await over(task)
    else:
        asked.set_exception(ends)
        with pytest.raises(Unavailable):
            await task
    assert (await keys.until_stored())[1] == b""
