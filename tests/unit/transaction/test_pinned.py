"""How many requests with records an instance has under way: several, where a copy of a record is void."""

from typing import Any

import pytest

from hiveio.kafka.tail import LogRecord
from hiveio.testing.service import memory_settings
from hiveio.transaction.entry import CacheReply, Watermark
from hiveio.transaction.pinned import Pinned
from hiveio.transaction.record import Format, encode


class FirstRecord:
    """A log with this record, or an empty one."""

    def __init__(self, format: int) -> None:
        self._format = format

    async def first_records(self, partitions: list[int]) -> dict[int, LogRecord]:
        value = encode(Format(self._format, 1, "crc32", 1, 1))
        return {partition: LogRecord(0, "format-x", value, 0) for partition in partitions if self._format}


class Marked:
    """A cache that has come to this watermark."""

    def __init__(self, watermark: Watermark | None) -> None:
        self._watermark = watermark

    async def read(self, partition: int) -> CacheReply:
        return CacheReply(self._watermark)


@pytest.mark.parametrize(
    ("format", "watermark", "expected"),
    [
        (0, None, 5),  # the log is made with format 2
        (2, None, 5),
        (1, None, 1),  # it may have been upgraded, and nobody knows
        (1, Watermark(9, 0, "topic id", "generation", 1), 1),
        (1, Watermark(9, 0, "topic id", "generation", 2), 5),
        (1, Watermark(9, 0, "another log", "generation", 2), 1),
    ],
)
async def test_one_is_under_way_where_a_partition_may_have_format_1(
    format: int, watermark: Watermark | None, expected: int
) -> None:
    log: Any = FirstRecord(format)
    cache: Any = Marked(watermark)
    pinned = Pinned(memory_settings(None), (), log, log, log)
    assert [await pinned.in_flight(count, "topic id", cache) for count in (1, 3, 200)] == [
        1,
        min(3, expected),
        expected,
    ]
