"""Redis: one connection, and scripts whose calls travel together.

All calls of one script made in one tick of the event loop become one EVALSHA, and all EVALSHAs of a tick one write;
during a write the next ones gather. That is 4 to 6 µs of our CPU a call instead of 57.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from hiredis import pack_command
from redis.asyncio import Redis as RedisClient
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, NoScriptError, RedisError, ResponseError

from hiveio import outages
from hiveio.errors import AWAY as DETAIL
from hiveio.errors import Unavailable, Unsafe, backend_away

logger = logging.getLogger("hiveio.redis")
TIMEOUT_S = 2.0
# RuntimeError: uvloop's, when a connection breaks between being made and being written to.
AWAY = (RedisError, OSError, TimeoutError, RuntimeError)
AWAY_S = 1.0
LOG_S = 30.0  # between two equal log lines about what Redis refuses
MAX_LOGGED = 64  # lines that are remembered for that
MAX_WAITING = 20_000  # calls during a write; beyond that they fail at once
MAX_CALLS = 256  # in one EVALSHA: Redis is busy for well under a millisecond with it
MAX_SCRIPTS = 64  # EVALSHAs in one write
SLOWEST = 5_000_000  # bytes a second, by which a large call gets more time

Argument = str | bytes | int


class Refusal(Unavailable):
    """Redis answers with an error: it is busy, full, loading, no longer the master or a node of a cluster; the user
    lacks a right; or somebody has changed a key by hand. In each case the operator of Redis can correct it.
    """

    def __init__(self, inside: str) -> None:
        super().__init__(DETAIL, inside=inside)


class Script:
    """A Lua file of the folder ``lua`` of a package.

    It gets one key, the arguments common to all calls of the batch, and then those of each call; it answers with a
    list: one item for the batch, then one for each call. It is harmless when it runs twice. Calls at the end of a batch
    that it leaves out, because its answer would be large, are made again with the next batch.
    """

    def __init__(self, name: str, package: str = "hiveio.transaction") -> None:
        self.name = name
        self.text = resources.files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")
        self.sha = ""


Parse = Callable[[Any, Any], Any]
_Batch = list[tuple[Sequence[Argument], "asyncio.Future[Any]", Parse]]
_Key = tuple[Script, str, tuple[Argument, ...]]


class Redis:
    """A client for one node. Every wait is bounded by TIMEOUT_S; nothing is sent again by itself."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._client: RedisClient = RedisClient.from_url(
            url,
            socket_timeout=None,  # a task for each write and a timer for each reply; one for all is set here
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=4,
            protocol=2,
        )
        self._batches: dict[_Key, _Batch] = {}
        self._waiting = 0  # calls that are not sent yet
        self._failing: tuple[float, str] | None = None  # since when every call has failed, and why
        self._logged: dict[str, float] = {}  # what Redis refused, and when that was logged
        self._flushing: asyncio.Task[None] | None = None
        self._outage = outages.of(f"Redis at {self.shown}")

    @property
    def shown(self) -> str:
        """Host, port and database, or the path of a socket, for messages: the rest of the URL may hold secrets."""
        parts = urlsplit(self.url)
        return parts.netloc.rpartition("@")[2] + parts.path

    async def execute(self, *command: Argument) -> Any:
        """One command. Raises Unavailable."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except AWAY as error:
            raise self._unavailable(str(command[0]), error) from None
        self._outage.back()
        return answer

    async def refuse_eviction(self) -> None:
        """Raises Unsafe for a Redis that may drop keys by itself, Unavailable when it does not answer."""
        try:
            found = await self.execute("CONFIG", "GET", "maxmemory-policy")
            policy = found[1].decode() if found else "noeviction"
        except Refusal:  # CONFIG is forbidden by some providers; INFO says it too
            memory = await self.execute("INFO", "memory")
            text = memory.get("maxmemory_policy", "") if isinstance(memory, dict) else str(memory)
            policy = text if isinstance(memory, dict) else text.partition("maxmemory_policy:")[2].split("\\r")[0]
        if policy != "noeviction":
            raise Unsafe(
                f"Redis at {self.shown} has maxmemory-policy {policy}: a Redis that evicts keys cannot be used; "
                "set maxmemory-policy noeviction"
            )

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
        future = asyncio.get_running_loop().create_future()
        if self._waiting >= MAX_WAITING:
            future.set_exception(backend_away(f"Redis at {self.shown} is slow: {MAX_WAITING} calls wait for it"))
            return future
        self._waiting += 1
        self._batches.setdefault((script, key, common), []).append((own, future, parse))
        if self._flushing is None:
            self._flushing = asyncio.ensure_future(self._flush())
        return future

    @property
    def away(self) -> str:
        """The reason, if every call has failed for AWAY_S: then it is no use to ask again for every request."""
        failing = self._failing
        return failing[1] if failing is not None and time.monotonic() - failing[0] > AWAY_S else ""

    async def _flush(self) -> None:
        try:
            while self._batches:
                batches, self._batches, self._waiting = self._batches, {}, 0
                cut = list(_cut(batches))
                for start in range(0, len(cut), MAX_SCRIPTS):
                    await self._send(cut[start : start + MAX_SCRIPTS])
        finally:
            self._flushing = None

    async def _send(self, batches: list[tuple[_Key, _Batch]]) -> None:
        try:
            replies = await self._evaluate(batches)
        except Exception as error:  # whatever it is: every caller gets an answer
            replies = [error] * len(batches)
        failures = [
            self._unavailable(f"{script.name}.lua", reply) if isinstance(reply, Exception) else None
            for ((script, _, _), _), reply in zip(batches, replies, strict=True)
        ]
        self._observe(failures)
        for (key, batch), reply, failure in zip(batches, replies, failures, strict=True):
            if failure is None and 1 < len(reply) <= len(batch):
                rest = [call for call in batch[len(reply) - 1 :] if not call[1].done()]
                self._batches[key] = rest + self._batches.get(key, [])
                self._waiting += len(rest)
                batch = batch[: len(reply) - 1]
            for index, (_, future, parse) in enumerate(batch, 1):
                if future.done():
                    continue
                if failure is not None:
                    future.set_exception(failure)
                else:
                    try:
                        future.set_result(parse(reply[0], reply[index] if index < len(reply) else None))
                    except Exception as error:  # somebody has changed a key by hand
                        future.set_exception(error)

    def _observe(self, failures: Sequence[Unavailable | None]) -> None:
        """Remember since when every call has failed, and log what Redis refuses."""
        if None in failures:
            self._failing = None
            self._outage.back()
        else:
            self._failing = (self._failing[0] if self._failing else time.monotonic()), str(failures[0])
        now = time.monotonic()
        for text in {str(failure) for failure in failures if isinstance(failure, Refusal)}:
            if now - self._logged.get(text, -LOG_S) >= LOG_S:
                if len(self._logged) >= MAX_LOGGED:
                    self._logged.clear()
                self._logged[text] = now
                logger.error("%s", text)

    def _unavailable(self, what: str, error: Exception) -> Unavailable:
        if isinstance(error, MovedError):
            return Refusal(f"Redis at {self.shown} is a node of a cluster; a single server is needed")
        if isinstance(error, ResponseError):
            return Refusal(f"Redis at {self.shown} refuses {what}: {error}")
        self._outage.away(_reason(error))
        return backend_away(f"Redis at {self.shown} does not answer: {_reason(error)}")

    async def _evaluate(self, batches: list[tuple[_Key, _Batch]]) -> list[Any]:
        scripts = {script for (script, _, _), _ in batches}
        for attempt in (1, 2):
            async with asyncio.timeout(self._timeout_s) as end:
                for script in scripts:
                    if not script.sha or attempt == 2:
                        script.sha = await self._client.script_load(script.text)
                commands = [_packed(*key, batch) for key, batch in batches]
                if (size := sum(map(len, commands))) > SLOWEST / 10:
                    end.reschedule(asyncio.get_running_loop().time() + self._timeout_s + size / SLOWEST)
                replies = await self._exchange(commands)
            if not any(isinstance(reply, NoScriptError) for reply in replies):
                break
            # A restart forgets the scripts. The others of this write have run: running twice is harmless.
        return replies

    async def _exchange(self, commands: list[bytes]) -> list[Any]:
        """One write, and a reply for each command. redis-py's pipeline does the same at twice the cost."""
        pool: Any = self._client.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(commands, check_health=False)
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    replies.append(error)
            return replies
        except BaseException:
            await connection.disconnect(nowait=True)  # replies may be on their way still
            raise
        finally:
            await pool.release(connection)

    async def stop(self) -> None:
        if self._flushing is not None:
            await asyncio.wait([self._flushing], timeout=2 * self._timeout_s)
        await self._client.aclose()


def _cut(batches: dict[_Key, _Batch]) -> Any:
    for key, batch in batches.items():
        for start in range(0, len(batch), MAX_CALLS):
            yield key, batch[start : start + MAX_CALLS]


def _packed(script: Script, key: str, common: Sequence[Argument], batch: _Batch) -> bytes:
    arguments = [argument for own, _, _ in batch for argument in own]
    packed: bytes = pack_command(("EVALSHA", script.sha, 1, key, *common, *arguments))  # type: ignore[arg-type]
    return packed


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
