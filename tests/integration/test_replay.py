"""`hiveio replay`: a projection rebuilt, next to the one in use or in its place."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from hiveio.cli import main
from hiveio.cli.replay import STALLED_S
from tests.integration.consumers import plain
from tests.integration.topics import committed, make_topic, write
from tests.process import Role, wait_until
from tests.services import Kafka

TOTALS = """
import os, time
from hiveio import Context, Event, Query
from hiveio.projection import SqliteProjection

class Deposited(Event):
    amount: int
class Amounts(Query):
    path = "/amounts"

class Totals(SqliteProjection):
    database = os.environ["DATABASE"]
    tables = "CREATE TABLE IF NOT EXISTS line (amount INTEGER)"

    def perform(self, message: Deposited | Amounts, context: Context) -> list[int] | None:
        if isinstance(message, Amounts):
            return [amount for (amount,) in self.connection.execute("SELECT amount FROM line ORDER BY amount")]
        if str(message.amount) == os.environ.get("BROKEN"):
            raise ValueError("never")
        time.sleep(float(os.environ.get("SLOW_S", "0")))
        factor = int(os.environ.get("FACTOR", "1"))
        self.once(context, lambda db: db.execute("INSERT INTO line VALUES (?)", (message.amount * factor,)))
        return None
"""

Replay = Callable[..., int]


@pytest.fixture
def environ(kafka: Kafka, topic: str, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "totals.py").write_text(TOTALS)
    make_topic(kafka.brokers, topic, 2)
    write(kafka.brokers, topic, [*plain(range(50)), *plain(range(50, 100), 1)])
    return {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": topic,
        "CONSUMER_ATTEMPTS": "2",
        "CONSUMER_BACKOFF": "1",
        "DATABASE": str(tmp_path / "totals.sqlite"),
    }


@pytest.fixture
def replay(environ: dict[str, str], tmp_path: Path) -> Replay:
    """As a process of its own, as in the image."""

    def run(*words: str, stalled_s: float = 0.0, **more: str) -> int:
        command = [str(Path(sys.executable).parent / "hiveio")]
        if stalled_s:
            patched = f"import sys; from hiveio.cli import main, replay; replay.STALLED_S = {stalled_s}"
            command = [sys.executable, "-c", f"{patched}; sys.exit(main(sys.argv[1:]))"]
        done = subprocess.run(
            [*command, "replay", *words],
            env={**environ, "ACTOR_PATH": str(tmp_path), "ACTOR_MODULE": "totals", "PATH": "/usr/bin:/bin", **more},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        run.text = done.stdout + done.stderr  # type: ignore[attr-defined]
        return done.returncode

    return run


def text(replay: Replay) -> str:
    return str(replay.text)  # type: ignore[attr-defined]


def stored(environ: dict[str, str]) -> list[int]:
    with sqlite3.connect(environ["DATABASE"], timeout=10) as connection:
        return [amount for (amount,) in connection.execute("SELECT amount FROM line ORDER BY amount")]


def test_a_shadow_while_the_service_answers(
    kafka: Kafka, topic: str, environ: dict[str, str], replay: Replay, tmp_path: Path
) -> None:
    with Role("consumer", environ, actor_path=tmp_path, module="totals") as role:
        wait_until(lambda: httpx.get(role.url + "/amounts").json() == [*range(100)], 30, "the projection")
        answers: list[list[int]] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                answer = httpx.get(role.url + "/amounts")
                assert answer.status_code == 200
                assert "age" not in answer.headers, "what is in use is not behind"
                if answer.json() not in answers:
                    answers.append(answer.json())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            assert replay(FACTOR="10") == 0, text(replay)
        finally:
            ended.set()
            watcher.join()
        assert "100 events replayed" in text(replay)
        rebuilt = [amount * 10 for amount in range(100)]
        assert httpx.get(role.url + "/amounts").json() == rebuilt
        assert [answer for answer in answers if answer != rebuilt] == [[*range(100)]], "one or the other, never half"
        write(kafka.brokers, topic, plain([5000]))
        wait_until(lambda: httpx.get(role.url + "/amounts").json() == [*rebuilt, 5000], 20, "what comes after")
    assert not list(tmp_path.glob("*.shadow*"))


def test_a_shadow_that_fails_changes_nothing(
    topic: str, environ: dict[str, str], replay: Replay, tmp_path: Path
) -> None:
    with Role("consumer", environ, actor_path=tmp_path, module="totals"):
        wait_until(lambda: Path(environ["DATABASE"]).exists() and len(stored(environ)) == 100, 30, "the projection")
    began = time.monotonic()
    assert replay(BROKEN="7") == 1
    assert time.monotonic() - began < STALLED_S / 2, "it ends when the event is given up on"
    assert text(replay).splitlines()[-2:] == [
        "nothing was changed",
        f"hiveio replay: the replay stopped: {topic}/0/7: failed: ValueError: never; CONSUMER_PARKED=0 allows no dead "
        "letters, so this partition stops",
    ]
    assert "events replayed" not in text(replay)
    assert stored(environ) == [*range(100)]
    assert not list(tmp_path.glob("*.shadow*"))


def test_a_shadow_may_take_longer_than_the_service_has_taken(
    environ: dict[str, str], replay: Replay, tmp_path: Path
) -> None:
    """What the service has committed says nothing about the shadow: only a standstill ends it."""
    with Role("consumer", environ, actor_path=tmp_path, module="totals"):
        wait_until(lambda: Path(environ["DATABASE"]).exists() and len(stored(environ)) == 100, 30, "the projection")
    assert replay(stalled_s=4.0, SLOW_S="0.08", FACTOR="10") == 0, text(replay)
    assert stored(environ) == [amount * 10 for amount in range(100)]


def test_reset(kafka: Kafka, topic: str, environ: dict[str, str], replay: Replay, tmp_path: Path) -> None:
    with Role("consumer", environ, actor_path=tmp_path, module="totals"):
        wait_until(lambda: Path(environ["DATABASE"]).exists() and len(stored(environ)) == 100, 30, "the projection")
        assert replay("--reset") == 20
        assert "stop the service" in text(replay)
    assert replay("--reset", "--from", "40") == 0, text(replay)
    assert stored(environ) == [*range(40, 50), *range(90, 100)]
    assert "20 events replayed" in text(replay)
    assert committed(kafka.brokers, topic, topic)[0] == 50
    assert replay("--reset", "--from", "2200-01-01", "--no-wait") == 0, text(replay)
    assert stored(environ) == []
    assert replay("--reset", "--no-wait") == 0, text(replay)
    assert len(committed(kafka.brokers, topic, topic)[1].split(" ")[1]) == 22, "the id of the topic"
    with Role("consumer", environ, actor_path=tmp_path, module="totals"):
        wait_until(lambda: stored(environ) == [*range(100)], 30, "the service reads it")


def test_queries_answer_during_a_replay_and_say_how_old_they_are(
    kafka: Kafka, topic: str, environ: dict[str, str], replay: Replay, tmp_path: Path
) -> None:
    with Role("consumer", environ, actor_path=tmp_path, module="totals"):
        wait_until(lambda: Path(environ["DATABASE"]).exists() and len(stored(environ)) == 100, 30, "the projection")
    write(kafka.brokers, topic, plain([200]))
    written = time.time()
    assert replay("--reset", "--no-wait") == 0, text(replay)
    assert len(committed(kafka.brokers, topic, topic)[1].split(" ")[1]) == 22, "the id of the topic"
    with Role("consumer", environ | {"SLOW_S": "0.05"}, actor_path=tmp_path, module="totals") as role:

        def ask() -> tuple[int, int]:
            answer = httpx.get(role.url + "/amounts", timeout=10)
            assert answer.status_code == 200
            return len(answer.json()), int(answer.headers.get("age", "-1"))

        def half() -> tuple[int, int] | None:
            count, age = ask()
            return (count, age) if 0 < count < 80 and age >= 0 else None

        _, age = wait_until(half, 30, "an answer from the half-built projection")
        assert age >= int(time.time() - written) - 1, "its oldest event that is missing was written before that"
        wait_until(lambda: ask() == (101, -1), 30, "all of it, and no age any more")


def test_what_cannot_be_replayed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EVENT_STORE_BROKERS", "127.0.0.1:1")
    monkeypatch.setenv("EVENT_STORE_GROUP_ID", "g")
    monkeypatch.setenv("EVENT_STORE_TOPIC", "t")
    assert main(["replay", "--from", "5"]) == 1
    monkeypatch.setenv("EVENT_STORE_CONSUMER_TOPIC", "^t.*")
    assert main(["replay"]) == 1
    errors = capsys.readouterr().err
    assert "--reset" in errors
    assert "expression" in errors
