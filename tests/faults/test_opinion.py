"""Porcupine agrees with the checker, on what is right and on what is not."""

from dataclasses import replace

import pytest

from tests.conftest import required
from tests.faults.checker import Result
from tests.faults.opinion import porcupine, second_opinion
from tests.faults.test_checker import BASIS, Right


@pytest.fixture(autouse=True)
def built() -> None:
    with required("go"):
        porcupine()


def test_a_right_history_is_linearizable() -> None:
    legal, text = second_opinion(Right([*BASIS, *BASIS]).history)
    assert legal, text


@pytest.mark.parametrize("wrong", ["an old read", "a lost update", "a refusal without a reason"])
def test_a_wrong_history_is_not(wrong: str) -> None:
    history = Right(BASIS).history
    reads = [call for call in history if call.result is Result.READ]
    accepted = [call for call in history if call.result is Result.ACCEPTED and call.command]
    deposits = [call for call in accepted if call.target == "Account/a"]
    if wrong == "an old read":
        history.append(replace(reads[0], version=1, answer={"balance": 60}, called=1e6, answered=1e6 + 1))
    elif wrong == "a lost update":
        history.remove(deposits[0])  # acknowledged, and no read shows it
        reads[0].version = (reads[0].version or 0) - 1
    else:
        assert deposits[0].command is not None
        command = {"type": "Withdraw", "payload": {"amount": 1, "marker": "m"}}
        refusal = replace(deposits[0], marker="m", command=command, result=Result.REFUSED, status=422, version=None)
        history.append(replace(refusal, called=1e6, answered=1e6 + 1))
    legal, text = second_opinion(history)
    assert not legal, text
