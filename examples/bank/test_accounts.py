"""The rules of an account, each as a sentence: given what happened, when a command comes, then this."""

import pytest

from hiveio import Event
from hiveio.testing import Scenario, given

from .accounts import Account, AccountActor, Deposit, Open, Transfer, Withdraw
from .events import Deposited, Opened, TransferReceived, TransferSent, Withdrawn


def ada(*events: Event) -> Scenario:
    return given(AccountActor, Opened("Ada"), *events, id="ada")


def test_an_account_is_opened_once() -> None:
    opening = given(AccountActor, id="ada").when(Open("Ada")).then(Opened("Ada")).then_state(Account("Ada", 0))
    opening.when(Open("Eve")).then_rejected("open already", owner="Ada").then_state(Account("Ada", 0))


def test_money_comes_and_goes() -> None:
    ada().when(Deposit(500)).then(Deposited(500)).then_state(Account("Ada", 500))
    ada(Deposited(500)).when(Withdraw(200)).then(Withdrawn(200)).then_state(Account("Ada", 300))


def test_an_account_is_never_overdrawn() -> None:
    ada(Deposited(5)).when(Withdraw(9)).then_rejected("overdrawn", balance=5, amount=9)
    ada(Deposited(9)).when(Withdraw(9)).then_state(Account("Ada", 0))


@pytest.mark.parametrize("command", [Deposit(1), Withdraw(1), Transfer("bob", 1)])
def test_nothing_happens_to_an_account_that_is_not_open(command: Deposit | Withdraw | Transfer) -> None:
    given(AccountActor, id="eve").when(command).then_rejected("there is no account eve").then_state(None)


@pytest.mark.parametrize("amount", [0, -5, 1_000_000_000_001])
def test_an_amount_is_positive_and_has_a_bound(amount: int) -> None:
    ada().when(Deposit(amount)).then_invalid("/payload/amount")


def test_a_transfer_happens_to_both_accounts() -> None:
    (
        ada(Deposited(500))
        .and_given(AccountActor, "bob", Opened("Bob"))
        .when(Transfer("bob", 200))
        .then(TransferSent("bob", 200))
        .then_emitted(AccountActor, "bob", TransferReceived("ada", 200))
        .then_state(Account("Ada", 300))
        .then_state(Account("Bob", 200), AccountActor, "bob")
    )


def test_any_two_accounts_are_in_one_scope() -> None:
    # A transaction over two scopes would be refused: with how many partitions the topics are made does not matter.
    assert len({AccountActor().scope(id) for id in ("ada", "bob", "eve", "7", "8")}) == 1


def test_a_transfer_that_is_refused_happens_to_neither() -> None:
    both = ada(Deposited(5)).and_given(AccountActor, "bob", Opened("Bob"))
    both.when(Transfer("bob", 9)).then_rejected("overdrawn", balance=5)
    both.when(Transfer("ada", 1)).then_rejected("another account")
    both.when(Transfer("eve", 1)).then_rejected("there is no account eve")
    both.then_state(Account("Ada", 5)).then_state(Account("Bob", 0), AccountActor, "bob")
    both.then_state(None, AccountActor, "eve")
