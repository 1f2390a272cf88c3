"""``hiveio status`` over a stream processor and a consumer that work on a real Kafka and Redis."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hiveio.status import Status
from tests.integration.accounts import ACTOR, send  # noqa: F401 - ACTOR is what `processor` starts
from tests.integration.conftest import Make
from tests.process import Role, wait_until

STATEMENTS = """
from hiveio import Actor, Event

class Opened(Event):
    owner: str
class Deposited(Event):
    amount: int

class Statements(Actor):
    def perform(self, event: Opened | Deposited) -> None:
        if isinstance(event, Opened) and event.owner == "poison":
            raise ValueError("no such owner")
"""


class Bank:
    """A stream processor, and a consumer of its events."""

    def __init__(self, accounts: Role, statements: Role, topic: str) -> None:
        self.accounts, self.statements, self.topic = accounts, statements, topic
        self.group = statements.environ["EVENT_STORE_GROUP_ID"]

    def status(self) -> Status:
        return look(self.accounts, "--instance", self.statements.url)


def hiveio(role: Role, *words: str) -> subprocess.CompletedProcess[str]:
    """The tool with the settings of this role, without its actor."""
    environ = role.environ | {"ACTOR_MODULE": ""}
    tool = str(Path(sys.executable).parent / "hiveio")
    return subprocess.run([tool, *words], env=environ, capture_output=True, text=True, timeout=60, check=False)


def look(role: Role, *words: str) -> Status:
    done = hiveio(role, "status", "--json", *words)
    assert done.stderr == ""
    return msgspec.json.decode(done.stdout, type=Status)


@pytest.fixture
def bank(processor: Make, topic: str) -> Iterator[Bank]:
    accounts = processor(EVENT_STORE_PARTITIONS="2", EVENT_STORE_ID="accounts")
    with accounts:
        environ = {
            "EVENT_STORE_BROKERS": accounts.environ["EVENT_STORE_BROKERS"],
            "EVENT_STORE_TOPIC": topic,
            "EVENT_STORE_GROUP_ID": f"{topic}-statements",
            "EVENT_STORE_FROM_START": "true",
            "CONSUMER_ATTEMPTS": "1",
        }
        with Role("consumer", environ, actor=STATEMENTS) as statements:
            yield Bank(accounts, statements, topic)


def test_one_look_shows_scopes_groups_dead_letters_and_instances(bank: Bank) -> None:
    for id in ("ada", "bob", "eve"):
        assert send(bank.accounts, id, "Open", owner=id).status_code == 200
    assert send(bank.accounts, "mallory", "Open", owner="poison").status_code == 200
    assert send(bank.accounts, "mallory", "Deposit", amount=1).status_code == 200

    def settled() -> Status | None:
        status = bank.status()
        if all(scope.applied == scope.end == scope.judged and scope.leader for scope in status.scopes):
            dead = sum(group.dead.count for group in status.groups)
            return status if dead == 2 and not any(group.lag for group in status.groups) else None
        return None

    status: Status = wait_until(settled, 60, "all is applied, published and handled")
    assert status.problems == []
    assert [scope.partition for scope in status.scopes] == [0, 1]
    assert sum(scope.events_end for scope in status.scopes) == 5
    assert all(scope.void_share == 0.0 for scope in status.scopes)
    assert all(scope.publisher_lag == 0 for scope in status.scopes)
    group = next(group for group in status.groups if group.name == bank.group)
    assert (group.state, len(group.members), group.lag_s) == ("STABLE", 1, 0.0)
    assert (group.dead.keys, group.dead.reasons) == (1, {"failed": 1, "parked": 1})
    accounts, statements = status.instances
    assert (accounts.service, accounts.ready, accounts.gone) == ("accounts", True, False)
    assert accounts.url.endswith(f":{bank.accounts.port}")
    assert (accounts.leads, accounts.actors) == ([0, 1], ["AccountActor"])
    assert (statements.id, statements.ready) == (bank.statements.url, True)
    assert status.warnings == [f"Group {bank.group} has 2 open dead letters of 1 keys."]

    shown = hiveio(bank.accounts, "status")
    assert (shown.returncode, shown.stderr) == (1, "")
    assert "ATTENTION\n! Group " in shown.stdout
    assert accounts.id in shown.stdout

    bank.accounts.kill()
    after = bank.status()
    assert any("does not answer" in problem for problem in after.problems)
    assert [scope.end for scope in after.scopes] == [scope.end for scope in status.scopes]
    assert after.instances[0].id == accounts.id
    assert after.instances[0].ready is None


def test_an_instance_that_ends_takes_back_what_it_said(processor: Make) -> None:
    with processor() as first, processor() as second:

        def ports() -> set[str]:
            return {each.url.rpartition(":")[2] for each in look(first).instances}

        wait_until(lambda: ports() == {str(first.port), str(second.port)}, 30, "both are shown")
        assert second.stop() == 0
        assert ports() == {str(first.port)}
