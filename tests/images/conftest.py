"""The images under test, built once, and the bank's four services as their actors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ahead import Ahead
from tests.images.container import ROLES, ROOT, Container, bake
from tests.integration.topics import make_topic
from tests.services import Kafka, Redis

EXAMPLES = ROOT / "examples"
GROUPS = ("default", "example")  # of docker-bake.hcl
ACTORS = {
    "base": "bank.quotes",
    "producer": "bank.visits",
    "consumer": "bank.statements",
    "stream-processor": "bank.accounts",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300, func_only=True))  # what is built and started has its own bounds
        if "images" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ahead(bake, *GROUPS), append=False)  # before what else it looks at


@pytest.fixture(scope="session")
def images(docker: str, ahead: Ahead) -> str:
    """The four images, as ``docker buildx bake`` makes them, and the bank's on them; the docker command."""
    ahead.result(bake, *GROUPS)
    return docker


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> str:
    """Each image in turn: what holds for base holds for its children."""
    return str(request.param)


@pytest.fixture
def settings(role: str, topic: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """What the role needs: its actor, and the services that it works with."""
    found = {"ACTOR_MODULE": ACTORS[role]}
    if role != "base":
        kafka: Kafka = request.getfixturevalue("kafka")
        found |= {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic}
    if role == "consumer":
        make_topic(kafka.brokers, topic)  # as the service would that writes it
        found |= {"EVENT_STORE_GROUP_ID": topic, "EVENT_STORE_FROM_START": "true"}
    if role == "stream-processor":
        redis: Redis = request.getfixturevalue("redis")
        found["CACHE_URL"] = redis.url
    return found


@pytest.fixture
def container(images: str, role: str, settings: dict[str, str]) -> Callable[..., Container]:
    """``container(NAME="value", options=…)``: the role with an actor of the bank, mounted at /actor."""

    def made(*, image: str = f"hiveio/{role}", actor: Path | None = EXAMPLES, **more: Any) -> Container:
        if role == "consumer" and more.get("CLUSTER_SIZE") == "2":  # the bank's keeps its state in one process
            actor, more["ACTOR_MODULE"] = Path(__file__).parent, "listener"
        options = {name: more.pop(name) for name in ("options", "wait") if name in more}
        return Container(images, image, settings | more, actor=actor, **options)

    return made
