"""Producers that are replaced end: with them their threads, at once and not when the collector of cycles runs."""

import asyncio
import gc
import logging
from collections.abc import Iterator
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka import appender
from hiveio.kafka.appender import Appender
from hiveio.kafka.clients import Clients
from hiveio.kafka.refusals import failed

SETTINGS = Settings(brokers="nowhere:1", kafka={"test.mock.num.brokers": "1"})  # librdkafka is its own broker
REPLACED = 5  # clients; each has four threads or more, and the pool for blocking calls may grow by a few


@pytest.fixture
def process() -> Iterator[psutil.Process]:
    """This one, in which nothing is collected meanwhile."""
    gc.disable()
    yield psutil.Process()
    gc.enable()


async def until_threads_end(process: psutil.Process, before: int) -> None:
    async with asyncio.timeout(10):
        while process.num_threads() >= before + REPLACED:
            await asyncio.sleep(0.01)


async def test_the_clients_that_an_appender_replaces_end(
    process: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "REPORT_S", 0.0)
    failures: list[str] = []
    one = Appender(SETTINGS, "log", lambda key, *_: failures.append(key), in_flight=5)
    one.start()
    before = process.num_threads()
    for number in range(REPLACED):
        one.append(0, str(number), b"{}")
        one.renew()
    await until_threads_end(process, before)
    one.append(0, "last", b"{}")
    await one.stop(5.0)
    failures_before = [*failures]
    with pytest.raises(Unavailable):
        one.append(0, "after its end", b"{}")
    await until_threads_end(process, before - REPLACED)
    assert failures == failures_before, "nothing is reported after the end"


class Owner:
    name = "owner"

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def settle(self, reported: Any) -> None: ...
    def replace(self, client: Any, reason: str) -> None: ...


async def test_the_clients_that_a_sender_replaces_end(process: psutil.Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiveio.kafka.clients.CALM_S", 0.0)  # a client that failed is replaced at once
    quiet = logging.Logger("quiet", logging.CRITICAL + 1)
    clients = Clients(Owner(), {"test.mock.num.brokers": 1, "linger.ms": 0, "logger": quiet}, 0)
    clients.make()
    before = process.num_threads()
    for _ in range(REPLACED):
        clients.replace(clients.eager, failed("it is replaced"))
        clients.renew("nowhere:1")
        clients.leave([])
    await until_threads_end(process, before)
    await clients.stop()
