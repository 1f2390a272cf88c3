"""Producers that are replaced end: with them their threads, at once and not when the collector of cycles runs."""

import asyncio
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka import appender
from hiveio.kafka.appender import Appender
from hiveio.kafka.clients import Clients
from hiveio.kafka.refusals import failed

SETTINGS = Settings(brokers="nowhere:1", kafka={"test.mock.num.brokers": "1"})  # librdkafka is its own broker
REPLACED = 5


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Of cycles."""
    gc.disable()
    yield
    gc.enable()


def client_threads() -> set[str]:
    """The ids of librdkafka's threads, which it names rdk:main, rdk:broker1 and so on."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text().startswith("rdk:"):
                found.add(task.name)
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            pass
    return found


async def until_ended(threads: set[str]) -> None:
    async with asyncio.timeout(10):
        while client_threads() & threads:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)  # what they reported before their end arrives


async def test_the_clients_that_an_appender_replaces_end(no_collection: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "REPORT_S", 0.0)
    others = client_threads()
    failures: list[str] = []
    one = Appender(SETTINGS, "log", lambda key, *_: failures.append(key), in_flight=5)
    one.start()
    for number in range(REPLACED):
        threads = client_threads() - others
        assert threads
        one.append(0, str(number), b"{}")
        one.renew()
        await until_ended(threads)
    reported = [*failures]
    one.append(0, "given up", b"{}")
    await one.stop(0.0)
    await until_ended(client_threads() - others)
    with pytest.raises(Unavailable):
        one.append(0, "after its end", b"{}")
    assert failures == reported, "nothing is reported after the end, where it would be appended again"


class Owner:
    name = "owner"

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def settle(self, reported: Any) -> None: ...
    def replace(self, client: Any, reason: str) -> None: ...


async def test_the_clients_that_a_sender_replaces_end(no_collection: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiveio.kafka.clients.CALM_S", 0.0)  # a client that failed is replaced at once
    others = client_threads()
    quiet = logging.Logger("quiet", logging.CRITICAL + 1)
    clients = Clients(Owner(), {"test.mock.num.brokers": 1, "linger.ms": 0, "logger": quiet}, 0)
    clients.make()
    for _ in range(REPLACED):
        threads = client_threads() - others
        assert threads
        clients.replace(clients.eager, failed("it is replaced"))
        clients.renew("nowhere:1")
        clients.leave([])
        await until_ended(threads)
    await clients.stop()
    await until_ended(client_threads() - others)
