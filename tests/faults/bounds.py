"""What must hold in time and in memory: points 8 and 9 of docs/faults.md."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.faults.fold import Finding, Fold

WARM_UP = 10_000  # requests, after which an instance has what it keeps, and the least over which growth is judged
SPAN = 10_000  # requests, by which growth is counted
# Most bytes by which an instance may grow in them. 3 MB are command ids, of which it keeps 50,000; without these
# (``narrow`` in entrypoint.py) 1.1 to 1.4 MB were measured, and 0.3 later.
GROWTH, FEW_GROWTH = 4_000_000, 2_000_000
LEAST = 10  # samples, below which nothing can be said


class Sample(NamedTuple):
    """The memory of an instance, in bytes, when the clients had had so many answers."""

    requests: int
    rss: int


@dataclass
class Watched:
    """What was seen during a run. All times are of one monotonic clock: that of the clients.

    ``deposed`` are the times in which a broker that led the log, and was paused or cut off, may have named an old end.
    ``arrived`` says when an independent consumer had received the event of a position for the first time (None: there
    was no such consumer), and ``published_s`` how long after its acknowledgement that may be. ``memory`` has the
    samples of each process, which may grow by ``growth`` bytes in SPAN requests after ``warm_up``.
    """

    deposed: list[tuple[float, float]] = field(default_factory=list)
    arrived: Mapping[str, float] | None = None
    published_s: float = math.inf
    memory: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    warm_up: int = WARM_UP
    growth: int = GROWTH

    def horizon(self, level: str, called: float) -> float:
        """Everything acknowledged before this time is in an answer of this level to a request of that time."""
        if level == "cached":
            return -math.inf
        if level == "current":
            return min([called, *(began for began, end in self.deposed if began <= called <= end)])
        return called


def check_published(fold: Fold, acknowledged: Mapping[int, float], watched: Watched) -> Iterator[Finding]:
    """``acknowledged``: for the offset of an accepted record, when a client was first answered so."""
    if watched.arrived is None:
        return
    for event in fold.events:
        at = acknowledged.get(int(event.position.split(":")[1]))
        if at is None:
            continue
        arrived = watched.arrived.get(event.position)
        if arrived is None:
            yield Finding(8, event.position, "acknowledged, and never received from the event topic")
        elif arrived - at > watched.published_s:
            late = f"received {arrived - at:.1f} s after it was acknowledged"
            yield Finding(8, event.position, f"{late}; {watched.published_s:.1f} s is what may be")


def growth(samples: Sequence[Sample], warm_up: int = WARM_UP) -> float | None:
    """By how many bytes it grows in SPAN requests once it is warm; None where that cannot be said."""
    warm = [sample for sample in samples if sample.requests >= samples[0].requests + warm_up]
    if len(warm) < LEAST or warm[-1].requests - warm[0].requests < warm_up:
        return None
    slope, _ = statistics.linear_regression([sample.requests for sample in warm], [sample.rss for sample in warm])
    return slope * SPAN


def check_growth(watched: Watched) -> Iterator[Finding]:
    for name, samples in watched.memory.items():
        grows = growth(samples, watched.warm_up)
        if grows is not None and grows > watched.growth:
            text = f"grows by {grows / 1e6:.1f} MB in {SPAN} requests; {watched.growth / 1e6:.1f} MB is what may be"
            yield Finding(9, name, text)
