"""One server: scripts whose calls travel together.

All calls of one script made in one tick of the event loop become one EVALSHA, and all EVALSHAs of a tick one write;
while that is under way the next ones gather. That is 4 to 6 µs of our CPU a call instead of 57.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis as RedisClient
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from hiveio import outages
from hiveio.errors import Unavailable, backend_away
from hiveio.redis.client import AWAY, TIMEOUT_S, Redis, Refusal
from hiveio.redis.script import Argument, Batch, Key, Parse, Queue, Script, fail

logger = logging.getLogger("hiveio.redis")
CONNECTIONS = 5  # one for the scripts, and one waits for a mailbox as a rule
AWAY_S = 1.0
FORGET_S = 10.0  # without a call after which nobody knows whether a server is still away
REPORT_S = 30.0  # between two log lines that say the same about what Redis refuses
MAX_REPORTED = 64  # such lines that are remembered
MAX_CALLS = 256  # in one EVALSHA: Redis is busy for well under a millisecond with it
MAX_SCRIPTS = 64  # EVALSHAs in one write
SLOWEST = 5_000_000  # bytes a second: for what a large call gets more time

# What a node of a cluster answers where it does not have the keys, or not all of them, or has no say for the moment.
ELSEWHERE = (AskError, MovedError, TryAgainError, ClusterDownError)

# Takes the batches that belong to another node; the others, with their replies, it gives back.
Sort = Callable[["Node", list[tuple[Key, Batch]], list[Any]], tuple[list[tuple[Key, Batch]], list[Any]]]


class Node(Redis):
    """A client for one server, or for the one that Sentinels name. Every wait is bounded by ``timeout_s``; nothing is
    sent again by itself.

    ``sort`` is for a node of a cluster, and so is ``whole``: the end of a second key, which never is. While the slot
    of a script's keys is moved to another node key by key, a node that lacks one of the declared keys does not run the
    script, which would find some of its keys and miss others.
    """

    def __init__(
        self,
        client: RedisClient,
        shown: str,
        *,
        timeout_s: float = TIMEOUT_S,
        sort: Sort | None = None,
        whole: str = "",
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.shown = shown
        self.where = f"Redis at {shown}"
        self._client, self._timeout_s, self._sort, self._whole = client, timeout_s, sort, whole
        self._close = close  # what else has connections
        self._queue = Queue(self.where)
        self._commands = asyncio.Semaphore(CONNECTIONS - 1)  # one connection is for the scripts
        self._loaded: set[Script] = set()
        self._failing: tuple[float, float, str] | None = None  # since when, until when, and why no call came through
        self._reported: dict[str, float] = {}  # what Redis refused, and when the log said so
        self._flushing: asyncio.Task[None] | None = None
        self._outage = outages.of(self.where)
        self._left = False  # it is no longer used

    # -- calls

    def call(
        self,
        script: Script,
        key: str,
        common: tuple[Argument, ...],
        own: Sequence[Argument],
        parse: Parse = lambda batch, call: (batch, call),
    ) -> "asyncio.Future[Any]":
        future = self._queue.add(script, key, common, own, parse)
        if self._flushing is None:
            self._flushing = asyncio.ensure_future(self._flush())
        return future

    def take_over(self, queue: Queue) -> None:
        """Send what waited elsewhere, before what came here later."""
        for key, batch in queue.take().items():
            self._queue.put_back(key, batch)
        if self._flushing is None and self._queue.batches:
            self._flushing = asyncio.ensure_future(self._flush())

    def away(self, key: str = "") -> str:
        if self._failing is None:
            return ""
        now, (since, last, reason) = time.monotonic(), self._failing
        return reason if now - since > AWAY_S and now - last < FORGET_S else ""

    async def _flush(self) -> None:
        try:
            while self._queue.batches:
                cut = list(_cut(self._queue.take()))
                for start in range(0, len(cut), MAX_SCRIPTS):
                    await self._send(cut[start : start + MAX_SCRIPTS])
        finally:
            self._flushing = None

    async def _send(self, batches: list[tuple[Key, Batch]]) -> None:
        try:
            replies = await self._evaluate(batches)
        except Exception as error:  # whatever it is: who waits for an answer is not left waiting for ever
            replies = [error] * len(batches)
        if self._sort is not None:
            batches, replies = self._sort(self, batches, replies)
            if not batches:
                return
        failures = [
            self._unavailable(f"{script.name}.lua", reply) if isinstance(reply, Exception) else None
            for ((script, _, _), _), reply in zip(batches, replies, strict=True)
        ]
        self._note(failures)
        for (key, batch), reply, failure in zip(batches, replies, failures, strict=True):
            if failure is not None:
                fail(batch, failure)
                continue
            if 1 < len(reply) <= len(batch):
                self._queue.put_back(key, batch[len(reply) - 1 :])
                batch = batch[: len(reply) - 1]
            for index, (_, future, parse) in enumerate(batch, 1):
                if future.done():
                    continue
                try:
                    future.set_result(parse(reply[0], reply[index] if index < len(reply) else None))
                except Exception as error:  # somebody has changed a key by hand
                    future.set_exception(error)

    async def _evaluate(self, batches: list[tuple[Key, Batch]]) -> list[Any]:
        for attempt in (1, 2):
            async with asyncio.timeout(self._timeout_s) as end:
                for script in {script for (script, _, _), _ in batches} - self._loaded:
                    await self._client.script_load(script.text)
                    self._loaded.add(script)
                commands = [self._packed(*key, batch) for key, batch in batches]
                if (size := sum(map(len, commands))) > SLOWEST / 10:
                    end.reschedule(asyncio.get_running_loop().time() + self._timeout_s + size / SLOWEST)
                replies = await self._exchange(commands)
            if attempt == 2 or not any(isinstance(reply, NoScriptError) for reply in replies):
                break
            # A restart forgets the scripts. The others of this write have run: running twice is harmless.
            self._loaded.clear()
        return replies

    async def _exchange(self, commands: list[bytes]) -> list[Any]:
        """One write, and a reply for each command. redis-py's pipeline does the same at twice the cost."""
        pool: Any = self._client.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(commands, check_health=False)
            replies: list[Any] = []
            read_only = False
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    replies.append(error)
                    read_only = read_only or isinstance(error, ReadOnlyError)
            if read_only:  # the name may lead to another server by now, which is the master
                await connection.disconnect()
                await pool.disconnect(inuse_connections=False)
            return replies
        except BaseException:
            await connection.disconnect(nowait=True)  # replies may be on their way still
            raise
        finally:
            await pool.release(connection)

    def _packed(self, script: Script, key: str, common: Sequence[Argument], batch: Batch) -> bytes:
        arguments = [argument for own, _, _ in batch for argument in own]
        keys: tuple[Argument, ...] = (2, key, key + self._whole) if self._whole else (1, key)
        packed: bytes = pack_command(("EVALSHA", script.sha, *keys, *common, *arguments))  # type: ignore[arg-type]
        return packed

    # -- commands

    async def execute(self, *command: Argument, key: str | None = None) -> Any:
        """One command. Raises Unavailable; from a node of a cluster also what it answers where the key is elsewhere."""
        try:
            async with asyncio.timeout(self._timeout_s), self._commands:
                answer = await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except AWAY as error:
            if isinstance(error, ReadOnlyError):
                await self._client.connection_pool.disconnect(inuse_connections=False)
            if self._sort is not None and isinstance(error, ELSEWHERE):
                raise
            raise self._unavailable(str(command[0]), error) from None
        self._outage.back()
        return answer

    async def masters(self, key: str = "") -> "Sequence[Node]":
        return [self]

    # -- what does not come through

    def _note(self, failures: Sequence[Unavailable | None]) -> None:
        """Remember since when nothing has come through, and log what Redis refuses."""
        now = time.monotonic()
        if None in failures:
            self._failing = None
            self._outage.back()
        else:
            self._failing = (self._failing[0] if self._failing else now), now, str(failures[0])
        for text in {str(failure) for failure in failures if isinstance(failure, Refusal)}:
            if now - self._reported.get(text, -REPORT_S) >= REPORT_S:
                if len(self._reported) >= MAX_REPORTED:
                    self._reported.clear()
                self._reported[text] = now
                logger.error("%s", text)

    def _unavailable(self, what: str, error: Exception) -> Unavailable:
        if isinstance(error, MovedError):
            return Refusal(f"{self.where} is a node of a cluster; write redis+cluster:// in its URL")
        if isinstance(error, ResponseError):
            return Refusal(f"{self.where} refuses {what}: {error}")
        if not self._left:
            self._outage.away(_reason(error))
        return backend_away(f"{self.where} does not answer: {_reason(error)}")

    # -- the end

    def leave(self, reason: str) -> Queue:
        """It is no longer used. What waits for it is returned."""
        self._left = True
        outages.forget(self.where, reason)
        return self._queue

    async def stop(self) -> None:
        if self._flushing is not None:
            await asyncio.wait([self._flushing], timeout=2 * self._timeout_s)
        await self._client.aclose()
        if self._close is not None:
            await self._close()


def _cut(batches: dict[Key, Batch]) -> Iterator[tuple[Key, Batch]]:
    for key, batch in batches.items():
        for start in range(0, len(batch), MAX_CALLS):
            yield key, batch[start : start + MAX_CALLS]


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
