"""What is done ahead of the tests: in order, in a process of its own, and nothing of it is left."""

import time

import psutil  # type: ignore[import-untyped]
import pytest

from tests.ahead import NICE, Ahead


def test_a_result_an_error_and_an_end() -> None:
    with Ahead([(len, ("abc",)), (len, ("abc",)), (int, ("x",)), (time.sleep, (600,)), (len, ("never",))]) as ahead:
        assert ahead.result(len, "abc") == 3
        with pytest.raises(AssertionError, match="ValueError: invalid literal"):
            ahead.result(int, "x")
        process, folder = psutil.Process(ahead._process.pid), ahead.folder
        assert process.nice() == min(psutil.Process().nice() + NICE, 19)
    assert not process.is_running()
    assert not folder.exists()


def test_a_process_that_ended_is_not_waited_for() -> None:
    with Ahead([(time.sleep, (600,))]) as ahead:
        ahead._process.kill()
        with pytest.raises(AssertionError, match="was not done ahead"):
            ahead.result(time.sleep, 600)
