"""Purses between which money is sent: each command writes two aggregates, and one that is overdrawn is refused."""

from hiveio import Actor, Command, Context, Event, Model, Rejected, Transaction

FULL = 1_000  # what is in a purse at first


class Send(Command):
    to: str
    amount: int


class Sent(Event):
    to: str
    amount: int


class Received(Event):
    amount: int


class Purse(Model):
    balance: int = FULL


class Purses(Actor):
    path = "/purses/{id}"
    name = "Purse"

    async def perform(self, purse: Purse | None, command: Send, context: Context, tx: Transaction) -> Sent:
        await tx.get(Purses, command.to)
        balance = purse.balance if purse else FULL
        if command.amount > balance:
            raise Rejected("overdrawn", balance=balance)
        tx.emit(Purses, command.to, Received(command.amount))
        return Sent(command.to, command.amount)

    def replay(self, purse: Purse | None, event: Sent | Received) -> Purse:
        balance = purse.balance if purse else FULL
        return Purse(balance - event.amount if isinstance(event, Sent) else balance + event.amount)
