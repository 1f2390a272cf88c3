"""A wallet: nobody spends more than there is, and what was reserved comes back."""

from hiveio.testing import given

from .commands import Release, Reserve
from .events import MoneyAdded, PaymentHeld, PaymentReleased, PaymentReserved
from .payments import APPROVED_ABOVE, Approve, TopUp, Wallet, WalletActor

FULL = MoneyAdded(5_000_00)


def test_money_is_reserved_while_there_is_some() -> None:
    given(WalletActor).when(TopUp(100)).then(MoneyAdded(100)).when(Reserve("1", 101)).then_rejected("not enough")
    given(WalletActor, FULL).when(Reserve("1", 100)).then(PaymentReserved("1", 100))


def test_a_large_amount_waits_for_an_approval() -> None:
    held = given(WalletActor, FULL).when(Reserve("1", APPROVED_ABOVE + 1)).then(PaymentHeld("1", APPROVED_ABOVE + 1))
    held.when(Approve("1")).then(PaymentReserved("1", APPROVED_ABOVE + 1)).when(Approve("1")).then_rejected("nothing")


def test_what_is_released_can_be_spent_again() -> None:
    released = given(WalletActor, FULL, PaymentReserved("1", 100)).when(Release("1")).then(PaymentReleased("1"))
    released.then_state(Wallet(5_000_00))
    given(WalletActor, FULL).when(Release("1")).then()
