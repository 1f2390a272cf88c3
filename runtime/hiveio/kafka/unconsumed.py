"""Records that a tail has handed over and nobody has consumed yet: their size in memory, and its bound."""

import threading
from collections import deque
from collections.abc import Collection, Iterable

RECORD_BYTES = 500  # that a record needs in addition to its value
SHARED_BYTES = 32_000_000  # for all partitions of a tail together, and
LEAST_BYTES = 1_000_000  # at least for each of them


class _Groups:
    """The groups of one partition. The bytes of a group are free when all of it is consumed."""

    def __init__(self) -> None:
        self.bytes = 0
        self._groups: deque[tuple[int, int]] = deque()
        self._consumed = 0  # records of the first group

    def add(self, records: int, bytes: int) -> None:
        bytes += records * RECORD_BYTES
        self._groups.append((records, bytes))
        self.bytes += bytes

    def consume(self, records: int) -> None:
        self._consumed += records
        while self._groups and self._consumed >= self._groups[0][0]:
            count, bytes = self._groups.popleft()
            self._consumed -= count
            self.bytes -= bytes
        if not self._groups:
            self._consumed = 0


class Unconsumed:
    """The thread that reads adds records, and the event loop consumes them."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Groups] = {}
        self._lock = threading.Lock()

    def begin(self, partitions: Iterable[int]) -> None:
        """Begin with nothing handed over of these partitions."""
        with self._lock:
            self._partitions |= {partition: _Groups() for partition in partitions}

    def add(self, partition: int, records: int, bytes: int) -> None:
        with self._lock:
            self._partitions[partition].add(records, bytes)

    def consume(self, partition: int, records: int) -> None:
        with self._lock:
            if (groups := self._partitions.get(partition)) is not None:
                groups.consume(records)

    def size(self, partition: int) -> int:
        """The bytes of the records of this partition that are handed over and not consumed."""
        with self._lock:
            return self._partitions[partition].bytes

    def full(self, following: Collection[int]) -> set[int]:
        """The partitions at their bound; each has the same share."""
        with self._lock:
            return {p for p in following if self._partitions[p].bytes >= _bound(len(following))}

    def roomy(self, following: Collection[int]) -> set[int]:
        """The partitions of which half the bound or more is free."""
        with self._lock:
            return {p for p in following if self._partitions[p].bytes <= _bound(len(following)) // 2}


def _bound(partitions: int) -> int:
    return max(LEAST_BYTES, SHARED_BYTES // partitions)
