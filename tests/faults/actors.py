"""What the fault runs serve: accounts with transfers (async), tallies (plain), both easy to check.

Every event carries the ``marker`` of its command, and every state a checksum over all markers in their order, so a
state that lost, doubled or swapped an event shows it.
"""

import zlib
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


class Account(Model):
    balance: int = 0
    events: int = 0
    trace: int = 0


class AccountActor(Actor):
    path = "/accounts/{id}"
    name = "Account"

    async def perform(
        self, account: Account | None, command: Deposit | Withdraw | Transfer, tx: Transaction, context: object
    ) -> Deposited | Withdrawn | Sent:
        if isinstance(command, Deposit):
            return Deposited(command.amount, command.marker)
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

    def replay(self, account: Account | None, event: Deposited | Withdrawn | Sent | Received) -> Account:
        old = account or Account()
        signed = event.amount if isinstance(event, Deposited | Received) else -event.amount
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

    def perform(self, tally: Tally | None, command: Add) -> list[Added]:
        if (tally.sum if tally else 0) + command.amount * command.parts < 0:
            raise Rejected("below zero", sum=tally.sum if tally else 0)
        return [Added(command.amount, command.marker) for _ in range(command.parts)]

    def replay(self, tally: Tally | None, event: Added) -> Tally:
        old = tally or Tally()
        return Tally(old.sum + event.amount, old.events + 1, zlib.crc32(event.marker.encode(), old.trace))
