"""The command-line tool: what it says of itself, and how it shows what others wrote."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import Raw

from hiveio import __version__
from hiveio.cli import COMMANDS, dead, main
from hiveio.cli.judging import JudgedRecord
from hiveio.cli.log import as_text
from hiveio.cli.shown import shown, shown_lines
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.record import CommandId, Commit, ProcessStep, Schedule, Send, Write
from tests.process import ROOT

OPERATIONS = ROOT / "docs" / "operations.md"


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words", ["retry --group g t/0/1 t/0/2", "retry t/0/1 --group g t/0/2", "--group g retry t/0/1 t/0/2"]
)
def test_arguments_may_stand_before_and_after_options(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: argparse.Namespace) -> int:
        assert (arguments.action, arguments.dead_letters, arguments.group) == ("retry", ["t/0/1", "t/0/2"], "g")
        return 0

    monkeypatch.setattr(dead, "run", run)
    assert main(["dead", *words.split()]) == 0


def test_it_names_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "--version") == f"hiveio {__version__}\n"


def test_help_and_docs_name_every_command_and_what_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    table = OPERATIONS.read_text().partition("Exit codes:")[0]
    rows = re.findall(r"^\| `hiveio (\w+)` \| .* \| (.*) \|$", table, re.MULTILINE)
    assert rows == [(name, about.changes) for name, about in COMMANDS.items()]
    modules = {path.stem for path in Path(main.__code__.co_filename).parent.glob("*.py")}
    assert COMMANDS.keys() <= modules
    listed = " ".join(output(capsys, "--help").split())
    for name, about in COMMANDS.items():
        assert f" {name} {about.does} (changes {about.changes})" in listed
        assert f"(changes {about.changes})" in " ".join(output(capsys, name, "--help").split())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("äda → 7", "äda → 7"),
        ("\x1b[2Jada\x07", r"\x1b[2Jada\x07"),
        ("ada\n0:1  accepted", r"ada\n0:1  accepted"),
        ("a\x9b31m\x7f\r\t", r"a\x9b31m\x7f\r\t"),
        ("\u202eada\u2028\ud800", r"\u202eada\u2028\ud800"),
        (b"a\xff\x00", r"a\\xff\x00".replace("\\\\", "\\")),
    ],
)
def test_what_others_wrote_moves_no_cursor_and_forges_no_line(text: str | bytes, line: str) -> None:
    assert shown(text) == line
    assert shown_lines("a\x1b\nb") == "a\\x1b\nb"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_seen_enough_is_no_fault(lines: int) -> None:
    run = f"health.run = lambda _: [print('line') for _ in range({lines})] and 0"
    tool = f"import sys; from hiveio.cli import health, main; {run}; sys.exit(main(['health']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", tool], stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("last", ["0", "-1"])
def test_the_last_records_are_at_least_one(last: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "--last", last]) != 0
    assert f"--last {last} is wrong: it takes a number of at least 1" in capsys.readouterr().err


def test_log_shows_the_step_of_a_process() -> None:
    reserve, late = Raw(b'{"type":"Reserve","payload":{"amount":5}}'), Raw(b'{"type":"Late","payload":{}}')
    step = ProcessStep(
        "orders/id/0/7",
        (Send("payments", "o1", reserve),),
        (Schedule("Late", 900_000, late),),
        ("Early",),
        "Third",
        0,
        answers="4:1",
        ends=True,
    )
    record = Commit(CommandId("Fulfilment/o1", "k"), (Write("Fulfilment/o1", "", 0),), process=step)
    assert as_text(2, JudgedRecord(LogRecord(9, "w-1", b"", 0), record, accepted=True)).splitlines()[2:] == [
        "    takes orders/id/0/7",
        "    has the answer to the command 2:4:1",
        "    fires the deadline Third, due at 1970-01-01T00:00:00.000Z by the log's clock",
        "    cancels the deadline Early",
        '    sends to payments/o1  Reserve {"amount": 5}',
        "    schedules the deadline Late  900000 ms later",
        "    ends the process",
    ]
