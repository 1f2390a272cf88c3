"""Payments (hiveio/stream-processor): the wallets of customers, and the money that is reserved for their orders."""

import msgspec

from hiveio import Actor, Command, Model, NotFound, Rejected

from .commands import Amount, Release, Reserve
from .events import MoneyAdded, PaymentHeld, PaymentReleased, PaymentReserved

APPROVED_ABOVE = 1_000_00  # cents: somebody has to approve more than that


class TopUp(Command):
    amount: Amount


class Approve(Command):
    order: str


class Wallet(Model):
    """What can be spent, what is reserved, and what waits for an approval, by order."""

    available: int = 0
    reserved: dict[str, int] = msgspec.field(default_factory=dict)
    held: dict[str, int] = msgspec.field(default_factory=dict)


class WalletActor(Actor):
    path = "/wallets/{id}"

    def perform(
        self, wallet: Wallet | None, command: TopUp | Reserve | Approve | Release
    ) -> MoneyAdded | PaymentReserved | PaymentHeld | PaymentReleased | None:
        if isinstance(command, TopUp):
            return MoneyAdded(command.amount)
        if wallet is None:
            raise NotFound("this customer has no wallet")
        match command:
            case Reserve(order, amount):
                if amount > wallet.available:
                    raise Rejected("there is not enough money", available=wallet.available)
                return PaymentHeld(order, amount) if amount > APPROVED_ABOVE else PaymentReserved(order, amount)
            case Approve(order):
                if order not in wallet.held:
                    raise Rejected("nothing waits for an approval")
                return PaymentReserved(order, wallet.held[order])
            case Release(order):
                # It may never have been reserved: to release it is right all the same.
                return PaymentReleased(order) if order in wallet.held or order in wallet.reserved else None

    def replay(
        self, wallet: Wallet | None, event: MoneyAdded | PaymentReserved | PaymentHeld | PaymentReleased
    ) -> Wallet:
        wallet = wallet or Wallet()
        if isinstance(event, MoneyAdded):
            return Wallet(wallet.available + event.amount, wallet.reserved, wallet.held)
        order = event.order
        reserved = {each: amount for each, amount in wallet.reserved.items() if each != order}
        held = {each: amount for each, amount in wallet.held.items() if each != order}
        total = wallet.available + wallet.reserved.get(order, 0) + wallet.held.get(order, 0)
        match event:
            case PaymentReserved(_, amount):
                return Wallet(total - amount, reserved | {order: amount}, held)
            case PaymentHeld(_, amount):
                return Wallet(total - amount, reserved, held | {order: amount})
            case PaymentReleased():
                return Wallet(total, reserved, held)
