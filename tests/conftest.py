"""The services as fixtures, and the order of the tests: the fast ones first."""

from __future__ import annotations

import functools
import os
import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx._config
import httpx._transports.default
import hypothesis
import pytest
from confluent_kafka.admin import AdminClient

from tests.ahead import Ahead, Job, working_ahead
from tests.services import Kafka, Postgres, Redis, ServiceUnavailable, kafka_home

ROOT = Path(__file__).parent
FOLDERS = ("unit", "contract", "integration", "images", "faults")
SERVICES = ("kafka", "redis", "postgres", "docker")
AHEAD = pytest.StashKey[Ahead]()
UNIQUE = re.compile("^__|[0-9a-f]{8}")  # a topic of Kafka itself, or one whose name a test made up

# No test fails because the machine is busy.
hypothesis.settings.register_profile("hiveio", deadline=None)
hypothesis.settings.load_profile("hiveio")

# Each httpx.get makes a client, and each client reads all certificates of the world: 20 ms, also for http.
setattr(httpx._transports.default, "create_ssl_context", functools.cache(httpx._config.create_ssl_context))  # noqa: B010


def require(service: str, reason: object) -> NoReturn:
    """Skip the test because `service` cannot be had here, or fail it if HIVEIO_REQUIRE (a comma list) names it."""
    message = f"{service} cannot be had here: {reason}"
    if service in os.environ.get("HIVEIO_REQUIRE", "").replace(" ", "").split(","):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@contextmanager
def required(service: str) -> Iterator[None]:
    """Around what a test needs: skips it, or fails it, where that cannot be had here."""
    try:
        yield
    except ServiceUnavailable as error:
        require(service, error)


@pytest.fixture(scope="session")
def ahead(request: pytest.FixtureRequest) -> Ahead:
    """What is done ahead; a test that asks for a result has the mark ``ahead`` with the same arguments."""
    return request.config.stash[AHEAD]


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """One broker for all tests: leave it running, use a `topic` of your own; fault tests start theirs."""
    with required("kafka"), Kafka() as service:
        yield service
        topics = AdminClient({"bootstrap.servers": service.brokers}).list_topics(timeout=30).topics
        named = [name for name in topics if not UNIQUE.search(name)]
        assert not named, f"other tests may use these topics too: {named}; take a `topic`, or start a broker"


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """One server for all tests: leave it running, use keys of your own; fault tests start theirs."""
    with required("redis"), Redis() as service:
        yield service


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests: use a schema of your own."""
    with required("postgres"), Postgres() as service:
        yield service


@pytest.fixture(scope="session")
def docker() -> str:
    """The path of the `docker` command, with an engine that answers."""
    command = shutil.which("docker")
    if command is None:
        require("docker", "no docker in PATH")
    answer = subprocess.run([command, "info"], capture_output=True, text=True, check=False, timeout=30)
    if answer.returncode != 0:
        require("docker", answer.stderr.strip() or "the engine does not answer")
    return command


@pytest.fixture(scope="session")
def ipv6() -> None:
    """An address of IPv6 on this machine: ::1."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        require("ipv6", error)


@pytest.fixture
def topic() -> str:
    """A topic name used by nobody else; the topic is not made."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(ROOT).parts[0] if item.path.is_relative_to(ROOT) else ""
        return FOLDERS.index(folder) if folder in FOLDERS else FOLDERS.index("contract")

    items.sort(key=rank)  # stable: within a folder the order stays
    for item in items:
        for service in SERVICES:
            if service in getattr(item, "fixturenames", ()):
                item.add_marker(service)
        if "kafka" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(func_only=True))  # the first start fetches jars, and bounds itself
            item.add_marker(pytest.mark.ahead(kafka_home, print))


def pytest_collection_finish(session: pytest.Session) -> None:
    marks = [mark for item in session.items for mark in item.iter_markers("ahead")]
    jobs: list[Job] = [(mark.args[0], mark.args[1:]) for mark in marks]
    if jobs and not session.config.option.collectonly:
        _working_ahead(session.config).ask(jobs)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist, in the process that starts those that run the tests: they share one that works ahead."""
    ahead = _working_ahead(node.config)
    node.workerinput["ahead"] = (str(ahead.folder), ahead.pid)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """What a test has shown, its log for example, crosses to the other process as UTF-8, whatever bytes it has."""
    return _as_utf8((yield))


def _as_utf8(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _as_utf8(each) for key, each in value.items()}
    return type(value)(map(_as_utf8, value)) if isinstance(value, list | tuple) else value


def _working_ahead(config: pytest.Config) -> Ahead:
    """The one of the process that started this one, or of this process itself."""
    if AHEAD not in config.stash:
        if (given := getattr(config, "workerinput", {}).get("ahead")) is not None:
            config.stash[AHEAD] = Ahead(Path(given[0]), given[1])
        else:
            stack = ExitStack()
            config.add_cleanup(stack.close)
            config.stash[AHEAD] = stack.enter_context(working_ahead())
    return config.stash[AHEAD]
