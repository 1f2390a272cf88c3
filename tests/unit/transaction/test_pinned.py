"""How many requests with records an instance has under way: several, where a copy of a record is void."""

from typing import Any

import pytest

from hiveio.kafka.tail import LogRecord
from hiveio.testing.service import memory_settings
from hiveio.transaction.cache import Watermark
from hiveio.transaction.pinned import Pinned
from hiveio.transaction.record import Format, encode


class Backends:
    """The first record of a partition, and the watermark of its cache."""

    def __init__(self, format: int, mark: Watermark | None) -> None:
        self._format, self._mark = format, mark

    async def read(self, partition: int, offset: int) -> LogRecord | None:
        value = encode(Format(self._format, 1, "crc32", 1, 1))
        return LogRecord(0, "format-x", value, 0) if self._format else None

    async def begin(self, partition: int) -> tuple[bytes, tuple[None, None]]:
        return self._mark.text.encode() if self._mark else b"", (None, None)


@pytest.mark.parametrize(
    ("format", "mark", "expected"),
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
    format: int, mark: Watermark | None, expected: int
) -> None:
    backends: Any = Backends(format, mark)
    pinned = Pinned(memory_settings(None), (), backends, backends)
    assert await pinned.in_flight(1, "topic id", backends) == expected
