"""``hiveio saga``: what it asks for, and what it says."""

from types import SimpleNamespace
from typing import ClassVar

import msgspec
import pytest
from msgspec import Raw

from hiveio.cli import main, saga
from hiveio.transaction.entry import Entry, Watermark
from hiveio.transaction.process import Process, Waiting
from tests.stand_in import Backend


@pytest.mark.parametrize("words", [["list", "Fulfilment/1"], ["show"], ["skip"], ["skip", "--all"], ["retry"]])
def test_a_process_is_named_where_one_is_needed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["saga", *words]) == 1
    assert "name one process as ACTOR/ID (or, to retry all, --all)" in capsys.readouterr().err


def test_an_action_that_is_not_there_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["saga", "drop"])
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


class Leader:
    """A cache whose process goes on for as long as somebody looks: of three inputs, one more is handled at each."""

    asked: ClassVar[list[str]] = []

    def __init__(self, *_: object) -> None:
        self._looks = 0

    async def load(self, scope: int, pairs: list[tuple[str, str]]) -> list[SimpleNamespace]:
        self._looks += 1
        stuck = "no such address" if self._looks == 1 else ""
        first = min(self._looks, 2) - 1  # the first one is handled at the second look, and the others take long
        process = Process(
            waiting=tuple(Waiting(f"orders/id/0/{at}", Raw(b"{}")) for at in range(first, 3)), stuck=stuck
        )
        entry = Entry(head=str(self._looks), process=msgspec.json.encode(process))
        return [SimpleNamespace(entry=entry, watermark=Watermark(9, 0, "", ""))]

    async def ask(self, scope: int, name: str, what: str) -> None:
        self.asked.append(what)


def test_a_process_that_goes_on_with_much_that_waits_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    actor = SimpleNamespace(scope=lambda id: id)
    for name, value in {
        "Reader": Backend,
        "connect": Backend,
        "Cache": Leader,
        "load": lambda settings: [SimpleNamespace(name="Fulfilment", process=True, actor=actor)],
        "count_scopes": lambda settings: 1,
        "fingerprint": lambda contracts: "f",
        "WAIT_S": 1.0,
        "AGAIN_S": 0.3,
    }.items():
        monkeypatch.setattr(saga, name, value)
    for variable in ("EVENT_STORE_BROKERS", "EVENT_STORE_TOPIC"):
        monkeypatch.setenv(variable, "bank")
    monkeypatch.setenv("CACHE_URL", "redis://127.0.0.1:1")
    assert main(["saga", "skip", "Fulfilment/7"]) == 0
    assert capsys.readouterr().out == "Fulfilment/7 goes on; 2 more inputs wait for their turn\n"
    assert Leader.asked == ["skip orders/id/0/0"]
