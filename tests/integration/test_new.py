"""`hiveio new`: what it writes passes its own tests, the checkers, and serves."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from hiveio.cli import main
from hiveio.roles import ROLES
from tests.process import Role, wait_until
from tests.services import Kafka, Redis

# Each role alone, all of them, and a consumer that reads what a producer writes.
SHOPS = [[role] for role in ROLES] + [[*ROLES], ["consumer", "producer"]]
ALWAYS = {".dockerignore", ".gitignore", "README.md", "compose.yaml", "pyproject.toml", "requirements.txt"}
MODULES = {"base": "shouts", "producer": "reports", "consumer": "board", "stream-processor": "items"}


def make(roles: Sequence[str], into: Path, name: str = "order-lines") -> Path:
    words = [word for role in roles for word in ("--role", role)]
    assert main(["new", name, *words, "--into", str(into)]) == 0
    return into / name


@pytest.mark.parametrize("roles", SHOPS[-2:], ids="+".join)
def test_a_new_project_passes_its_test_and_the_checkers(roles: list[str], tmp_path: Path) -> None:
    """Types by its own configuration, as for who uses the package as installed: it says that it is typed."""
    project = make(roles, tmp_path)
    for command in (
        ["pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function"],
        ["ruff", "check", "--isolated", "--no-cache", "--line-length", "120", "--select", "E,F,I,UP,B", "."],
        ["ruff", "format", "--isolated", "--no-cache", "--line-length", "120", "--check", "."],
        ["mypy", "--cache-dir", str(tmp_path / "cache")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=project, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("roles", SHOPS, ids="+".join)
def test_a_new_project_has_the_files_of_its_roles(roles: list[str], tmp_path: Path) -> None:
    project = make(roles, tmp_path)
    modules = {MODULES[role] for role in roles}
    if "producer" in roles and "stream-processor" not in roles and "consumer" in roles:
        modules = modules - {"board"} | {"latest"}
    files = {file for module in modules for file in (f"{module}.py", f"test_{module}.py", f"{module}.Dockerfile")}
    shared = {"events.py"} if modules - {"shouts"} else set()
    assert {path.name for path in project.iterdir()} == ALWAYS | files | shared
    assert not [path for path in project.iterdir() if re.search(r"@\w+@", path.read_text())]


@pytest.mark.parametrize("roles", SHOPS, ids="+".join)
def test_the_services_of_a_new_project_have_what_their_roles_need(roles: list[str], tmp_path: Path) -> None:
    """In compose.yaml, and in the images: a service finds its module, its contracts and the place for its data."""
    project = make(roles, tmp_path)
    composed: dict[str, Any] = yaml.safe_load((project / "compose.yaml").read_text())
    services = composed["services"]
    backends = {name for name in ("kafka", "valkey") if name in services}
    assert ("kafka" in backends, "valkey" in backends) == (roles != ["base"], "stream-processor" in roles)
    assert all("healthcheck" in services[name] for name in backends)
    assert ("console" in services) == ("stream-processor" in roles)
    if console := services.pop("console", {}):
        assert console["environment"] == services["items"]["environment"]
        asked = {word for word in console["command"] if word.startswith("http://")}
        assert asked == {f"http://{name}:3000" for name in services.keys() - backends - {"items"}}
    ports = [service["ports"][0] for name, service in services.items() if name not in backends]
    assert [port.partition(":-")[2] for port in ports] == [f"{3001 + at}}}:3000" for at in range(len(roles))]
    for name in services.keys() - backends:
        lines = (project / services[name]["build"]["dockerfile"]).read_text().splitlines()
        assert len(lines) == 3
        role = lines[0].removeprefix("FROM hiveio/")
        copied = lines[1].removeprefix("COPY ").removesuffix(" /actor/").split()
        assert copied == [*(["events.py"] if role != "base" else []), f"{name}.py"]
        assert set(services[name]["environment"]) == {"CLUSTER_SIZE", *ROLES[role].settings}
        writers = {"stream-processor": {"items"}, "producer": {"reports"}}
        written = next((writers[each] for each in writers if each in roles), set()) if role == "consumer" else set()
        assert set(services[name].get("depends_on", {})) - backends == written, "its topic is there before it starts"
        kept = {volume.partition(":")[0] for volume in services[name].get("volumes", [])}
        assert ("DATABASE=/data/" in lines[2], bool(kept)) == (role == "consumer", role == "consumer")
        assert kept <= (composed.get("volumes") or {}).keys()


def test_a_new_base_serves(tmp_path: Path) -> None:
    with Role("base", actor_path=make(["base"], tmp_path), module="shouts") as role:
        answer = httpx.get(f"{role.url}/shouts/hello?times=2")
        assert answer.json() == {"type": "Shouted", "payload": {"texts": ["HELLO", "HELLO"]}}


def test_a_new_producer_feeds_a_new_consumer(tmp_path: Path, kafka: Kafka, topic: str) -> None:
    project = make(["producer", "consumer"], tmp_path)
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic}
    with (
        Role("producer", environ, actor_path=project, module="reports") as writer,
        Role("consumer", {**environ, "EVENT_STORE_GROUP_ID": topic}, actor_path=project, module="latest") as reader,
    ):
        answer = httpx.post(f"{writer.url}/reports/7", json={"type": "Report", "payload": {"celsius": 21.5}})
        assert (answer.status_code, answer.json()["type"]) == (200, "Reported")
        found = httpx.get(f"{reader.url}/latest/7", headers={"Hive-Position": answer.headers["hive-position"]})
        assert found.json()["payload"] == {"celsius": 21.5, "sensor": "default", "reports": 1}


def test_a_new_stream_processor_feeds_a_new_consumer_that_survives_a_restart(
    tmp_path: Path, kafka: Kafka, redis: Redis, topic: str
) -> None:
    project = make(["consumer", "stream-processor"], tmp_path)
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic, "CACHE_URL": redis.url}
    listening = {**environ, "EVENT_STORE_GROUP_ID": topic, "DATABASE": str(tmp_path / "board.sqlite")}
    with Role("stream-processor", environ, actor_path=project, module="items") as writer:
        with Role("consumer", listening, actor_path=project, module="board") as reader:
            for kind, title in (("Create", "Draft"), ("Rename", "Book")):
                message = {"type": kind, "payload": {"title": title}}
                answer = httpx.post(f"{writer.url}/items/7", json=message)
                assert answer.status_code == 200
            assert httpx.get(f"{writer.url}/items/7").json()["payload"] == {"title": "Book"}
            asked = {"Hive-Position": answer.headers["hive-position"]}
            titled = {"title": "Book", "changes": 1}
            assert httpx.get(f"{reader.url}/board/7", headers=asked).json()["payload"] == titled
        # What it knows comes from its file, and each event has counted once.
        with Role("consumer", listening, actor_path=project, module="board") as again:
            wait_until(lambda: httpx.get(f"{again.url}/board/7").json().get("payload") == titled, 30, "the projection")


@pytest.mark.parametrize("name", ["Orders", "a_b", "-a", "a--b", "", "../a"])
def test_a_name_that_would_not_work_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["new", "--role", "base", "--into", str(tmp_path), "--", name]
    assert main(words) == 2
    assert f"NAME={name!r} is" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = make(["base"], tmp_path)
    (project / "shouts.py").write_text("mine")
    assert main(["new", "order-lines", "--role", "producer", "--into", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (project / "shouts.py").read_text() == "mine"
