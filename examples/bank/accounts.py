"""Accounts (hiveio/stream-processor): decides what may happen to an account, and nothing else."""

from typing import Annotated

from msgspec import Meta

from hiveio import Actor, Command, Context, Model, Rejected, Transaction

from .events import Cents, Deposited, Opened, TransferReceived, TransferSent, Withdrawn


class Open(Command):
    owner: Annotated[str, Meta(min_length=1, max_length=100)]


class Deposit(Command):
    amount: Cents


class Withdraw(Command):
    amount: Cents


class Transfer(Command):
    to: Annotated[str, Meta(min_length=1, max_length=255)]
    amount: Cents


class Account(Model):
    """The snapshot has what the decisions below need, and no more. The log has the history."""

    owner: str
    balance: int = 0


class AccountActor(Actor):
    path = "/accounts/{id}"

    def scope(self, id: str) -> str:
        # A transaction stays inside one scope, and any account may send to any other. So all are in one scope, for any
        # number of partitions. A bank that keeps transfers inside a branch would return the branch of the account.
        return "bank"

    async def perform(
        self,
        account: Account | None,
        command: Open | Deposit | Withdraw | Transfer,
        context: Context,
        tx: Transaction,
    ) -> Opened | Deposited | Withdrawn | TransferSent:
        # The type of a message checks what concerns the message alone (an amount above zero), before it comes here. The
        # checks below need the state.
        if isinstance(command, Open):
            if account:
                raise Rejected("this account is open already", owner=account.owner)
            return Opened(command.owner)
        if account is None:
            raise Rejected(f"there is no account {context.id}")
        match command:
            case Deposit(amount):
                return Deposited(amount)
            case Withdraw(amount):
                self._covers(account, amount)
                return Withdrawn(amount)
            case Transfer(to, amount):
                self._covers(account, amount)
                if to == context.id:
                    raise Rejected("a transfer goes to another account")
                # Read at the same snapshot as `account`; if either has moved by the commit, all of this runs again.
                if await tx.get(AccountActor, to) is None:
                    raise Rejected(f"there is no account {to}")
                # Both events are in one record of the log: they happen together or not at all.
                tx.emit(AccountActor, to, TransferReceived(str(context.id), amount))
                return TransferSent(to, amount)

    @staticmethod
    def _covers(account: Account, amount: int) -> None:
        if amount > account.balance:
            raise Rejected("overdrawn", balance=account.balance, amount=amount)

    def replay(
        self,
        account: Account | None,
        event: Opened | Deposited | Withdrawn | TransferSent | TransferReceived,
    ) -> Account:
        # No rule is checked here: an event has happened, and is folded even when today's rules would refuse it.
        if isinstance(event, Opened):
            return Account(event.owner)
        assert account is not None  # `perform` writes nothing to an account before it is opened
        match event:
            case Deposited(amount) | TransferReceived(_, amount):
                return Account(account.owner, account.balance + amount)
            case Withdrawn(amount) | TransferSent(_, amount):
                return Account(account.owner, account.balance - amount)
