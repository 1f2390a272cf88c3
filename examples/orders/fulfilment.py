"""Fulfilment (hiveio/stream-processor): leads an order through payment and stock, or takes back what was done."""

import os
from datetime import timedelta

from hiveio import CommandRefused, Deadline, Event, Model, ProcessManager, Transaction

from .commands import Cancel, Confirm, Pick, Release, Reserve
from .events import GoodsPicked, OrderPlaced, PaymentReserved

WAIT = timedelta(seconds=float(os.environ.get("PAYMENT_WAIT", "900")))


class PaymentOverdue(Deadline):
    pass


class FulfilmentStarted(Event):
    order: str
    customer: str
    sku: str
    quantity: int


class PaymentTaken(Event):
    pass


class Fulfilled(Event):
    pass


class GivenUp(Event):
    reason: str


class Progress(Model):
    order: str
    customer: str
    sku: str
    quantity: int
    status: str = "waits for the payment"


class Fulfilment(ProcessManager):
    path = "/fulfilments/{id}"
    correlates = {OrderPlaced: "order", PaymentReserved: "order", GoodsPicked: "order"}  # noqa: RUF012

    sends = {  # noqa: RUF012
        "payments": (Reserve, Release),
        "stock": (Pick,),
        "orders": (Confirm, Cancel),
    }

    def perform(
        self,
        state: Progress | None,
        event: OrderPlaced | PaymentReserved | GoodsPicked | CommandRefused | PaymentOverdue,
        tx: Transaction,
    ) -> FulfilmentStarted | PaymentTaken | Fulfilled | GivenUp | None:
        if isinstance(event, OrderPlaced):
            if state:
                return None
            tx.send("payments", event.customer, Reserve(event.order, event.amount))
            tx.schedule(PaymentOverdue(), after=WAIT)
            return FulfilmentStarted(event.order, event.customer, event.sku, event.quantity)
        if state is None:
            return None
        match event:
            case PaymentReserved():
                tx.cancel(PaymentOverdue)
                tx.send("stock", state.sku, Pick(state.order, state.quantity))
                return PaymentTaken()
            case GoodsPicked():
                tx.send("orders", state.order, Confirm())
                tx.end()
                return Fulfilled()
            case PaymentOverdue():
                return self._give_up(state, "the payment was not approved in time", tx)
            case CommandRefused(service, problem=problem):
                tx.cancel(PaymentOverdue)
                return self._give_up(state, f"{service}: {problem['detail']}", tx)
        return None

    @staticmethod
    def _give_up(state: Progress, reason: str, tx: Transaction) -> GivenUp:
        # The wallet gets the release after the reservation, whatever has become of that by now.
        tx.send("payments", state.customer, Release(state.order))
        tx.send("orders", state.order, Cancel(reason))
        tx.end()  # a payment that comes too late is skipped, and its release is on its way
        return GivenUp(reason)

    def replay(self, state: Progress | None, event: FulfilmentStarted | PaymentTaken | Fulfilled | GivenUp) -> Progress:
        if isinstance(event, FulfilmentStarted):
            return Progress(event.order, event.customer, event.sku, event.quantity)
        assert state is not None  # it is started first
        status = {PaymentTaken: "waits for the goods", Fulfilled: "fulfilled", GivenUp: "given up"}[type(event)]
        return Progress(state.order, state.customer, state.sku, state.quantity, status)
