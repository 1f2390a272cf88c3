"""Fault 70, which is time: an instance that has worked for long is no larger than one that is warm.

Each request may leave something behind. That the checker finds an engine that leaks: test_broken.py.
"""

import pytest

from tests.faults.bounds import WARM_UP, growth
from tests.faults.stage import Broker, Stage, until

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]
RUN_S = 150.0


@pytest.mark.fault(72)
async def test_72_memory_does_not_grow_with_the_commands(broker: Broker) -> None:
    with Stage(broker, published_s=10) as stage:
        with stage.memory():
            async with stage.load(32) as load:
                await until(lambda: len(load.history) > 2.5 * WARM_UP, "a long run", RUN_S)
        grown = {name: growth(samples) for name, samples in stage.watched.memory.items()}
        print(f"growth in 10,000 requests, of each process: {grown}")
        assert None not in grown.values(), "long enough to be judged"
        await stage.well("Account/h0", "Tally/t0")
