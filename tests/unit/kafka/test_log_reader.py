"""Reads that wait for a client hold no threads, which others need while a broker is silent."""

import asyncio
import threading
from typing import Any

import pytest

from hiveio.config import Settings
from hiveio.kafka import log_reader, threads
from hiveio.kafka.log_reader import READERS, LogReader
from tests.unit.transaction.test_engine import until


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> LogReader:
    monkeypatch.setattr(log_reader, "reading_client", lambda *_, **__: None)
    return LogReader(Settings(brokers="silent:9092"), "log")


async def test_reads_that_wait_hold_no_threads(reader: LogReader, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, under_way = threading.Event(), []

    def silent(partition: int, offset: int) -> None:
        with reader._client():
            under_way.append(offset)
            assert answers.wait(10)

    monkeypatch.setattr(reader, "_read_message", silent)
    reads: list[Any] = [asyncio.create_task(reader.read(0, offset)) for offset in range(threads.MAX_THREADS + READERS)]
    try:
        await until(lambda: len(under_way) == READERS)
        async with asyncio.timeout(5):
            assert await threads.blocking(lambda: "others are served") == "others are served"
        reads[0].cancel()
        await asyncio.wait([reads[0]])
        assert under_way == list(range(READERS)), "the thread has its client still"
    finally:
        answers.set()
        await asyncio.gather(*reads, return_exceptions=True)
    assert len(under_way) == len(reads)
    assert 0 < len(reader._idle) <= READERS
