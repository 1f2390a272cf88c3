"""`make run`: the story itself, as a person starts it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from examples.bank.story import STEPS
from tests.conftest import required
from tests.process import NOWHERE, ROOT, wait_until
from tests.services import kafka_home

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(180, func_only=True)]
WRONG = """
import sys
from examples.bank.story import STEPS, Step, main

def wrong(scene):
    answer = scene.send("base", "GET", "/quotes/10000")
    scene.expect("it is free of charge", 0, answer.body["payload"]["fee"])

def broken(scene):
    scene.send("base", "GET", "/quotes/10000").body["nothing"]

steps = [STEPS[0], Step("A wish", wrong), Step("A mistake", broken), STEPS[1]]
sys.exit(main(["--once"], steps))
"""


@pytest.fixture(scope="module", autouse=True)
def jars() -> None:
    with required("kafka"):
        kafka_home()


@pytest.fixture
def leftovers(tmp_path: Path) -> Iterator[Path]:
    """A folder for all temporary files of a story, which must be empty afterwards, and no process left in it."""
    yield tmp_path
    assert list(tmp_path.iterdir()) == []
    # One that has ended is still listed for the moment in which it is reaped.
    wait_until(lambda: not processes_in(tmp_path), 5, "the end of its processes")


def processes_in(folder: Path) -> list[psutil.Process]:
    listed = psutil.process_iter(["environ"])
    return [process for process in listed if (process.info["environ"] or {}).get("TMPDIR") == str(folder)]


def story(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder), "http_proxy": NOWHERE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and text; nothing on stderr, and no control codes where nobody looks."""
    text, errors = process.communicate(timeout=120)
    assert errors == "", text
    assert "\x1b" not in text
    return process.returncode, text


def test_every_step_comes_out_right(leftovers: Path) -> None:
    code, text = ended(story(["-m", "examples.bank.story", "--once"], leftovers))
    assert code == 0, text
    for number, step in enumerate(STEPS, 1):
        assert re.search(rf"^ {number}  {re.escape(step.title)} ", text, re.MULTILINE)
    assert f"All {len(STEPS)} steps came out right" in text
    assert "✗" not in text
    for seen in (
        "request POST /accounts/ada",
        "200 OK",
        "bank.transactions/0/1  accepted",
        "AccountActor/ada v1",
        "FLUSHALL",
    ):
        assert seen in text


def test_the_orders_come_out_right_too(leftovers: Path) -> None:
    code, text = ended(story(["-m", "examples.orders.story", "--once"], leftovers))
    assert code == 0, text
    assert "All 5 steps came out right" in text
    assert "✗" not in text


def test_it_comes_out_right_with_the_partitions_of_the_deployment(leftovers: Path) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "config.yaml").read_text())["data"]
    partitions = int(config["EVENT_STORE_PARTITIONS"])
    assert partitions > 1
    code, text = ended(story(["-m", "examples.bank.story", "--once", f"--partitions={partitions}"], leftovers))
    assert code == 0, text
    assert f"All {len(STEPS)} steps came out right" in text


def test_a_step_that_comes_out_wrong_is_named(leftovers: Path) -> None:
    code, text = ended(story(["-c", WRONG], leftovers))
    assert code == 1, text
    shown = text.partition("Not everything came out right")[2]
    assert "✗ 2 A wish: it is free of charge" in shown
    assert "✗ 3 A mistake: KeyError: 'nothing'" in shown
    assert "✗ 4" not in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_keeps_running_until_a_signal_ends_it(leftovers: Path, number: signal.Signals) -> None:
    process = story(["-c", "import sys; from examples.bank.story import *; sys.exit(main([], STEPS[:1]))"], leftovers)
    try:
        lines: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "Everything keeps running" in line:
                break
        assert any("curl -i 'http://" in line and "content-type: application/json" in line for line in lines)
        opened = {
            connection.laddr.ip.removeprefix("::ffff:")
            for part in psutil.Process(process.pid).children(recursive=True)
            for connection in part.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert opened == {"127.0.0.1"}, "nobody else's machine gets in"
        process.send_signal(number)
        code, _ = ended(process)
        assert code == 0
    finally:
        process.kill()


def test_it_can_be_ended_while_it_starts(leftovers: Path) -> None:
    process = story(["-m", "examples.bank.story"], leftovers)
    try:
        wait_until(lambda: list(leftovers.glob("hiveio-bank-*/kafka")), 20, "the start of Kafka")
        process.send_signal(signal.SIGINT)
        code, _ = ended(process)
        assert code == 130
    finally:
        process.kill()
