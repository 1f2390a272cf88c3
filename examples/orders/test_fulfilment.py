"""A fulfilment: each way through it, and what it takes back."""

from typing import Any

from hiveio import CommandRefused
from hiveio.testing import given

from .commands import Cancel, Confirm, Pick, Release, Reserve
from .events import GoodsPicked, OrderPlaced, PaymentReserved
from .fulfilment import (
    WAIT,
    Fulfilled,
    Fulfilment,
    FulfilmentStarted,
    GivenUp,
    PaymentOverdue,
    PaymentTaken,
)

PLACED = OrderPlaced("7", "ada", "tea", 2, 900)
REFUSED: dict[str, Any] = {"title": "Rejected", "status": 422, "detail": "there is none"}


def started() -> Any:
    first = given(Fulfilment).when(PLACED).then(FulfilmentStarted("7", "ada", "tea", 2))
    return first.then_sent(("payments", "ada", Reserve("7", 900))).then_scheduled((PaymentOverdue(), WAIT))


def paid() -> Any:
    return started().when(PaymentReserved("7", 900)).then(PaymentTaken())


def test_an_order_is_paid_picked_and_confirmed() -> None:
    paid().then_sent(("stock", "tea", Pick("7", 2))).then_pending().when(GoodsPicked("7", 2)).then(
        Fulfilled()
    ).then_sent(("orders", "7", Confirm())).then_ended()


def test_a_payment_that_is_refused_cancels_the_order() -> None:
    refused = started().when(CommandRefused("payments", "ada", "Reserve", REFUSED), id="7")
    refused.then(GivenUp("payments: there is none")).then_pending().then_ended()
    refused.then_sent(("payments", "ada", Release("7")), ("orders", "7", Cancel("payments: there is none")))


def test_goods_that_are_not_there_give_the_money_back() -> None:
    refused = paid().when(CommandRefused("stock", "tea", "Pick", REFUSED), id="7").then(GivenUp("stock: there is none"))
    refused.then_sent(("payments", "ada", Release("7")), ("orders", "7", Cancel("stock: there is none")))


def test_a_payment_that_comes_too_late_is_given_back() -> None:
    reason = "the payment was not approved in time"
    overdue = started().after(seconds=WAIT.total_seconds()).then(GivenUp(reason))
    overdue.then_sent(("payments", "ada", Release("7")), ("orders", "7", Cancel(reason)))
    overdue.when(PaymentReserved("7", 900)).then().then_sent()
