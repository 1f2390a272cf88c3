"""``hiveio dead``: what it prints of dead letters whose records are of no form that somebody expects."""

from collections.abc import Iterator
from typing import Any

import pytest

from hiveio.cli import dead, main
from hiveio.consumer.dead_letters.format import REASON, TIME
from hiveio.consumer.dead_letters.opened import DeadLetter
from tests.stand_in import Backend


class Record:
    """A record that is nested too deeply to be decoded."""

    def offset(self) -> int:
        return 7

    def key(self) -> bytes:
        return b"ada"

    def value(self) -> bytes:
        return b"[" * 5_000 + b"]" * 5_000


class Opened:
    """One dead letter with these headers."""

    void = 0

    def __init__(self, headers: dict[str, bytes]) -> None:
        self._headers = headers

    def open(self) -> Iterator[DeadLetter]:
        record: Any = Record()
        yield DeadLetter("bank.g.dead", 0, b"ada", "b\x1b[2J/0/3", record, self._headers)


@pytest.mark.parametrize(
    ("headers", "written"),
    [
        ({}, "1970-01-01T00:00:00.000Z"),
        ({TIME: b"soon", REASON: b""}, "1970-01-01T00:00:00.000Z"),
        ({TIME: b"1764460800000", REASON: b"undecodable"}, "2025-11-30T00:00:00.000Z"),
        ({TIME: b"9" * 18}, f"{'9' * 18} ms"),
    ],
)
def test_a_dead_letter_is_shown_whatever_is_in_it(
    headers: dict[str, bytes], written: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVENT_STORE_BROKERS", "127.0.0.1:1")
    monkeypatch.setattr(dead, "Reader", Backend)
    monkeypatch.setattr(dead, "OpenDeadLetters", lambda *_: Opened(headers))
    assert main(["dead", "list", "--group", "g"]) == 0
    assert r"b\x1b[2J/0/3  key ada" in capsys.readouterr().out
    assert main(["dead", "show", "--all", "--group", "g"]) == 0
    shown = capsys.readouterr().out
    assert rf"b\x1b[2J/0/3  written {written}  lies in bank.g.dead/0/7" in shown
    assert "[[[[" in shown
