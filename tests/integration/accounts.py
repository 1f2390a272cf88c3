"""Accounts of a stream processor, as tests ask them, and a look at what is truly stored."""

from typing import Any

import httpx

from tests.process import Role

HEAD = """
from typing import Annotated
from msgspec import Meta
from hiveio import Actor, Command, Event, Model, Rejected

class Open(Command):
    owner: str
class Opened(Event):
    owner: str
class Deposited(Event):
    amount: int
class Account(Model):
    owner: str
    balance: int = 0
"""

ACTOR = (
    HEAD
    + """
class Deposit(Command):
    amount: Annotated[int, Meta(gt=0)]
class Break(Command):
    how: str

class AccountActor(Actor):
    path = "/accounts/{id}"

    def perform(self, account: Account | None, command: Open | Deposit | Break) -> Opened | Deposited | None:
        match command:
            case Open(owner=owner):
                if account:
                    raise Rejected("this account is open already")
                return Opened(owner)
            case Deposit(amount=amount):
                if not account:
                    raise Rejected("no such account")
                return Deposited(amount)
            case Break(how="wrong type"):
                return Deposited("five")
            case Break(how="no event"):
                return 5
            case Break(how="raises"):
                raise KeyError("a secret")
            case Break(how="too large"):
                return Opened("x" * 2_000_000)
            case _:
                return None

    def replay(self, account: Account | None, event: Opened | Deposited) -> Account:
        match event:
            case Opened(owner=owner):
                return Account(owner)
            case Deposited(amount=amount):
                return Account(account.owner, account.balance + amount)
"""
)
TAKES_DEPOSITS = """
from hiveio import Actor, Command, Event, Model

class Deposit(Command):
    amount: int
class Deposited(Event):
    amount: int
class Account(Model):
    balance: int = 0

class AccountActor(Actor):
    path = "/accounts/{id}"

    def perform(self, account: Account | None, command: Deposit) -> Deposited:
        return Deposited(command.amount)

    def replay(self, account: Account | None, event: Deposited) -> Account:
        return Account((account.balance if account else 0) + event.amount)
"""


def send(role: Role, id: str, type: str, headers: dict[str, str] | None = None, **payload: Any) -> httpx.Response:
    body = {"type": type, "payload": payload}
    return httpx.post(f"{role.url}/accounts/{id}", json=body, headers=headers, timeout=30)


def balance(role: Role, id: str) -> int:
    answer = httpx.get(f"{role.url}/accounts/{id}", timeout=30)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["payload"]["balance"])
