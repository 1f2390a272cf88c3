"""The scopes that an instance follows: those that it has commands or reads for, and those that it leads.

The others cost it nothing. Opening a scope is what starting an instance is, for one partition: its watermark, one read
to check it, and the records from there on.
"""

import asyncio
import contextvars
from collections.abc import Callable, Iterator

from hiveio.transaction.scope import Scope


class Scopes:
    """Those that are open, by partition. Their number is that of all partitions of the log."""

    def __init__(self, count: int = 0, make: Callable[[int], Scope] | None = None) -> None:
        self._count, self._make = count, make
        self._open: dict[int, Scope] = {}
        self._on_open: list[Callable[[Scope], None]] = []
        self._context = contextvars.copy_context()  # not that of the request that happens to open a scope

    def on_open(self, prepare: Callable[[Scope], None]) -> None:
        """Call it with each scope that is opened from now on, before it begins."""
        self._on_open.append(prepare)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Scope]:
        return iter(list(self._open.values()))

    def __contains__(self, partition: int) -> bool:
        return partition in self._open

    def __getitem__(self, partition: int) -> Scope:
        """One that is open. Raises KeyError."""
        return self._open[partition]

    def use(self, partition: int) -> Scope:
        """The scope, opened if need be: somebody has work for it."""
        scope = self._open.get(partition)
        if scope is None:
            scope = self.open(partition)
        scope.used_at = asyncio.get_running_loop().time()
        return scope

    def open(self, partition: int) -> Scope:
        """Follow a scope that is not open."""
        return self._context.run(self._begin, partition)

    def _begin(self, partition: int) -> Scope:
        assert self._make is not None  # a log has partitions
        scope = self._open[partition] = self._make(partition)
        for prepare in self._on_open:
            prepare(scope)
        scope.start()
        return scope

    def forget(self, scope: Scope) -> None:
        """Follow it no more: whoever uses it from now on opens another one. The caller stops it."""
        del self._open[scope.partition]
