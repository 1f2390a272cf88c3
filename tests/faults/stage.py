"""What a numbered fault plays on: a few instances, their Kafka and Redis behind proxies, requests one by one."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from confluent_kafka import Consumer, Producer, TopicPartition
from redis import Redis as RedisClient

from tests.faults.bounds import Watched
from tests.faults.chaos import LOCK_TTL_MS, REQUEST_TIMEOUT_MS, Instance, System
from tests.faults.checker import Call, Evidence, Result, check
from tests.faults.client import Answer, Lost, NotSent
from tests.faults.evidence import gather, log_of
from tests.faults.fold import Finding, Fold
from tests.faults.proxy import Proxy
from tests.faults.watching import Arrivals, Memory
from tests.faults.workload import Client, Workload
from tests.services import HOST, Kafka, free_port

LOCK_TTL_S, REQUEST_TIMEOUT_S = LOCK_TTL_MS / 1000, REQUEST_TIMEOUT_MS / 1000
WELL_S = 40.0  # the longest that anything may take to be well again
# From the acknowledgement of an event until others receive it, whichever instance fails: 5 s, and as much again on a
# machine that has something else to do.
PUBLISHED_S = 10.0


class Broker:
    """Kafka with a second listener behind a proxy. A context manager."""

    def __init__(self) -> None:
        port = free_port()
        self.kafka = Kafka(advertised_port=port)
        assert self.kafka.upstream_port is not None
        self.proxy = Proxy(self.kafka.upstream_port, framed=True, port=port)

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        with self._stack:
            self._stack.enter_context(self.proxy)
            self._stack.enter_context(self.kafka)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def proxied(self) -> str:
        """The bootstrap server that leads through the proxy."""
        return f"{HOST}:{self.proxy.port}"

    @property
    def brokers(self) -> str:
        """The bootstrap server that leads past it."""
        return self.kafka.brokers

    def open(self) -> None:
        """Everything passes."""
        self.proxy.open()


class Stage(System):
    """A system for one fault. Instance 0, the victim, reaches Kafka and Redis through proxies of its own:
    ``kafka_proxy`` and ``redis_proxy``. ``points`` are its fault points, as in ``{"judged": "KILL:Account/a"}``;
    ``broken`` is as in entrypoint.py, one text for each instance. An independent consumer sees to it that whatever was
    acknowledged is on the event topic within ``published_s``, and as much more as ``nobody_publishes`` lasts.
    """

    def __init__(
        self,
        broker: Broker,
        instances: int = 2,
        *,
        points: Mapping[str, str] | None = None,
        broken: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        redis_environ: Mapping[str, str] | None = None,
        published_s: float = PUBLISHED_S,
    ) -> None:
        self._broker, self.kafka_proxy = broker, broker.proxy
        self.direct = broker
        super().__init__(
            f"fault-{uuid.uuid4().hex[:8]}",
            broken or ("",) * instances,
            kafka=broker.kafka,
            environ=environ,
            redis_environ=redis_environ,
        )
        self._marks = itertools.count(1)
        self._points = points
        self.watched = Watched(published_s=published_s)

    def __enter__(self) -> Self:
        super().__enter__()
        self.workload = Workload(self.ports, 0)
        self.clients = [Client(self.workload, number, random.Random(number)) for number in range(64)]
        self._arrivals = self._stack.enter_context(Arrivals(self.direct.brokers, self.topic))
        return self

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        self.redis_proxy = stack.enter_context(Proxy(self.redis.port))
        stack.callback(self._broker.open)
        self._broker.open()

    def environ(self, number: int) -> dict[str, str]:
        environ = super().environ(number)
        if number == 0:
            environ["EVENT_STORE_BROKERS"] = self._broker.proxied
            environ["CACHE_URL"] = f"redis://{HOST}:{self.redis_proxy.port}"
            environ["HIVEIO_FAULTS"] = _text(self._points)
        return environ

    @property
    def log_topic(self) -> str:
        return f"{self.topic}.transactions"

    # -- instances

    @property
    def victim(self) -> Instance:
        return self.instances[0]

    async def meet(self, kind: str, name: str, **how: Any) -> "asyncio.Task[Call]":
        """Send the victim the command that meets its fault point; return when that has killed or stopped it.

        The other one sleeps meanwhile, so that no step is taken by it.
        """
        self.instances[1].pause()
        call = self.sending(kind, name, **how)
        async with asyncio.timeout(WELL_S):
            while self.victim.is_awake():
                if call.done() and call.result().result is Result.NOT_EXECUTED:
                    call = self.sending(kind, name, **how)  # 503: it was not ready
                await asyncio.sleep(0.02)
        self.instances[1].resume()
        return call

    async def aside(self, kind: str, name: str, **how: Any) -> Call:
        """A command that is accepted and applied by the other one, while the victim sleeps."""
        self.victim.pause()
        call = await self.accepted(kind, name, at=1, **how)
        await until(lambda: self.watermark() > (call.position or 0), "applied")
        self.victim.resume()
        return call

    def watermark(self) -> int:
        return max((int(mark.partition(b"|")[0]) for mark in self.watermarks()), default=0)

    def watermarks(self) -> list[bytes]:
        """The watermark of each scope, as it is in Redis."""
        client = self.redis_client()
        marks = [client.get(key) for key in client.scan_iter(match="hive:{*") if key.count(b":") == 2]
        return [mark for mark in marks if mark and mark.count(b"|") >= 4]

    async def start(self, points: Mapping[str, str] | None = None, instance: int = 0) -> None:
        """Start a killed one, with other fault points or without."""
        await asyncio.to_thread(self.instances[instance].kill)
        await asyncio.to_thread(self.instances[instance].start_with, HIVEIO_FAULTS=_text(points))

    async def ready(self) -> None:
        for number, instance in enumerate(self.instances):
            try:
                await until(instance.is_ready, "ready", to_thread=True)
            except AssertionError as error:
                tail = "\n".join(instance.lines("{")[-20:])
                raise AssertionError(f"instance {number}: {error}: {instance.why()}\n{tail}") from None

    # -- requests

    async def send(
        self,
        kind: str,
        name: str,
        *,
        at: int = 0,
        key: str | None = None,
        if_match: int | None = None,
        marker: str = "",
        **payload: Any,
    ) -> Call:
        """One command, on record. Told unknown if nobody answered."""
        marker = marker or f"m{next(self._marks)}"
        command = {"type": kind, "payload": {**payload, "marker": marker}}
        client = self.clients.pop()
        try:
            call = await client.send(marker, name, command, key, if_match, at)
        finally:
            self.clients.append(client)
        return call or Call(marker, name, 0, 0, Result.UNKNOWN, 0, command, key=key)

    def sending(self, kind: str, name: str, **how: Any) -> "asyncio.Task[Call]":
        return asyncio.create_task(self.send(kind, name, **how))

    async def accepted(self, kind: str, name: str, *, at: int = 0, within_s: float = WELL_S, **how: Any) -> Call:
        """A command that is accepted sooner or later; each try is a command of its own."""
        end, key = time.monotonic() + within_s, how.pop("key", None)
        for number in itertools.count():
            call = await self.send(kind, name, at=at, key=f"{key}-{number}" if key else None, **how)
            if call.result is Result.ACCEPTED:
                return call
            assert time.monotonic() < end, f"{kind} {name} at {at}: {call.status} {call.answer}"
            await asyncio.sleep(0.1)
        raise AssertionError

    async def settled(self, kind: str, name: str, **how: Any) -> Call:
        """A command with a key, sent until its answer is definite."""
        for _ in range(100):
            call = await self.send(kind, name, **how)
            if call.result not in (Result.UNKNOWN, Result.IN_WORK, Result.NOT_EXECUTED):
                return call
            await asyncio.sleep(0.1)
        raise AssertionError(f"{kind} {name}: {call}")

    @contextlib.asynccontextmanager
    async def load(self, clients: int = 16, hot: float = 0.6) -> AsyncIterator[Workload]:
        """Many clients at all instances, while the block runs."""
        load = Workload(self.ports, next(self._marks), clients=clients, hot=hot, name=f"l{next(self._marks)}-")
        load.history = self.workload.history
        running = asyncio.create_task(load.run())
        try:
            yield load
        finally:
            load.stop.set()
            await running

    @contextlib.contextmanager
    def memory(self) -> Iterator[None]:
        """Their memory is looked at, while the block runs."""
        with Memory(self.instances, lambda: len(self.workload.history)) as memory:
            self.watched.memory = memory.samples
            yield

    @contextlib.contextmanager
    def nobody_publishes(self) -> Iterator[None]:
        """Nobody can, while the block runs: what is acknowledged has so much more time to be published."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.watched.published_s += time.monotonic() - began

    async def read(self, name: str, at: int = 0, level: str = "") -> Call:
        for _ in range(200):
            if (call := await self.clients[-1].read(name, at, level)) is not None:
                return call
            await asyncio.sleep(0.1)
        raise AssertionError(f"{name} cannot be read at {at}")

    async def ask(self, method: str, path: str, at: int = 0) -> Answer | None:
        """A request that is not on record."""
        try:
            return await self.clients[-1].connections[at].request(method, path)
        except (Lost, NotSent):
            return None

    async def outcome(self, call: Call, at: int) -> Any:
        """What GET /transactions/{id} says of a call that was answered 504, asked until it is definite."""
        assert call.status == 504, call
        for _ in range(100):
            answer = await self.ask("GET", f"/transactions/{call.answer['transaction']}", at)
            if answer is not None and answer.status == 200:
                return answer.value["outcome"]
            await asyncio.sleep(0.1)
        raise AssertionError(f"no outcome of {call.marker}")

    # -- what is left

    def evidence(self, within_s: float = WELL_S) -> Evidence:
        evidence = gather(self.direct.brokers, self.cache_url, self.topic, within_s)
        end = evidence.events[-1].offset + 1 if evidence.events else 0
        self.watched.arrived = self._arrivals.wait(end, within_s)
        evidence.watched = self.watched
        return evidence

    def verdicts(self, call: Call | str) -> list[bool]:
        """The verdicts of all commits in the log that carry this command's marker, or its key."""
        marker = call if isinstance(call, str) else call.marker
        key = None if isinstance(call, str) else call.key
        fold, found = Fold(), []
        for record in log_of(self.direct.brokers, self.log_topic):
            verdict, body = fold.take(record), json.loads(record.value)
            if body["kind"] == "commit":
                events = [event for write in body["writes"] for event in write[3]]
                if any(e["payload"]["marker"] == marker for e in events) or (key and body["command"][1] == key):
                    found.append(verdict)
        return found

    def append(self, key: str, value: bytes) -> None:
        """A record that no instance wrote."""
        producer = Producer({"bootstrap.servers": self.direct.brokers, "acks": "all"})
        producer.produce(self.log_topic, value, key, 0)
        assert producer.flush(20) == 0

    def end(self, topic: str) -> int:
        """The end offset of its first partition."""
        client = Consumer({"bootstrap.servers": self.direct.brokers, "group.id": "end"})
        try:
            return int(client.get_watermark_offsets(TopicPartition(topic, 0), 10)[1])
        finally:
            client.close()

    @property
    def cache_url(self) -> str:
        """That of the server which has the cache."""
        return self.redis.url

    def redis_client(self) -> Any:
        return RedisClient.from_url(self.cache_url, socket_timeout=10)

    def findings(self, within_s: float = WELL_S) -> list[Finding]:
        """What the checker finds, once everything is at rest."""
        return check(self.evidence(within_s), self.workload.history)

    def verify(self) -> "subprocess.CompletedProcess[str]":
        """What ``hiveio verify`` says."""
        environ = {"PATH": os.environ["PATH"], **self.environ(1)}
        tool = str(Path(sys.executable).parent / "hiveio")
        return subprocess.run([tool, "verify"], env=environ, capture_output=True, text=True, timeout=90, check=False)

    async def well(self, *names: str, faults: int = 0) -> None:
        """Everything is as it should be: all instances ready, taking commands, nothing found by the checker."""
        await self.ready()
        for number in range(len(self.instances)):
            for name in (*names, f"Account/last{number}"):
                kind = {"Tally": "Add", "Pair": "Give", "Account": "Deposit"}[name.partition("/")[0]]
                await self.accepted(kind, name, at=number, amount=1)
                await self.read(name, number)
        findings = await asyncio.to_thread(self.findings)
        assert not findings, "\n".join(map(str, findings[:20]))
        reported = [line for instance in self.instances for line in instance.faults()]
        assert len(reported) <= faults, "\n".join([*reported[:5], *(i.log_tail(40) for i in self.instances)])

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        for instance in self.instances:
            instance.kill()
        super().__exit__()


def _text(points: Mapping[str, str] | None) -> str:
    return ",".join(f"{point}:{what}" for point, what in (points or {}).items() if point)


async def until(condition: Callable[[], Any], what: str, within_s: float = WELL_S, *, to_thread: bool = False) -> Any:
    """The first true value of the condition."""
    end = time.monotonic() + within_s
    while not (value := await asyncio.to_thread(condition) if to_thread else condition()):
        assert time.monotonic() < end, f"not {what} within {within_s} s"
        await asyncio.sleep(0.02)
    return value
