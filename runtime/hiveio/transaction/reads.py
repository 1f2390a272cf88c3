"""Reading the present state of an aggregate."""

import asyncio
from collections.abc import Callable
from typing import Any

from hiveio.errors import NotFound, Unavailable
from hiveio.transaction.cache import Cache
from hiveio.transaction.command import shown
from hiveio.transaction.entry import Entry
from hiveio.transaction.proof import Consistency
from hiveio.transaction.quarantine import refusal
from hiveio.transaction.scope import Scope


async def read(
    scope: Scope, cache: Cache, name: str, consistency: Consistency, timeout_s: float, pause_s: Callable[[], float]
) -> tuple[Any, int]:
    """The state and version of an aggregate. Raises NotFound if it has never existed, Unavailable."""
    try:
        async with asyncio.timeout(timeout_s):
            entry: Entry | None = None
            if consistency != "cached":
                await scope.caught_up(consistency)
                entry = scope.view.entry(name)
            while entry is None:
                if not scope.ready:
                    raise scope.unavailable()
                reply = await cache.read(scope.partition, name)
                if scope.mirror.observe_watermark(reply.watermark) and scope.ready:
                    entry = scope.reconcile(name, reply)
                if entry is None:
                    await asyncio.sleep(pause_s())
    except (TimeoutError, asyncio.CancelledError):  # the deadline of the edge may come first
        raise Unavailable(f"{shown(name)} could not be read within {timeout_s:.0f} s. Try again.") from None
    if entry.fault:
        raise refusal(name)
    if entry.state is None:
        raise NotFound(f"{shown(name)} was not found.")
    return entry.state, entry.version
