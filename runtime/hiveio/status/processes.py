"""The processes of scopes, as the cache lists them: how many there are, and what is kept of some of them."""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

from hiveio.status.model import Processes, StuckProcess
from hiveio.transaction.cache import Cache
from hiveio.transaction.entry import Entry, Watermark
from hiveio.transaction.process import RUNNING, STUCK, WAITS, Process

NAMED = 3  # stuck processes of a scope that are named


class Kept(NamedTuple):
    """What the cache has of a process of a scope. ``now`` is the time (ms) by the log's clock."""

    name: str
    partition: int
    entry: Entry
    process: Process
    now: int


def log_now(watermark: Watermark, now_s: float) -> int:
    """The time (ms) by the log's clock, which goes on with its records: so the time since the latest one is added."""
    return watermark.time + max(0, int(now_s * 1000) - watermark.stamp) if watermark.stamp else watermark.time


async def counted(cache: Cache, partition: int, watermark: Watermark) -> Processes:
    """Raises Unavailable."""
    (running, _), (stuck, found), (unanswered, oldest) = await asyncio.gather(
        cache.processes(partition, RUNNING, 0, 0),
        cache.processes(partition, STUCK, 0, NAMED),
        cache.processes(partition, WAITS, 0, 1),
    )
    named = await kept(cache, partition, [name for name, _ in found])
    since_ms = log_now(watermark, time.time()) - oldest[0][1] if oldest else None
    return Processes(
        running=running,
        stuck=stuck,
        named=[StuckProcess(each.name, each.process.stuck) for each in named],
        unanswered=unanswered,
        unanswered_s=None if since_ms is None else max(0.0, since_ms / 1000),
    )


async def kept(cache: Cache, partition: int, names: Sequence[str]) -> list[Kept]:
    """What is kept of these aggregates; one that the cache does not have is left out. Raises Unavailable."""
    found, rest, now_s = list[Kept](), list(names), time.time()
    while rest:
        replies = await cache.load(partition, [(name, "") for name in rest])
        for name, reply in zip(rest, replies, strict=False):  # one answer has as many as fit into it
            if (entry := reply.entry) is not None and reply.watermark is not None:
                now = log_now(reply.watermark, now_s)
                found.append(Kept(name, partition, entry, Process.of(entry.process), now))
        rest = rest[max(1, len(replies)) :]
    return found


async def listed(caches: Sequence[tuple[int, Cache]], part: int, first: int, count: int) -> tuple[int, list[Kept]]:
    """Of the processes of these scopes that run (RUNNING) or are stuck (STUCK), how many there are, and ``count`` of
    them from number ``first`` on. Raises Unavailable."""
    numbers = await asyncio.gather(*(cache.processes(partition, part, 0, 0) for partition, cache in caches))
    found: list[Kept] = []
    before = 0
    for (partition, cache), (number, _) in zip(caches, numbers, strict=True):
        if before + number > first and count > 0:
            _, names = await cache.processes(partition, part, max(0, first - before), count)
            found += await kept(cache, partition, [name for name, _ in names])
            count -= len(names)
        before += number
    return before, found
