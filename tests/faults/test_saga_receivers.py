"""Faults 95 and 96: a service that is reached over HTTP, and answers badly; and what was put aside, tried again in
another order."""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hiveio.kafka.headers import headers_of
from tests.faults.orders import CUSTOMERS, ORDERS, OVERDUE, place_all, place_during, prepare, well
from tests.faults.proxy import Proxy
from tests.integration.topics import read_all, write
from tests.orders import Shop, shop
from tests.process import wait_until
from tests.services import HOST, Kafka, Redis, free_port

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(400, func_only=True)]

QUICK = {"CONSUMER_BACKOFF": "50", "CONSUMER_BACKOFF_LIMIT": "1000"}
PARKED = range(0, CUSTOMERS, 3)  # customers whose payments come to nobody for a while
UNREADABLE = b"{not json"


@pytest.fixture
def orders_kafka() -> Any:
    with Kafka() as service:
        yield service


def status(line: str, further: str = "") -> Callable[[bytes], bytes]:
    """An answer of something in between, instead of the right one."""
    return lambda data: f"HTTP/1.1 {line}\r\ncontent-length: 0\r\n{further}\r\n".encode()


@pytest.mark.fault(95)
def test_95_a_service_over_http_answers_late_badly_or_not_at_all(orders_kafka: Kafka, redis: Redis) -> None:
    port = free_port()
    with Proxy(port) as between, ExitStack() as stack:
        urls = f"payments=http://{HOST}:{between.port}/wallets/{{id}}"
        topics = {"EVENT_STORE_CONSUMER_TOPIC": "orders,stock", "COMMAND_URLS": urls, "REQUEST_TIMEOUT": "2000"}
        further = {"fulfilment": topics | QUICK, "payments": {"COMMAND_TOPICS": "", "PORT": str(port)}}
        made = stack.enter_context(shop(orders_kafka, redis, wait_s=60, partitions=3, further=further))
        prepare(made)

        def answers(*lines: str) -> None:
            """They come after the effect."""
            for line in lines:
                bad = between.down.edit(status(*line.split("|")), times=40)
                assert bad.struck.wait(20)
                time.sleep(0.3)
            between.open()

        def cut() -> None:
            """The answer, and then the command."""
            for gate in (between.down, between.up):
                lost = gate.cut(times=40)
                assert lost.struck.wait(20)
                time.sleep(0.5)
            between.open()

        def late() -> None:
            """Longer than the request may take: the command is sent again while it is held."""
            held = between.up.hold()
            assert held.struck.wait(20)
            time.sleep(3)
            between.open()

        def killed() -> None:
            made.kill("payments")
            time.sleep(1)
            made.start("payments")

        def sender_killed() -> None:
            made.kill("fulfilment")
            made.start("fulfilment")

        def away() -> None:
            between.refuse()
            time.sleep(1.5)
            between.open()

        bad = ("504 Gateway Timeout", "502 Bad Gateway", "429 Too Many Requests", "409 Conflict|retry-after: 1\r\n")
        place_during(made, [lambda: answers(*bad), cut, late, killed, sender_killed, away])
        well(made, over_http="payments")
        kinds = Counter(
            (body["type"], body["payload"]["order"])
            for body in bodies(orders_kafka, "payments")
            if "order" in body["payload"]
        )
        assert max(kinds.values()) == 1, "no command was executed twice"


def bodies(kafka: Kafka, topic: str) -> list[dict[str, Any]]:
    """The events of a topic, without repeats."""
    found: dict[bytes, dict[str, Any]] = {}
    for message in read_all(kafka.brokers, topic):
        named: dict[str, Any] = dict(headers_of(message))
        if "hive-position" in named:
            found[named["hive-position"]] = json.loads(message.value() or b"")
    return list(found.values())


@pytest.mark.fault(96)
def test_96_dead_letters_and_stuck_processes_are_tried_again_out_of_order(
    orders_kafka: Kafka, redis: Redis, tmp_path: Path
) -> None:
    """Commands and events wait as dead letters while deadlines fire, and are tried again in any order of their keys."""
    flag = tmp_path / "faulty"
    here = {"ACTOR_PATH": str(Path(__file__).parent), "FAULTY": str(flag), "CONSUMER_ATTEMPTS": "1"}
    further = {name: here | {"ACTOR_MODULE": f"faulty_{name}"} for name in ("payments", "fulfilment")}
    with shop(orders_kafka, redis, wait_s=8, partitions=3, further=further) as made:
        prepare(made)
        at = {message.key(): message.partition() or 0 for message in read_all(orders_kafka.brokers, "payments")}
        keys = [f"c{number}".encode() for number in PARKED]
        write(orders_kafka.brokers, "payments", [(at[key], key, UNREADABLE, {}) for key in keys])

        def play(turn: int) -> None:
            if turn == 1:
                flag.touch()
            if turn == 4:  # a fast machine has placed all by now, and performed less
                wait_until(lambda: letters(made, "payments.receiver"), 60, "commands that are put aside")
                wait_until(lambda: stuck(made), 60, "stuck processes")
                flag.unlink()

        place_all(made, play)
        unreadable = wait_until(lambda: found(letters(made, "fulfilment"), len(PARKED)), 60, "the unreadable ones")
        commands = letters(made, "payments.receiver")
        wait_until(lambda: overdue(made) > ORDERS // CUSTOMERS, 30, "deadlines that have fired meanwhile")
        random.shuffle(commands)
        said = again(made, "retry", "payments.receiver", *commands[: len(commands) // 2])
        assert "handled" in said, said
        again(made, "drop", "fulfilment", *unreadable)
        made.kill("payments")
        made.start("payments")
        for group in ("fulfilment", "payments.receiver", "fulfilment"):
            left = letters(made, group)
            random.shuffle(left)
            again(made, "retry", group, *left[: len(left) // 2])
            again(made, "retry", group, "--all")
        assert made.tool("fulfilment", "saga", "retry", "--all").returncode == 0
        for group in ("fulfilment", "payments.receiver"):
            wait_until(lambda: again(made, "retry", group, "--all") and not letters(made, group), 30, "no dead letter")  # noqa: B023
        well(made)
        assert "stuck processes: 0" in made.tool("fulfilment", "saga", "list").stdout


def stuck(made: Shop) -> bool:
    return "Fulfilment/" in made.tool("fulfilment", "saga", "list").stdout


def found(letters: list[str], count: int) -> list[str] | None:
    """Those of the events that nobody can read: each is the first of its key."""
    first = [letter for letter in letters if letter.startswith("payments/")]
    return first if len(first) >= count else None


def letters(made: Shop, group: str) -> list[str]:
    """The first dead letter of each key, as ``hiveio dead list`` has them."""
    said = made.tool("fulfilment", "dead", "list", "--group", group)
    assert said.returncode == 0, said
    return re.findall(r"^(\S+/\d+/\d+) ", said.stdout, re.MULTILINE)


def again(made: Shop, action: str, group: str, *which: str) -> str:
    if not which:
        return ""
    said = made.tool("fulfilment", "dead", action, *which, "--group", group)
    return said.stdout + said.stderr


def overdue(made: Shop) -> int:
    """So many processes have come to their deadline."""
    events = bodies(made.kafka, "orders")
    return sum(event["type"] == "OrderCancelled" and event["payload"]["reason"] == OVERDUE for event in events)
