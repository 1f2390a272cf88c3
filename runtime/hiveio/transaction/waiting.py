"""Who waits for a scope: until it has judged up to an offset, or until it is ready for the first time."""

import asyncio
from collections.abc import Callable


class Waiting:
    """All that wait for one scope."""

    def __init__(self, on_wait: Callable[[], None]) -> None:
        """``on_wait`` is called where somebody begins to wait for an offset."""
        self._on_wait = on_wait
        self._offsets: dict[asyncio.Future[None], int] = {}  # the offset that each one waits for
        self._on_open: list[Callable[[], None]] = []
        self.opening = True  # the scope has not been ready yet, and may still be

    def __len__(self) -> int:
        """How many wait for an offset."""
        return len(self._offsets)

    async def reach(self, offset: int) -> None:
        """Wait until every record below ``offset`` is judged. Raises what ``end`` is given."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._offsets[future] = offset
        self._on_wait()
        try:
            await future
        finally:  # the caller may have come to its deadline
            self._offsets.pop(future, None)

    def reached(self, following: int) -> None:
        """Every record below this offset is judged."""
        for future, offset in self._offsets.items():
            if following >= offset and not future.done():
                future.set_result(None)

    def when_open(self, done: Callable[[], None]) -> None:
        """Call back once the scope is not ``opening`` any more: it is ready, or has failed."""
        self._on_open.append(done)

    async def opened(self) -> None:
        """Wait until the scope is not ``opening`` any more. Bounded by the caller."""
        if self.opening:
            done = asyncio.Event()
            self.when_open(done.set)
            await done.wait()

    def end_opening(self) -> None:
        self.opening = False
        callbacks, self._on_open = self._on_open, []
        for done in callbacks:
            done()

    def end(self, error: Callable[[], Exception]) -> None:
        """The scope has failed, or is not followed any more, so nothing is judged any more."""
        for future in self._offsets:
            if not future.done():
                future.set_exception(error())
