"""The slot in which handlers run: for how long it works before it lets other tasks work."""

import pytest

from hiveio.consumer import failures
from hiveio.consumer.failures import HandlerSlot

COMMIT_S = 0.003


class Clock:
    """Stands for the module ``time``."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    thread_time = monotonic


class SlowCommit:
    def __init__(self, clock: Clock, *, waits: bool) -> None:
        self._clock, self.waits = clock, waits

    async def commit(self) -> None:
        self._clock.now += COMMIT_S

    async def rollback(self) -> None: ...


@pytest.mark.parametrize(("waits", "expected_s"), [(False, 5 * COMMIT_S), (True, failures.SLICE_S)])
async def test_commits_that_hold_up_the_loop_take_a_small_part_of_the_time(
    monkeypatch: pytest.MonkeyPatch, waits: bool, expected_s: float
) -> None:
    """A slice as long as its commit left half of the time to the disk."""
    clock = Clock()
    monkeypatch.setattr(failures, "time", clock)
    slot = HandlerSlot(30.0)
    slot.group.open["actor"] = SlowCommit(clock, waits=waits)
    assert await slot.commit() == {}
    await slot.give_way()
    began = clock.now
    while not slot.slice_is_over:
        clock.now += 0.0001
        slot.begin()
    assert clock.now - began == pytest.approx(expected_s, abs=0.0006)
    assert clock.now - began < failures.LONGEST_SLICE_S
