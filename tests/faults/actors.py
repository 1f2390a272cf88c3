"""What the fault runs serve, all easy to check: accounts with transfers (async), tallies (plain, with linearizable
reads), and pairs of aggregates whose rule spans both (serializable).

Every event carries the ``marker`` of its command, and every state a checksum over all markers in their order, so a
state that lost, doubled or swapped an event shows it.
"""

import asyncio
import os
import zlib
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from hiveio import Actor, Command, Event, Model, Rejected
from hiveio.actor import Transaction

Amount = Annotated[int, Meta(gt=0)]


class Deposit(Command):
    amount: Amount
    marker: str


class Withdraw(Command):
    amount: Amount
    marker: str


class Transfer(Command):
    to: str
    amount: Amount
    marker: str


class Think(Command):
    """A deposit that takes its time, so that the lock runs out meanwhile. ``of`` is read before; ``stubborn`` goes on
    when it is cancelled."""

    seconds: float
    amount: Amount
    marker: str
    of: str = ""
    stubborn: bool = False


class Await(Command):
    """A deposit that waits for a file, which has the port of its instance in its name."""

    file: str
    amount: Amount
    marker: str


class Witness(Command):
    """Records what it reads of other accounts."""

    of: list[str]
    marker: str


class Note(Command):
    """Writes an event that an older version does not know."""

    marker: str


class Deposited(Event):
    amount: int
    marker: str


class Withdrawn(Event):
    amount: int
    marker: str


class Sent(Event):
    amount: int
    to: str
    marker: str


class Received(Event):
    amount: int
    sender: str
    marker: str


class Witnessed(Event):
    marker: str
    seen: dict[str, tuple[int, int, int]]  # balance, events, trace


class Noted(Event):
    marker: str


class Account(Model):
    balance: int = 0
    events: int = 0
    trace: int = 0


async def _think(command: Think) -> None:
    try:
        await asyncio.sleep(command.seconds)
    except asyncio.CancelledError:
        if not command.stubborn:
            raise
        await _think(command)


async def _await(file: Path) -> None:
    file.with_name(f"{file.name}.begun").touch()
    while not os.path.exists(file):  # noqa: ASYNC240 - it is asked in no time
        await asyncio.sleep(0.01)


class AccountActor(Actor):
    path = "/accounts/{id}"
    name = "Account"

    async def perform(
        self,
        account: Account | None,
        command: Deposit | Withdraw | Transfer | Think | Await | Witness | Note,
        tx: Transaction,
        context: object,
    ) -> Deposited | Withdrawn | Sent | Witnessed | Noted:
        if isinstance(command, Think):
            if command.of:
                await tx.get(AccountActor, command.of)
            await _think(command)
        if isinstance(command, Await):
            await _await(Path(f"{command.file}-{os.environ['PORT']}"))
        if isinstance(command, Deposit | Think | Await):
            return Deposited(command.amount, command.marker)
        if isinstance(command, Note):
            return Noted(command.marker)
        if isinstance(command, Witness):
            states = {id: await tx.get(AccountActor, id) or Account() for id in command.of}
            seen = {id: (state.balance, state.events, state.trace) for id, state in states.items()}
            return Witnessed(command.marker, seen)
        if account is None or account.balance < command.amount:
            raise Rejected("overdrawn", balance=account.balance if account else 0)
        if isinstance(command, Withdraw):
            return Withdrawn(command.amount, command.marker)
        sender = str(getattr(context, "id", ""))
        if sender == command.to:
            raise Rejected("to itself")
        await tx.get(AccountActor, command.to)
        tx.emit(AccountActor, command.to, Received(command.amount, sender, command.marker))
        return Sent(command.amount, command.to, command.marker)

    async def ready(self) -> bool:
        """An actor that needs a thread."""
        return await asyncio.to_thread(lambda: True)

    def replay(
        self, account: Account | None, event: Deposited | Withdrawn | Sent | Received | Witnessed | Noted
    ) -> Account:
        old = account or Account()
        amount = 0 if isinstance(event, Witnessed | Noted) else event.amount
        signed = amount if isinstance(event, Deposited | Received) else -amount
        return Account(old.balance + signed, old.events + 1, zlib.crc32(event.marker.encode(), old.trace))


class Add(Command):
    amount: int
    marker: str
    parts: int = 1


class Added(Event):
    amount: int
    marker: str


class Tally(Model):
    sum: int = 0
    events: int = 0
    trace: int = 0


class TallyActor(Actor):
    path = "/tallies/{id}"
    name = "Tally"
    reads = "linearizable"

    def perform(self, tally: Tally | None, command: Add) -> list[Added]:
        if (tally.sum if tally else 0) + command.amount * command.parts < 0:
            raise Rejected("below zero", sum=tally.sum if tally else 0)
        return [Added(command.amount, command.marker) for _ in range(command.parts)]

    def replay(self, tally: Tally | None, event: Added) -> Tally:
        old = tally or Tally()
        return Tally(old.sum + event.amount, old.events + 1, zlib.crc32(event.marker.encode(), old.trace))


class Give(Command):
    amount: Amount
    marker: str


class Take(Command):
    """Is allowed while both of the pair together have it: two at once are a write skew."""

    other: str
    amount: Amount
    marker: str


class Given(Event):
    amount: int
    marker: str


class Taken(Event):
    amount: int
    marker: str
    seen: dict[str, tuple[int, int, int]]


class Pair(Model):
    balance: int = 0
    events: int = 0
    trace: int = 0


class PairActor(Actor):
    path = "/pairs/{id}"
    name = "Pair"
    isolation = "serializable"

    async def perform(self, pair: Pair | None, command: Give | Take, tx: Transaction) -> Given | Taken:
        if isinstance(command, Give):
            return Given(command.amount, command.marker)
        other = await tx.get(PairActor, command.other) or Pair()
        if (pair or Pair()).balance + other.balance < command.amount:
            raise Rejected("overdrawn", balance=(pair or Pair()).balance)
        seen = {command.other: (other.balance, other.events, other.trace)}
        return Taken(command.amount, command.marker, seen)

    def replay(self, pair: Pair | None, event: Given | Taken) -> Pair:
        old = pair or Pair()
        signed = event.amount if isinstance(event, Given) else -event.amount
        return Pair(old.balance + signed, old.events + 1, zlib.crc32(event.marker.encode(), old.trace))
