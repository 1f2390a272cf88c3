"""Faults 55 to 57: a broker's clock that jumps, records that Kafka's client writes twice, and a format that a version
does not know."""

import asyncio
import json
import time

import pytest
from confluent_kafka import Producer

from hiveio.transaction.record import FORMAT, Barrier, Upgrade, encode
from hiveio.transaction.rule import WRITERS
from tests.faults.evidence import log_of
from tests.faults.fold import Fold
from tests.faults.stage import Broker, Stage, until
from tests.integration.topics import configure

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]
WINDOW_S = 60


class Pen:
    """Writes to the log as a client of its own, with timestamps of its own where the topic takes them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._producer = Producer({"bootstrap.servers": stage.direct.brokers, "acks": "all", "linger.ms": 1})
        self._count = 0

    def write(self, stamps_s: list[float]) -> None:
        """Barriers on nothing: the log goes on, and its clock with it."""
        for stamp in stamps_s:
            self._count += 1
            key, at = f"pen-{self._count:x}", int(stamp * 1000)
            self._producer.produce(self._stage.log_topic, encode(Barrier(())), key, 0, timestamp=at)
        assert self._producer.flush(20) == 0

    def copy(self, offset: int) -> int:
        """Write the record at this offset once more; where."""
        record = log_of(self._stage.direct.brokers, self._stage.log_topic)[offset]
        end = self._stage.end(self._stage.log_topic)
        self._stage.append(record.tx, record.value)
        return end


def take_timestamps(stage: Stage) -> None:
    """The log's topic takes the timestamps that its records bring: what a broker's clock says is up to the test."""
    configure(stage.direct.brokers, stage.log_topic, {"message.timestamp.type": "CreateTime"})


@pytest.mark.fault(55)
async def test_55_a_brokers_clock_jumps_ahead_and_back(broker: Broker) -> None:
    environ = {"IDEMPOTENCY_COUNT": "2", "IDEMPOTENCY_TIME": str(WINDOW_S)}
    with Stage(broker, environ=environ) as stage:
        take_timestamps(stage)
        pen, now = Pen(stage), time.time()
        first = await stage.accepted("Deposit", "Account/a", key="k", amount=10)

        async def repeated(at: int, marker: str = "other") -> int:
            call = await stage.settled("Deposit", "Account/a", at=at, key=first.key, marker=marker, amount=10)
            if call.status == 422:  # the key came first with another body: nothing for the checker
                stage.workload.history.remove(call)
            return call.status

        pen.write([now + 3000, now + 3001, now + 3000, now, now, now])  # ahead by fifty minutes, and back
        for at in (0, 1):
            assert await repeated(at, first.marker) == 200  # the first answer: it is not forgotten at once
            assert await repeated(at) == 422
        stage.redis_client().flushall()  # a new fold says the same
        assert await repeated(1) == 422
        pen.write([now + number for number in range(WINDOW_S + 2)])
        for _ in range(100):  # an instance may not have read all of that yet
            if await repeated(0) == 200:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("the key is never forgotten")  # it should be a command of its own now
        await stage.well("Account/a")


@pytest.mark.fault(56)
async def test_56_records_are_written_twice(broker: Broker) -> None:
    with Stage(broker) as stage:
        pen = Pen(stage)
        stage.append("other-1", encode(Barrier(("Account/a",))))
        offset = stage.end(stage.log_topic) - 1
        calls = [await stage.accepted("Deposit", "Account/a", at=number % 2, amount=1) for number in range(3)]
        assert calls[0].position == offset + 1
        # The copy of the barrier would bring the head back on which the first deposit was performed.
        copies = [pen.copy(at) for at in (offset, offset + 1, offset)]
        calls.append(await stage.accepted("Deposit", "Account/a", amount=1))
        assert calls[-1].version == 4
        # So many others write that both writers are forgotten.
        crowd = Producer({"bootstrap.servers": stage.direct.brokers, "acks": "all", "linger.ms": 5})
        seen = stage.end(stage.log_topic)
        for number in range(WRITERS + 1):
            crowd.produce(stage.log_topic, encode(Barrier((), seen=seen)), f"crowd{number}-1", 0)
        assert crowd.flush(20) == 0
        copies += [pen.copy(at) for at in (offset, offset + 1)]
        stage.redis_client().flushall()
        calls.append(await stage.accepted("Deposit", "Account/a", at=1, amount=1))
        copies.append(pen.copy(offset))
        calls.append(await stage.accepted("Deposit", "Account/a", amount=1))
        assert calls[-1].version == 6
        fold = Fold()
        verdicts = [fold.take(record) for record in log_of(stage.direct.brokers, stage.log_topic)]
        assert not any(verdicts[at] for at in copies)
        await stage.well("Account/a")


@pytest.mark.fault(57)
async def test_57_an_upgrade_to_a_format_that_a_version_does_not_know(broker: Broker) -> None:
    with Stage(broker) as stage:
        last = await stage.accepted("Deposit", "Account/a", amount=10)
        await until(lambda: stage.watermark() > (last.position or 0), "applied")
        await until(lambda: stage.end(stage.topic) == 1, "published", to_thread=True)
        stage.append("upgrade", encode(Upgrade(FORMAT + 1)))
        offset = (last.position or 0) + 1
        for number, instance in enumerate(stage.instances):
            await until(lambda i=instance: not i.is_ready(), "stopped", to_thread=True)  # type: ignore[misc]
            assert f"{stage.log_topic}/0/{offset}" in instance.why()
            assert f"has format {FORMAT + 1}" in instance.why()
            assert (await stage.send("Deposit", "Account/c", at=number, amount=1)).status == 503
        assert stage.watermark() == offset  # and no further: nothing is judged by rules that do not hold
        findings = await asyncio.to_thread(lambda: stage.findings(1))
        assert {finding.where for finding in findings} <= {"watermark"}, findings
        assert json.loads(log_of(stage.direct.brokers, stage.log_topic)[-1].value)["kind"] == "upgrade"
