"""What every Redis offers, be it one server or many."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.exceptions import RedisError

from hiveio.errors import AWAY as DETAIL
from hiveio.errors import Unavailable, Unsafe
from hiveio.redis.script import Argument, Parse, Script

TIMEOUT_S = 2.0
# RuntimeError: uvloop's, when a connection breaks between being made and being written to.
AWAY = (RedisError, OSError, TimeoutError, RuntimeError)


class Refusal(Unavailable):
    """Redis answers with an error: it is busy, full, being loaded, not the master any more or one of a cluster; the
    user lacks a right; or somebody has changed a key by hand. Whatever it is, the operator of Redis can mend it.
    """

    urn = "urn:hiveio:problem:unavailable"  # clients do not learn how a backend fails

    def __init__(self, inside: str) -> None:
        super().__init__(DETAIL, inside=inside)


class Redis(ABC):
    """A client. Every wait is bounded.

    Keys that belong together have one hash tag: a script, and a command with several keys, work on keys of one tag.
    """

    shown: str  # its hosts, with the database or the service, for messages: the rest of the URL may hold secrets

    @abstractmethod
    def call(
        self,
        script: Script,
        key: str,
        common: tuple[Argument, ...],
        own: Sequence[Argument],
        parse: Parse = lambda batch, call: (batch, call),
    ) -> "asyncio.Future[Any]":
        """Join the next batch of this script. The result is what ``parse`` makes of the batch's item and this call's:
        both of them, where it is not given.

        Fails with Unavailable when Redis does not answer (the script may have run), Refusal when it answers no, and
        with what ``parse`` raises.
        """

    @abstractmethod
    async def execute(self, *command: Argument, key: str | None = None) -> Any:
        """One command. ``key`` is its key, where that is not its first argument. Raises Unavailable."""

    @abstractmethod
    def away(self, key: str = "") -> str:
        """The reason, if for a second no call has come through to the server that has this key, or to any one of them:
        then asking again for every request is of no use."""

    @abstractmethod
    async def masters(self, key: str = "") -> "Sequence[Redis]":
        """Each server that takes writes, or only the one that has this key. Raises Unavailable."""

    @abstractmethod
    async def stop(self) -> None: ...

    async def scan(self, pattern: str, count: int, key: str = "") -> AsyncIterator[list[bytes]]:
        """The keys that match, in groups of which some may be empty: each comes from about ``count`` keys of one
        server, of every one in turn. With ``key`` only the server that has this one is asked. Raises Unavailable."""
        cursors: dict[Redis, Any] = dict.fromkeys(await self.masters(key), 0)
        while cursors:
            for server in list(cursors):
                cursor, keys = await server.execute("SCAN", cursors[server], "MATCH", pattern, "COUNT", count)
                cursors[server] = cursor
                if int(cursor) == 0:
                    del cursors[server]
                yield keys

    async def refuse_eviction(self) -> None:
        """Raises Unsafe for a Redis that may drop keys by itself, Unavailable when it does not answer."""
        for server in await self.masters():
            policy = await _maxmemory_policy(server)
            if policy != "noeviction":
                raise Unsafe(
                    f"Redis at {server.shown} has maxmemory-policy {policy}: what drops keys by itself cannot be "
                    "relied on; set maxmemory-policy noeviction"
                    if policy
                    else f"Redis at {server.shown} says its maxmemory-policy neither in CONFIG GET nor in INFO memory: "
                    "what may drop keys by itself cannot be relied on; use a Redis that says noeviction"
                )


async def _maxmemory_policy(server: Redis) -> str:
    """Empty where the server does not say it."""
    with contextlib.suppress(Refusal):  # some providers forbid CONFIG, and Dragonfly has no such option
        if found := await server.execute("CONFIG", "GET", "maxmemory-policy"):
            return str(found[1].decode())
    memory = await server.execute("INFO", "memory")
    return str(memory.get("maxmemory_policy", ""))
