"""The states of a pipeline, all pairs of them; and that none stays open for what is answered without it."""

import asyncio
import itertools

import pytest

from hiveio import testing
from hiveio.errors import Conflict
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.pipeline_state import (
    BROKEN,
    CLOSED,
    IDLE,
    OPEN,
    OPENING,
    PAUSED,
    TRANSITIONS,
    State,
    transition,
)
from tests.faults.actors import AccountActor, Deposit
from tests.unit.transaction.test_engine import until

LEGAL = {
    (IDLE, OPENING),
    (IDLE, CLOSED),
    (OPENING, OPEN),
    (OPENING, PAUSED),
    (OPEN, BROKEN),
    (OPEN, PAUSED),
    (OPEN, CLOSED),
    (BROKEN, PAUSED),
    (PAUSED, OPENING),
    (PAUSED, CLOSED),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_a_pipeline_goes_from_one_state_to_another_only_where_the_table_says_so(before: State, after: State) -> None:
    if (before, after) in LEGAL:
        assert transition(before, after) is after
    else:
        with pytest.raises(AssertionError, match=f"never goes from {before.name} to {after.name}"):
            transition(before, after)


def test_a_closed_pipeline_stays_closed_and_any_other_can_be_closed() -> None:
    assert TRANSITIONS.keys() == set(State)
    assert not TRANSITIONS[CLOSED]
    closing = {CLOSED}
    for _ in State:
        closing |= {before for before, after in LEGAL if after in closing}
    assert closing == set(State)


async def test_a_key_that_is_in_work_leaves_no_pipeline_behind() -> None:
    """While the answer of its command is read from the log."""
    async with testing.Service(AccountActor) as service:
        engine, reader = service.transactions.engine, service.transactions.scopes[0].reader
        first = await service.submit(AccountActor, "a", Deposit(1, "m"), key="k")
        asked, answer = asyncio.Event(), asyncio.Event()
        read = reader.read

        async def slowly(partition: int, offset: int) -> LogRecord | None:
            asked.set()
            await answer.wait()
            return await read(partition, offset)

        setattr(reader, "read", slowly)  # noqa: B010
        repeat = asyncio.create_task(service.submit(AccountActor, "a", Deposit(1, "m"), key="k"))
        await asked.wait()
        await until(lambda: not engine.pipelines)
        with pytest.raises(Conflict, match="is in work"):
            await service.submit(AccountActor, "a", Deposit(1, "m"), key="k")
        assert not engine.pipelines
        answer.set()
        assert await repeat == first
