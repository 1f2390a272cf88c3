"""Scripts, and their calls that wait to be sent."""

import asyncio
from collections.abc import Callable, Sequence
from hashlib import sha1
from importlib import resources
from typing import Any

from hiveio.errors import backend_away

MAX_WAITING = 20_000  # calls while a write is under way; beyond, they fail at once

Argument = str | bytes | int


class Script:
    """A Lua file of the folder ``lua`` of a package.

    It gets one key, the arguments common to all calls of the batch, and then those of each call; it answers with a
    list: one item for the batch, then one for each call. It is harmless when it runs twice. Calls at the end of a batch
    that it leaves out, because its answer would be large, are made again with the next batch.
    """

    def __init__(self, name: str, package: str = "hiveio.transaction") -> None:
        self.name = name
        self.text = resources.files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()  # by which Redis knows it


Parse = Callable[[Any, Any], Any]
Batch = list[tuple[Sequence[Argument], "asyncio.Future[Any]", Parse]]
Key = tuple[Script, str, tuple[Argument, ...]]  # what the calls of a batch have in common


class Queue:
    """Calls that wait to be sent, in batches."""

    __slots__ = ("batches", "waiting", "where")

    def __init__(self, where: str) -> None:
        self.where = where
        self.batches: dict[Key, Batch] = {}
        self.waiting = 0

    def add(
        self, script: Script, key: str, common: tuple[Argument, ...], own: Sequence[Argument], parse: Parse
    ) -> "asyncio.Future[Any]":
        """The future of a call. It has failed where too many wait."""
        future = asyncio.get_running_loop().create_future()
        if self.waiting >= MAX_WAITING:
            future.set_exception(backend_away(f"{self.where} is slow: {MAX_WAITING} calls wait for it"))
            return future
        self.waiting += 1
        self.batches.setdefault((script, key, common), []).append((own, future, parse))
        return future

    def put_back(self, key: Key, batch: Batch) -> None:
        """In front of those that came later."""
        calls = [call for call in batch if not call[1].done()]
        if calls:
            self.batches[key] = calls + self.batches.get(key, [])
            self.waiting += len(calls)

    def take(self) -> dict[Key, Batch]:
        """All of them."""
        batches, self.batches, self.waiting = self.batches, {}, 0
        return batches


def fail(batch: Batch, error: Exception) -> None:
    for _, future, _ in batch:
        if not future.done():
            future.set_exception(error)
