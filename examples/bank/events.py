"""What happens to an account: the contract between the service that decides and those that listen."""

from typing import Annotated

from msgspec import Meta

from hiveio import Event

# Whole cents: a float cannot hold 0.10. The bound is for the readers of the log, some of which (SQLite here) have
# 64-bit numbers: the service accepts only what all of them can read.
Cents = Annotated[int, Meta(gt=0, le=1_000_000_000_000)]


class Opened(Event):
    owner: str


class Deposited(Event):
    amount: int


class Withdrawn(Event):
    amount: int


class TransferSent(Event):
    recipient: str
    amount: int


class TransferReceived(Event):
    sender: str
    amount: int
