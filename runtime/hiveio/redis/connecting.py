"""From the URL of a setting to a client."""

import os
from typing import Any
from urllib.parse import parse_qsl

from redis.asyncio import Redis as RedisClient
from redis.asyncio import RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from hiveio.errors import ConfigError
from hiveio.parsers import RedisUrl, split_redis_url
from hiveio.redis.client import TIMEOUT_S, Redis
from hiveio.redis.cluster import Cluster
from hiveio.redis.node import CONNECTIONS, Node, Sort

SENTINEL = "sentinel_"  # what begins like that in a URL is for the sentinels: sentinel_username, sentinel_password

FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def connect(url: str, *, timeout_s: float = TIMEOUT_S) -> Redis:
    """A client of the Redis at this URL. It connects when it is used.

    Raises ConfigError for a wrong option, and for a file that cannot be read.
    """
    address = split_redis_url(url)
    for option, value in parse_qsl(address.query):
        if option.endswith(FILES) and not os.access(value, os.R_OK):
            raise ConfigError(f"the URL of Redis at {address.shown} has {option}={value}, which cannot be read")
    try:
        if address.kind == "cluster":
            return _cluster(address, timeout_s)
        if address.kind == "sentinel":
            return _sentinel(address, timeout_s)
        return Node(_checked(RedisClient.from_url(url, **_options(timeout_s))), address.shown, timeout_s=timeout_s)
    except (TypeError, ValueError, RedisError, RedisClusterException) as error:  # it names the option, not its value
        raise ConfigError(f"the URL of Redis at {address.shown} has a wrong option: {error}") from None


def _options(timeout_s: float) -> dict[str, Any]:
    return {
        "socket_timeout": None,  # a task for each write and a timer for each reply; one for all is set in Node
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "max_connections": CONNECTIONS,
        "protocol": 2,
    }


def _checked(client: RedisClient) -> RedisClient:
    """Raises what a wrong option raises, which would be the first one who uses it."""
    pool = client.connection_pool
    pool.connection_class(**pool.connection_kwargs)
    return client


def _of_url(address: RedisUrl) -> dict[str, Any]:
    """User, password and options, as redis-py reads them from a URL of its own."""
    scheme = "rediss" if address.tls else "redis"
    found: dict[str, Any] = dict(parse_url(f"{scheme}://{address.login}host/?{address.query}"))
    del found["host"]
    if found.pop("connection_class", None) is SSLConnection:
        found["ssl"] = True
    return found


def _cluster(address: RedisUrl, timeout_s: float) -> Redis:
    given = _of_url(address)
    # A node that does not answer the question for the topology leaves time to ask others.
    asking = {**_options(timeout_s), "socket_timeout": timeout_s / 4, "socket_connect_timeout": timeout_s / 4}
    startup = [ClusterNode(host, port) for host, port in address.hosts]
    topology = RedisCluster(startup_nodes=startup, require_full_coverage=False, **asking | given).nodes_manager

    def make_node(host: str, port: int, sort: Sort, whole: str) -> Node:
        client = RedisClient(host=host, port=port, **_options(timeout_s) | given)
        return Node(client, f"{host}:{port}", timeout_s=timeout_s, sort=sort, whole=whole)

    return Cluster(topology, address.shown, make_node, timeout_s=timeout_s)


def _sentinel(address: RedisUrl, timeout_s: float) -> Redis:
    given = _of_url(address)
    own = {name.removeprefix(SENTINEL): given.pop(name) for name in list(given) if name.startswith(SENTINEL)}
    shared = {name: value for name, value in given.items() if name.startswith("ssl")}
    # A sentinel that does not answer leaves time to ask others.
    asking = {**_options(timeout_s), "socket_timeout": timeout_s / 4, "socket_connect_timeout": timeout_s / 4}
    sentinels = _Sentinels(address.hosts, sentinel_kwargs=asking | shared | own)  # type: ignore[no-untyped-call]
    client = sentinels.master_for(address.service, db=address.database, **_options(timeout_s) | given)
    return Node(_checked(client), address.shown, timeout_s=timeout_s, close=sentinels.aclose)


class _Sentinels(Sentinel):
    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """The host and the port of the master, by the first Sentinel that names one; it is asked first from then on.

        Raises MasterNotFoundError, with what each has said. redis-py's own asks no other one after a refusal, and says
        of a wrong password only that the connection failed.
        """
        reasons = []
        for sentinel in list(self.sentinels):
            kwargs = sentinel.connection_pool.connection_kwargs
            shown = f"{kwargs['host']}:{kwargs['port']}"
            try:
                masters: Any = await sentinel.sentinel_masters()
            except (RedisError, OSError) as error:
                reasons.append(f"{shown}: {str(error) or type(error).__name__}")
                continue
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                self.sentinels.remove(sentinel)
                self.sentinels.insert(0, sentinel)
                return state["ip"], state["port"]
            reasons.append(f"{shown} knows {'it as one that is down' if state else 'none of that name'}")
        raise MasterNotFoundError(f"no Sentinel names a master {service_name!r} ({'; '.join(reasons)})")
