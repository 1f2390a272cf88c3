"""An actor that blocks the event loop is named, and nothing else is."""

import asyncio
import contextlib
import functools
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hiveio import Actor, Command, testing
from hiveio.actor import Contract, performing
from hiveio.envelope import Envelope
from hiveio.logs import request_id
from hiveio.server import watchdog
from hiveio.server.watchdog import Watchdog
from tests.faults.actors import Account, AccountActor, Added, Deposit, Deposited, Tally, TallyActor
from tests.faults.actors import Add as AddTally


class Block(Command):
    how: str


class Blocker(Actor):
    path = "/blocks/{id}"

    def perform(self, message: Block) -> Any:
        if message.how == "later":
            return self.later()
        self.helper(message.how)
        return 1

    def helper(self, how: str) -> None:
        if how == "lock held":
            sum(range(40_000_000))  # without a moment in which another thread may run
        elif how:
            time.sleep(0.5)

    async def later(self) -> int:
        await asyncio.sleep(0.01)
        time.sleep(0.5)  # noqa: ASYNC251 - that is what it is about
        return 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[Any]]:
    monkeypatch.setattr(watchdog, "BEAT_S", 0.02)
    monkeypatch.setattr(watchdog, "BLOCKED_S", 0.2)
    caplog.set_level(logging.INFO)
    return lambda: [record for record in caplog.records if record.name == "hiveio.watchdog"]


async def logged(lines: Callable[[], list[Any]], block: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What ``lines`` gives after a block. A machine under load may give the watchdog no time to look while the loop is
    blocked: then it is blocked again."""
    for _ in range(5):
        await block()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while not (found := lines()):
                    await asyncio.sleep(0.01)
            return found
    raise AssertionError("nothing was logged")


def blamed(quick: Callable[[], list[Any]], method: str) -> list[Any]:
    """The lines about a method, once it has ended. A machine under load may stop the whole process: that has lines of
    its own."""
    found = [line for line in quick() if line.getMessage().startswith(f"{method} ")]
    return found if any(line.getMessage().startswith(f"{method} blocked") for line in found) else []


@pytest.mark.parametrize(("how", "method"), [("at once", "helper"), ("later", "later"), ("lock held", "helper")])
async def test_an_actor_that_blocks_is_named(quick: Callable[[], list[Any]], how: str, method: str) -> None:
    contract = Contract(Blocker)
    watch = Watchdog([contract])
    watch.start()
    perform, envelope = performing(contract), Envelope(message=Block(how), id="a")
    first, *_, last = await logged(lambda: blamed(quick, f"Blocker.{method}"), lambda: perform(envelope))
    watch.stop()
    text = rf"Blocker.{method} has blocked the event loop for \d+\.\d s: its worker answers nobody"
    assert re.fullmatch(text, first.getMessage())
    assert re.fullmatch(rf"Blocker.{method} blocked the event loop for \d+\.\d s", last.getMessage())
    for line in (first, last):
        assert (line.actor, line.message_type, line.id) == ("Blocker", "Block", "a")
        assert f"in {method}" in line.traceback.splitlines()[-2]
        assert "hiveio/actor.py" not in line.traceback
        assert line.blocked_s >= 0.2


async def test_one_that_does_not_is_not(quick: Callable[[], list[Any]]) -> None:
    contract = Contract(Blocker)
    watch = Watchdog([contract])
    watch.start()
    for _ in range(20):
        await performing(contract)(Envelope(message=Block(""), id="a"))
        await asyncio.sleep(0.02)
    watch.stop()
    assert not [line for line in quick() if line.levelname != "INFO"]


async def test_what_blocks_and_is_no_actor_is_logged_as_what_it_is(quick: Callable[[], list[Any]]) -> None:
    watch = Watchdog([Contract(Blocker)])
    watch.start()

    async def block() -> None:
        time.sleep(0.5)  # noqa: ASYNC251

    (line, *_) = await logged(lambda: [line for line in quick() if "time.sleep(0.5)" in line.traceback], block)
    watch.stop()
    assert line.getMessage().startswith("the event loop has not turned for ")
    assert {line.levelname for line in quick()} == {"INFO"}


class SlowFold(TallyActor):
    def replay(self, tally: Tally | None, event: Added) -> Tally:
        if event.marker == "slow":
            time.sleep(0.4)
        return super().replay(tally, event)


class SlowAccount(AccountActor):
    async def perform(self, account: Account | None, command: Deposit) -> Deposited:  # type: ignore[override]
        await asyncio.sleep(0)
        time.sleep(0.4)  # noqa: ASYNC251
        return Deposited(command.amount, command.marker)


async def test_a_stream_processors_actor_is_named_too(quick: Callable[[], list[Any]]) -> None:
    async with testing.Service(SlowFold, SlowAccount) as service:
        watch = Watchdog(service.contracts)
        watch.start()
        request_id.set("r-1")
        add, deposit = AddTally(1, "slow"), Deposit(1, "slow")
        slow_fold = functools.partial(service.submit, SlowFold, "t", add)
        fold, *_ = await logged(lambda: blamed(quick, "SlowFold.replay"), slow_fold)
        assert fold.getMessage().startswith("SlowFold.replay has blocked")
        assert (fold.actor, fold.message_type, fold.id, fold.request_id) == ("Tally", "Added", "t", "r-1")
        slow_account = functools.partial(service.submit, SlowAccount, "a", deposit)
        *_, last = await logged(lambda: blamed(quick, "SlowAccount.perform"), slow_account)
        watch.stop()
        assert (last.actor, last.message_type, last.id, last.request_id) == ("Account", "Deposit", "a", "r-1")
