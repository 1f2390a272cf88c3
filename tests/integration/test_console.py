"""``hiveio console`` over a stream processor and a consumer that work on a real Kafka and Redis."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from msgspec import Raw

from hiveio.transaction import record as records
from hiveio.transaction.record import CommandId, Commit, Format, Write
from tests.integration.accounts import ACTOR, send  # noqa: F401 - ACTOR is what `processor` starts
from tests.integration.bank import Bank, Console, opened
from tests.integration.conftest import Make
from tests.integration.topics import Written, make_topic, write
from tests.process import wait_until
from tests.services import Kafka


@pytest.fixture
def bank(processor: Make, kafka: Kafka, topic: str) -> Iterator[Bank]:
    """With a void record, a poisoned event, and an event that is parked behind it."""
    with opened(processor, topic) as bank:
        for id in ("ada", "bob"):
            assert send(bank.accounts, id, "Open", owner=id).status_code == 200
        for amount in (5, 7):
            assert send(bank.accounts, "ada", "Deposit", amount=amount).status_code == 200
        assert send(bank.accounts, "<b>eve", "Open", owner="poison").status_code == 200
        assert send(bank.accounts, "<b>eve", "Deposit", amount=1).status_code == 200
        stale = Commit(CommandId("AccountActor/ada", "stale"), (Write("AccountActor/ada", "", 0),))
        write(kafka.brokers, f"{topic}.transactions", [(bank.scope("ada"), "rude-1", records.encode(stale), {})])
        yield bank


def text(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_it_shows_what_is_going_on_and_changes_nothing(bank: Bank, kafka: Kafka, topic: str) -> None:
    with Console.of(bank) as console:
        assert (
            console.said
            == f"hiveio console: http://localhost:{console.port}/ (it only reads; --write lets it retry and drop)\n"
        )
        overview = wait_until(lambda: "2 open dead letters" in (page := text(console.page("/"))) and page, 60)
        assert f"Group {bank.group} has 2 open dead letters of 1 key." in overview
        assert "ready" in overview

        scope = bank.scope("ada")
        void = "AccountActor/ada, which it writes, has changed: it was decided after no transaction"
        wait_until(lambda: void in text(console.page(f"/log/{scope}")), 30, "the void record is judged")
        wait_until(lambda: "records are judged" not in console.page("/aggregates"), 30, "those of all scopes are")
        only = text(console.page(f"/log/{scope}?void=1"))
        assert "void" in only
        assert "accepted" not in only
        record = text(console.page(f"/log/{scope}/1"))
        assert "accepted" in record

        aggregate = text(console.page("/aggregate?name=AccountActor/ada"))
        assert "&quot;balance&quot;: 5" in aggregate
        assert "&quot;balance&quot;: 12" in aggregate
        assert "AccountActor/bob" in console.page("/aggregates")
        eve = console.page("/find?q=AccountActor/<b>eve")
        assert "<b>eve" not in eve
        assert "&lt;b&gt;eve" in eve
        assert "No accepted record" in text(console.page("/aggregate?name=AccountActor/nobody", 404))

        transaction = re.search(r'/transaction\?id=([^"]+)', console.page(f"/log/{scope}/1"))
        assert transaction is not None
        at = f"/transaction?id={transaction[1]}"
        traced = wait_until(lambda: "handled" in (page := text(console.page(at))) and page, 30, "it is handled")
        assert "accepted" in traced
        assert bank.group in traced

        dead = text(console.page(f"/dead/{bank.group}"))
        assert "ValueError: no such owner" in dead
        place = re.search(rf'href="(/dead/{bank.group}/[^"]+)"', console.page(f"/dead/{bank.group}"))
        assert place is not None
        letter = text(console.page(place[1]))
        assert "poison" in letter
        assert "1 more of this key" in letter
        assert "only reads" in letter
        form = {"action": "dropped", "which": "all", "confirmed": "2"}
        same = {"origin": console.url}
        assert httpx.post(f"{console.url}/dead/{bank.group}", data=form, headers=same).status_code == 403

        for path in ("/groups", f"/groups/{bank.group}", "/instances", "/dead"):
            assert "<main" in console.page(path)
        assert "applied" in httpx.get(f"{console.url}/status.json", timeout=10).json()["scopes"][0]
        for path in ("/log/99", "/log/0/999999", "/groups/nobody", "/dead/nobody", "/transaction?id=x", "/nothing"):
            console.page(path, 404)
    assert console.process.returncode == 0
    assert '"level": "error"' not in console.output


def test_a_poisoned_event_is_found_and_redriven(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-the-test\n")
    with Console.of(bank, "--write", "--token-file", str(tmp_path / "token")) as console:
        assert "a-token-of-the-test" not in console.said
        assert f"(open it with ?token= and the token of {tmp_path / 'token'})" in console.said
        assert httpx.get(console.url).status_code == 401
        own = {"authorization": "Bearer a-token-of-the-test"}
        with httpx.Client(base_url=console.url, headers=own, timeout=30) as client:
            at = f"/dead/{bank.group}"
            wait_until(lambda: "all 2" in text(client.get(at).text), 60, "the one that failed, and the parked one")
            form = {"action": "retry", "which": "all"}
            assert client.post(at, data=form).status_code == 403  # from nowhere
            same = {"origin": console.url}
            asked = client.post(at, data=form, headers=same)
            assert "2 dead letters of the group" in text(asked.text)
            assert "no such owner" in client.get(at).text
            bank.cure()
            fewer = client.post(at, data=form | {"confirmed": "1"}, headers=same)
            assert "2 dead letters of the group" in text(fewer.text)
            done = client.post(at, data=form | {"confirmed": "2"}, headers=same)
            assert (done.status_code, done.headers["location"]) == (303, at)
            wait_until(lambda: "There are no open dead letters." in client.get(at).text, 60)


RECORDS, AGGREGATES = 100_000, 10_000
MOST_BYTES = 100_000  # of a page


def test_a_long_log_stays_quick(kafka: Kafka, topic: str) -> None:
    """Without Redis and without an instance: Kafka is enough to read a log."""

    def commit(number: int) -> bytes:
        at, name = divmod(number, AGGREGATES)
        head = f"w-{number - AGGREGATES + 1:x}" if at else ""
        event = Raw(b'{"type":"Deposited","payload":{"amount":1}}')
        written = Write(f"AccountActor/{name:05}", head, at, (event,))
        return records.encode(Commit(CommandId(written.aggregate, f"k{number}"), (written,), seen=number))

    make_topic(kafka.brokers, topic)
    make_topic(kafka.brokers, f"{topic}.transactions", config={"message.timestamp.type": "LogAppendTime"})
    first = records.encode(Format(2, 1, "crc32", 10_000, 3_600_000))
    log: list[Written] = [(0, "format-0", first, {})]
    log += [(0, f"w-{number + 1:x}", commit(number), {}) for number in range(RECORDS - 1)]
    write(kafka.brokers, f"{topic}.transactions", log)
    environ = {"PATH": os.environ["PATH"], "EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic}
    with Console(environ) as console:

        def judged() -> bool:
            """A page may come before the first look at the log: then it has no records."""
            page = text(console.page("/log/0"))
            return f"of {RECORDS:,}" in page and "records are judged" not in page

        wait_until(judged, 90, "all is judged")
        for path, expected, rows in (
            ("/", "CACHE_URL is not set", 1),
            ("/log/0", "AccountActor/09998", 50),
            ("/log/0?below=50000", "49,999", 50),
            ("/log/0?void=1", "There are no such records.", 0),
            ("/log/0/70000", "AccountActor/09999", 0),
            ("/aggregates", "1 to 100 of 10,000", 100),
            ("/aggregates?begins=AccountActor/099", "1 to 100 of 100", 100),
            ("/aggregate?name=AccountActor/00007", "Version 10", 0),
            ("/transaction?id=w-c350", "accepted", 1),
        ):
            page = console.page(path)
            assert expected in text(page), path
            assert (page.count("<tr><td"), len(page) < MOST_BYTES) == (rows, True), path
        resident = psutil.Process(console.process.pid).children()[0].memory_info().rss
        assert resident < 400_000_000
