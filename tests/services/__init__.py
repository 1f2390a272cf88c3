"""Real Apache Kafka with its MirrorMaker, Valkey and PostgreSQL as child processes, as tests use them.

Kafka and Valkey are those of `hiveio.dev`, with what only tests need: proxies in front, TLS, several servers.

    with Kafka() as kafka, Redis() as redis:
        kafka.brokers, redis.url
        kafka.pause(); kafka.resume(); redis.kill(); redis.start(); redis.restart(empty=True)
"""

import os
from pathlib import Path

# Downloads stay with the repository, where CI keeps them.
os.environ.setdefault("HIVEIO_CACHE", str(Path(__file__).parents[2] / ".cache"))

from hiveio.dev import jars
from hiveio.dev.kafka import kafka_home, running_cluster
from hiveio.dev.process import HOST, Service, ServiceFailed, ServiceUnavailable, free_port
from tests.services.kafka import Kafka, kafka_cluster
from tests.services.mirror import MirrorMaker, mirror_home
from tests.services.postgres import Pgbouncer, Postgres
from tests.services.redis import Redis
from tests.services.redis_cluster import RedisCluster, Sentinels
from tests.services.security import Security

__all__ = [
    "HOST",
    "Kafka",
    "MirrorMaker",
    "Pgbouncer",
    "Postgres",
    "Redis",
    "RedisCluster",
    "Security",
    "Sentinels",
    "Service",
    "ServiceFailed",
    "ServiceUnavailable",
    "free_port",
    "jars",
    "kafka_cluster",
    "kafka_home",
    "mirror_home",
    "running_cluster",
]
