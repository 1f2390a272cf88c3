"""CloudEvents in the binary mode of Kafka's binding, which the producer writes, read by the consumer."""

import asyncio
from collections.abc import Callable

import httpx

from hiveio import Context
from hiveio.config import Settings
from tests.integration.conftest import Make
from tests.integration.consumers import Recorder, member, plain, settings
from tests.integration.test_dead_letters import QUICK, Choosy, ask, dead_letters
from tests.integration.test_producer_cloudevents import ACTOR
from tests.integration.topics import Written, make_topic, write
from tests.services import Kafka

__all__ = ["ACTOR", "settings"]

Made = Callable[..., Settings]


def cloud_event(key: str | None, data: bytes, kind: str = "com.example.Deposited", **more: str) -> Written:
    return (0, key, data, {"ce_specversion": "1.0", "ce_id": "e-1", "ce_source": "/bank", "ce_type": kind, **more})


async def test_what_the_producer_writes(kafka: Kafka, topic: str, settings: Made, producer: Make) -> None:
    contexts: list[Context] = []

    async def keep(amount: int, context: Context) -> None:
        contexts.append(context)

    with producer(EVENT_FORMAT="cloudevents") as role:
        for body in (
            {"type": "Deposit", "payload": {"amount": 5}},
            {"type": "Deposit", "payload": {"amount": 6}, "meta": {"tenant": "t1"}},
        ):
            answer = await asyncio.to_thread(httpx.post, role.url + "/accounts/a", json=body)
            assert answer.status_code == 200, answer.text
    async with member(settings()) as one:
        one.actor.on_event = keep
        await one.until(lambda: one.actor.amounts() == [5, 6])
    first, second = contexts
    assert first.id == "a"
    assert first.meta is not None
    assert first.meta["type"] == "Deposited"
    assert first.meta["source"].endswith("/Account")
    assert first.headers["ce_id"] == first.meta["id"]
    assert second.meta == {"tenant": "t1"}


async def test_beside_our_own_format_and_as_dead_letters(kafka: Kafka, topic: str, settings: Made) -> None:
    class Some(Recorder):
        name = "Recorder"
        unknown = "skip"

    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    records = [
        cloud_event("a", b'{"amount":1}'),
        *plain([2]),
        cloud_event("b", b'{"amount":3}'),
        cloud_event("b", b'{"amount":4}', "Deposited"),
        cloud_event("c", b'{"amount":"many"}'),
        cloud_event("d", b"{}, {}"),
        cloud_event("e", b'{"amount":5}', "com.example.Closed"),
    ]
    write(kafka.brokers, topic, records)
    async with member(made, Some) as one:
        failing = Choosy(one, 3)
        await one.until(lambda: one.actor.amounts() == [1, 2] and one.consumer.counts.skipped == 1)
        kept = [(r["hive-dead-reason"], r["value"]) for r in dead_letters(kafka, made)]
        assert kept == [
            ("failed", str(b'{"amount":3}')),
            ("parked", str(b'{"amount":4}')),
            ("undecodable", str(b'{"amount":"many"}')),
            ("undecodable", str(b"{}, {}")),
        ]
        failing.bad = set()
        ask(kafka, made, "retry", "b")
        await one.until(lambda: one.actor.amounts() == [1, 2, 3, 4])
