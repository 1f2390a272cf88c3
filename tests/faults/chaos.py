"""The system under test as processes, and what is done to it."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]

from tests.services import HOST, Kafka, Redis, Service

HERE = Path(__file__).parent
ENTRYPOINT = HERE.parents[1] / "images" / "stream-processor" / "entrypoint.py"
LOCK_TTL_MS = 1000
REQUEST_TIMEOUT_MS = 4000
KAFKA_PAUSE_S = 5.0


class Instance(Service):
    """One stream processor with its workers: a process group of its own, on a port that stays."""

    name = "stream-processor"

    def __init__(self, environ: Mapping[str, str], broken: str = "") -> None:
        self.broken = broken
        self._environ = dict(environ)
        self._further: dict[str, str] = {}
        super().__init__(None, None)

    def start_with(self, **environ: str) -> None:
        """Start with these settings, for this time, besides its own."""
        self._further = environ
        self.start(90.0)

    def resume(self) -> None:
        """Not awaited: at a fault point it may stop again at once, and never be seen to go on."""
        self._signal(signal.SIGCONT)

    def is_awake(self) -> bool:
        """Whether it runs: neither ended nor stopped."""
        if self.process is None or self.process.poll() is not None:
            return False
        return bool(psutil.Process(self.process.pid).status() != psutil.STATUS_STOPPED)

    def _command(self) -> list[str]:
        environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PORT": str(self.port), "HIVEIO_BROKEN": self.broken}
        environ |= self._environ | self._further
        entrypoint = HERE / "entrypoint.py" if self.broken else ENTRYPOINT
        settings = [f"{name}={value}" for name, value in environ.items()]
        return ["/usr/bin/env", "-i", *settings, sys.executable, str(entrypoint)]

    def _probe(self) -> Callable[[], bool]:
        return self.is_ready

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/readyz", timeout=3) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def why(self) -> str:
        """What /readyz?verbose says."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/readyz?verbose", timeout=3) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError as error:
            return str(error)

    def faults(self) -> list[str]:
        """Lines of its log that report a fault of ours: a traceback or a critical line. The one that shows where a late
        event loop is has level info, and is none."""
        found = self.lines('"traceback"', '"critical"', "Traceback")
        return [line for line in found if '"level":"info"' not in line]

    def lines(self, *texts: str) -> list[str]:
        """Lines of its log that contain one of these."""
        console = self.folder / "console.log"
        lines = console.read_text("utf-8", "replace").splitlines() if console.exists() else []
        return [line for line in lines if any(text in line for text in texts)]


class System:
    """Instances (three of them), Redis, and a Kafka of their own unless one is given. A context manager.

    ``environ`` is added to the environment of the instances, ``redis_environ`` to that of Redis.
    """

    def __init__(
        self,
        topic: str,
        broken: Sequence[str] = ("", "", ""),
        *,
        kafka: Kafka | None = None,
        environ: Mapping[str, str] | None = None,
        redis_environ: Mapping[str, str] | None = None,
    ) -> None:
        self.topic = topic
        self._stack = contextlib.ExitStack()
        self._broken = broken
        self._given, self._further, self._redis_environ = kafka, dict(environ or {}), redis_environ
        self.instances: list[Instance] = []

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        """What has to be there between the backends and the instances."""

    def environ(self, number: int) -> dict[str, str]:
        return {
            "ACTOR_MODULE": "actors",
            "ACTOR_PATH": str(HERE),
            "CLUSTER_SIZE": "1",
            "EVENT_STORE_BROKERS": self.kafka.brokers,
            "EVENT_STORE_TOPIC": self.topic,
            "CACHE_URL": self.redis.url,
            "LOCK_TTL": str(LOCK_TTL_MS),
            "REQUEST_TIMEOUT": str(REQUEST_TIMEOUT_MS),
            "DRAIN_TIMEOUT": "5000",
            "IDEMPOTENCY_COUNT": "2000",
            "IDEMPOTENCY_TIME": "600",
            **self._further,
        }

    def __enter__(self) -> Self:
        try:
            self.kafka = self._given or self._stack.enter_context(Kafka())
            self.redis = self._stack.enter_context(Redis(environ=self._redis_environ))
            self._prepare(self._stack)
            for number, broken in enumerate(self._broken):
                instance = Instance(self.environ(number), broken)
                self._stack.callback(instance.close)
                self.instances.append(instance)
                instance.launch()
            for instance in self.instances:
                instance.wait(60)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def ports(self) -> list[int]:
        return [instance.port for instance in self.instances]


class Chaos:
    """Injects faults at random, each kind once before any comes again."""

    KINDS = ("kill", "stop", "flush", "redis empty", "redis restart", "redis older", "kafka pause")

    def __init__(self, system: System, dice: random.Random, kinds: Sequence[str] = KINDS) -> None:
        self.system, self.dice, self.kinds = system, dice, kinds
        self.injected: Counter[str] = Counter()
        self._restarts: set[asyncio.Task[None]] = set()
        self._away: set[Instance] = set()
        self._older: Path | None = None

    async def run(self, seconds: float) -> None:
        """Inject for this time; at the end everything runs again (if it comes up at all: else ServiceFailed)."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        bag: list[str] = []
        while loop.time() < end:
            bag = bag or self.dice.sample(self.kinds, len(self.kinds))
            kind = bag.pop()
            self.injected[kind] += 1
            await getattr(self, "_" + kind.replace(" ", "_"))()
            await asyncio.sleep(self.dice.uniform(0.1, 1.0))
        if self._restarts:
            await asyncio.gather(*self._restarts)

    def _present(self) -> Instance | None:
        present = [instance for instance in self.system.instances if instance not in self._away]
        return self.dice.choice(present) if len(present) > 1 else None

    async def _kill(self) -> None:
        instance = self._present()
        if instance is None:
            return
        self._away.add(instance)
        await asyncio.to_thread(instance.kill)
        task = asyncio.create_task(self._restart(instance))
        self._restarts.add(task)

    async def _restart(self, instance: Instance) -> None:
        await asyncio.to_thread(instance.start, 90.0)
        self._away.discard(instance)

    async def _stop(self) -> None:
        instance = self._present()
        if instance is None:
            return
        self._away.add(instance)
        await asyncio.to_thread(instance.pause)
        await asyncio.sleep(LOCK_TTL_MS / 1000 * self.dice.uniform(1.1, 2.5))
        await asyncio.to_thread(instance.resume)
        self._away.discard(instance)

    async def _flush(self) -> None:
        reader, writer = await asyncio.open_connection(HOST, self.system.redis.port)
        writer.write(b"FLUSHALL\r\n")
        await reader.readline()
        writer.close()
        await writer.wait_closed()

    async def _redis_empty(self) -> None:
        await asyncio.to_thread(self._down)
        shutil.rmtree(self.system.redis.data)
        await asyncio.to_thread(self.system.redis.start)

    async def _redis_restart(self) -> None:
        await asyncio.to_thread(self._down)
        await asyncio.to_thread(self.system.redis.start)

    async def _redis_older(self) -> None:
        """Back from a file of a second ago: the watermark steps back."""
        data = self.system.redis.data
        copy = self.system.redis.folder / "older"
        shutil.rmtree(copy, ignore_errors=True)
        await asyncio.to_thread(shutil.copytree, data, copy)
        await asyncio.sleep(self.dice.uniform(0.3, 1.5))
        await asyncio.to_thread(self._down)
        shutil.rmtree(data)
        await asyncio.to_thread(shutil.move, copy, data)
        await asyncio.to_thread(self.system.redis.start)

    def _down(self) -> None:
        if self.dice.random() < 0.5:
            self.system.redis.kill()
        else:
            self.system.redis.stop()

    async def _kafka_pause(self) -> None:
        await asyncio.to_thread(self.system.kafka.pause)
        await asyncio.sleep(KAFKA_PAUSE_S)
        await asyncio.to_thread(self.system.kafka.resume)

    async def _kafka_kill(self) -> None:
        """Not among the first ones: docs/faults.md, 14."""
        await asyncio.to_thread(self.system.kafka.kill)
        await asyncio.to_thread(self.system.kafka.start)
