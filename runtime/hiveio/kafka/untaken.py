"""What a tail has handed over of its partitions and nobody has taken yet: its size in memory, and the bound on it."""

import threading
from collections import deque
from collections.abc import Collection, Iterable

RECORD_BYTES = 500  # that a record takes beside its value
SHARED_BYTES = 32_000_000  # of all partitions of a tail together, but
LEAST_BYTES = 1_000_000  # of each of them, however many they are


class _Groups:
    """Of one partition. The bytes of a group are free when all of it is taken."""

    def __init__(self) -> None:
        self.bytes = 0
        self._groups: deque[tuple[int, int]] = deque()
        self._taken = 0  # records of the first group

    def add(self, records: int, bytes: int) -> None:
        bytes += records * RECORD_BYTES
        self._groups.append((records, bytes))
        self.bytes += bytes

    def take(self, records: int) -> None:
        self._taken += records
        while self._groups and self._taken >= self._groups[0][0]:
            count, bytes = self._groups.popleft()
            self._taken -= count
            self.bytes -= bytes
        if not self._groups:
            self._taken = 0


class Untaken:
    """Added to by the thread that reads, taken from on the event loop."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Groups] = {}
        self._lock = threading.Lock()

    def begin(self, partitions: Iterable[int]) -> None:
        """Nothing is handed over of these."""
        with self._lock:
            self._partitions |= {partition: _Groups() for partition in partitions}

    def add(self, partition: int, records: int, bytes: int) -> None:
        with self._lock:
            self._partitions[partition].add(records, bytes)

    def take(self, partition: int, records: int) -> None:
        with self._lock:
            if (groups := self._partitions.get(partition)) is not None:
                groups.take(records)

    def full(self, following: Collection[int]) -> set[int]:
        """Those at their bound: each has the same share."""
        with self._lock:
            return {p for p in following if self._partitions[p].bytes >= _bound(len(following))}

    def roomy(self, following: Collection[int]) -> set[int]:
        """Those of which half the bound or more is free."""
        with self._lock:
            return {p for p in following if self._partitions[p].bytes <= _bound(len(following)) // 2}


def _bound(partitions: int) -> int:
    return max(LEAST_BYTES, SHARED_BYTES // partitions)
