"""What is done ahead of the tests: in order, in a process of its own, and nothing of it is left."""

import os
import signal
import time

import psutil  # type: ignore[import-untyped]
import pytest

from tests.ahead import NICE, Ahead, working_ahead


def test_a_result_an_error_and_an_end() -> None:
    with working_ahead() as ahead:
        ahead.ask([(len, ("abc",)), (len, ("abc",)), (int, ("x",)), (time.sleep, (600,)), (len, ("never",))])
        assert ahead.result(len, "abc") == 3
        with pytest.raises(AssertionError, match="ValueError: invalid literal"):
            ahead.result(int, "x")
        process = psutil.Process(ahead.pid)
        assert process.nice() == min(psutil.Process().nice() + NICE, 19)
    assert not process.is_running()
    assert not ahead.folder.exists()


def test_what_several_ask_for_is_done_once() -> None:
    with working_ahead() as ahead:
        for each in (ahead, Ahead(ahead.folder, ahead.pid)):
            each.ask([(os.getpid, ()), (os.urandom, (8,))])
            assert each.result(os.getpid) == ahead.pid
        assert Ahead(ahead.folder, ahead.pid).result(os.urandom, 8) == ahead.result(os.urandom, 8)


def test_what_is_printed_otherwise_in_another_process_is_no_argument() -> None:
    """A set of texts has another order in each process: a result would be looked for under another name."""
    with working_ahead() as ahead, pytest.raises(TypeError, match="texts, numbers"):
        ahead.ask([(len, ({"one", "two"},))])


def test_a_process_that_ended_is_not_waited_for() -> None:
    with working_ahead() as ahead:
        ahead.ask([(time.sleep, (600,))])
        os.kill(ahead.pid, signal.SIGKILL)
        with pytest.raises(AssertionError, match="was not done ahead"):
            ahead.result(time.sleep, 600)
