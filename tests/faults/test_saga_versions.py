"""Fault 97: services of a version that knows no processes, beside those of today's, up to the upgrade of their logs."""

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import require
from tests.faults.orders import ORDERS, place, prepare, well
from tests.orders import NAMES, Shop, shop
from tests.process import ROOT, wait_until
from tests.services import Kafka, Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(400, func_only=True)]

SERVICES = NAMES[:3]
OLD = [f"{name}-old" for name in SERVICES]
EARLY = ORDERS // 4  # orders that are placed before today's version is there


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False).stdout


@pytest.fixture(scope="session")
def before_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the last version without process managers, from the history."""
    added = git("log", "--diff-filter=A", "--format=%H", "--", "runtime/hiveio/saga/__init__.py").decode().split()
    archive = git("archive", "--format=tar", f"{added[-1]}^", "runtime", "images") if added else b""
    if not archive:
        require("history", "the history of the repository is not there")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def orders_kafka() -> Any:
    with Kafka() as service:
        yield service


@pytest.mark.fault(97)
def test_97_a_version_without_processes_beside_todays(
    orders_kafka: Kafka, redis: Redis, before_processes: Path
) -> None:
    old = {"PYTHONPATH": str(before_processes / "runtime"), "COMMAND_TOPICS": ""}
    entrypoints = dict.fromkeys(OLD, before_processes / "images/stream-processor/entrypoint.py")
    further = dict.fromkeys(OLD, old)
    with shop(
        orders_kafka, redis, wait_s=60, partitions=3, further=further, entrypoints=entrypoints, names=OLD
    ) as made:
        roles = made.roles
        for name in SERVICES:
            roles[name] = roles[f"{name}-old"]
        prepare(made)
        for number in range(EARLY):
            place(made, number)
        # Both versions, with the old format. Commands of processes are taken only in the new one.
        made.further |= {name: {"COMMAND_TOPICS": ""} for name in SERVICES}
        made.start(*SERVICES)
        both = [roles["orders"], roles["orders-old"]]
        for number in range(EARLY, 2 * EARLY):
            roles["orders"] = both[number % 2]
            place(made, number)
        roles["orders"] = both[0]
        refused(made)
        for name in SERVICES:
            said = made.tool(name, "upgrade", "--yes")
            assert said.returncode == 20, said
            assert "does not know format 3 is at work" in said.stdout + said.stderr
        for name in OLD:
            roles[name].pause()  # nobody sees that they are there
        for name in SERVICES:
            said = made.tool(name, "upgrade", "--yes")
            assert said.returncode == 0, said
        for name in OLD:
            roles[name].resume()
        made.begin("fulfilment")
        for name in SERVICES:
            roles.pop(name).stop()
            made.further.pop(name)
            made.begin(name)
        for name in NAMES:
            roles[name].ready(60)
        for name in OLD:
            wait_until(lambda: "has format 3 from here on" in roles[name].text(), 30, f"{name} says why it stops")  # noqa: B023
        order = {"type": "Place", "payload": {"customer": "c0", "sku": "s0", "quantity": 1, "amount": 1}}
        for number in range(2 * EARLY, ORDERS):  # the old ones are still there, and take nothing any more
            if number % 50 == 0:
                assert httpx.post(f"{roles['orders-old'].url}/orders/none", json=order).status_code == 503
            place(made, number)
        well(made)
        assert not made.state("orders", "/orders/none")


def refused(made: Shop) -> None:
    """A service that is to take commands stops while its log has the old format, and says what to do."""
    made.further["stock-new"] = {"COMMAND_TOPICS": "fulfilment.commands"}
    made.begin("stock-new")
    role = made.roles["stock-new"]
    wait_until(lambda: "hiveio upgrade" in role.text(), 60, "it says so")
    made.kill("stock-new")
