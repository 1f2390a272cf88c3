"""Threads that call the Kafka client end when they are stopped, and at no other time."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka import delivery, replication, tail
from hiveio.kafka.client import answered
from hiveio.kafka.guard import Pauses, text, tried
from hiveio.kafka.threads import blocking


class Odd:
    """A client whose first calls fail."""

    def __init__(self, errors: list[Exception]) -> None:
        self.errors = errors
        self.calls = 0

    def poll(self, timeout_s: float) -> None:
        self.calls += 1
        time.sleep(0.001)
        if self.errors:
            raise self.errors.pop()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: []


async def test_a_call_that_raises_stop_iteration_is_not_awaited_for_ever() -> None:
    async with asyncio.timeout(5):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await blocking(next, iter(()))


def test_a_topic_waits_for_the_first_broker() -> None:
    with pytest.raises(Unavailable, match="no broker is up"):
        replication.of_new(Settings(), cast(Any, None), "orders", [])


FAILURES = [KafkaException(KafkaError(KafkaError._STATE)), RuntimeError("closed"), ValueError("anything")]


def test_whatever_is_raised_is_told() -> None:
    def fail(error: BaseException) -> None:
        raise error

    for error in (*FAILURES, SystemExit(3), KeyboardInterrupt()):
        assert tried(lambda error=error: fail(error)) is error  # type: ignore[misc]
    assert tried(lambda: None) is None
    assert text(FAILURES[0]) == "Local: Erroneous state"
    assert text(KafkaError(KafkaError._STATE)) == "Local: Erroneous state"
    assert text(FAILURES[1]) == "RuntimeError: closed"


def test_pauses_grow_and_are_bounded() -> None:
    pauses = Pauses()
    given = [pauses.next_s() for _ in range(20)]
    assert given[0] <= 0.25
    assert 5.0 <= given[-1] <= 10.0
    pauses.reset()
    assert pauses.next_s() <= 0.25


async def test_a_tail_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clients: list[Odd] = []

    def make(*_: object, **extra: object) -> Odd:
        clients.append(Odd([FAILURES[len(clients)]] if len(clients) < len(FAILURES) else []))
        return clients[-1]

    monkeypatch.setattr(tail, "reading_client", make)
    one = tail.Tail(Settings(brokers="nowhere:1"), "log")
    one.follow(0, 17, lambda _: None, lambda _: None)
    one.start()
    async with asyncio.timeout(10):
        while len(clients) <= len(FAILURES) or clients[-1].calls < 3:
            await asyncio.sleep(0.01)
    assert one.alive()
    await one.stop()
    assert caplog.text.count("is replaced") == len(FAILURES)


async def test_a_producers_thread_goes_on_and_its_client_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Owner:
        name, loop = "owner", asyncio.get_running_loop()
        reasons: list[str] = []  # noqa: RUF012

        def replace(self, client: delivery.Client, reason: str) -> None:
            self.reasons.append(reason)

    odd = Odd([*FAILURES])
    monkeypatch.setattr(delivery, "make", lambda *_: odd)
    client = delivery.Client(Owner(), {"logger": delivery.logger})  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        while odd.calls < 10 or len(Owner.reasons) < len(FAILURES):
            await asyncio.sleep(0.01)
    assert len(Owner.reasons) == len(FAILURES)
    await client.end()
    assert not any(thread.name == "owner poll" for thread in threading.enumerate())


def test_what_an_ended_client_was_asked_is_not_waited_for_without_an_end() -> None:
    with pytest.raises(KafkaException, match="Timed out"):
        answered(Future(), -0.9)
