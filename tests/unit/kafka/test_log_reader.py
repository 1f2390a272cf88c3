"""Reads that wait for a client hold no threads, which others need while a broker is silent."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Message

from hiveio.config import Settings
from hiveio.kafka import log_reader, threads
from hiveio.kafka.log_reader import READERS, LogReader
from tests.unit.transaction.test_engine import until


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> LogReader:
    monkeypatch.setattr(log_reader, "reading_client", lambda *_, **__: object())
    monkeypatch.setattr(log_reader, "bounds", lambda *_: (0, 1_000))
    return LogReader(Settings(brokers="silent:9092"), "log")


async def test_reads_that_wait_hold_no_threads(reader: LogReader, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, under_way = threading.Event(), []
    clients = set()

    def silent(client: Any, topic: str, partition: int, offset: int, *_: Any, **__: Any) -> Iterator[Message]:
        under_way.append(offset)
        clients.add(id(client))
        assert answers.wait(10)
        return iter(())

    monkeypatch.setattr(log_reader, "messages", silent)
    reads: list[Any] = [asyncio.create_task(reader.read(0, offset)) for offset in range(threads.MAX_THREADS + READERS)]
    try:
        await until(lambda: len(under_way) == READERS)
        async with asyncio.timeout(5):
            assert await threads.blocking(lambda: "others are served") == "others are served"
        reads[0].cancel()
        await asyncio.wait([reads[0]])
        assert sorted(under_way) == list(range(READERS)), "the thread has its client still"
    finally:
        answers.set()
        await asyncio.gather(*reads, return_exceptions=True)
    assert len(under_way) == len(reads)
    assert len(clients) <= READERS
