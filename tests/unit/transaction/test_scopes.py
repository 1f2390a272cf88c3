"""A scope that is not followed is opened by those who have work for it, and they wait for it."""

import asyncio
import base64
from collections.abc import AsyncIterator
from functools import partial

import msgspec
import pytest

from hiveio import testing
from hiveio.config import Settings
from hiveio.errors import Corrupt, Unavailable
from hiveio.logs import request_id
from hiveio.testing.service import Service
from hiveio.transaction.anchor import Anchor
from hiveio.transaction.command import Token
from tests.actors.tally import Add, Tallies, Tally
from tests.unit.transaction.test_engine import until


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """One that follows nothing, and whose aggregate "a" has 1."""
    async with testing.Service(Tallies) as made:
        await made.submit(Tallies, "a", Add(1))
        await close(made)
        yield made


async def close(service: Service) -> None:
    scopes = service.transactions.scopes
    for scope in scopes:
        await until(partial(getattr, scope, "applied"))
        scopes.forget(scope)
        await scope.stop()
    assert not list(scopes)


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_command_opens_its_scope(service: Service, key: str | None) -> None:
    answers = await asyncio.gather(*[service.submit(Tallies, f"{id}", Add(2), key=key) for id in "abc"])
    assert [answer.version for answer in answers] == [2, 1, 1]
    assert len(list(service.transactions.scopes)) == 1
    if key is not None:
        await close(service)
        assert (await service.submit(Tallies, "a", Add(2), key=key)).version == 2, "it is on record"
    await close(service)
    assert await service.read(Tallies, "a") == (Tally(3, 2), 2)


async def test_a_scope_that_is_opened_belongs_to_no_request(service: Service) -> None:
    seen: list[str] = []
    service.transactions.scopes.on_open(lambda scope: seen.append(request_id.get()))
    token = request_id.set("that of the first request")
    await service.submit(Tallies, "a", Add(1))
    request_id.reset(token)
    assert seen == [""]


async def test_a_transaction_that_was_asked_for_opens_its_scope(service: Service) -> None:
    answer = await service.submit(Tallies, "a", Add(2), key="k")
    assert answer.version == 2
    await close(service)
    asked = Token("Tally", "a", "k", 0, 0, True)
    token = base64.urlsafe_b64encode(msgspec.json.encode(asked)).decode()
    assert (await service.outcome(token))["outcome"] == "accepted"


async def test_what_waits_for_a_scope_that_does_not_open_is_answered_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(self: Anchor) -> None:
        await asyncio.Event().wait()

    async with testing.Service(Tallies, settings=Settings(request_timeout_ms=400)) as service:
        await close(service)
        monkeypatch.setattr(Anchor, "find", never)
        waiting = [service.submit(Tallies, "a", Add(2), key="k"), service.read(Tallies, "a")]
        for problem in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(problem, Unavailable)
            assert "catching up" in problem.detail
        engine = service.transactions.engine
        assert not engine.work.open
        (scope,) = service.transactions.scopes
        scope.fail("never mind")
        with pytest.raises(Unavailable, match="stopped"):
            await service.submit(Tallies, "a", Add(2), key="k")


async def test_what_waits_for_a_scope_that_fails_is_answered_at_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: Anchor) -> None:
        raise Corrupt("never mind")

    monkeypatch.setattr(Anchor, "find", fails)
    for problem in await asyncio.gather(
        service.submit(Tallies, "a", Add(2)), service.read(Tallies, "a"), return_exceptions=True
    ):
        assert isinstance(problem, Unavailable)
