"""Redis Cluster, and Sentinels: several servers that find each other, all with one password."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from redis import Redis as Client
from redis.crc import key_slot
from redis.exceptions import RedisError

from hiveio.dev.process import HOST, free_port
from tests.services.redis import Redis
from tests.services.security import Security

SLOTS = 16384
NODE_TIMEOUT_MS = 1500
FORMED_S = 30.0
SERVICE = "mymaster"
WATCHING = (("down-after-milliseconds", "3000"), ("failover-timeout", "5000"))


class RedisCluster:
    """Three masters, each with a number of replicas. A context manager.

    ``password`` is that of all users and nodes. ``announced`` gives the port that clients are told, where that is
    another one than the server's.
    """

    def __init__(
        self,
        replicas: int = 1,
        *,
        password: str = "",
        binary: str | None = None,
        announced: Callable[[int], int] | None = None,
    ) -> None:
        self.password, self._stack = password, contextlib.ExitStack()
        self.servers: list[Redis] = []
        self._bus_ports: list[str] = []
        for _ in range(3 * (1 + replicas)):
            options = {
                "cluster-enabled": "yes",
                "cluster-port": str(free_port()),  # else it is 10,000 higher, among those of outgoing connections
                "cluster-node-timeout": str(NODE_TIMEOUT_MS),
                "cluster-require-full-coverage": "no",  # the others serve their slots while one is away
                "cluster-replica-validity-factor": "0",  # a replica that lags may be promoted
                "repl-diskless-sync-delay": "0",
                "enable-debug-command": "local",
                **({"requirepass": password, "masterauth": password} if password else {}),
            }
            port = free_port()
            if announced is not None:
                options["cluster-announce-port"] = str(announced(port))
            self.servers.append(Redis(port, options=options, binary=binary))
            self._bus_ports.append(options["cluster-port"])

    def __enter__(self) -> Self:
        with self._stack as stack:
            for server in self.servers:
                stack.callback(server.close)
                server.launch()
            for server in self.servers:
                server.wait()
            self._form()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """That of two of its servers: the others are found."""
        return self.url_by(self.servers[:2])

    def url_by(self, asked: Sequence[Redis]) -> str:
        """That of a client which asks these servers first."""
        login = f":{self.password}@" if self.password else ""
        return f"redis+cluster://{login}" + ",".join(f"{HOST}:{server.port}" for server in asked)

    def client(self, server: Redis) -> Any:
        """A plain client of one server. Its types know no bytes."""
        return Client(host=HOST, port=server.port, password=self.password or None, socket_timeout=5)

    def ask(self, server: Redis, *command: str | int) -> Any:
        with contextlib.closing(self.client(server)) as client:
            return client.execute_command(*command)

    def _form(self) -> None:
        for number, server in enumerate(self.servers):
            self.ask(server, "CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number < 3:
                first, end = number * SLOTS // 3, (number + 1) * SLOTS // 3
                self.ask(server, "CLUSTER ADDSLOTSRANGE", first, end - 1)
        for server in self.servers[1:]:
            self.ask(server, "CLUSTER MEET", HOST, self.servers[0].port, self._bus_ports[0])
        self.until(lambda: all(len(self.nodes(server)) == len(self.servers) for server in self.servers), "met")
        for number, server in enumerate(self.servers[3:]):
            self.ask(server, "CLUSTER REPLICATE", self.id(self.servers[number % 3]))
        self.until(self.is_well, "formed")

    def cut_off(self, server: Redis) -> None:
        """The others neither hear this server nor are heard, and clients reach it as before. It does not notice."""
        self.ask(server, "CONFIG SET", "cluster-node-timeout", 600_000)
        self.ask(server, "DEBUG", "DROP-CLUSTER-PACKET-FILTER", -2)  # of Valkey

    def join_again(self, server: Redis) -> None:
        self.ask(server, "DEBUG", "DROP-CLUSTER-PACKET-FILTER", -1)
        self.ask(server, "CONFIG SET", "cluster-node-timeout", NODE_TIMEOUT_MS)

    def replace(self, master: Redis, replica: Redis) -> None:
        """Two servers that were lost with all that they had come back as new ones, empty, and get the slots."""
        lost = [self.id(server) for server in (master, replica)]
        others = [server for server in self.servers if server not in (master, replica)]
        words = next(node[8:] for node in self.nodes(master) if "myself" in node[2])
        slots = [number for word in words for number in word.partition("-")[::2]]
        for server in (master, replica):
            server.kill()
            server.restart(empty=True)
        for server in others:
            for node in lost:
                with contextlib.suppress(RedisError):  # Valkey tells the others, so some have forgotten it by now
                    self.ask(server, "CLUSTER FORGET", node)
        for server in (master, replica):
            self.ask(server, "CLUSTER MEET", HOST, others[0].port, self._bus_port(others[0]))
        self.until(lambda: all(len(self.nodes(server)) == len(self.servers) for server in self.servers), "met")
        self.ask(master, "CLUSTER ADDSLOTSRANGE", *slots)
        self.ask(replica, "CLUSTER REPLICATE", self.id(master))

    def _bus_port(self, server: Redis) -> str:
        return self._bus_ports[self.servers.index(server)]

    def is_well(self) -> bool:
        """Every server sees all slots served, and every replica follows its master."""
        for server in self.servers:
            if b"cluster_state:ok" not in self.raw(server, "CLUSTER INFO"):
                return False
            found = self.ask(server, "INFO", "replication")
            if found["role"] == "slave" and found["master_link_status"] != "up":
                return False
        return len({node for server in self.servers for node in self.masters_by(server)}) == 3

    def raw(self, server: Redis, *command: str) -> bytes:
        with contextlib.closing(self.client(server)) as client:
            client.response_callbacks.clear()
            return bytes(client.execute_command(*command))

    def nodes(self, server: Redis) -> list[list[str]]:
        """The lines of CLUSTER NODES, as this server sees them."""
        return [line.split() for line in self.raw(server, "CLUSTER NODES").decode().splitlines()]

    def masters_by(self, server: Redis) -> list[str]:
        return [node[0] for node in self.nodes(server) if "master" in node[2] and len(node) > 8]

    def id(self, server: Redis) -> str:
        return self.raw(server, "CLUSTER MYID").decode()

    def slot(self, key: str) -> int:
        return key_slot(key.encode())

    def has(self, server: Redis, slot: int) -> bool:
        """Whether this server runs, and is the master of the slot by its own word."""
        with contextlib.suppress(RedisError, OSError):
            for node in self.nodes(server):
                if "myself,master" in node[2] and any(_has(text, slot) for text in node[8:]):
                    return True
        return False

    def master(self, slot: int) -> Redis:
        for server in self.servers:
            if server.running and self.has(server, slot):
                return server
        raise AssertionError(f"slot {slot} has no master")

    def owner(self, asked: Redis, slot: int) -> int:
        """The port of the server that has this slot, by the word of another one; 0 where that knows none."""
        for node in self.nodes(asked):
            if any(_has(text, slot) for text in node[8:]):
                return int(node[1].partition("@")[0].rpartition(":")[2])
        return 0

    def replica(self, master: Redis) -> Redis:
        id = self.id(master)
        for server in self.servers:
            with contextlib.suppress(RedisError, OSError):
                if any("myself,slave" in node[2] and node[3] == id for node in self.nodes(server)):
                    return server
        raise AssertionError(f"the server on port {master.port} has no replica")

    def migrate(self, slot: int, to: Redis, pause_s: float = 0.0) -> None:
        """Move a slot key by key, as ``redis-cli --cluster reshard`` does, waiting after each key."""
        source = self.master(slot)
        self.ask(to, "CLUSTER SETSLOT", slot, "IMPORTING", self.id(source))
        self.ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", self.id(to))
        auth = ("AUTH", self.password) if self.password else ()
        with contextlib.closing(self.client(source)) as client:
            while keys := client.execute_command("CLUSTER GETKEYSINSLOT", slot, 1):
                client.execute_command("MIGRATE", HOST, to.port, "", 0, 5000, *auth, "KEYS", *keys)
                time.sleep(pause_s)
        for server in (to, source, *(s for s in self.servers if s not in (to, source))):
            with contextlib.suppress(RedisError):  # replicas take no such command
                self.ask(server, "CLUSTER SETSLOT", slot, "NODE", self.id(to))

    @staticmethod
    def until(condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + FORMED_S
        while True:
            with contextlib.suppress(RedisError, OSError):
                if condition():
                    return
            assert time.monotonic() < end, f"the cluster is not {what} within {FORMED_S} s"
            time.sleep(0.05)


def _has(text: str, slot: int) -> bool:
    """Whether a word of CLUSTER NODES such as 0-5460 has this slot."""
    first, _, last = text.partition("-")
    return first.isdigit() and int(first) <= slot <= int(last or first)


class Sentinels:
    """A master, its replica, and three Sentinels that watch them. A context manager.

    ``password`` is that of the servers, ``own_password`` that of the Sentinels. With ``security`` they talk to each
    other over TLS, and name the port of a server that takes it; they are Debian's Redis then.
    """

    def __init__(self, *, password: str, own_password: str, security: Security | None = None) -> None:
        self.password, self.own_password, self._stack = password, own_password, contextlib.ExitStack()
        options = {"requirepass": password, "masterauth": password, "repl-diskless-sync-delay": "0"}
        binary = "redis-server" if security else None
        self.master, self.replica = (Redis(options=options, binary=binary, security=security) for _ in range(2))
        port = self.port(self.master)
        self.sentinels = [Sentinel(port, password, own_password, security) for _ in range(3)]

    def __enter__(self) -> Self:
        with self._stack as stack:
            for server in (self.master, self.replica):
                stack.enter_context(server)
            with contextlib.closing(self.client(self.replica)) as client:
                client.replicaof(HOST, self.port(self.master))
            for sentinel in self.sentinels:
                stack.enter_context(sentinel)
            RedisCluster.until(self.is_well, "watched by its Sentinels")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return self.url_by(self.sentinels)

    def url_by(self, asked: Sequence[Sentinel]) -> str:
        """That of a client which asks these Sentinels alone."""
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in asked)
        return f"redis+sentinel://:{self.password}@{hosts}/{SERVICE}/0?sentinel_password={self.own_password}"

    @staticmethod
    def port(server: Redis) -> int:
        """The one that clients and Sentinels use."""
        return server.tls_port or server.port

    def client(self, server: Redis) -> Any:
        return Client(host=HOST, port=server.port, password=self.password, socket_timeout=5)

    def is_well(self) -> bool:
        """Each Sentinel knows the replica, which follows its master, and the two others."""
        for sentinel in self.sentinels:
            state = sentinel.state()
            if (state["num-slaves"], state["num-other-sentinels"]) != (1, 2):
                return False
        with contextlib.closing(self.client(self.replica)) as client:
            return bool(client.info("replication")["master_link_status"] == "up")

    def watch(self, sentinel: Sentinel, master: Redis, *, quorum: int) -> None:
        """From now on this Sentinel watches, and names, that master."""
        sentinel.ask("SENTINEL REMOVE", SERVICE)
        sentinel.ask("SENTINEL MONITOR", SERVICE, HOST, master.port, quorum)
        for name, value in (("auth-pass", self.password), *WATCHING):
            sentinel.ask("SENTINEL SET", SERVICE, name, value)


class Sentinel(Redis):
    """One of them: a server in another mode."""

    def __init__(self, master_port: int, password: str, own_password: str, security: Security | None = None) -> None:
        self._lines = [
            f"sentinel monitor {SERVICE} {HOST} {master_port} 2",
            *(f"sentinel {name} {SERVICE} {value}" for name, value in WATCHING),
            f"sentinel auth-pass {SERVICE} {password}",
            f"requirepass {own_password}",
        ]
        self._own_password = own_password
        super().__init__(binary="redis-server" if security else None, security=security)

    def _command(self) -> list[str]:
        file = self.data / "sentinel.conf"  # it writes what it learns into it
        if not file.exists():
            own = {"port": self.port, "bind": HOST, "dir": self.data, **self._options}
            lines = [*(f"{name} {value}" for name, value in own.items()), *self._lines, ""]
            file.write_text("\n".join(lines))
        (binary,) = [word for word in super()._command() if word.endswith("-server")][:1]
        return [binary, str(file), "--sentinel"]

    def ask(self, *command: str | int) -> Any:
        with contextlib.closing(Client(host=HOST, port=self.port, password=self._own_password)) as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def state(self) -> dict[str, Any]:
        """What it knows of the master."""
        found: dict[str, Any] = self.ask("SENTINEL MASTERS")[SERVICE]
        return found

    def named(self) -> int:
        """The port of the master, by its word."""
        return int(self.state()["port"])
