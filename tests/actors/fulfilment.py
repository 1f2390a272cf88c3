"""A process manager: an order is paid and shipped, or it is given up."""

from datetime import timedelta

from hiveio import KEY, Command, CommandRefused, Deadline, Event, Model, ProcessManager, Rejected, Transaction


class OrderPlaced(Event):
    order: str
    amount: int


class PaymentReserved(Event):
    order: str


class CustomerLeft(Event):
    pass


class PaymentOverdue(Deadline):
    order: str


class ReservePayment(Command):
    amount: int


class CancelPayment(Command):
    pass


class Ship(Command):
    pass


class Abandon(Command):
    pass


class Started(Event):
    order: str


class Paid(Event):
    pass


class GivenUp(Event):
    reason: str


class Progress(Model):
    order: str
    status: str = "started"


WAIT = timedelta(minutes=15)


class Fulfilment(ProcessManager):
    path = "/fulfilments/{id}"
    correlates = {OrderPlaced: "order", PaymentReserved: "order", CustomerLeft: KEY}  # noqa: RUF012

    def perform(
        self,
        state: Progress | None,
        message: OrderPlaced | PaymentReserved | CustomerLeft | PaymentOverdue | CommandRefused | Abandon,
        tx: Transaction,
    ) -> Started | Paid | GivenUp | None:
        match message:
            case OrderPlaced(order, amount):
                if amount < 0 and state is None:  # a person can abandon it, and have it tried again
                    raise Rejected("a negative amount")
                tx.send("payments", order, ReservePayment(amount))
                tx.schedule(PaymentOverdue(order), after=WAIT)
                return Started(order)
            case PaymentReserved(order) if state and state.status == "started":
                tx.cancel(PaymentOverdue)
                tx.send("stock", order, Ship())
                return Paid()
            case PaymentOverdue(order):
                tx.send("payments", order, CancelPayment())
                return GivenUp("overdue")
            case CommandRefused(service, problem=problem):
                tx.cancel(PaymentOverdue)
                return GivenUp(f"{service}: {problem['detail']}")
            case Abandon():
                tx.cancel(PaymentOverdue)
                return GivenUp("abandoned")
        return None

    def replay(self, state: Progress | None, event: Started | Paid | GivenUp) -> Progress:
        match event:
            case Started(order):
                return Progress(order)
            case Paid():
                return Progress(state.order if state else "", "paid")
            case GivenUp(reason):
                return Progress(state.order if state else "", reason)
