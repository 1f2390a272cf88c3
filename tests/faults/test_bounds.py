"""The checker's bounds: levels of reads by real time, events published in time, memory that does not grow."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.bounds import SPAN, WARM_UP, Sample, Watched
from tests.faults.checker import Call, Evidence, Result, check
from tests.faults.test_checker import BASIS, Right

LEAK = 2_000  # bytes a request
LATE_S = 1.0
Change = Callable[[Evidence, list[Call]], None]


def samples(per_request: float) -> list[Sample]:
    """Of a process that fills its caches, and then grows by so much in each request."""
    rising = [Sample(n, 50_000_000 + 4_000 * min(n, WARM_UP)) for n in range(0, 3 * SPAN, 500)]
    return [sample._replace(rss=int(sample.rss + per_request * sample.requests)) for sample in rising]


def judged() -> tuple[Evidence, list[Call]]:
    """All that a right system leaves. A leader of the log was deposed in the second half of the history."""
    right = Right(BASIS)
    evidence, history = right.evidence(), copy.deepcopy(right.history)
    acknowledged = {call.position: call.answered for call in reversed(history) if call.result is Result.ACCEPTED}
    at = {e.position: acknowledged.get(int(e.position.split(":")[1]), 0.0) for e in right.fold.events}
    arrived = {position: first + LATE_S / 2 for position, first in at.items()}
    deposed = [(history[len(history) // 2].called, 1e9)]
    evidence.watched = Watched(deposed, arrived, LATE_S, {"instance 0": samples(per_request=20)})
    return evidence, history


def read_of(history: list[Call], level: str, called: float, version: int = 0) -> Call:
    """A read of ``Account/a``, which has been written again and again."""
    read = next(c for c in history if c.result is Result.READ and c.target == "Account/a" and c.version)
    return replace(read, level=level, version=version, answer=None, called=called, answered=called + 1)


def refusal(history: list[Call], key: str | None, level: str) -> Call:
    """Of a command that needs less than there has been since the first write, which came before any leader was lost."""
    command = {"type": "Add", "payload": {"amount": -2, "marker": "refused", "parts": 1}}
    return Call("refused", "Tally/t", 1e6, 1e6 + 1, Result.REFUSED, 422, command, key=key, level=level)


def test_nothing_is_found_where_every_bound_is_kept() -> None:
    evidence, history = judged()
    history.append(read_of(history, "cached", 1e6))
    assert check(evidence, history) == []


def test_a_current_read_may_miss_what_came_after_its_leader_was_deposed() -> None:
    evidence, history = judged()
    evidence.watched.deposed[0] = (0.5, 1e9)  # before anything was acknowledged
    history += [read_of(history, "current", 1e6), refusal(history, None, "current")]
    assert check(evidence, history) == []


def a_linearizable_read_is_old(evidence: Evidence, history: list[Call]) -> None:
    evidence.watched.deposed[0] = (0.5, 1e9)
    history.append(read_of(history, "linearizable", 1e6))


def a_current_read_is_old_and_no_leader_was_deposed(evidence: Evidence, history: list[Call]) -> None:
    evidence.watched.deposed.clear()
    history.append(read_of(history, "current", 1e6))


def a_current_read_is_older_than_the_deposed_leader(evidence: Evidence, history: list[Call]) -> None:
    history.append(read_of(history, "current", 1e6))


def a_linearizable_refusal_rests_on_an_old_state(evidence: Evidence, history: list[Call]) -> None:
    evidence.watched.deposed[0] = (0.5, 1e9)
    history.append(refusal(history, None, "linearizable"))


def a_refusal_on_record_rests_on_an_old_state(evidence: Evidence, history: list[Call]) -> None:
    evidence.watched.deposed[0] = (0.5, 1e9)
    history.append(refusal(history, "key", "current"))


def arrivals(evidence: Evidence) -> dict[str, float]:
    assert isinstance(evidence.watched.arrived, dict)
    return evidence.watched.arrived


def an_event_is_published_late(evidence: Evidence, history: list[Call]) -> None:
    arrivals(evidence)[evidence.events[-1].headers["hive-position"]] += LATE_S


def an_event_never_arrives(evidence: Evidence, history: list[Call]) -> None:
    del arrivals(evidence)[evidence.events[0].headers["hive-position"]]


def an_instance_leaks(evidence: Evidence, history: list[Call]) -> None:
    evidence.watched.memory = {"instance 0": samples(0), "instance 1": samples(LEAK)}


@pytest.mark.parametrize(
    ("point", "change"),
    [
        (4, a_linearizable_read_is_old),
        (4, a_current_read_is_old_and_no_leader_was_deposed),
        (4, a_current_read_is_older_than_the_deposed_leader),
        (4, a_linearizable_refusal_rests_on_an_old_state),
        (4, a_refusal_on_record_rests_on_an_old_state),
        (8, an_event_is_published_late),
        (8, an_event_never_arrives),
        (9, an_instance_leaks),
    ],
)
def test_a_bound_that_is_not_kept_is_found(point: int, change: Change) -> None:
    evidence, history = judged()
    change(evidence, history)
    assert {finding.point for finding in check(evidence, history)} == {point}
