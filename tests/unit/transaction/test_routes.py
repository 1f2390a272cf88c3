"""The answer to a command whose request comes to its deadline at the moment at which its record is read back."""

import asyncio
from collections.abc import Callable

import pytest

from hiveio import testing
from hiveio.envelope import Envelope, Outcome
from hiveio.errors import Rejected, Unavailable, Unknown
from hiveio.transaction.pending import Pending
from hiveio.transaction.routes import transacting
from tests.faults.actors import AccountActor, Deposit, Withdraw
from tests.unit.transaction.test_engine import hold, until

Read = Callable[[Pending], None]


def is_there(pending: Pending) -> None:
    pending.settled(pending, True, 1)


def nobody_knows(pending: Pending) -> None:
    pending.settled(pending, None, -1)


async def at_its_deadline(service: testing.Service, message: Deposit | Withdraw, read: Read) -> Outcome:
    """The answer to the command: its request is cancelled, its record read back, and only then its handler goes on."""
    release = hold(service)
    engine, (contract,) = service.transactions.engine, service.contracts
    envelope = Envelope(message=message, id="a", key="k")
    request = asyncio.ensure_future(transacting(contract, service.transactions)(envelope))
    journal = service.transactions.scopes.use(0).journal
    await until(lambda: journal.pending)
    (command,) = engine.work.open
    (tx,) = journal.pending
    request.cancel()
    assert command.future.cancelled()
    if (pending := journal.take(tx)) is not None:
        read(pending)
    try:
        return await request
    finally:
        release()


async def test_what_was_accepted_is_not_answered_as_if_nothing_had_happened() -> None:
    async with testing.Service(AccountActor) as service:
        outcome = await at_its_deadline(service, Deposit(5, "five"), is_there)
        assert outcome.headers["ETag"] == '"1"'
        assert b'"amount":5' in (outcome.encoded or b"")


async def test_a_refusal_on_record_is_the_answer() -> None:
    async with testing.Service(AccountActor) as service:
        with pytest.raises(Rejected, match="overdrawn"):
            await at_its_deadline(service, Withdraw(5, "too much"), is_there)


async def test_a_record_of_which_nobody_knows_may_be_there() -> None:
    async with testing.Service(AccountActor) as service:
        with pytest.raises(Unknown):
            await at_its_deadline(service, Deposit(5, "five"), nobody_knows)


async def test_a_command_that_was_answered_as_unknown_stays_so() -> None:
    """The sweep had come before the verdict."""
    async with testing.Service(AccountActor) as service:
        recovery = service.transactions.engine.recovery

        def late(pending: Pending) -> None:
            (command,) = service.transactions.engine.work.open
            recovery.expire(command)
            pending.settled(pending, True, 1)

        with pytest.raises(Unknown):
            await at_its_deadline(service, Deposit(5, "five"), late)


async def test_a_command_that_has_no_record_has_changed_nothing() -> None:
    async with testing.Service(AccountActor) as service:
        contract = service.contracts[0]
        scope = service.transactions.scopes.use(0)
        await until(lambda: scope.ready)
        scope.contention.note(["Account/a"])
        handle = transacting(contract, service.transactions)
        request = asyncio.ensure_future(handle(Envelope(message=Deposit(5, "five"), id="a")))
        await until(lambda: service.transactions.engine.work.open)
        request.cancel()
        with pytest.raises(Unavailable, match="nothing was changed"):
            await request
