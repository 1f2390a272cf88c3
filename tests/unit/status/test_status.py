"""The status: which topics and groups belong to a service, what needs attention, and how it looks on a screen."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest

from hiveio.cli.status import screen
from hiveio.config import Settings
from hiveio.status import instances
from hiveio.status.collector import add_numbers
from hiveio.status.groups import dead_topics, sources
from hiveio.status.instances import Answers, ask, ask_all, listed, url_of
from hiveio.status.model import (
    Check,
    DeadLetters,
    Group,
    Instance,
    Processes,
    Quarantined,
    Scope,
    Status,
    StuckProcess,
)
from hiveio.status.processes import log_now
from hiveio.status.text import leader, ranges, span
from hiveio.transaction.entry import Watermark
from hiveio.transaction.presence import GONE_S, Announcement, announcements

TOPICS = [
    "bank",
    "bank.eu",
    "bank.eu.statements.dead",
    "bank.statements.dead",
    "bank.transactions",
    "bank.v.2.dead",
    "other.x.dead",
]
READY = b'{"ready": false, "checks": [{"name": "transaction log", "ready": false, "reason": "bank/0 is at 7 of 9"}]}'
METRICS = b"""# HELP hiveio_fold_lag_records x
# TYPE hiveio_fold_lag_records gauge
hiveio_fold_lag_records{scope="0"} 2.0
# HELP hiveio_commands_in_flight x
# TYPE hiveio_commands_in_flight gauge
hiveio_commands_in_flight 3.0
# HELP hiveio_followed_scopes x
# TYPE hiveio_followed_scopes gauge
hiveio_followed_scopes 4.0
# HELP hiveio_commands_total x
# TYPE hiveio_commands_total counter
hiveio_commands_total{outcome="accepted"} 5.0
"""


def announcement(id: str = "a", *, seen_s: float = 0.0, host: str = "10.0.0.7") -> Announcement:
    now = time.time()
    return Announcement(id, host, 3000, False, "0.1.0", "9c1f0a77", "bank", ("Account",), now - 60, now - seen_s)


def group(**given: object) -> Group:
    settings = {"name": "statements", "state": "STABLE", "members": ["hiveio at 10.0.0.8"], "lag": 0, "lag_s": 0.0}
    settings |= {"partitions": [], "dead": DeadLetters(count=0, keys=0, reasons={})} | given
    return Group(**settings)  # type: ignore[arg-type]


@contextmanager
def answering(ready: bytes, metrics: bytes, *, endless: bool = False) -> Iterator[str]:
    """The URL of a service that answers this, and with ``endless`` goes on with a byte now and then."""
    over = threading.Event()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.path.startswith("/readyz")
            self.send_response(503 if asked else 200)
            self.end_headers()
            self.wfile.write(ready if asked else metrics)
            with suppress(OSError):
                while endless and not over.wait(0.1):
                    self.wfile.write(b" ")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            over.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def service() -> Iterator[str]:
    """A service that answers READY and METRICS."""
    with answering(READY, METRICS) as url:
        yield url


def test_the_sources_are_what_is_written_and_what_is_read() -> None:
    assert sources(Settings(topic="bank"), TOPICS) == ["bank"]
    assert sources(Settings(topic="gone", consumer_topic=("bank.eu",)), TOPICS) == ["bank.eu"]
    by_expression = Settings(producer_topic="bank", consumer_topic=("^bank.*",))
    assert sources(by_expression, TOPICS) == ["bank", "bank.eu"]
    whole_names = Settings(producer_topic="other", consumer_topic=("^bank",))
    assert sources(whole_names, TOPICS) == ["bank"]


def test_a_dead_letter_topic_belongs_to_the_longest_source_and_the_rest_is_the_group() -> None:
    assert dead_topics(["bank", "bank.eu"], TOPICS) == {
        "statements": ("bank.eu.statements.dead", "bank.statements.dead"),
        "v.2": ("bank.v.2.dead",),
    }
    assert dead_topics(["bank"], ["bank.dead", "bank..dead"]) == {}


def test_announcements_that_nobody_can_read_are_left_out() -> None:
    encoded = msgspec.json.encode(announcement())
    assert [each.id for each in announcements([b"{}", b"\xff", encoded, b"null"])] == ["a"]


def test_an_instance_that_is_silent_is_gone() -> None:
    found = listed([announcement("a"), announcement("b", seen_s=GONE_S + 5)], [], {"a": [0, 1]}, {})
    assert [(each.id, each.gone, each.leads, each.ready) for each in found] == [
        ("a", False, [0, 1], None),
        ("b", True, [], None),
    ]
    status = Status(time=0, topic="bank", log="bank.transactions", instances=found)
    assert status.warnings == ["Instance b has not announced itself for 35 s."]


def test_an_address_of_ipv6_has_brackets() -> None:
    assert url_of(announcement(host="fe80::1")) == "http://[fe80::1]:3000"


def test_what_an_instance_answers_is_shown(service: str) -> None:
    answers = ask(service)
    assert (answers.ready, answers.unreachable) == (False, "")
    assert answers.by_scope("hiveio_fold_lag_records") == {0: 2.0}
    assert answers.total("hiveio_commands_in_flight") == 3.0
    (instance,) = listed([], [service], {}, {service: answers})
    assert instance.not_ready == [Check("transaction log", "bank/0 is at 7 of 9")]
    assert (instance.commands_in_flight, instance.follows) == (3, 4)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ftp://127.0.0.1", "nonsense", "http://127.0.0.1:70000"])
def test_what_does_not_answer_is_said(url: str) -> None:
    answers = ask(url)
    assert answers.ready is None
    assert answers.unreachable.startswith(f"{url} does not answer: ")


@pytest.mark.parametrize("ready", [b'{"checks": [1]}', b'{"checks": [{"reason": "x"}]}', b'{"checks": {}}', b"{"])
def test_another_service_at_the_address_of_an_instance_is_said_and_no_fault(ready: bytes) -> None:
    with answering(ready, METRICS) as url:
        answers = {url: ask(url)}
    (instance,) = listed([], [url], {}, answers)
    assert instance.unreachable.startswith(f"{url} does not answer: ")
    assert instance.ready is None


@pytest.mark.parametrize("value", [b"NaN", b"+Inf"])
def test_a_number_that_is_none_is_not_known(value: bytes) -> None:
    with answering(READY, METRICS.replace(b"3.0", value).replace(b"2.0", value)) as url:
        answers = {url: ask(url)}
    (instance,) = listed([], [url], {}, answers)
    assert (instance.commands_in_flight, instance.follows) == (None, 4)
    scope = Scope(partition=0, end=9)
    add_numbers([scope], answers.values(), {})
    assert scope.judged is None


def test_an_answer_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "MOST_S", 0.5)
    monkeypatch.setattr(instances, "ASK_S", 10.0)  # for which a byte may be late
    with answering(READY, METRICS, endless=True) as url:
        assert "its answer has not ended within 0.5 s" in ask(url).unreachable


async def test_more_instances_than_are_asked_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "ask", lambda url: Answers(True, [], {}, ""))
    problems: list[str] = []
    assert len(await ask_all([f"http://h:{at}" for at in range(120)] * 2, problems.append)) == 100
    assert problems == ["Only 100 of 120 instances are asked."]


def test_what_needs_attention_comes_first() -> None:
    dead = DeadLetters(count=3, keys=1, reasons={"failed": 1, "parked": 2})
    status = Status(
        time=0,
        topic="bank",
        log="bank.transactions",
        scopes=[
            Scope(partition=0, end=5, leader="a", publisher_lag_s=42.0),
            Scope(partition=1, end=5, applied=3),
            Scope(partition=2, end=1, quarantined=[Quarantined(fingerprint="9c", count=1, names=["Account/ada"])]),
        ],
        groups=[group(dead=dead), group(name="late", members=[], lag=7, lag_s=None, state="EMPTY")],
        instances=[Instance(id="a", url="http://h:1", ready=True)],
    )
    assert status.warnings == [
        "Events of scope bank.transactions/0 have waited 42 s to be published by a.",
        "Scope bank.transactions/1 has no leader, so nobody applies its records and publishes its events. An instance "
        "that fails at that gives the lease back, and logs why.",
        "1 aggregate of scope bank.transactions/2 cannot be folded by fingerprint 9c: Account/ada.",
        "Group statements has 3 open dead letters of 1 key.",
        "Group late has 7 records to handle and no members.",
    ]
    lines = list(screen(status))
    assert lines.index("ATTENTION") < lines.index("SCOPES") < lines.index("GROUPS") < lines.index("INSTANCES")
    assert "3 (1 failed, 2 parked)" in "\n".join(lines)
    assert "UNKNOWN" not in lines


def test_processes_are_shown_where_there_are_some_and_stuck_ones_need_somebody() -> None:
    stuck = [StuckProcess("Fulfilment/7", "the carrier has no such address.\nAt all."), StuckProcess("F/8", "x" * 999)]
    found = Processes(running=12_000, stuck=2, named=stuck, unanswered=3, unanswered_s=61.0)
    scopes = [Scope(partition=0, end=5, leader="a", processes=found), Scope(partition=1, end=1)]
    status = Status(time=0, topic="bank", log="bank.transactions", scopes=scopes)
    named = f"Fulfilment/7 (the carrier has no such address), F/8 ({'x' * 100}…)"
    assert status.warnings == [f"2 stuck processes in scope bank.transactions/0: {named}."]
    lines = list(screen(status))
    assert lines[lines.index("PROCESSES") + 2].split() == ["0", "12,000", "2", "3", "1", "min", "1", "s"]
    assert lines.index("SCOPES") < lines.index("PROCESSES")
    scopes[0].processes = None
    assert "PROCESSES" not in list(screen(status))
    assert [log_now(Watermark(9, time, "", "", stamp=stamp), 50.0) for time, stamp in ((7, 49_000), (7, 0))] == [
        1_007,
        7,
    ]


def test_a_scope_that_needs_nobody_has_no_leader_and_is_well() -> None:
    at_rest = Scope(partition=0, end=5, applied=5, rest=True, publisher_lag=0, publisher_lag_s=0.0)
    never_used = Scope(partition=1, end=1, applied=1)
    status = Status(time=0, topic="bank", log="bank.transactions", scopes=[at_rest, never_used])
    assert status.warnings == []
    assert [leader(scope) for scope in status.scopes] == ["at rest", "nobody"]
    for change in ({"publisher_lag": 1}, {"rest": False}):  # its last leader died, or it was left with events
        left = msgspec.structs.replace(at_rest, **change)
        assert len(Status(time=0, topic="bank", log="bank.transactions", scopes=[left]).warnings) == 1


def says(**gauges: float) -> Answers:
    numbers = {f"hiveio_{name}": [({"scope": "0"}, value), ({}, 9.0)] for name, value in gauges.items()}
    return Answers(True, [], numbers, "")


@pytest.mark.parametrize(
    ("leader", "answers", "applied", "judged"),
    [
        ("a", {"a": says(fold_lag_records=2)}, 5, 8),
        ("a", {"a": says(fold_lag_records=0), "b": says(fold_lag_records=4)}, 5, 10),  # b has just begun to follow it
        ("a", {"b": says(fold_lag_records=0)}, 5, 5),  # the leader does not answer
        ("", {"a": says(fold_lag_records=7), "b": says(fold_lag_records=0)}, 1, 3),  # b does not follow it
        ("", {"b": says(fold_lag_records=0)}, None, None),
    ],
)
def test_what_is_judged_is_what_the_leader_says(
    leader: str, answers: dict[str, Answers], applied: int | None, judged: int | None
) -> None:
    scope = Scope(partition=0, end=10, leader=leader, applied=applied)
    add_numbers([scope], answers.values(), answers)
    assert scope.judged == judged


def test_an_event_waits_for_as_long_as_any_instance_says() -> None:
    scope = Scope(partition=0, end=10, leader="a")
    add_numbers([scope], [says(), says(publisher_lag_records=3, publisher_lag_seconds=4.5), says()], {})
    assert (scope.publisher_lag, scope.publisher_lag_s) == (3, 4.5)


def test_what_others_wrote_moves_no_cursor() -> None:
    status = Status(time=0, topic="bank", log="", problems=["\x1b[2J"], groups=[group(name="\x1b[31mred")])
    assert "\x1b" not in "".join(screen(status))


def test_what_is_known_is_one_json_object() -> None:
    status = Status(time=1.5, topic="bank", log="bank.transactions", scopes=[Scope(partition=0, end=5)])
    assert msgspec.json.decode(msgspec.json.encode(status), type=Status) == status


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0 s"), (2.34, "2.3 s"), (59, "59 s"), (60, "1 min"), (3_725, "1 h 2 min"), (90_000, "1 d 1 h")],
)
def test_a_time_has_one_or_two_units(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def test_numbers_in_a_row_are_a_range() -> None:
    assert ranges([3, 0, 1, 2, 7, 9, 10]) == "0-3, 7, 9-10"
    assert ranges([]) == ""
