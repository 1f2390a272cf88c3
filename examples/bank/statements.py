"""Statements (hiveio/consumer): keeps a projection of the accounts' events in SQLite and answers from it."""

import os

from hiveio import Context, Model, Query, Rejected
from hiveio.projection import SqliteProjection

from .events import Deposited, Opened, TransferReceived, TransferSent, Withdrawn


class Statement(Query):
    """GET /statements/ada?last=10"""

    path = "/statements/{account}"
    account: str
    last: int = 100


class Line(Model):
    version: int
    text: str
    amount: int


class AccountStatement(Model):
    account: str
    balance: int
    lines: list[Line]


class StatementsActor(SqliteProjection):
    # In memory the projection is read again from the first event at each start; a file on a volume stays.
    database = os.environ.get("STATEMENTS_DATABASE", ":memory:")
    tables = """
        CREATE TABLE IF NOT EXISTS line
            (account TEXT, version INTEGER, text TEXT, amount INTEGER, PRIMARY KEY (account, version));
    """

    def perform(
        self,
        message: Opened | Deposited | Withdrawn | TransferSent | TransferReceived | Statement,
        context: Context,
    ) -> AccountStatement | None:
        match message:
            case Statement(account, last):
                return self._statement(account, last)
            case Opened(owner):
                self._book(context, f"opened for {owner}", 0)
            case Deposited(amount):
                self._book(context, "deposit", amount)
            case Withdrawn(amount):
                self._book(context, "withdrawal", -amount)
            case TransferSent(recipient, amount):
                self._book(context, f"transfer to {recipient}", -amount)
            case TransferReceived(sender, amount):
                self._book(context, f"transfer from {sender}", amount)
        return None

    def _book(self, context: Context, text: str, amount: int) -> None:
        # `version` is that of the account after the event: 1, 2, 3 without a gap, so it numbers the lines.
        line = (context.id, context.version, text, amount)
        # The position moves in the same transaction, so every event is booked exactly once.
        self.once(context, lambda db: db.execute("INSERT INTO line VALUES (?, ?, ?, ?)", line))

    def _statement(self, account: str, last: int) -> AccountStatement:
        rows = self.connection.execute(
            "SELECT version, text, amount FROM line WHERE account = ? ORDER BY version", (account,)
        ).fetchall()
        if not rows:
            raise Rejected(f"there is no statement of {account}")
        lines = [Line(*row) for row in rows]
        return AccountStatement(account, sum(line.amount for line in lines), lines[-last:])
