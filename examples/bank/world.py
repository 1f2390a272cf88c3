"""Everything that the story needs on this machine: Kafka, Valkey and the four services, and what they hold.

Each service is the entrypoint of its image as a plain process, with the environment that the container would get. Or
all of it runs in containers, and the story looks at them from outside: ``Composed``.
"""

import os
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import msgspec
import redis
from confluent_kafka import Consumer, KafkaException, TopicPartition

from hiveio.transaction import record as records
from hiveio.transaction.entry import Watermark
from hiveio.transaction.record import Record
from hiveio.transaction.rule import ReferenceFold, scope_of
from tests.services import HOST, Kafka, Redis, Service, ServiceFailed, kafka_home

from .accounts import AccountActor

ROOT = Path(__file__).parents[2]
TOPIC, LOG, VISITS = "bank", "bank.transactions", "visits"
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not reach what is here
READ_S = 10.0  # the longest time to read what Kafka has
S = TypeVar("S", bound=Service)


class Role(Service):
    """``images/<role>/entrypoint.py`` with one of an example's actors."""

    def __init__(
        self, role: str, module: str, environ: Mapping[str, str], folder: Path, *, package: str = "bank", name: str = ""
    ) -> None:
        self.role, self.name, self.module = role, name or role, module
        super().__init__(None, folder / module)
        self.environ = {
            "BIND": HOST,  # only for clients on this machine
            "PORT": str(self.port),
            "CLUSTER_SIZE": "1",
            "ACTOR_PATH": str(ROOT / "examples"),
            "ACTOR_MODULE": f"{package}.{module}",
            "PYTHONDONTWRITEBYTECODE": "1",
            **environ,
        }

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def _command(self) -> list[str]:
        # They get nothing of our own environment, as in a container.
        settings = [f"{name}={value}" for name, value in self.environ.items()]
        return ["/usr/bin/env", "-i", *settings, sys.executable, str(ROOT / "images" / self.role / "entrypoint.py")]

    def _probe(self) -> Callable[[], bool]:
        def answers() -> bool:
            try:
                with _direct.open(f"{self.url}/readyz", timeout=5) as response:
                    return bool(response.status == 200)
            except OSError:
                return False

        return answers


class Container(Service):
    """A service of ``compose.yaml`` by its port on this machine. It is neither started nor ended here."""

    def __init__(self, name: str, port: str, module: str = "") -> None:
        self.name, self.port, self.module = name, int(port), module

    @property
    def brokers(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'redis' if self.name == 'redis' else 'http'}://{HOST}:{self.port}"

    def launch(self) -> None:
        pass

    def wait(self, timeout_s: float = 60.0) -> None:
        try:
            with socket.create_connection((HOST, self.port), timeout_s):
                pass
        except OSError as error:
            raise ServiceFailed(f"{self.name} on port {self.port}: {error}; docker compose up --wait") from None

    def stop(self, timeout_s: float = 20.0) -> None:
        pass


class Logged(NamedTuple):
    """A record of the transaction log, and the rule's verdict on it."""

    offset: int
    record: Record
    accepted: bool


class Published(NamedTuple):
    """A record of an event topic."""

    partition: int
    offset: int
    key: str | None
    value: bytes
    headers: dict[str, str]


class World:
    """``with World() as world`` and then ``start``. Nothing of it is left at the end."""

    def __init__(self, partitions: int = 1) -> None:
        self.scope = scope_of(AccountActor().scope("ada"), partitions)  # of every account: a partition of the log
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hiveio-bank-")))
        # One folder for all, which is removed whenever Ctrl-C comes.
        self.kafka: Kafka | Container = self._closed(Kafka(folder=folder / "kafka"))
        self.redis: Redis | Container = self._closed(Redis(folder=folder / "redis"))
        log = {
            "EVENT_STORE_BROKERS": self.kafka.brokers,
            "EVENT_STORE_TOPIC": TOPIC,
            "EVENT_STORE_PARTITIONS": str(partitions),
        }
        reading = {"EVENT_STORE_GROUP_ID": "statements", "EVENT_STORE_FROM_START": "true"}
        database = {"STATEMENTS_DATABASE": str(folder / "statements.sqlite")}
        self.roles: Mapping[str, Role | Container] = {
            role.name: self._closed(role)
            for role in (
                Role("stream-processor", "accounts", log | {"CACHE_URL": self.redis.url}, folder),
                Role("consumer", "statements", log | reading | database, folder),
                Role("producer", "visits", log | {"EVENT_STORE_TOPIC": VISITS}, folder),
                Role("base", "quotes", {}, folder),
            )
        }

    def _closed(self, service: S) -> S:
        self._stack.callback(service.close)
        return service

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # All at once: the services drain while Kafka still takes what they flush; then the rest in order.
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda role: role.stop(), self.roles.values()))
        self._stack.close()

    @property
    def services(self) -> list[Service]:
        return [self.kafka, self.redis, *self.roles.values()]

    def prepare(self, progress: Callable[[str], None]) -> None:
        """Fetch Kafka's jars, the first time. Raises ServiceUnavailable."""
        kafka_home(progress)

    def start(self, began: Callable[[Service], None], answers: Callable[[Service], None]) -> None:
        """Start everything and wait until it answers. Raises ServiceUnavailable, ServiceFailed."""

        for group in ([self.kafka, self.redis], list(self.roles.values())):
            for service in group:
                began(service)
                service.launch()
            pool = ThreadPoolExecutor(len(group))
            waiting = {pool.submit(service.wait): service for service in group}
            try:
                for waited in as_completed(waiting):
                    waited.result()
                    answers(waiting[waited])
            finally:
                pool.shutdown(wait=False)  # after Ctrl-C each wait ends with its service

    # -- what they hold

    def log(self) -> list[Logged]:
        """The whole transaction log with the verdicts of the rule, which depend on the order of its records alone."""
        fold = ReferenceFold()
        found = []
        for message in self._read(LOG, self.scope):
            record = records.decode(message.value)
            verdict = fold.append(message.key or "", record, int(message.headers.get("time", 0)))
            found.append(Logged(message.offset, record, verdict))
        return found

    def published(self, topic: str) -> list[Published]:
        """An event topic from its start, without what was published again."""
        found: dict[str, Published] = {}
        for message in self._read(topic):
            found.setdefault(message.headers["hive-id"], message)
        return list(found.values())

    def _read(self, topic: str, only: int | None = None) -> list[Published]:
        """Everything, or one partition, in the order of time."""
        consumer = Consumer({"bootstrap.servers": self.kafka.brokers, "group.id": "story", "enable.auto.commit": False})
        try:
            known = consumer.list_topics(topic, READ_S).topics[topic].partitions
            partitions = [TopicPartition(topic, p, 0) for p in known if only in (None, p)]
            end = sum((consumer.get_watermark_offsets(p, timeout=READ_S) or (0, 0))[1] for p in partitions)
            consumer.assign(partitions)
            found: list[Published] = []
            until = time.monotonic() + READ_S
            while len(found) < end:
                if (message := consumer.poll(until - time.monotonic())) is None or message.error():
                    raise TimeoutError(f"{topic} could not be read within {READ_S:.0f} s")
                given: list[tuple[str, bytes | None]] = message.headers() or []  # type: ignore[assignment]
                headers = {name: (text or b"").decode() for name, text in given}
                headers["time"] = str(message.timestamp()[1])
                key = message.key()
                at, text = (message.partition() or 0, message.offset() or 0), key.decode() if key else None
                found.append(Published(*at, text, message.value() or b"", headers))
            return sorted(found, key=lambda message: int(message.headers["time"]))
        except KafkaException as error:
            raise TimeoutError(f"{topic} could not be read: {error.args[0].str()}") from None
        finally:
            consumer.close()

    def snapshots(self) -> dict[str, tuple[int, object]]:
        """The snapshots in Redis now: version and state by aggregate."""
        found: dict[str, tuple[int, object]] = {}
        with redis.Redis(host=HOST, port=self.redis.port, socket_timeout=5) as client:
            for mark in client.scan_iter(f"hive:{{{LOG}/{self.scope}/*}}:????????", count=1000):
                watermark = Watermark.parse(client.get(mark) or b"")
                prefix = f"{mark.decode()}:{watermark.generation if watermark else ''}:a:"
                for key in client.scan_iter("hive:*:a:*", count=1000):
                    if key.decode().startswith(prefix) and (entry := client.get(key)):
                        version, _, snapshot = entry.split(b" ", 2)
                        found[key.decode().removeprefix(prefix)] = (int(version), msgspec.json.decode(snapshot))
        return found

    def empty_redis(self) -> None:
        with redis.Redis(host=HOST, port=self.redis.port, socket_timeout=5) as client:
            client.flushall()


class Composed(World):
    """The services that ``docker compose up`` runs, as any client sees them."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.scope = 0  # compose.yaml leaves the topics with one partition
        self._stack = ExitStack()
        self.kafka = Container("kafka", environ.get("KAFKA_PORT", "9092"))
        self.redis = Container("redis", environ.get("REDIS_PORT", "6379"))
        self.roles = {
            "stream-processor": Container("stream-processor", environ.get("ACCOUNTS_PORT", "3001"), "accounts"),
            "consumer": Container("consumer", environ.get("STATEMENTS_PORT", "3002"), "statements"),
            "producer": Container("producer", environ.get("VISITS_PORT", "3003"), "visits"),
            "base": Container("base", environ.get("QUOTES_PORT", "3004"), "quotes"),
        }
