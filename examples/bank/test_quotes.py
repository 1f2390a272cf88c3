"""Fees: by message and by query, the same."""

import pytest

from hiveio.testing import given

from .quotes import Fee, Quote, QuotesActor, QuoteTransfers


@pytest.mark.parametrize(
    ("amount", "cents"),
    [(1, 25), (50_00, 25), (50_01, 26), (100_00, 50), (4_000_00, 20_00), (10_000_00, 20_00)],
)
def test_a_fee_is_half_a_percent_within_bounds(amount: int, cents: int) -> None:
    given(QuotesActor).when(Quote(amount)).then_reply(Fee(amount, cents))
    given(QuotesActor).when(Quote(amount, express=True)).then_reply(Fee(amount, 2 * cents))


def test_several_transfers_are_quoted_at_once() -> None:
    given(QuotesActor).when(QuoteTransfers([1, 100_00])).then_reply(Fee(100_01, 75))


def test_an_amount_is_positive() -> None:
    given(QuotesActor).when(Quote(0)).then_invalid("/amount")
    given(QuotesActor).when(QuoteTransfers([5, -5])).then_invalid("/payload/amounts/1")
