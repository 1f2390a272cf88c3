"""``hiveio saga``: what it asks for, and what it says."""

import pytest

from hiveio.cli import main


@pytest.mark.parametrize("words", [["list", "Fulfilment/1"], ["show"], ["skip"], ["skip", "--all"], ["retry"]])
def test_a_process_is_named_where_one_is_needed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["saga", *words]) == 1
    assert "name one process as ACTOR/ID (or, to retry all, --all)" in capsys.readouterr().err


def test_an_action_that_is_not_there_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["saga", "drop"])
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
