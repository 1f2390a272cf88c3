"""From the URL of a setting to a client."""

from typing import Any

from redis.asyncio import Redis as RedisClient
from redis.asyncio import RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from hiveio.errors import ConfigError
from hiveio.parsers import RedisUrl, split_redis_url
from hiveio.redis.client import TIMEOUT_S, Redis
from hiveio.redis.cluster import Cluster
from hiveio.redis.node import CONNECTIONS, Node, Sort

SENTINEL = "sentinel_"  # what begins like that in a URL is for the sentinels: sentinel_username, sentinel_password


def connect(url: str, *, timeout_s: float = TIMEOUT_S) -> Redis:
    """A client of the Redis at this URL. It connects when it is used. Raises ConfigError for a wrong option."""
    address = split_redis_url(url)
    try:
        if address.kind == "cluster":
            return _cluster(address, timeout_s)
        if address.kind == "sentinel":
            return _sentinel(address, timeout_s)
        return Node(_checked(RedisClient.from_url(url, **_options(timeout_s))), address.shown, timeout_s=timeout_s)
    except (TypeError, ValueError, RedisError) as error:  # it names the option, not its value
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
    sentinels = Sentinel(address.hosts, sentinel_kwargs=asking | shared | own)  # type: ignore[no-untyped-call]
    client = sentinels.master_for(address.service, db=address.database, **_options(timeout_s) | given)
    return Node(_checked(client), address.shown, timeout_s=timeout_s, close=sentinels.aclose)
