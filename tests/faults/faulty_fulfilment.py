"""The fulfilment of ``examples/orders`` with a fault: while the file FAULTY is there, some processes get stuck."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # this runs in a service, whose path is this folder

from examples.orders import fulfilment
from examples.orders.events import GoodsPicked, OrderPlaced, PaymentReserved
from examples.orders.fulfilment import Fulfilled, FulfilmentStarted, GivenUp, PaymentOverdue, PaymentTaken, Progress
from hiveio import CommandRefused, Transaction

FAULTY = Path(os.environ.get("FAULTY", "/none"))


class Fulfilment(fulfilment.Fulfilment):
    def perform(
        self,
        state: Progress | None,
        event: OrderPlaced | PaymentReserved | GoodsPicked | CommandRefused | PaymentOverdue,
        tx: Transaction,
    ) -> FulfilmentStarted | PaymentTaken | Fulfilled | GivenUp | None:
        if isinstance(event, PaymentReserved) and int(event.order[1:]) % 20 == 7 and FAULTY.exists():
            raise RuntimeError("a fault of fulfilment")
        return super().perform(state, event, tx)
