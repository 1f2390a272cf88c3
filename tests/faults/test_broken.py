"""The checker finds an engine that is built wrong, every time: nothing here hangs on chance.

Each breakage (entrypoint.py) meets the one interleaving that it does not survive. The right engine survives it in
the tests of faults 6, 18, 22, 50 and 52.
"""

import asyncio

import pytest

from tests.faults.entrypoint import LATE_S
from tests.faults.stage import Broker, Stage, until
from tests.faults.test_publishing import failed, lead
from tests.faults.test_reads import an_old_end_is_named
from tests.faults.test_two_caches import TwoCaches, both_have_the_lock

pytestmark = [
    pytest.mark.fault,
    pytest.mark.kafka,
    pytest.mark.redis,
    pytest.mark.timeout(240, func_only=True),
]


KEPT_S = 6.0  # the right engine has published by then


async def overtaken(stage: Stage) -> None:
    """The victim is paused with a decision on an old state, and appends it after another one has written."""
    await stage.accepted("Deposit", "Account/a", at=1, amount=10)
    late = await stage.meet("Withdraw", "Account/a", amount=10)
    await stage.accepted("Withdraw", "Account/a", at=1, amount=7)
    stage.victim.resume()
    await late


async def lost_meanwhile(stage: Stage) -> None:
    """The victim is paused with what it is to apply, and applies it to a new generation of the cache."""
    await stage.accepted("Deposit", "Account/b", at=1, amount=5)
    await stage.aside("Deposit", "Account/a", amount=10)
    late = await stage.meet("Deposit", "Account/a", amount=1)
    stage.redis_client().flushall()
    await stage.accepted("Deposit", "Account/b", at=1, amount=1)  # so it is noticed, and folded anew
    await until(lambda: stage.watermark() == stage.end(stage.log_topic), "folded anew")
    stage.instances[1].pause()  # it would fold once more
    folded = stage.watermarks()
    stage.victim.resume()
    await late
    await until(lambda: stage.watermarks() != folded, "applied")  # the answer does not wait for that


@pytest.mark.parametrize(
    ("way", "point"),
    [("report", 1), ("rule", 1), ("apply", 6)],
    ids=["acknowledges on the delivery report", "skips the rule", "applies without comparing the watermark"],
)
async def test_a_broken_engine_is_found(broker: Broker, way: str, point: int) -> None:
    # Where the cache is lost, the other one is built right: as blind, it would not notice, and might put it right.
    step, play, other = ("applying", lost_meanwhile, "") if way == "apply" else ("prepared", overtaken, way)
    with Stage(broker, points={step: "STOP:Account/a"}, broken=(way, other)) as stage:
        await play(stage)
        findings = stage.findings(within_s=3)
        print("\n".join(map(str, findings[:5])))
        assert point in {finding.point for finding in findings}


@pytest.mark.fault(22)
async def test_an_engine_that_trusts_its_lock_is_found_where_two_masters_give_it(broker: Broker) -> None:
    with TwoCaches(broker, broken=("trust", "trust")) as stage:
        await both_have_the_lock(stage)
        findings = stage.findings(within_s=1)
        print("\n".join(map(str, findings[:5])))
        assert 1 in {finding.point for finding in findings}


@pytest.mark.fault(52)
async def test_an_instance_that_keeps_the_lease_and_cannot_publish_is_found(broker: Broker) -> None:
    with Stage(broker, broken=("poison,keep", ""), published_s=KEPT_S) as stage:
        await lead(stage)
        await failed(stage)
        late = await stage.accepted("Deposit", "Account/a", at=1, amount=1)
        await asyncio.sleep(KEPT_S)
        findings = stage.findings(within_s=1)
        print("\n".join(map(str, findings[:5])))
        assert (8, f"0:{late.position}:0") in [(finding.point, finding.where) for finding in findings]


@pytest.mark.fault(72)  # not in the short mix: test_bounds.py has the same without an engine
async def test_an_engine_that_keeps_no_bound_is_found(broker: Broker) -> None:
    """It answers linearizable reads as current ones, publishes late, and leaks."""
    ways = "believe,late,leak"
    with Stage(broker, broken=(ways, ways), published_s=LATE_S / 2) as stage:
        stage.watched.warm_up = 500
        with stage.memory():
            async with stage.load() as load:
                await until(lambda: len(load.history) > 4 * stage.watched.warm_up, "warm, and judged")
        await stage.accepted("Deposit", "Account/a", at=1, amount=1)
        async with an_old_end_is_named(stage):
            await stage.accepted("Deposit", "Account/a", at=1, amount=1)
            await asyncio.wait_for(stage.read("Account/a", level="linearizable"), 10)
        findings = stage.findings(within_s=1)
        points = {finding.point for finding in findings}
        print("\n".join(str(next(f for f in findings if f.point == point)) for point in points))
        assert {4, 8, 9} <= points
