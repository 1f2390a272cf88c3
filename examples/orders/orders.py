"""Orders (hiveio/stream-processor): what a customer has asked for, and what has become of it."""

from hiveio import Actor, Command, Context, Model, NotFound, Rejected

from .commands import Amount, Cancel, Confirm
from .events import OrderCancelled, OrderConfirmed, OrderPlaced


class Place(Command):
    customer: str
    sku: str
    quantity: Amount
    amount: Amount


class Order(Model):
    customer: str
    status: str = "placed"
    reason: str = ""


class OrderActor(Actor):
    path = "/orders/{id}"

    def perform(
        self, order: Order | None, command: Place | Confirm | Cancel, context: Context
    ) -> OrderPlaced | OrderConfirmed | OrderCancelled:
        id = str(context.id)
        if isinstance(command, Place):
            if order:
                raise Rejected("this order was placed already")
            return OrderPlaced(id, command.customer, command.sku, command.quantity, command.amount)
        if order is None:
            raise NotFound(f"there is no order {id}")
        if order.status != "placed":
            raise Rejected(f"the order is {order.status}")
        return OrderConfirmed(id) if isinstance(command, Confirm) else OrderCancelled(id, command.reason)

    def replay(self, order: Order | None, event: OrderPlaced | OrderConfirmed | OrderCancelled) -> Order:
        if isinstance(event, OrderPlaced):
            return Order(event.customer)
        assert order is not None  # an order is placed first
        match event:
            case OrderConfirmed():
                return Order(order.customer, "confirmed")
            case OrderCancelled(_, reason):
                return Order(order.customer, "cancelled", reason)
