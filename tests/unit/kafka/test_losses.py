"""What is lost is told at once, however short a time ago the machine was started."""

import pytest

from hiveio.errors import Unavailable
from hiveio.kafka.losses import LOG_S, Losses


def test_the_first_loss_has_a_line_and_then_one_each_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    losses, booted = Losses("visits"), 1.0
    for now in (booted, booted + 1, booted + LOG_S + 1):
        losses.refused(Unavailable("Try again."), "too large", now)
    assert [record.getMessage() for record in caplog.records] == [
        "visits: Kafka refused 1 records: Try again. (too large)",
        "visits: Kafka refused 2 records: Try again. (too large)",
    ]
