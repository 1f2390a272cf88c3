"""Fee quotes (hiveio/base): a calculation over HTTP, with neither a log nor a state."""

from hiveio import Actor, Command, Model, Query

from .events import Cents

RATE = 200  # one part in 200 of the amount
LEAST, MOST = 25, 20_00


class Quote(Query):
    """GET /quotes/10000?express=true"""

    path = "/quotes/{amount}"
    amount: Cents
    express: bool = False


class QuoteTransfers(Command):
    """POST /quotes: several transfers at once."""

    amounts: list[Cents]
    express: bool = False


class Fee(Model):
    amount: int
    fee: int


class QuotesActor(Actor):
    path = "/quotes"

    def perform(self, message: Quote | QuoteTransfers) -> Fee:
        # A message and a query differ in how they arrive, not in how they are answered.
        amounts = [message.amount] if isinstance(message, Quote) else message.amounts
        return Fee(sum(amounts), sum(fee(amount, message.express) for amount in amounts))


def fee(amount: int, express: bool) -> int:
    """Cents, rounded up; an express transfer costs two times as much."""
    once = min(max(-(-amount // RATE), LEAST), MOST)
    return 2 * once if express else once
