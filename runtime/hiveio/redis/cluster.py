"""Redis Cluster: a call goes to the master that has the slot of its key.

The topology is redis-py's. It is asked for again where a node says that it does not have a slot, or does not answer.
What a node turns away has not been carried out, so it is sent again, to where it belongs by then: the calls of a slot
wait together, and for no longer than a call may take anyway. A slot that is being moved key by key takes no calls
until it has been moved: on neither of the two nodes would a script find all of its keys.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ResponseError,
    TryAgainError,
)

from hiveio import outages
from hiveio.errors import Unavailable, backend_away
from hiveio.redis.client import TIMEOUT_S, Redis, Refusal
from hiveio.redis.node import AWAY_S, ELSEWHERE, Node, Sort
from hiveio.redis.script import Argument, Batch, Key, Parse, Queue, Script, fail

WHOLE = ":whole"  # see Node
PAUSES_S = (0.02, 0.2)  # between two attempts to send what waits for a slot; it doubles, with jitter
ASK_S = 0.5  # between two questions for the topology, at least
MAX_SLOTS = 10_000  # keys whose slot is remembered

MakeNode = Callable[[str, int, Sort, str], Node]


class _Waiting:
    """The calls of a slot that its master has turned away, or that has no master."""

    def __init__(self, where: str) -> None:
        self.queue = Queue(where)
        self.moved: MovedError | None = None  # where the slot is by what a node has said
        self.lost = False  # by what it has said it is in no cluster for the moment
        self.task: asyncio.Task[None]


class _Trouble:
    """A slot whose calls are turned away: since when, when this happened last, and why."""

    def __init__(self, now: float) -> None:
        self.since = self.last = now
        self.pause_s = 0.0
        self.reason = ""


class Cluster(Redis):
    def __init__(
        self, topology: NodesManager, shown: str, make_node: MakeNode, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.shown = shown
        self.where = f"Redis Cluster at {shown}"
        self._topology, self._make_node, self._timeout_s = topology, make_node, timeout_s
        self._given = dict(topology.startup_nodes)  # those of the URL
        self._nodes: dict[str, Node] = {}  # by host and port
        self._slots: dict[str, int] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._troubles: dict[int, _Trouble] = {}
        self._outage = outages.of(self.where)
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._unknown = ""  # why the topology could not be had, the last time
        self._failed = ""  # the node that has failed last: it is asked last
        self._leaving: set[asyncio.Task[None]] = set()

    # -- calls

    def call(
        self,
        script: Script,
        key: str,
        common: tuple[Argument, ...],
        own: Sequence[Argument],
        parse: Parse = lambda batch, call: (batch, call),
    ) -> "asyncio.Future[Any]":
        slot = self._slot(key)
        waiting = self._waiting.get(slot)
        if waiting is None:
            node = self._master(slot)
            if node is not None:
                return node.call(script, key, common, own, parse)
            waiting = self._wait(slot)
        return waiting.queue.add(script, key, common, own, parse)

    async def execute(self, *command: Argument, key: str | None = None) -> Any:
        given = command[1] if key is None else key
        slot = key_slot(given if isinstance(given, bytes) else str(given).encode())
        until, pause = time.monotonic() + self._timeout_s, PAUSES_S[0]
        while True:
            reason = self._unknown or "it has no master"
            if (node := self._master(slot)) is not None:
                try:
                    return await node.execute(*command)
                except ELSEWHERE as error:
                    reason = _said(error)
                    if isinstance(error, MovedError):
                        await self._move(error)
                    elif isinstance(error, ClusterDownError):
                        await self._ask()
                except Unavailable as error:
                    if not isinstance(error, Refusal):
                        self._ask_soon(node)
                    raise
            if time.monotonic() > until:
                raise backend_away(f"{self._shown(slot)} does not answer: {reason}")
            if node is None:
                await self._ask()
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, PAUSES_S[1])

    def away(self, key: str = "") -> str:
        if not key:
            reasons = (node.away() for node in self._nodes.values())
            return next(filter(None, (*reasons, *map(self._trouble, tuple(self._troubles)))), "")
        slot = self._slot(key)
        node = self._master(slot)
        return (node.away() if node is not None else "") or self._trouble(slot)

    def _trouble(self, slot: int) -> str:
        trouble, now = self._troubles.get(slot), time.monotonic()
        if trouble is None or now - trouble.last > self._timeout_s or now - trouble.since < AWAY_S:
            return ""
        return f"{self._shown(slot)} does not answer: {trouble.reason}"

    # -- slots

    def _shown(self, slot: int) -> str:
        return f"Slot {slot} of {self.where}"

    def _slot(self, key: str) -> int:
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= MAX_SLOTS:
                self._slots.clear()
            slot = self._slots[key] = key_slot(key.encode())
        return slot

    def _master(self, slot: int) -> Node | None:
        nodes = self._topology.slots_cache.get(slot)
        return self._node(nodes[0]) if nodes else None

    def _node(self, known: ClusterNode) -> Node:
        node = self._nodes.get(known.name)
        if node is None:
            node = self._nodes[known.name] = self._make_node(known.host, int(known.port), self._sort, WHOLE)
        return node

    async def masters(self, key: str = "") -> Sequence[Node]:
        if not self._topology.slots_cache:
            await self._ask()
        if key:
            node = self._master(self._slot(key))
            found = [node] if node is not None else []
        else:
            found = [self._node(known) for known in self._topology.get_nodes_by_server_type("primary")]
        if not found:
            raise backend_away(f"{self.where} does not answer: {self._unknown or 'no master is known'}")
        return found

    # -- what a node turns away

    def _sort(
        self, node: Node, batches: list[tuple[Key, Batch]], replies: list[Any]
    ) -> tuple[list[tuple[Key, Batch]], list[Any]]:
        left: list[tuple[Key, Batch]] = []
        answers: list[Any] = []
        for (key, batch), reply in zip(batches, replies, strict=True):
            if isinstance(reply, ELSEWHERE):
                self._turned_away(node, key, batch, reply)
                continue
            if not isinstance(reply, Exception):
                if self._troubles:
                    self._settled(self._slot(key[1]))
            elif not isinstance(reply, ResponseError):
                self._ask_soon(node)
            left.append((key, batch))
            answers.append(reply)
        return left, answers

    def _turned_away(self, node: Node, key: Key, batch: Batch, reply: Exception) -> None:
        slot = self._slot(key[1])
        waiting = self._wait(slot)
        self._troubles[slot].reason = _said(reply)
        if isinstance(reply, MovedError):
            waiting.moved = reply
        elif isinstance(reply, ClusterDownError):
            waiting.lost = True
            self._ask_soon(node)
        waiting.queue.put_back(key, batch)

    def _wait(self, slot: int) -> _Waiting:
        now = time.monotonic()
        trouble = self._troubles.get(slot)
        if trouble is None or now - trouble.last > 2 * self._timeout_s:
            trouble = self._troubles[slot] = _Trouble(now)
        trouble.last = now
        waiting = self._waiting.get(slot)
        if waiting is None:
            waiting = self._waiting[slot] = _Waiting(self.where)
            waiting.task = asyncio.create_task(self._settle(slot, waiting, trouble))
        return waiting

    async def _settle(self, slot: int, waiting: _Waiting, trouble: _Trouble) -> None:
        """Send what waits for a slot when its master is known, if nobody has waited for longer than a call may take."""
        try:
            while True:
                unknown = self._master(slot) is None
                if trouble.pause_s or not (waiting.moved or unknown):  # two nodes may point at each other
                    trouble.pause_s = min(max(2 * trouble.pause_s, PAUSES_S[0]), PAUSES_S[1])
                    await asyncio.sleep(trouble.pause_s * random.uniform(0.5, 1))
                trouble.pause_s = trouble.pause_s or PAUSES_S[0]
                moved, waiting.moved = waiting.moved, None
                if moved is not None:
                    await self._move(moved)
                elif waiting.lost or unknown:
                    await self._ask()
                if time.monotonic() - trouble.since > self._timeout_s:
                    self._give_up(slot, waiting, trouble)
                    return
                if (node := self._master(slot)) is not None:
                    node.take_over(waiting.queue)
                    return
                trouble.reason = self._unknown or "it has no master"
        except BaseException as error:
            self._fail(waiting, backend_away(f"{self.where} is no longer asked: {error!r}"))
            raise
        finally:
            self._waiting.pop(slot, None)

    def _give_up(self, slot: int, waiting: _Waiting, trouble: _Trouble) -> None:
        """They have waited for long enough. Those that come now are tried once more, and fail at once then."""
        outages.of(self._shown(slot)).away(trouble.reason)
        self._fail(waiting, backend_away(f"{self._shown(slot)} does not answer: {trouble.reason}"))

    def _fail(self, waiting: _Waiting, error: Unavailable) -> None:
        for batch in waiting.queue.take().values():
            fail(batch, error)

    def _settled(self, slot: int) -> None:
        if self._troubles.pop(slot, None) is not None and (outage := outages.known.get(self._shown(slot))):
            outage.back()

    # -- the topology

    async def _move(self, moved: MovedError) -> None:
        """Take a node at its word, and ask about the other slots."""
        if moved.host and moved.slot_id in self._topology.slots_cache:
            await self._topology.move_slot(moved)
            self._ask_soon(None)
        else:
            await self._ask()

    def _ask_soon(self, failed: Node | None) -> None:
        if failed is not None:
            self._failed = next((name for name, node in self._nodes.items() if node is failed), self._failed)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_nodes())

    async def _ask(self) -> None:
        """Return when the topology was asked for, with whatever success."""
        self._ask_soon(None)
        assert self._asking is not None
        await asyncio.wait([self._asking])

    async def _ask_nodes(self) -> None:
        try:
            pause = self._asked_at + ASK_S * random.uniform(0.5, 1) - time.monotonic()
            await asyncio.sleep(max(0.0, pause))
            async with asyncio.timeout(2 * self._timeout_s):
                await self._topology.initialize(last_failed_node_name=self._failed or None)
        except Exception as error:  # whatever it is: who needs a master asks again
            # All that it knew may be gone, and the cluster may be there again under the names of the URL.
            for name, node in self._given.items():
                self._topology.startup_nodes.setdefault(name, node)
            self._unknown = _reason(error)
            self._outage.away(self._unknown)
        else:
            self._failed = self._unknown = ""
            self._outage.back()
            self._retire()
        finally:
            self._asked_at = time.monotonic()
            self._asking = None

    def _retire(self) -> None:
        """Leave the nodes that are no masters any more; what waits for them goes to those that are."""
        masters = {known.name for known in self._topology.get_nodes_by_server_type("primary")}
        for name in self._nodes.keys() - masters:
            node = self._nodes.pop(name)
            queue = node.leave(f"it is no master of {self.where} any more")
            for (script, common_key, common), batch in queue.take().items():
                self._wait(self._slot(common_key)).queue.put_back((script, common_key, common), batch)
            task = asyncio.create_task(node.stop())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def stop(self) -> None:
        tasks = [waiting.task for waiting in self._waiting.values()] + ([self._asking] if self._asking else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._leaving, *(node.stop() for node in self._nodes.values()), return_exceptions=True)
        for attribute in ("nodes_cache", "startup_nodes"):
            await self._topology.aclose(attribute)
        await asyncio.gather(*(node.disconnect() for node in self._given.values()), return_exceptions=True)


def _said(error: Exception) -> str:
    """What a node means that turns a call away."""
    if isinstance(error, MovedError):
        return f"it has moved to {error.host}:{error.port}"
    if isinstance(error, AskError | TryAgainError):
        return "it is being moved to another node"
    return str(error)


def _reason(error: BaseException) -> str:
    """What a node has answered, where redis-py says in its stead that it is in no cluster."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ResponseError):
            return f"CLUSTER SLOTS: {found}"
        found = found.__cause__ or found.__context__
    return str(error) or type(error).__name__
