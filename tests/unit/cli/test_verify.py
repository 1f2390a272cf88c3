"""``hiveio verify``: what it says, and of which scopes."""

from types import SimpleNamespace
from typing import Any

import pytest

from hiveio.cli import main, verify
from tests.stand_in import Backend


class Alike(Backend):
    """Kafka and Redis, a scope of them, and its cache: nothing differs, and one aggregate is quarantined."""

    offset = 3
    published = voids = 0

    def __init__(self, *_: object) -> None:
        reason = "ValueError: \x1b[2J"
        self.quarantine = SimpleNamespace(entries={"Account/\x1b[2J": SimpleNamespace(offset=7, reason=reason)})
        self.view = SimpleNamespace(entries={})
        self.log = SimpleNamespace(where="bank.transactions/0", close=lambda: None)

    def rest(self, offset: int) -> None:
        pass

    def close(self) -> None:
        pass

    async def start(self) -> None:
        pass

    entries = ids = processes = writers = verdicts = unknown_entries = start


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = dict.fromkeys(("Reader", "connect", "Cache", "Fold", "Events", "CacheCheck"), Alike)
    made |= {"load": lambda settings: [], "count_scopes": lambda settings: 2, "fingerprint": lambda contracts: "f"}
    for name, value in made.items():
        monkeypatch.setattr(verify, name, value)
    for variable in ("EVENT_STORE_BROKERS", "EVENT_STORE_TOPIC"):
        monkeypatch.setenv(variable, "bank")
    monkeypatch.setenv("CACHE_URL", "redis://127.0.0.1:1")


def test_what_is_quarantined_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--scope", "1"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"Account/\x1b[2J is quarantined: bank.transactions/0/7 cannot be folded: ValueError: \x1b[2J" in said


@pytest.mark.parametrize("scope", ["2", "-1"])
def test_a_scope_that_is_not_there_is_refused(scope: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--scope", scope]) != 0
    assert f"--scope {scope} is wrong: it takes a number from 0 to 1" in capsys.readouterr().err
