"""What each role logs while a backend is away: a line when it goes, and one when it is back."""

import asyncio
import contextlib
import json
import logging
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import httpx
import pytest

from hiveio.dev.process import free_port
from hiveio.errors import Unavailable
from hiveio.kafka.sender import CLOSED
from hiveio.outages import EVERY_S
from hiveio.projection.postgres import PostgresProjection
from tests.integration import shop
from tests.integration.topics import make_topic
from tests.process import Role, wait_until
from tests.services import Kafka, Postgres, Redis

AWAY_S = 8.0  # less than EVERY_S: no line between


@pytest.fixture
def own_redis(redis: Redis) -> Iterator[Redis]:
    with Redis() as service:
        yield service


def logged_at(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def logged(role: Role, backend: str) -> list[str]:
    return [line["message"] for line in role.logs() if line["message"].startswith(backend)]


def test_a_line_when_kafka_goes_and_one_when_it_is_back(own_kafka: Kafka, own_redis: Redis) -> None:
    assert AWAY_S < EVERY_S
    make_topic(own_kafka.brokers, "readings")
    shared = {"EVENT_STORE_BROKERS": own_kafka.brokers, "CACHE_URL": own_redis.url, "EVENT_STORE_GROUP_ID": "shop"}
    with ExitStack() as stack:
        roles = [
            stack.enter_context(Role(name, shared | {"EVENT_STORE_TOPIC": topic}, actor=actor))
            for name, topic, actor in [
                ("producer", "readings", shop.PRODUCER),
                ("consumer", "readings", shop.CONSUMER),
                ("stream-processor", "accounts", shop.PROCESSOR),
            ]
        ]
        before = [len(role.lines) for role in roles]
        own_kafka.kill()
        time.sleep(AWAY_S)  # what is looked at is that nothing is said
        for role, seen in zip(roles, before, strict=True):
            lines = role.logs()[seen:]
            assert len(lines) == 1, f"{role.name} wrote {json.dumps(lines, indent=1)}"
            assert lines[0]["message"].startswith(f"Kafka at {own_kafka.brokers} is away: "), (role.name, lines)
            assert lines[0]["level"] == "warning"
        # A line of another kind is logged all the same.
        processor = roles[2]
        own_redis.kill()
        wait_until(lambda: logged(processor, "Redis at "), 20, "the line about Redis")  # asked after Kafka
        own_redis.start()
        wait_until(lambda: len(logged(processor, "Redis at ")) == 2, 20, "the second line about Redis")
        own_kafka.start()
        for role, seen in zip(roles, before, strict=True):
            wait_until(lambda role=role: len(logged(role, "Kafka at ")) == 2, 30, "the second line about Kafka")  # type: ignore[misc]
            role.ready()
            assert " is back, after " in logged(role, "Kafka at ")[1]
            # What the outage had of effects, such as a lease that was lost, is logged too, and is little.
            assert len(role.logs()) - seen <= 8, role.text()


@pytest.mark.parametrize("name", ["producer", "consumer", "stream-processor"])
def test_the_reason_is_told_at_the_start(name: str, redis: Redis) -> None:
    """A wrong address, a server that is none of Kafka's, and one that takes no connection."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        crowd = [socket.socket() for _ in range(3)]
        for each in crowd:  # beyond the backlog no further connection is taken
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        reasons = {
            f"127.0.0.1:{free_port()}": "Connection refused",
            "no-such-host.invalid:9092": "Failed to resolve",
            redis.url.removeprefix("redis://").partition("/")[0]: "KAFKA_SECURITY_PROTOCOL",
            f"127.0.0.1:{full.getsockname()[1]}": "EVENT_STORE_BROKERS",
        }
        actor = {"producer": shop.PRODUCER, "consumer": shop.CONSUMER}.get(name, shop.PROCESSOR)
        with ExitStack() as stack:
            roles = []
            for brokers in reasons:
                topic = f"t-{uuid.uuid4().hex[:8]}"
                environ = {"EVENT_STORE_BROKERS": brokers, "EVENT_STORE_TOPIC": topic, "EVENT_STORE_GROUP_ID": topic}
                role = Role(name, environ | {"CACHE_URL": redis.url}, actor=actor, wait=False)
                roles.append(stack.enter_context(role))
                stack.callback(role.kill)  # none can end in order: that would take the rest of its attempts
                # One after the other: their workers do not start at once.
                wait_until(lambda role=role: role.logs("listening"), 20, "the start")  # type: ignore[misc]
            for role, reason in zip(roles, reasons.values(), strict=True):
                wait_until(lambda role=role: logged(role, "Kafka at "), 20, f"the reason ({reason})")  # type: ignore[misc]
                line = next(line for line in role.logs() if line["message"].startswith("Kafka at "))
                assert reason in line["message"]
                assert logged_at(line) - logged_at(role.logs("listening")[0]) < 4, "by the clock of the role"
                if name == "producer":  # clients learn neither where Kafka is, nor what it answered
                    refused = httpx.post(role.url + "/readings", json={"sensor": "a", "celsius": 1, "count": 1})
                    assert refused.status_code == 503, refused.text
                    assert refused.json()["detail"] == CLOSED
        for each in crowd:
            each.close()


async def test_a_line_when_postgresql_goes_and_one_when_it_is_back(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.name in ("hiveio.backends", "psycopg.pool")]

    with Postgres() as own:
        projection = PostgresProjection()
        projection.url = own.url  # type: ignore[misc]
        await projection.start()
        try:
            assert await projection.ready()
            assert not lines(), "a pool has a line of level info for each connection that it gives"
            own.kill()
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await projection.ready()
            (line,) = lines()
            assert line.startswith("PostgreSQL is away: ")
            await asyncio.to_thread(own.start)
            async with asyncio.timeout(20):
                while len(lines()) < 2:
                    with contextlib.suppress(Unavailable):
                        await projection.ready()
            assert lines()[1].startswith("PostgreSQL is back, after ")
        finally:
            await projection.stop()
