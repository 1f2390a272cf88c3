"""``compose.yaml``: the stories, played from outside against the containers that it brings up.

Its Kafka and Valkey are the public images, or stand-ins for them: see `servers` in conftest.py.
"""

import json
import sys
import uuid
from collections.abc import Iterator

import httpx
import pytest

from tests.images.container import call
from tests.services import free_port

PROJECT = f"bank-test-{uuid.uuid4().hex[:8]}"  # what a run that was killed has left is not this one's
PORTS = ("KAFKA", "REDIS", "ACCOUNTS", "STATEMENTS", "VISITS", "QUOTES", "ORDERS", "PAYMENTS", "STOCK", "FULFILMENT")


@pytest.fixture
def composed(images: str, servers: None) -> Iterator[dict[str, str]]:
    """All of compose.yaml, up; the environment that tells its ports."""
    environ = {f"{name}_PORT": str(free_port()) for name in PORTS}
    project = [images, "compose", "--project-name", PROJECT, "--profile", "orders"]
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
    output = call(sys.executable, "-m", "examples.orders.story", "--once", "--composed", within_s=150, environ=composed)
    assert "All 5 steps came out right" in output
    assert "✗" not in output
    # They hold nothing: made anew, they go on where they were.
    docker = ("docker", "compose", "--project-name", PROJECT)
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
