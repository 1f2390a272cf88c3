# ruff: noqa: E501
"""``hiveio check --log``: every event of a real log, decoded and folded by the actors of today."""

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.accounts import ACTOR, send
from tests.integration.conftest import Make
from tests.integration.topics import read_all
from tests.services import Kafka

UPCAST = """
    def upcast(self, type, payload):
        return ("Begun" if type == "Opened" else type), payload
"""


def test_every_event_of_the_log_is_folded_by_the_actors_of_today(
    processor: Make, kafka: Kafka, topic: str, tmp_path: Path
) -> None:
    with processor() as role:
        for id in ("ada", "bob", "a%1Bb"):
            assert send(role, id, "Open", owner=id).status_code == 200
        assert send(role, "ada", "Deposit", amount=5).status_code == 200
        assert send(role, "bob", "Open", {"Idempotency-Key": "k"}, owner="eve").status_code == 422
    records = len(read_all(kafka.brokers, f"{topic}.transactions"))

    def check(source: str, *words: str) -> tuple[int, list[str]]:
        (tmp_path / "today.py").write_text(source)
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "ACTOR_PATH": str(tmp_path),
            "ACTOR_MODULE": "today",
            "EVENT_STORE_BROKERS": kafka.brokers,
            "EVENT_STORE_TOPIC": topic,
        }
        tool = [str(Path(sys.executable).parent / "hiveio"), "check", "--log", *words]
        checked = subprocess.run(
            tool, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
        )
        assert checked.stderr == ""
        return checked.returncode, checked.stdout.splitlines()

    summary = f"{topic}.transactions: 1 AccountActor Deposited, 3 AccountActor Opened"
    assert check(ACTOR) == (0, [summary, "1 actor: no breaking changes"])
    assert check(ACTOR, "--write", "schemas.json")[0] == 0

    code, lines = check(ACTOR.replace("AccountActor", "Accounts"))
    assert (code, lines[0]) == (1, summary)
    assert lines[1] == (
        "breaks old records in the log: the log has aggregates of AccountActor, and there is no actor of that name "
        f'(3 aggregates, first at {topic}.transactions/0/1); write name = "AccountActor" in the actor that is to fold them'
    )

    renamed = ACTOR.replace("Opened", "Begun")
    code, lines = check(renamed)
    assert code == 1
    assert lines[1] == (
        "breaks old records in the log: AccountActor cannot fold Opened: it is none of the events that replay takes "
        f"(3 aggregates, first at {topic}.transactions/0/1); let upcast make today's event of it, or let replay take it"
    )
    assert check(renamed + UPCAST)[0] == 0
    code, lines = check(renamed + UPCAST, "schemas.json")  # who reads the topic is another matter
    assert (code, len(lines)) == (1, 4)
    assert lines[1].startswith("breaks readers of the event topic: AccountActor writes no Opened any more, but Begun; ")

    code, lines = check(ACTOR.replace("case Deposited(", "case Deposited() if 1 / 0: ...\n            case Deposited("))
    assert code == 1
    assert "AccountActor cannot fold Deposited: ZeroDivisionError: division by zero (1 aggregate, first at " in lines[1]
    assert len(read_all(kafka.brokers, f"{topic}.transactions")) == records  # it wrote nothing
