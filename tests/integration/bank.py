"""A stream processor and a consumer of its events, at work, for those who look at them with the command-line tool."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from hiveio.status import Status
from hiveio.transaction.rule import scope_of
from tests.integration.conftest import Make
from tests.process import Role

SCOPES = 2
HIVEIO = str(Path(sys.executable).parent / "hiveio")

STATEMENTS = """
import os
from hiveio import Actor, Event

class Opened(Event):
    owner: str
class Deposited(Event):
    amount: int

class Statements(Actor):
    def perform(self, event: Opened | Deposited) -> None:
        if isinstance(event, Opened) and event.owner == "poison" and not os.path.exists(os.environ["CURE"]):
            raise ValueError("no such owner")
"""


class Bank:
    """A stream processor, and a consumer of its events."""

    def __init__(self, accounts: Role, statements: Role, topic: str) -> None:
        self.accounts, self.statements, self.topic = accounts, statements, topic
        self.group = statements.environ["EVENT_STORE_GROUP_ID"]

    def cure(self) -> None:
        """From now on the consumer can handle what it could not."""
        Path(self.statements.environ["CURE"]).touch()

    @staticmethod
    def scope(id: str) -> int:
        """Of an account."""
        return scope_of(id, SCOPES)

    def status(self) -> Status:
        return look(self.accounts, "--instance", self.statements.url)


def hiveio(role: Role, *words: str) -> subprocess.CompletedProcess[str]:
    """The tool with the settings of this role, without its actor."""
    environ = role.environ | {"ACTOR_MODULE": ""}
    return subprocess.run([HIVEIO, *words], env=environ, capture_output=True, text=True, timeout=60, check=False)


def look(role: Role, *words: str) -> Status:
    done = hiveio(role, "status", "--json", *words)
    assert done.stderr == ""
    return msgspec.json.decode(done.stdout, type=Status)


@contextmanager
def opened(processor: Make, topic: str) -> Iterator[Bank]:
    accounts = processor(EVENT_STORE_PARTITIONS=str(SCOPES), EVENT_STORE_ID="accounts")
    with accounts, TemporaryDirectory() as cure:
        environ = {
            "EVENT_STORE_BROKERS": accounts.environ["EVENT_STORE_BROKERS"],
            "EVENT_STORE_TOPIC": topic,
            "EVENT_STORE_GROUP_ID": f"{topic}-statements",
            "EVENT_STORE_FROM_START": "true",
            "CONSUMER_ATTEMPTS": "1",
            "CURE": f"{cure}/cure",
        }
        with Role("consumer", environ, actor=STATEMENTS) as statements:
            yield Bank(accounts, statements, topic)
