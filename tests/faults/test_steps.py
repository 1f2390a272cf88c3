"""Faults 1 to 8, 18, 19 and 27: an instance is killed or stopped at a step, and the cache is lost there."""

import shutil

import pytest

from tests.faults.checker import Result
from tests.faults.stage import LOCK_TTL_S, Broker, Stage, until

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]
ALONE = ("alone", "alone")  # so that the victim takes the lock, and gives no command to the other one
STEPS = ("opened", "prepared", "appended", "judged", "answering", "applying", "applied")


def at(point: str, action: str = "KILL", name: str = "Account/a") -> dict[str, str]:
    """The victim's first command to this aggregate will meet the fault there."""
    return {point: f"{action}:{name}"}


async def warm(stage: Stage) -> None:
    """Both are at work. Account/a is left alone: the victim applies what others do to it, and would meet its fault."""
    await stage.accepted("Deposit", "Account/b", at=1, amount=10)
    await stage.accepted("Deposit", "Account/other", amount=1)


async def contended(stage: Stage) -> None:
    """The victim has seen the other one work on account/a, so it takes the lock."""
    await warm(stage)
    await stage.accepted("Deposit", "Account/a", at=1, amount=1)
    await stage.read("Account/a", at=0)


@pytest.mark.fault(1)
async def test_01_killed_after_the_lock(broker: Broker) -> None:
    with Stage(broker, points=at("opened"), broken=ALONE) as stage:
        await contended(stage)
        call = await (await stage.meet("Deposit", "Account/a", amount=1))
        assert call.result is Result.UNKNOWN
        # The lock is in the way for its time to live at most.
        await stage.accepted("Deposit", "Account/a", at=1, within_s=LOCK_TTL_S + 10, amount=2)
        assert stage.verdicts(call) == []
        await stage.start()
        await stage.well("Account/a")


@pytest.mark.fault(2)
async def test_02_killed_after_prepare(broker: Broker) -> None:
    with Stage(broker, points=at("prepared"), broken=ALONE) as stage:
        await contended(stage)
        # The lock runs out while the actor works, so the cache votes and an intent is left.
        slow = LOCK_TTL_S * 1.3
        call = await (await stage.meet("Think", "Account/a", seconds=slow, amount=1))
        assert call.result is Result.UNKNOWN
        assert any(b":intent:" in key for key in stage.redis_client().scan_iter())
        await stage.accepted("Think", "Account/a", at=1, seconds=slow, amount=2)
        assert stage.verdicts(call) == []
        await stage.start()
        await stage.well("Account/a")


@pytest.mark.fault(3)
@pytest.mark.parametrize("landed", [False, True], ids=["on its way", "landed"])
async def test_03_killed_without_a_delivery_report(broker: Broker, landed: bool) -> None:
    with Stage(broker, points=at("judged" if landed else "appended")) as stage:
        await warm(stage)
        call = await (await stage.meet("Deposit", "Account/a", key="k", amount=1))
        assert call.result is Result.UNKNOWN
        await stage.accepted("Deposit", "Account/a", at=1, amount=2)
        verdicts = stage.verdicts(call)
        assert verdicts == [True] if landed else verdicts in ([], [True], [False])
        # The next instance makes it definite: executed once, now or then.
        again = await stage.send("Deposit", "Account/a", at=1, key="k", marker=call.marker, amount=1)
        assert again.result is Result.ACCEPTED
        assert stage.verdicts(call).count(True) == 1
        await stage.start()
        await stage.well("Account/a")


@pytest.mark.fault(4)
async def test_04_killed_before_apply(broker: Broker) -> None:
    with Stage(broker, points=at("applying")) as stage:
        await warm(stage)
        call = await (await stage.meet("Deposit", "Account/a", key="k", amount=1))
        # Another one applies it.
        await stage.accepted("Deposit", "Account/a", at=1, amount=2)
        assert stage.verdicts(call) == [True]
        assert (await stage.read("Account/a", at=1)).answer["balance"] == 3
        await stage.start()
        await stage.well("Account/a")


@pytest.mark.fault(5)
@pytest.mark.parametrize("point", ["answering", "applied"])
async def test_05_killed_before_the_answer(broker: Broker, point: str) -> None:
    with Stage(broker, points=at(point)) as stage:
        await warm(stage)
        call = await (await stage.meet("Deposit", "Account/a", key="k", amount=1))
        answers = [
            await stage.send("Deposit", "Account/a", at=1, key="k", marker=call.marker, amount=1) for _ in range(2)
        ]
        await stage.start()
        answers.append(await stage.send("Deposit", "Account/a", at=0, key="k", marker=call.marker, amount=1))
        assert {(a.result, a.version, a.position) for a in answers} == {(Result.ACCEPTED, 1, answers[0].position)}
        # The other one may have performed it before it had read the record of the first attempt: that is void.
        assert stage.verdicts(call).count(True) == 1
        await stage.well("Account/a")


@pytest.mark.fault(6)
async def test_06_stopped_holding_the_lock(broker: Broker) -> None:
    with Stage(broker, points=at("prepared", "STOP")) as stage:
        await stage.accepted("Deposit", "Account/a", at=1, amount=10)
        late = await stage.meet("Deposit", "Account/a", amount=1)
        # Another one takes over once the lock has ended.
        await stage.accepted("Deposit", "Account/a", at=1, amount=2)
        stage.victim.resume()
        call = await late
        # Its late record is void. What is answered is another record of it, performed again on the present state.
        assert stage.verdicts(call)[0] is False
        assert call.result is not Result.ACCEPTED or stage.verdicts(call)[-1] is True
        await stage.well("Account/a")


@pytest.mark.fault(7)
async def test_07_stopped_before_the_read_back(broker: Broker) -> None:
    with Stage(broker, points=at("appended", "STOP")) as stage:
        await stage.accepted("Deposit", "Account/a", at=1, amount=10)
        late = await stage.meet("Deposit", "Account/a", amount=1)
        await stage.accepted("Deposit", "Account/a", at=1, amount=2)
        stage.victim.resume()
        call = await late
        verdicts = stage.verdicts(call)
        assert (call.result is Result.ACCEPTED) == (True in verdicts)
        await stage.well("Account/a")


@pytest.mark.fault(8)
async def test_08_stopped_in_the_middle_of_apply(broker: Broker) -> None:
    with Stage(broker, points=at("applying", "STOP")) as stage:
        before = await stage.meet("Deposit", "Account/a", amount=1)
        for _ in range(5):
            await stage.accepted("Deposit", "Account/a", at=1, amount=2)
        watermark = stage.watermark()
        stage.victim.resume()
        await before
        # The late apply finds another watermark, and does nothing: the checker compares the cache with the fold.
        await until(lambda: stage.watermark() >= watermark, "as far as before")
        await stage.well("Account/a")


def lose(stage: Stage, how: str) -> None:
    if how == "flushed":
        stage.redis_client().flushall()
    else:
        stage.redis.kill()
        shutil.rmtree(stage.redis.data)
        stage.redis.start()


async def lost_at_each_step(stage: Stage, how: str) -> None:
    for step in STEPS:
        name = f"Account/{step}"
        acknowledged = await stage.aside("Deposit", name, amount=10)
        running = await stage.meet("Deposit", name, key=step, amount=1)
        lose(stage, how)
        # Replayed by the other one: nothing that was acknowledged is lost.
        read = await stage.read(name, at=1)
        assert (read.version or 0) >= (acknowledged.version or 0) > 0
        stage.victim.resume()
        await running
    await stage.well(*(f"Account/{step}" for step in STEPS))


@pytest.mark.fault(18)
async def test_18_flushed_at_each_step(broker: Broker) -> None:
    with Stage(broker, points={step: f"STOP:Account/{step}" for step in STEPS}) as stage:
        await lost_at_each_step(stage, "flushed")


@pytest.mark.fault(19)
async def test_19_redis_killed_and_back_empty_at_each_step(broker: Broker) -> None:
    with Stage(broker, points={step: f"STOP:Account/{step}" for step in STEPS}) as stage:
        await lost_at_each_step(stage, "killed")


@pytest.mark.fault(27)
async def test_27_two_aggregates_killed_between_any_two_steps(broker: Broker) -> None:
    with Stage(broker, points=at(STEPS[0], name=f"Account/{STEPS[0]}")) as stage:
        for step, following in zip(STEPS, [*STEPS[1:], ""], strict=True):
            sender, receiver = f"Account/{step}", f"Account/{step}-to"
            await stage.aside("Deposit", sender, amount=10)
            call = await (await stage.meet("Transfer", sender, key=step, to=f"{step}-to", amount=3))
            # Both or none; the checker looks at the log, the reads at the cache.
            moved = stage.verdicts(call).count(True)
            for name, balance in ((sender, 10 - 3 * moved), (receiver, 3 * moved)):
                read = await stage.read(name, at=1)
                assert (read.answer or {"balance": 0})["balance"] == balance, (step, name)
            await stage.start(at(following, name=f"Account/{following}"))
        await stage.well(*(f"Account/{step}{end}" for step in STEPS for end in ("", "-to")))
