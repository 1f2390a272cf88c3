"""What the fulfilment asks of the other services: they take these commands over HTTP too."""

from typing import Annotated

from msgspec import Meta

from hiveio import Command

Amount = Annotated[int, Meta(gt=0, le=1_000_000_000)]


class Confirm(Command):
    pass


class Cancel(Command):
    reason: str


class Reserve(Command):
    order: str
    amount: Amount


class Release(Command):
    order: str


class Pick(Command):
    order: str
    quantity: Amount
