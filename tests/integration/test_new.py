"""`hiveio new`: what it writes passes its own test, the checkers, and serves."""

import subprocess
import sys
import uuid
from pathlib import Path

import httpx
import pytest

from hiveio.cli import main
from hiveio.roles import ROLES
from tests.process import Role, wait_until
from tests.services import Kafka, Redis


def make(role: str, into: Path) -> Path:
    assert main(["new", "order-lines", "--role", role, "--into", str(into)]) == 0
    return into / "order-lines"


@pytest.mark.parametrize("role", ROLES)
def test_a_new_project_passes_its_test_and_the_checkers(role: str, tmp_path: Path) -> None:
    project = make(role, tmp_path)
    files = ["Dockerfile", "README.md", "docker-bake.hcl", "order_lines.py", "test_order_lines.py"]
    assert sorted(path.name for path in project.iterdir()) == files
    assert not [path for path in project.iterdir() if "@" in path.read_text().replace("$PWD", "")]
    assert len((project / "Dockerfile").read_text().splitlines()) == 3
    assert (project / "Dockerfile").read_text().startswith(f"FROM hiveio/{role}\n")
    for command in (
        ["pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function"],
        ["ruff", "check", "--isolated", "--no-cache", "--line-length", "120", "--select", "E,F,I,UP,B"],
        ["ruff", "format", "--isolated", "--no-cache", "--line-length", "120", "--check"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command, "."], cwd=project, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_of_a_new_project_hold(tmp_path: Path) -> None:
    """For who uses the package as installed: it says that it is typed."""
    projects = []
    for role in ROLES:
        assert main(["new", f"a-{role}", "--role", role, "--into", str(tmp_path)]) == 0
        projects += [str(path) for path in (tmp_path / f"a-{role}").glob("*.py")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), *projects],
        cwd=tmp_path, env={"MYPYPATH": ":".join(str(tmp_path / f"a-{role}") for role in ROLES)},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_a_new_base_serves(tmp_path: Path) -> None:
    with Role("base", actor_path=make("base", tmp_path), module="order_lines") as role:
        answer = httpx.get(f"{role.url}/order-lines/hello?times=2")
        assert answer.json() == {"type": "Shouted", "payload": {"texts": ["HELLO", "HELLO"]}}


def test_a_new_producer_serves(tmp_path: Path, kafka: Kafka, topic: str) -> None:
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic}
    with Role("producer", environ, actor_path=make("producer", tmp_path), module="order_lines") as role:
        answer = httpx.post(f"{role.url}/order-lines/7", json={"type": "Report", "payload": {"celsius": 21.5}})
        assert (answer.status_code, answer.json()["type"]) == (200, "Reported")


def test_a_new_stream_processor_feeds_a_new_consumer(tmp_path: Path, kafka: Kafka, redis: Redis, topic: str) -> None:
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic, "CACHE_URL": redis.url}
    listening = {**environ, "EVENT_STORE_GROUP_ID": f"g-{uuid.uuid4().hex}", "EVENT_STORE_FROM_START": "true"}
    decides = make("stream-processor", tmp_path / "decides")
    listens = make("consumer", tmp_path / "listens")
    with (
        Role("stream-processor", environ, actor_path=decides, module="order_lines") as writer,
        Role("consumer", listening, actor_path=listens, module="order_lines") as reader,
    ):
        for kind, title in (("Create", "Draft"), ("Rename", "Book")):
            message = {"type": kind, "payload": {"title": title}}
            assert httpx.post(f"{writer.url}/order-lines/7", json=message).status_code == 200
        assert httpx.get(f"{writer.url}/order-lines/7").json()["payload"] == {"title": "Book"}
        wait_until(
            lambda: httpx.get(f"{reader.url}/order-lines/7").json().get("payload") == {"title": "Book", "changes": 2},
            30,
            "the projection",
        )


@pytest.mark.parametrize(
    "name", ["Orders", "a_b", "-a", "a--b", "", "json", "class", "redis", "hiveio", "transactions", "../a"]
)
def test_a_name_that_would_not_work_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["new", "--role", "base", "--into", str(tmp_path), "--", name]
    assert main(words) == 2
    assert f"NAME={name!r} is" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = make("base", tmp_path)
    (project / "order_lines.py").write_text("mine")
    assert main(["new", "order-lines", "--role", "producer", "--into", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (project / "order_lines.py").read_text() == "mine"
