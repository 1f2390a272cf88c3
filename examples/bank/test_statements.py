"""The projection: what is heard of an account, line by line, and each event booked once."""

from pathlib import Path

import pytest

from hiveio.testing import given

from .events import Deposited, Opened, TransferReceived, TransferSent, Withdrawn
from .statements import AccountStatement, Line, Statement, StatementsActor

HISTORY = (Opened("Ada"), Deposited(500), Withdrawn(50), TransferSent("bob", 200), TransferReceived("bob", 20))
LINES = [
    Line(1, "opened for Ada", 0),
    Line(2, "deposit", 500),
    Line(3, "withdrawal", -50),
    Line(4, "transfer to bob", -200),
    Line(5, "transfer from bob", 20),
]


def test_a_statement_has_a_line_for_each_event() -> None:
    heard = given(StatementsActor, *HISTORY, id="ada").and_given(StatementsActor, "bob", Opened("Bob"))
    heard.when(Statement("ada")).then_reply(AccountStatement("ada", 270, LINES))
    heard.when(Statement("ada", last=1)).then_reply(AccountStatement("ada", 270, LINES[-1:]))
    heard.when(Statement("bob")).then_reply(AccountStatement("bob", 0, [Line(1, "opened for Bob", 0)]))


def test_an_account_nobody_heard_of_has_none() -> None:
    given(StatementsActor).when(Statement("eve")).then_rejected("there is no statement of eve")


def test_an_event_is_booked_once_over_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every `when` starts the actor anew and offers it all events again: it takes those from its own position on.
    monkeypatch.setattr(StatementsActor, "database", str(tmp_path / "statements.sqlite"))
    heard = given(StatementsActor, Opened("Ada"), Deposited(500), id="ada")
    for _ in range(2):
        heard.when(Statement("ada")).then_reply(AccountStatement("ada", 500, LINES[:2]))
    heard.when(Deposited(70)).when(Statement("ada", last=1))
    heard.then_reply(AccountStatement("ada", 570, [Line(3, "deposit", 70)]))
