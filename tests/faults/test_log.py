"""Faults 9 to 14, 36, 38, 45, 46, 68 and 78: what happens to appends on their way, and to the broker."""

import asyncio
import os
import time
from typing import Any

import pytest

from tests.faults.checker import Result
from tests.faults.proxy import FETCH, INIT_PRODUCER, PRODUCE, kafka
from tests.faults.stage import REQUEST_TIMEOUT_S, Broker, Stage, until
from tests.integration.topics import largest_record

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]
PAUSES_S = (1, 6, 60) if os.environ.get("HIVEIO_FAULT_LONG") else (1, 6)
CLUSTER_AUTHORIZATION_FAILED = 31  # librdkafka takes it for fatal


@pytest.mark.fault(9)
async def test_09_an_append_is_held_and_another_one_wins(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", at=1, amount=10)
        stage.kafka_proxy.up.hold(kafka(PRODUCE, stage.log_topic))
        call = await stage.send("Withdraw", "Account/a", amount=10)
        assert call.status == 504  # neither "ok" nor "failed"
        await stage.accepted("Deposit", "Account/a", at=1, amount=1)
        stage.kafka_proxy.open()
        await until(lambda: stage.verdicts(call), "landed")
        assert stage.verdicts(call) == [False]
        assert await stage.outcome(call, at=0) == "closed"
        await stage.well("Account/a")


@pytest.mark.fault(10)
async def test_10_a_response_is_lost_and_the_append_retried(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        lost = stage.kafka_proxy.down.cut(kafka(PRODUCE, stage.log_topic), times=3)
        calls = [stage.sending("Deposit", f"Account/{number % 3}", amount=1) for number in range(12)]
        for call in await asyncio.gather(*calls):
            assert call.result is Result.ACCEPTED, call
        await until(lambda: lost.count == 3, "lost three times")
        await stage.accepted("Deposit", "Account/a", amount=1)
        for call in await asyncio.gather(*calls):
            assert stage.verdicts(call) == [True]  # one copy
        await stage.well("Account/a")


@pytest.mark.fault(11)
async def test_11_a_response_is_lost_past_the_time_out(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        # Neither the report nor the read-back arrives.
        stage.kafka_proxy.down.hold(lambda message: message.api in (PRODUCE, FETCH))
        call = await stage.send("Deposit", "Account/a", amount=1)
        assert call.status == 504
        assert await stage.outcome(call, at=1) == "accepted"  # resolved by reading
        stage.kafka_proxy.open()
        assert await stage.outcome(call, at=0) == "accepted"
        assert stage.verdicts(call) == [True]
        await stage.well("Account/a")


@pytest.mark.fault(12)
async def test_12_a_barrier_against_the_late_original(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        stage.kafka_proxy.up.hold(kafka(PRODUCE, stage.log_topic))
        call = await stage.send("Deposit", "Account/a", key="k", amount=1)
        assert call.status == 504
        assert await stage.outcome(call, at=1) == "closed"  # the barrier is first
        stage.kafka_proxy.open()
        await until(lambda: stage.verdicts(call), "landed")
        assert stage.verdicts(call) == [False]
        for instance in (0, 1):
            assert await stage.outcome(call, at=instance) == "closed"
            again = await stage.send("Deposit", "Account/a", at=instance, key="k", marker=call.marker, amount=1)
            assert again.status == 409
        await stage.well("Account/a")


@pytest.mark.fault(13)
@pytest.mark.parametrize("seconds", PAUSES_S)
async def test_13_the_broker_stands_still(broker: Broker, seconds: float) -> None:
    with Stage(broker) as stage:
        pids = [instance.process.pid for instance in stage.instances if instance.process]
        async with stage.load():
            await asyncio.sleep(1)
            with stage.nobody_publishes():
                broker.kafka.pause()
                await asyncio.sleep(seconds)
                broker.kafka.resume()
            await asyncio.sleep(1)
        await stage.well("Account/h0", "Tally/t0")
        assert pids == [instance.process.pid for instance in stage.instances if instance.process]  # nobody restarted


@pytest.mark.fault(78)
async def test_78_a_repeat_while_the_broker_stands_still(broker: Broker) -> None:
    """What is on record may not be denied, though its record cannot be read."""
    with Stage(broker, 1) as stage:
        first = await stage.accepted("Deposit", "Account/a", key="k", amount=10)
        how: Any = {"key": first.key, "marker": first.marker, "amount": 10}
        for _ in range(20):
            again = await stage.send("Deposit", "Account/a", **how)
            assert (again.result, again.position, again.version) == (Result.ACCEPTED, first.position, first.version)
        with stage.nobody_publishes():
            broker.kafka.pause()
            try:
                stage.redis_proxy.down.hold()  # so the deadline comes before its record is given up
                repeat = stage.sending("Deposit", "Account/a", **how)
                await asyncio.sleep(0.3)
                stage.redis_proxy.down.open()
                call = await repeat
            finally:
                broker.kafka.resume()
        assert (call.status, call.result) == (504, Result.UNKNOWN), call
        assert call.answered - call.called < REQUEST_TIMEOUT_S + 5  # the machine may be busy
        assert await stage.outcome(call, at=0) == "accepted"
        assert (await stage.settled("Deposit", "Account/a", **how)).position == first.position
        await stage.well("Account/a")


@pytest.mark.fault(14)
async def test_14_the_broker_is_killed_and_comes_back(broker: Broker) -> None:
    with Stage(broker) as stage:
        async with stage.load():
            await asyncio.sleep(1.5)
            with stage.nobody_publishes():
                for pause_s in (1.5, 0):
                    await asyncio.to_thread(broker.kafka.kill)
                    await asyncio.to_thread(broker.kafka.start)
                    await asyncio.sleep(pause_s)
            await asyncio.sleep(1)
        await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(14)
async def test_14_a_fatal_error_of_the_producer_is_survived(broker: Broker) -> None:
    def refused(answer: bytes) -> bytes:
        at = 13  # length, correlation id, tags, throttle time; then the error code
        return answer[:at] + CLUSTER_AUTHORIZATION_FAILED.to_bytes(2, "big") + answer[at + 2 :]

    with Stage(broker, instances=1) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        stage.victim.kill()
        fatal = stage.kafka_proxy.down.edit(refused, kafka(INIT_PRODUCER), times=2)  # the appender's, the publisher's
        await stage.start()
        await stage.accepted("Deposit", "Account/a", amount=1)
        assert fatal.count == 2
        await stage.well("Account/a", faults=4)  # librdkafka says it, at its highest level


@pytest.mark.fault(36)
async def test_36_the_reader_lags(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        stage.kafka_proxy.down.hold(kafka(FETCH))
        calls = await asyncio.gather(*[stage.send("Deposit", f"Account/{n}", key=f"k{n}", amount=1) for n in range(8)])
        assert {call.status for call in calls} == {504}  # appended, and not read back

        async def refused() -> bool:
            return (await stage.send("Deposit", "Account/new", amount=1)).status == 503

        for _ in range(20):
            if await refused():
                break
        assert await refused()  # new work is not taken
        stage.kafka_proxy.open()
        for number, call in enumerate(calls):  # late, not wrong
            again = await stage.settled("Deposit", f"Account/{number}", key=f"k{number}", marker=call.marker, amount=1)
            assert again.result is Result.ACCEPTED
            assert stage.verdicts(call) == [True]
        await stage.well("Account/a")


@pytest.mark.fault(38)
async def test_38_a_record_is_too_large(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        call = await stage.send("Deposit", "Account/a", marker="x" * 950_000, amount=1)
        assert call.status == 413
        call.result = Result.REFUSED
        stage.workload.history.remove(call)
        # The lock is free: nobody has to wait for its time to end.
        await stage.accepted("Deposit", "Account/a", at=1, amount=1)
        await stage.well("Account/a")


@pytest.mark.fault(38)
async def test_38_the_queue_is_full(broker: Broker) -> None:
    with Stage(broker, environ={"KAFKA_QUEUE_BUFFERING_MAX_KBYTES": "64"}) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        stage.kafka_proxy.up.hold(kafka(PRODUCE, stage.log_topic))
        calls = [stage.sending("Deposit", f"Account/{n}", marker=f"{n}{'x' * 20_000}", amount=1) for n in range(12)]
        statuses = [call.status for call in await asyncio.gather(*calls)]
        assert set(statuses) == {503, 504}  # 503: certainly not appended
        stage.kafka_proxy.open()
        await stage.well("Account/a", *(f"Account/{n}" for n in range(12)))


@pytest.mark.fault(68)
async def test_68_kafka_refuses_a_record(broker: Broker) -> None:
    """An operator has made the largest record smaller. Nobody waits for what is known."""
    with Stage(broker, 1) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        await asyncio.to_thread(largest_record, stage.direct.brokers, stage.log_topic, 4_000)
        large = "x" * 10_000
        for number in range(100):  # until Kafka has taken note
            began = time.monotonic()
            call = await stage.send("Deposit", "Account/a", key=f"k{number}", marker=f"{number}{large}", amount=1)
            if call.result is not Result.ACCEPTED:
                break
        assert (call.status, call.result) == (503, Result.NOT_EXECUTED), call
        assert time.monotonic() - began < 2
        assert stage.victim.lines(f"Kafka refuses records of {stage.log_topic}/0")
        began = time.monotonic()
        await stage.accepted("Deposit", "Account/a", amount=1)
        assert time.monotonic() - began < 2, "it is free"
        await asyncio.to_thread(largest_record, stage.direct.brokers, stage.log_topic, 1_000_000)
        await stage.accepted("Deposit", "Account/a", marker=large, amount=1)
        assert not stage.verdicts(call)
        await stage.well("Account/a")


@pytest.mark.fault(45)
async def test_45_a_chain_whose_first_is_void(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        held = stage.kafka_proxy.up.hold(kafka(PRODUCE, stage.log_topic))
        chain = [stage.sending("Deposit", "Account/a", amount=number + 1) for number in range(12)]
        await until(held.struck.is_set, "in flight")
        await stage.accepted("Withdraw", "Account/a", at=1, amount=3)  # wins, when the lock has ended
        stage.kafka_proxy.open()
        for call in await asyncio.gather(*chain):
            verdicts = stage.verdicts(call)
            assert verdicts[0] is False  # performed on what never was
            assert verdicts.count(True) == (call.result is Result.ACCEPTED)  # and again
        assert any(call.result is Result.ACCEPTED for call in await asyncio.gather(*chain))
        await stage.well("Account/a")


@pytest.mark.fault(46)
async def test_46_an_attempt_lands_after_its_retry_was_refused(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        held = stage.kafka_proxy.up.hold(kafka(PRODUCE, stage.log_topic))
        first = stage.sending("Withdraw", "Account/a", key="k", marker="one", amount=10)
        await until(held.struck.is_set, "in flight")
        await stage.accepted("Withdraw", "Account/a", at=1, amount=5)
        again = await stage.settled("Withdraw", "Account/a", at=1, key="k", marker="one", amount=10)
        assert again.status == 422
        stage.kafka_proxy.open()
        assert (await first).result in (Result.REFUSED, Result.UNKNOWN)
        await until(lambda: stage.verdicts("one"), "landed")
        assert stage.verdicts("one") == [False]
        await stage.well("Account/a")


@pytest.mark.fault(46)
async def test_46_an_attempt_lands_after_its_key_was_closed(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        stage.kafka_proxy.up.hold(kafka(PRODUCE, stage.log_topic))
        first = await stage.send("Withdraw", "Account/a", key="k", amount=10)
        assert await stage.outcome(first, at=1) == "closed"
        again = await stage.settled("Withdraw", "Account/a", at=1, key="k", marker=first.marker, amount=10)
        assert again.status == 409
        stage.kafka_proxy.open()
        await until(lambda: stage.verdicts(first), "landed")
        assert stage.verdicts(first) == [False]
        await stage.well("Account/a")
