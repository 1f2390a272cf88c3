"""Roles as fixtures: what they make has the ACTOR of the test's module, and the services of all tests."""

from collections.abc import Callable, Iterator

import pytest

from tests.process import Role
from tests.services import Kafka, Redis

Make = Callable[..., Role]


@pytest.fixture
def producer(request: pytest.FixtureRequest, kafka: Kafka, topic: str) -> Make:
    def made(brokers: str = kafka.brokers, *, wait: bool = True, **environ: str) -> Role:
        settings = {"EVENT_STORE_BROKERS": brokers, "EVENT_STORE_TOPIC": topic, **environ}
        return Role("producer", settings, actor=request.module.ACTOR.replace("TOPIC", topic), wait=wait)

    return made


@pytest.fixture
def processor(request: pytest.FixtureRequest, kafka: Kafka, redis: Redis, topic: str) -> Make:
    def made(brokers: str = kafka.brokers, url: str = redis.url, *, wait: bool = True, **environ: str) -> Role:
        settings = {"EVENT_STORE_BROKERS": brokers, "CACHE_URL": url, "EVENT_STORE_TOPIC": topic, **environ}
        return Role("stream-processor", settings, actor=request.module.ACTOR, wait=wait)

    return made


@pytest.fixture
def own_kafka(kafka: Kafka) -> Iterator[Kafka]:
    """A broker that the test may pause."""
    with Kafka() as service:
        yield service
