"""Payments of ``examples/orders`` with a fault: while the file FAULTY is there, some orders cannot be handled."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # this runs in a service, whose path is this folder

from examples.orders import payments
from examples.orders.commands import Release, Reserve
from examples.orders.events import MoneyAdded, PaymentHeld, PaymentReleased, PaymentReserved
from examples.orders.payments import Approve, TopUp, Wallet

FAULTY = Path(os.environ.get("FAULTY", "/none"))


class WalletActor(payments.WalletActor):
    def perform(
        self, wallet: Wallet | None, command: TopUp | Reserve | Approve | Release
    ) -> MoneyAdded | PaymentReserved | PaymentHeld | PaymentReleased | None:
        if isinstance(command, Reserve | Release) and int(command.order[1:]) % 5 == 0 and FAULTY.exists():
            raise RuntimeError("a fault of payments")
        return super().perform(wallet, command)
