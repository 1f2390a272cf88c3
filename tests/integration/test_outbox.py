"""Commands of processes reach their topic, each once, in the order of the log; deadlines fire on a real log."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from hiveio.actor import contracts
from hiveio.config import Settings
from hiveio.envelope import Envelope, encode_message
from hiveio.kafka.headers import headers_of
from hiveio.messages import Event
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.process import Input
from tests.actors import fulfilment
from tests.actors.fulfilment import Fulfilment, OrderPlaced, PaymentReserved
from tests.integration.topics import read_all
from tests.services import Kafka, Redis

pytestmark = [pytest.mark.timeout(90)]


@asynccontextmanager
async def instances(kafka: Kafka, redis: Redis, topic: str, count: int) -> AsyncIterator[list[TransactionLog]]:
    settings = Settings(brokers=kafka.brokers, topic=topic, cache_url=redis.url)
    logs = [TransactionLog(settings, contracts([Fulfilment])) for _ in range(count)]
    try:
        for log in logs:
            await log.start()
        while any([await log.ready() for log in logs]):
            await asyncio.sleep(0.01)
        yield logs
    finally:
        for log in logs:
            await log.stop()


async def give(log: TransactionLog, event: Event, source: str) -> bytes:
    (contract,) = log.contracts
    body = encode_message(event)
    message, _ = contract.input_codec.decode(body)
    envelope = Envelope(message=message, id=contract.correlates[type(event).__name__](message, None), body=body)
    return (await log.engine.submit(contract, envelope, Input(source)).future).encoded or b""


def commands(kafka: Kafka, topic: str) -> list[tuple[str, str, dict[str, str]]]:
    """Of each record on the topic: the key, the type, and the headers. Repeats are left out."""
    found, last = [], (-1, -1)
    for message in read_all(kafka.brokers, f"{topic}.commands"):
        headers: dict[str, Any] = {name: (value or b"").decode() for name, value in headers_of(message)}
        _, offset, index = map(int, headers["hive-position"].split(":"))
        if (offset, index) > last:
            last = offset, index
            found.append(((message.key() or b"").decode(), (message.value() or b"").decode(), headers))
    return found


async def eventually(kafka: Kafka, topic: str, count: int) -> list[tuple[str, str, dict[str, str]]]:
    async with asyncio.timeout(20):
        while len(found := await asyncio.to_thread(commands, kafka, topic)) < count:
            await asyncio.sleep(0.1)
    return found


async def test_commands_are_published_once_and_deadlines_fire_over_restarts(
    kafka: Kafka, redis: Redis, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fulfilment, "WAIT", timedelta(hours=1))
    async with instances(kafka, redis, topic, 2) as (a, b):
        orders = [OrderPlaced(f"o{number}", number) for number in range(20)]
        twice = [give(log, order, f"orders/id/0/{order.amount}") for order in orders for log in (a, b)]
        assert sum(b"Started" in answer for answer in await asyncio.gather(*twice)) == 20
        assert len(await eventually(kafka, topic, 20)) == 20
    monkeypatch.setattr(fulfilment, "WAIT", timedelta(seconds=4))
    async with instances(kafka, redis, topic, 1) as (c,):
        assert await give(c, orders[3], "orders/id/0/3") == b"null", "it was taken before the restart"
        began = time.monotonic()
        await give(c, OrderPlaced("late", 5), "orders/id/0/20")
        await give(c, OrderPlaced("paid", 5), "orders/id/0/21")
        await give(c, PaymentReserved("paid"), "payments/id/0/0")
        found = await eventually(kafka, topic, 24)
        assert 3.9 < time.monotonic() - began < 10.5
        await asyncio.sleep(1)
        assert found == await asyncio.to_thread(commands, kafka, topic), "the deadline of the paid order was cancelled"
    assert [(key, text) for key, text, _ in found[20:]] == [
        ("late", '{"type":"ReservePayment","payload":{"amount":5}}'),
        ("paid", '{"type":"ReservePayment","payload":{"amount":5}}'),
        ("paid", '{"type":"Ship","payload":{}}'),
        ("late", '{"type":"CancelPayment","payload":{}}'),
    ]
    positions = [headers["hive-position"] for _, _, headers in found]
    assert [headers.get("hive-previous") for _, _, headers in found] == [None, *positions[:-1]], "no gap"
    assert {headers["hive-process"] for key, _, headers in found if key == "late"} == {"Fulfilment/late"}
    assert {headers["hive-service"] for _, text, headers in found if "Ship" in text} == {"stock"}
