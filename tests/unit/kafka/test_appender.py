"""Which records the appender hands to its client together, and what becomes of those that the client does not take."""

import asyncio
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from hiveio.config import Settings
from hiveio.errors import TooLarge, Unavailable
from hiveio.kafka import appender
from hiveio.kafka.appender import UNDER_WAY, Appender

SETTINGS = Settings(brokers="nowhere:1")
LARGE = b"large"


class Producer:
    """Takes everything but large records."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __len__(self) -> int:
        return 0

    def produce(self, topic: str, value: bytes, key: str, partition: int) -> None:
        if value == LARGE:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        self.calls.append([key])

    def produce_batch(self, topic: str, messages: list[dict[str, Any]], partition: int) -> None:
        for message in messages:
            if message["value"] == LARGE:
                message["_error"] = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
        self.calls.append([message["key"] for message in messages if "_error" not in message])


class Client:
    def __init__(self) -> None:
        self.producer, self.ended = Producer(), False


class Appending:
    def __init__(self) -> None:
        self.failures: list[tuple[str, str, bool]] = []
        self.appender = Appender(SETTINGS, "log", lambda *failure: self.failures.append(failure), in_flight=1)
        self.client = Client()
        self.producer = self.client.producer

    def append(self, *keys: str, partition: int = 0, value: bytes = b"{}", in_flight: int = 0) -> None:
        for key in keys:
            self.appender.append(partition, key, value, in_flight=in_flight)

    async def until_called(self, times: int) -> list[str]:
        async with asyncio.timeout(10):
            while len(self.producer.calls) < times:
                await asyncio.sleep(0.001)
        return self.producer.calls[-1]


@pytest.fixture
async def appending(monkeypatch: pytest.MonkeyPatch) -> Appending:
    made = Appending()
    monkeypatch.setattr(appender, "Unhurried", lambda owner, config: made.client)
    made.appender.start()
    return made


async def test_few_records_are_handed_over_at_once(appending: Appending) -> None:
    for number in range(UNDER_WAY):
        appending.append(str(number), in_flight=number)
    assert appending.producer.calls == [[str(number)] for number in range(UNDER_WAY)]


async def test_further_records_are_handed_over_together_once_those_before_them_are_read_back(
    appending: Appending,
) -> None:
    appending.append("a", in_flight=UNDER_WAY)
    appending.append("b", in_flight=UNDER_WAY + 1)
    appending.appender.read_back(1, 0)  # of another partition
    appending.appender.read_back(0, 3)
    appending.append("c", in_flight=3)
    assert appending.producer.calls == []
    appending.appender.read_back(0, 3)
    assert appending.producer.calls == [["a", "b", "c"]], "in the order in which they were given"
    appending.append("d", in_flight=4)
    assert appending.producer.calls[-1] == ["d"]


async def test_records_are_not_held_back_for_long(appending: Appending) -> None:
    appending.append("a", "b", in_flight=UNDER_WAY)
    assert await appending.until_called(1) == ["a", "b"], "nothing is read back"


async def test_no_more_are_gathered_than_a_batch_has(appending: Appending) -> None:
    keys = [str(number) for number in range(SETTINGS.buffer + 1)]
    appending.append(*keys, in_flight=UNDER_WAY)
    assert appending.producer.calls == [keys[:-1]]


async def test_each_partition_has_its_own_call(appending: Appending) -> None:
    appending.append("a", "b", in_flight=UNDER_WAY)
    appending.append("c", partition=1, in_flight=UNDER_WAY)
    await appending.until_called(2)
    assert appending.producer.calls == [["a", "b"], ["c"]]


async def test_of_records_handed_over_together_one_is_refused_alone(appending: Appending) -> None:
    appending.append("a", in_flight=UNDER_WAY)
    appending.append("b", value=LARGE, in_flight=UNDER_WAY)
    appending.append("c", in_flight=UNDER_WAY)
    assert await appending.until_called(1) == ["a", "c"]
    assert appending.failures == [("b", "a transaction of 5 bytes is larger than Kafka accepts", True)]
    with pytest.raises(TooLarge, match="of 5 bytes is larger"):
        appending.append("d", value=LARGE)


async def test_what_is_gathered_when_the_client_has_ended_is_certainly_not_appended(appending: Appending) -> None:
    appending.append("a", "b", in_flight=UNDER_WAY)
    appending.client.ended = True
    async with asyncio.timeout(10):
        while len(appending.failures) < 2:
            await asyncio.sleep(0.001)
    assert appending.failures == [(key, "this instance is shutting down", True) for key in "ab"]
    with pytest.raises(Unavailable):
        appending.append("c")
