"""Three brokers that form one cluster, each behind proxies, and what is done to the one that leads."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic, PartitionMetadata  # type: ignore[attr-defined]

from tests.faults.proxy import Proxy, When, always
from tests.faults.stage import Broker, Stage, until
from tests.services import HOST, Kafka, free_port, running_cluster

NODES = (1, 2, 3)
# A broker asks the active controller for the ids that it gives to producers. If that one was cut off meanwhile, the
# broker waits for it for as long as this (30 s by default), and new producers wait with it.
PROPERTIES = {"controller.socket.timeout.ms": 3000}
ELECTED_S = 90.0  # 5 to 11 s where the machine has nothing else to do
# A deposed leader learns of it when it reaches the others again; until then, and a little longer, it may name an old
# end of the log.
LEARNT_S = 5.0


class Cluster(Broker):
    """Kafka with three brokers. Instances, and brokers among themselves, come through proxies; the tests do not."""

    def __init__(self) -> None:
        ports, voters = ({node: free_port() for node in NODES} for _ in range(2))
        self.nodes = {
            node: Kafka(
                node=node, advertised_port=ports[node], voters=voters, peers_proxied=True, properties=PROPERTIES
            )
            for node in NODES
        }
        self.proxies = {
            node: Proxy(kafka.upstream_port or 0, framed=True, port=ports[node]) for node, kafka in self.nodes.items()
        }
        self.controllers = {node: Proxy(kafka.controller_port, port=voters[node]) for node, kafka in self.nodes.items()}
        self.kafka, self.proxy = self.nodes[1], self.proxies[1]
        self._owners: dict[tuple[int, int], int] = {}
        self._looking, self._looked_at = threading.Lock(), 0.0

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        with self._stack:
            for proxy in (*self.proxies.values(), *self.controllers.values()):
                self._stack.enter_context(proxy)
            self._stack.enter_context(running_cluster(list(self.nodes.values())))
            self._stack = self._stack.pop_all()
        return self

    @property
    def brokers(self) -> str:
        return ",".join(kafka.brokers for kafka in self.nodes.values())

    @property
    def proxied(self) -> str:
        return ",".join(f"{HOST}:{proxy.port}" for proxy in self.proxies.values())

    def open(self) -> None:
        for proxy in (*self.proxies.values(), *self.controllers.values()):
            proxy.open()

    def make(self, topic: str, replicas: Sequence[int]) -> None:
        """A topic as the runtime makes them for its log, with one partition; the first of these brokers leads it."""
        config = {"retention.ms": "-1", "retention.bytes": "-1", "message.timestamp.type": "LogAppendTime"}
        new = NewTopic(topic, 1, replica_assignment=[list(replicas)], config={**config, "min.insync.replicas": "2"})
        admin = AdminClient({"bootstrap.servers": self.brokers})  # named: its results end with it
        admin.create_topics([new])[topic].result(30)

    def leader(self, topic: str) -> int:
        """Of its first partition, by the brokers that know best; -1 if there is none."""
        found = self._partition(topic)
        return found.leader if found else -1

    def in_sync(self, topic: str) -> int:
        """How many replicas of its first partition are in sync."""
        found = self._partition(topic)
        return len(found.isrs) if found else 0

    def _partition(self, topic: str) -> PartitionMetadata | None:
        client = Consumer({"bootstrap.servers": self.brokers, "group.id": "leader", "log_level": 0})
        try:
            found: PartitionMetadata = client.list_topics(topic, timeout=2).topics[topic].partitions[0]
            return found
        except KafkaException:
            return None
        finally:
            client.close()

    @contextlib.contextmanager
    def lost(self, node: int, how: str) -> Iterator[None]:
        """Meanwhile the broker is ``killed``, ``paused``, ``silent`` (its packets are held), or ``deposed``: cut off
        from the other brokers, while clients go on to reach it."""
        kafka = self.nodes[node]
        self._owners.clear()
        if how == "killed":
            kafka.kill()
        elif how == "paused":
            kafka.pause()
        else:
            self._hold(node, clients=how == "silent")
        try:
            yield
        finally:
            if how == "killed":
                kafka.start()
            elif how == "paused":
                kafka.resume()
            else:
                self.open()

    def _hold(self, node: int, *, clients: bool) -> None:
        own = _pid(self.nodes[node])
        peers = {_pid(kafka) for kafka in self.nodes.values()} - {own}
        for proxies in (self.proxies, self.controllers):
            for other, proxy in proxies.items():
                when = self._from({own}, proxy) if other != node else always if clients else self._from(peers, proxy)
                proxy.up.hold(when)
                proxy.down.hold(when)

    def _from(self, pids: set[int], proxy: Proxy) -> When:
        return lambda message: self._owner(message.port, proxy.port) in pids

    def _owner(self, port: int, to: int) -> int:
        """The broker that has opened the connection from this port to that one; 0 if none has.

        All proxies ask at once when clients come anew: who has waited for another's look needs none of its own.
        """
        asked = time.monotonic()
        with self._looking:
            if (port, to) not in self._owners:
                if self._looked_at < asked:
                    self._looked_at = time.monotonic()
                    self._owners |= _connections([_pid(kafka) for kafka in self.nodes.values() if kafka.running])
                self._owners.setdefault((port, to), 0)
            return self._owners[port, to]


def _connections(pids: Iterable[int]) -> dict[tuple[int, int], int]:
    """The ports of all connections of these processes, here and there. psutil takes a tenth of a second for it."""
    inodes: dict[str, int] = {}
    for pid in pids:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                if (link := os.readlink(entry.path)).startswith("socket:["):
                    inodes[link[8:-1]] = pid
    found: dict[tuple[int, int], int] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                here, there = (int(end.rpartition(":")[2], 16) for end in fields[1:3])
                found[here, there] = inodes[fields[9]]
    return found


def _pid(kafka: Kafka) -> int:
    assert kafka.process is not None
    return kafka.process.pid


class ClusterStage(Stage):
    """A stage on a cluster: all instances come through its proxies."""

    def __init__(self, cluster: Cluster, *, published_s: float, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(cluster, published_s=published_s, environ=environ)
        self.cluster = cluster

    def environ(self, number: int) -> dict[str, str]:
        return super().environ(number) | {"EVENT_STORE_BROKERS": self.cluster.proxied}

    @contextlib.asynccontextmanager
    async def without_leader(self, how: str) -> AsyncIterator[int]:
        """The leader of the log is lost (see Cluster), and the block begins when another one is elected."""
        node = await asyncio.to_thread(self.cluster.leader, self.log_topic)
        lost = self.cluster.lost(node, how)
        began = time.monotonic()
        await asyncio.to_thread(lost.__enter__)
        try:
            await until(
                lambda: self.cluster.leader(self.log_topic) not in (-1, node),
                "another leader",
                ELECTED_S,
                to_thread=True,
            )
            yield node
        finally:
            await asyncio.to_thread(lost.__exit__, None, None, None)
            self.watched.deposed.append((began, time.monotonic() + LEARNT_S))
