"""What happens to orders, to money and to goods: the contract between the services."""

from hiveio import Event


class OrderPlaced(Event):
    order: str
    customer: str
    sku: str
    quantity: int
    amount: int


class OrderConfirmed(Event):
    order: str


class OrderCancelled(Event):
    order: str
    reason: str


class MoneyAdded(Event):
    amount: int


class PaymentReserved(Event):
    order: str
    amount: int


class PaymentHeld(Event):
    """Somebody has to approve it first."""

    order: str
    amount: int


class PaymentReleased(Event):
    """The order gets no money, or no more."""

    order: str


class GoodsReceived(Event):
    quantity: int


class GoodsPicked(Event):
    order: str
    quantity: int
