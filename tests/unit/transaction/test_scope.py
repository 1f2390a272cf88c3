"""Following a scope: what is no fall back of the cache."""

import logging

import pytest

from hiveio.kafka.tail import LogRecord
from hiveio.testing.service import Service
from hiveio.transaction import view
from tests.actors.tally import Tallies, Tally


async def test_a_reply_that_an_apply_overtook_is_no_fall_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More aggregates than the view keeps: folding asks the cache for them while it is being moved."""
    monkeypatch.setattr(view, "AGGREGATES", 50)
    service = Service(Tallies)
    log = service.log.partitions[0]
    value = '{"kind":"commit","command":["Tally/%d","c-%d"],"writes":[["Tally/%d","",0,[%s]]]}'
    event = '{"type":"Added","payload":{"amount":5}}'
    for number in range(5_000):
        log.append(LogRecord(len(log), f"t-{number}", (value % (number, number, number, event)).encode(), 1))
    with caplog.at_level(logging.WARNING, "hiveio.scope"):
        async with service:
            assert await service.read(Tallies, "4999") == (Tally(5, 1), 1)
            assert await service.read(Tallies, "0") == (Tally(5, 1), 1)
    assert not caplog.records
