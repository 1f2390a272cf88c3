"""The status as it was over the last hour, for small charts, and as it is now."""

import asyncio
import logging
from collections import deque
from typing import NamedTuple

from hiveio.errors import backend_away
from hiveio.status import Collector, Status

EVERY_S = 5.0
FIRST_S = 30.0
KEPT = 720  # samples: an hour

logger = logging.getLogger("hiveio.console")


class Sample(NamedTuple):
    """Sums and maxima of one status. None where nobody could be asked."""

    time: float
    rate: float
    void_share: float
    publisher_lag_s: float | None
    group_lag: int
    group_lag_s: float | None
    dead: int
    in_flight: int | None


def sample(status: Status) -> Sample:
    lags = [scope.publisher_lag_s for scope in status.scopes if scope.publisher_lag_s is not None]
    ages = [group.lag_s for group in status.groups if group.lag_s is not None]
    # Worker processes of one service have one address, where each answers for all of them.
    flights = {each.url: each.commands_in_flight for each in status.instances if each.commands_in_flight is not None}
    shares = [scope.void_share for scope in status.scopes if scope.void_share is not None and scope.rate]
    return Sample(
        time=status.time,
        rate=sum(scope.rate for scope in status.scopes),
        void_share=max(shares, default=0.0),
        publisher_lag_s=max(lags, default=None),
        group_lag=sum(group.lag for group in status.groups),
        group_lag_s=max(ages, default=None),
        dead=sum(group.dead.count for group in status.groups),
        in_flight=sum(flights.values()) if flights else None,
    )


class History:
    """Looks every EVERY_S, whether or not somebody watches, so that a chart begins before the page was opened."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self.samples: deque[Sample] = deque(maxlen=KEPT)
        self.status: Status | None = None
        self._task: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def now(self) -> Status:
        """The latest status; the first one is waited for. Raises Unavailable where there is none for FIRST_S."""
        try:
            async with asyncio.timeout(FIRST_S):
                await self._looked.wait()
        except TimeoutError:
            raise backend_away(f"The first look has taken more than {FIRST_S:.0f} s") from None
        assert self.status is not None
        return self.status

    async def _run(self) -> None:
        while True:
            try:
                self.status = await self._collector.look()
                self.samples.append(sample(self.status))
                self._looked.set()
            except Exception:
                logger.exception("the status could not be collected, and is tried again")
            await asyncio.sleep(EVERY_S)
