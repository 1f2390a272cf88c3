"""Two instances on one aggregate, over each kind of Redis: one of them executes the commands of both."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import uuid4

import httpx
import pytest
import redis as redis_client
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import required
from tests.integration.accounts import TAKES_DEPOSITS
from tests.integration.test_security import REDIS_RIGHTS
from tests.process import Role, wait_until
from tests.services import HOST, Kafka, Redis, RedisCluster

pytestmark = [pytest.mark.timeout(120)]
CLIENTS, EACH = 8, 40  # of each instance


@pytest.fixture(params=["a server", "a cluster"])
def url(request: pytest.FixtureRequest, redis: Redis) -> Iterator[str]:
    """Of the server with a user that has the rights which the documents list, and no more."""
    if request.param == "a cluster":
        with required("redis"), RedisCluster(0) as cluster:
            yield cluster.url
        return
    with closing(redis_client.Redis(port=redis.port)) as admin:
        admin.execute_command("ACL", "SETUSER", "forwarding", ">hunter2", *REDIS_RIGHTS)  # type: ignore[no-untyped-call]
        yield f"redis://forwarding:hunter2@{HOST}:{redis.port}/0"
        admin.execute_command("ACL", "DELUSER", "forwarding")  # type: ignore[no-untyped-call]


def forwarded(role: Role) -> float:
    """How many commands this instance has forwarded and passed the answer on."""
    found = text_string_to_metric_families(httpx.get(f"{role.url}/metrics", timeout=10).text)
    samples = [sample for family in found for sample in family.samples if sample.name == "hiveio_commands_total"]
    return sum(sample.value for sample in samples if sample.labels["outcome"] == "forwarded")


@pytest.mark.kafka
@pytest.mark.redis
def test_the_leader_executes_the_commands_of_both(kafka: Kafka, topic: str, url: str) -> None:
    settings = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic, "CACHE_URL": url}
    with (
        Role("stream-processor", settings, actor=TAKES_DEPOSITS) as one,
        Role("stream-processor", settings, actor=TAKES_DEPOSITS) as other,
    ):
        versions: list[int] = []

        def deposit(number: int) -> None:
            role = (one, other)[number % 2]
            with httpx.Client(base_url=role.url, timeout=30) as client:
                for n in range(EACH):
                    headers = {"Idempotency-Key": uuid4().hex} if n % 2 else {}
                    answer = client.post("/accounts/hot", json={"amount": 1}, headers=headers)
                    assert answer.status_code == 200, answer.text
                    assert answer.json()["payload"]["amount"] == 1
                    assert answer.headers["hive-position"].startswith(f"{topic}.transactions/0/")
                    versions.append(int(answer.headers["etag"].strip('"')))

        def share() -> float:
            """Of the commands that all clients make once more: how many were forwarded."""
            before = forwarded(one) + forwarded(other)
            with ThreadPoolExecutor(2 * CLIENTS) as pool:
                list(pool.map(deposit, range(2 * CLIENTS)))
            return (forwarded(one) + forwarded(other) - before) / (2 * CLIENTS * EACH)

        # At first one of them may be through with its commands before the other has opened the scope. And each counts
        # its commands a moment later.
        wait_until(lambda: share() > 0.1, 60, "a tenth of the commands of a round was forwarded")
        total = len(versions)
        assert sorted(versions) == list(range(1, total + 1))  # each command was executed once
        for role in (one, other):
            assert httpx.get(f"{role.url}/accounts/hot", timeout=10).json()["payload"]["balance"] == total
            assert not role.complaints(), role.text()
