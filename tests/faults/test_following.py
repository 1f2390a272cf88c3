"""Faults 85 to 87: instances follow a scope only while they use it, and leave it and come back all the time."""

import asyncio
import contextlib
import time

import pytest

from tests.faults.entrypoint import HASTY_S
from tests.faults.proxy import PRODUCE, kafka
from tests.faults.stage import PUBLISHED_S, Broker, Stage, until
from tests.faults.test_publisher import published

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]

HASTY = ("hasty", "hasty")
CLOSED_S = 4 * HASTY_S  # after the last use; then a scope is closed, unless there is work left


@pytest.mark.fault(85)
@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_85_the_only_one_that_follows_a_scope_leaves_work(broker: Broker, how: str) -> None:
    with Stage(broker, broken=HASTY) as stage:
        first = await stage.accepted("Deposit", "Account/a", amount=1)
        await published(stage, first.marker)
        stage.kafka_proxy.up.hold(kafka(PRODUCE, stage.topic))
        left = await stage.accepted("Deposit", "Account/a", amount=1)
        if how == "killed":
            stage.victim.kill()
        else:
            stage.victim.pause()
        gone = time.monotonic()
        took = await published(stage, left.marker) - gone  # nobody sends the other one anything
        print(f"{how}: published after {took:.1f} s")
        assert took < PUBLISHED_S
        stage.kafka_proxy.open()
        if how == "killed":
            await stage.start()
        else:
            stage.victim.resume()  # it has led past its lease
        await stage.well("Account/a")


@pytest.mark.fault(86)
async def test_86_scopes_are_left_and_opened_again_while_other_things_fail(broker: Broker) -> None:
    with Stage(broker, broken=HASTY) as stage, contextlib.closing(stage.redis_client()) as client:
        for turn in range(6):
            async with stage.load():
                await asyncio.sleep(0.8)
                if turn == 1:
                    client.flushall()
                    await asyncio.sleep(0.5)
                if turn == 2:
                    await asyncio.to_thread(stage.victim.kill)
                    await stage.start()
                if turn == 3:
                    stage.victim.pause()
                    await asyncio.sleep(2.5)  # longer than its lease
                    stage.victim.resume()
            if turn == 4:  # while nobody follows
                await asyncio.sleep(CLOSED_S)
                client.flushall()
            await asyncio.sleep(CLOSED_S)
        await until(lambda: client.keys("hive:*:rest"), "left at rest")
        await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(87)
async def test_87_a_scope_is_opened_while_another_instance_that_dies_folds_its_cache(broker: Broker) -> None:
    with Stage(broker, broken=HASTY) as stage, contextlib.closing(stage.redis_client()) as client:
        async with stage.load():
            await asyncio.sleep(3)
        await asyncio.sleep(CLOSED_S)
        for paused in (False, True):
            client.flushall()
            await until(lambda: client.keys("hive:*:fold"), "being folded")
            stage.victim.pause() if paused else stage.victim.kill()
            await stage.accepted("Deposit", "Account/h0", at=1, amount=1)
            if paused:
                stage.victim.resume()
            else:
                await stage.start()
            await stage.ready()
        await stage.well("Account/h0", "Tally/t0")
