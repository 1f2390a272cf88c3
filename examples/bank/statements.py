"""Statements (hiveio/consumer): keeps a projection of the accounts' events in SQLite and answers from it."""

import os
import sqlite3

from hiveio import Actor, Context, Model, Query, Rejected

from .events import Deposited, Opened, TransferReceived, TransferSent, Withdrawn

SCHEMA = """
CREATE TABLE IF NOT EXISTS line
    (account TEXT, version INTEGER, text TEXT, amount INTEGER, PRIMARY KEY (account, version));
CREATE TABLE IF NOT EXISTS position
    (topic TEXT, partition INTEGER, next INTEGER, PRIMARY KEY (topic, partition));
"""


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


class StatementsActor(Actor):
    def start(self) -> None:
        # In memory the projection is read anew from the first event at each start; a file on a volume stays.
        self.database = sqlite3.connect(os.environ.get("STATEMENTS_DATABASE", ":memory:"), isolation_level=None)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.executescript(SCHEMA)

    def stop(self) -> None:
        self.database.close()

    def position(self, topic: str, partition: int) -> int | None:
        """The next offset to consume. The runtime asks when it is given a partition.

        Kafka keeps an offset too, but moves it after our commit: a crash in between would book the last events twice.
        The one here moves in the same transaction as the lines, so every event is booked exactly once.
        """
        query = "SELECT next FROM position WHERE topic = ? AND partition = ?"
        row = self.database.execute(query, (topic, partition)).fetchone()
        return row[0] if row else None

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
        # `version` is the account's after the event: 1, 2, 3 without a gap, so it numbers the lines.
        assert context.offset is not None
        line = (context.id, context.version, text, amount)
        position = (context.topic, context.partition, context.offset + 1)
        self.database.execute("BEGIN IMMEDIATE")
        with self.database:  # commits, or rolls back what raises
            self.database.execute("INSERT INTO line VALUES (?, ?, ?, ?)", line)
            self.database.execute("INSERT OR REPLACE INTO position VALUES (?, ?, ?)", position)

    def _statement(self, account: str, last: int) -> AccountStatement:
        rows = self.database.execute(
            "SELECT version, text, amount FROM line WHERE account = ? ORDER BY version", (account,)
        ).fetchall()
        if not rows:
            raise Rejected(f"there is no statement of {account}")
        lines = [Line(*row) for row in rows]
        return AccountStatement(account, sum(line.amount for line in lines), lines[-last:])
