"""An order: it is confirmed or cancelled once."""

from hiveio.testing import given

from .commands import Cancel, Confirm
from .events import OrderCancelled, OrderConfirmed, OrderPlaced
from .orders import OrderActor, Place

PLACED = OrderPlaced("1", "ada", "tea", 2, 900)


def test_an_order_is_placed_once() -> None:
    given(OrderActor).when(Place("ada", "tea", 2, 900)).then(PLACED)
    given(OrderActor, PLACED).when(Place("ada", "tea", 2, 900)).then_rejected("placed already")


def test_it_is_confirmed_or_cancelled() -> None:
    given(OrderActor, PLACED).when(Confirm()).then(OrderConfirmed("1")).when(Cancel("late")).then_rejected("confirmed")
    given(OrderActor, PLACED).when(Cancel("late")).then(OrderCancelled("1", "late"))
