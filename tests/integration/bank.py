"""A stream processor and a consumer of its events, at work, for those who look at them with the command-line tool."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import msgspec

from hiveio.status import Status
from hiveio.transaction.rule import scope_of
from tests.integration.conftest import Make
from tests.process import Role, wait_until

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


class Console:
    """The tool as a process, with these settings, on a free port; it looks at the services every ``every_s``, or as it
    does by itself."""

    def __init__(self, environ: Mapping[str, str], *words: str, every_s: float | None = None) -> None:
        tool = [HIVEIO]
        if every_s is not None:
            often = f"from hiveio.console import history; history.EVERY_S = {every_s}"
            tool = [sys.executable, "-c", f"{often}; from hiveio.cli import main; raise SystemExit(main())"]
        self._environ, self._command = dict(environ), [*tool, "console", "--port", "0", *words]

    @classmethod
    def of(cls, bank: Bank, *words: str) -> "Console":
        return cls(bank.accounts.environ, "--instance", bank.statements.url, *words)

    def __enter__(self) -> "Console":
        self.process = subprocess.Popen(
            self._command, env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        found = re.search(r":(\d+)/", self.said)
        assert found is not None, self.said + self.process.communicate()[1]
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"
        wait_until(self._answers, 30, "the console answers")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.output, self.errors = self.process.communicate(timeout=30)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        try:
            return httpx.get(f"{self.url}/console.css", timeout=5).status_code in (200, 401)
        except httpx.TransportError:
            return False

    def page(self, path: str, status: int = 200) -> str:
        answer = httpx.get(self.url + path, timeout=30, follow_redirects=True)
        assert answer.status_code == status, answer.text
        return answer.text


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
