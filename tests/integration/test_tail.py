"""Following partitions of a log: one whose records are not taken is let go of, and nothing else waits for it."""

import asyncio
import os
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from unittest.mock import Mock

import pytest
from confluent_kafka import Message

from hiveio.config import Settings
from hiveio.kafka import tail as tails
from hiveio.kafka import unconsumed
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.tail import LogRecord, Tail, log_record
from tests.integration.topics import Written, make_topic, write
from tests.services import Kafka

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(60, func_only=True)]

RECORDS, SIZE, MOST = 120, 10_000, 200_000
BATCH = 5


@pytest.fixture(scope="module")
def topic(kafka: Kafka) -> str:
    """Three partitions with the same records."""
    topic = f"tail-{os.urandom(4).hex()}"
    make_topic(kafka.brokers, topic, 3)
    records: list[Written] = [(n % 3, f"{n // 3}", b"x" * SIZE, {}) for n in range(3 * RECORDS)]
    write(kafka.brokers, topic, records)
    return topic


@pytest.fixture
async def tail(kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tail]:
    """With small bounds."""
    monkeypatch.setattr(unconsumed, "SHARED_BYTES", MOST)
    monkeypatch.setattr(unconsumed, "LEAST_BYTES", MOST)
    monkeypatch.setattr(tails, "BATCH", BATCH)
    one = Tail(Settings(brokers=kafka.brokers), topic, make=lambda message: tails.log_record(message))
    one.start()
    yield one
    await one.stop()


class Taker:
    """Takes what arrives in one partition, if it is greedy."""

    def __init__(self, tail: Tail, partition: int, *, greedy: bool, offset: int = 0, pause_s: float = 0.0) -> None:
        self.tail, self.partition, self.greedy = tail, partition, greedy
        self.pause_s = pause_s  # of a pause that begins with the first records: a moment later all may be here
        self.held: list[LogRecord] = []
        self.seen: list[int] = []
        self.follow(offset)

    def follow(self, offset: int) -> None:
        self.held.clear()
        self.seen.clear()
        self.tail.follow(self.partition, offset, self.arrived, self.broken)

    def arrived(self, records: list[LogRecord]) -> None:
        self.held += records
        self.seen += [record.offset for record in records]
        if self.pause_s:
            self.tail.pause(self.partition, self.pause_s)
            self.pause_s = 0.0
        if self.greedy:
            self.take()

    def take(self) -> None:
        self.tail.consumed(self.partition, len(self.held))
        self.held.clear()

    def broken(self, reason: str) -> None:
        raise AssertionError(reason)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def all_of_it(*takers: Taker, offset: int = 0) -> None:
    await until(lambda: all(taker.seen and taker.seen[-1] == RECORDS - 1 for taker in takers))
    for taker in takers:
        assert taker.seen == list(range(offset, RECORDS)), "in order, each once"


async def test_a_partition_that_is_not_taken_stops_no_other_and_goes_on_where_it_was_left(tail: Tail) -> None:
    full = MOST // (SIZE + unconsumed.RECORD_BYTES)
    lazy, greedy = Taker(tail, 0, greedy=False), Taker(tail, 1, greedy=True)
    await all_of_it(greedy)
    await until(lambda: len(lazy.seen) >= full)
    late = Taker(tail, 2, greedy=True)  # an assignment made while another one is let go of
    await all_of_it(late)
    assert len(lazy.seen) <= full + 2 * BATCH, "what is held is bounded"
    held = list(lazy.seen)
    lazy.take()
    await until(lambda: len(lazy.held) >= full)
    assert lazy.seen[: len(held)] == held
    lazy.greedy = True
    lazy.take()
    await all_of_it(lazy)


async def test_a_paused_partition_is_read_on_after_the_pause_or_when_that_is_ended(tail: Tail) -> None:
    taker, other = Taker(tail, 0, greedy=True, pause_s=60), Taker(tail, 1, greedy=True)
    await until(lambda: bool(taker.seen))
    await until(lambda: tail.suspended == {0})
    await all_of_it(other)
    await asyncio.sleep(0.5)  # in which the rest would be read
    seen = len(taker.seen)
    assert seen < RECORDS
    tail.resume(0)
    await until(lambda: len(taker.seen) > seen)
    tail.pause(0, 0.2)
    began = time.monotonic()
    await until(lambda: tail.suspended == {0} or len(taker.seen) == RECORDS)
    await all_of_it(taker)
    assert time.monotonic() - began < 10


async def test_a_partition_that_is_followed_anew_is_not_paused(tail: Tail) -> None:
    taker = Taker(tail, 0, greedy=True, pause_s=60)
    await until(lambda: bool(taker.seen))
    await until(lambda: tail.suspended == {0})
    taker.follow(10)
    await all_of_it(taker, offset=10)


async def test_a_seek_makes_room_and_a_client_that_is_made_anew_keeps_to_the_bound(
    tail: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = MOST // (SIZE + unconsumed.RECORD_BYTES)
    lazy = Taker(tail, 0, greedy=False)
    await until(lambda: len(lazy.seen) >= full)
    lazy.follow(7)  # what was handed over counts no more
    await until(lambda: len(lazy.seen) >= full)
    assert lazy.seen[0] == 7
    failures = [ValueError("odd")]

    def fails(message: Message) -> LogRecord:
        if failures:
            raise failures.pop()
        return log_record(message)

    monkeypatch.setattr(tails, "log_record", fails)
    greedy = Taker(tail, 1, greedy=True)
    await all_of_it(greedy)
    assert not failures
    assert len(lazy.seen) <= full + 2 * BATCH
    made = Mock(wraps=tails.reading_client)
    monkeypatch.setattr(tails, "reading_client", made)
    tail.renew()
    await until(lambda: made.call_count == 1)
    lazy.greedy = True
    lazy.take()
    await all_of_it(lazy, offset=7)
    tail.unfollow(0)
    lazy.follow(RECORDS - 3)
    await all_of_it(lazy, offset=RECORDS - 3)


async def test_looking_for_something_in_a_stretch_of_records_keeps_one_at_a_time(kafka: Kafka, topic: str) -> None:
    reader = LogReader(Settings(brokers=kafka.brokers), topic)
    reader.renew()
    tracemalloc.start()
    try:
        found = await reader.read_each(0, 5, RECORDS, lambda message: message.offset())
        assert tracemalloc.get_traced_memory()[1] < RECORDS * SIZE / 4
    finally:
        tracemalloc.stop()
        reader.close()
    assert found == list(range(5, RECORDS))


async def test_who_reads_one_partition_does_not_wait_for_who_reads_another(kafka: Kafka, topic: str) -> None:
    reader = LogReader(Settings(brokers=kafka.brokers), topic)
    goes_on, reached = threading.Event(), threading.Event()

    def slowly(message: Message) -> int | None:
        reached.set()
        assert goes_on.wait(30)
        return message.offset()

    slow = asyncio.create_task(reader.read_each(0, 0, 3, slowly))
    try:
        await until(reached.is_set)
        async with asyncio.timeout(10):
            records = await asyncio.gather(*[reader.read(1, offset) for offset in range(6)])
        assert [record.offset for record in records if record is not None] == list(range(6))
        assert not slow.done()
    finally:
        goes_on.set()
    assert await slow == [0, 1, 2]
    reader.renew()
    assert await reader.read(0, 3) is not None
    reader.close()


async def test_an_offset_that_a_broker_does_not_know_is_lost_only_if_it_stays_so(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that led until it was cut off names an old end."""
    topic = f"tail-{os.urandom(4).hex()}"
    make_topic(kafka.brokers, topic)
    monkeypatch.setattr(tails, "REFUSED_S", 0.2)
    tail, seen, lost = Tail(Settings(brokers=kafka.brokers), topic), list[int](), list[str]()
    tail.start()
    try:
        tail.follow(0, 3, lambda records: seen.extend(record.offset for record in records), lost.append)
        await until(lambda: bool(tail.refused))
        write(kafka.brokers, topic, [(0, None, b"x", {}) for _ in range(5)])
        await until(lambda: seen == [3, 4])
        await until(lambda: not tail.refused)
        assert not lost
        monkeypatch.setattr(tails, "OLD_END_S", 0.5)
        tail.follow(0, 9, lambda records: None, lost.append)
        await until(lambda: bool(lost))
        assert "Offset out of range" in lost[0]
    finally:
        await tail.stop()
