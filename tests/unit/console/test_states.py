# mypy: disable-error-code="empty-body"
"""The states of an aggregate after each of its events."""

import json

from msgspec import Raw

from hiveio import Actor, Command, Event, Model
from hiveio.actor import Contract
from hiveio.console.records import Row
from hiveio.console.states import steps
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.record import Barrier, CommandId, Commit, Record, Write


class Deposit(Command):
    amount: int


class Deposited(Event):
    amount: int


class Account(Model):
    balance: int = 0


class AccountActor(Actor):
    path = "/accounts/{id}"

    def perform(self, account: Account | None, command: Deposit) -> Deposited: ...

    def replay(self, account: Account | None, event: Deposited) -> Account:
        if event.amount == 13:
            raise SystemExit("unlucky")
        return Account((account.balance if account else 0) + event.amount)


ADA = "AccountActor/ada"
CONTRACTS = {"AccountActor": Contract(AccountActor)}


def row(offset: int, record: Record) -> Row:
    return Row(LogRecord(offset, f"a-{offset}", b"", 0), record, True, "")


def commit(offset: int, *amounts: int, other: str = "AccountActor/bob") -> Row:
    def events(*given: int) -> tuple[Raw, ...]:
        return tuple(Raw(json.dumps({"type": "Deposited", "payload": {"amount": each}}).encode()) for each in given)

    writes = (Write(other, "", 0, events(100)), Write(ADA, "", 0, events(*amounts)))
    return row(offset, Commit(CommandId(ADA, "k"), writes))


def test_each_event_of_the_aggregate_has_the_state_after_it() -> None:
    found = steps(ADA, [commit(1, 5), commit(2, 7, 1), row(3, Barrier((ADA,))), commit(4)], CONTRACTS)
    assert [(step.row.message.offset, step.version, step.state, step.fault) for step in found] == [
        (1, 1, b'{"balance":5}', ""),
        (2, 2, b'{"balance":12}', ""),
        (2, 3, b'{"balance":13}', ""),
    ]
    assert json.loads(found[1].event)["payload"] == {"amount": 7}


def test_what_cannot_be_folded_is_said_from_there_on() -> None:
    found = steps(ADA, [commit(1, 5, 13, 1)], CONTRACTS)
    assert [step.state for step in found] == [b'{"balance":5}', None, None]
    assert [step.fault for step in found[1:]] == ["it cannot be folded: SystemExit: unlucky"] * 2


def test_without_the_actor_there_are_events_and_no_states() -> None:
    (step,) = steps(ADA, [commit(1, 5)], {})
    assert (step.version, step.state, step.fault) == (1, None, "this actor is not here: set ACTOR_MODULE")
