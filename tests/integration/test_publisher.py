"""Accepted events reach the event topic: taken over from the dead, by two at once, without a gap for our consumer."""

import asyncio
import concurrent.futures
import itertools
import random
import time
from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from hiveio.actor import contracts
from hiveio.config import Settings
from hiveio.envelope import Envelope
from hiveio.kafka.session import Session
from hiveio.kafka.session_clients import Outgoing
from hiveio.transaction.cache import Cache
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.entry import Watermark
from hiveio.transaction.resume import Published, Resume, published
from hiveio.transaction.scope import OnJudged, Scope
from tests.actors.tally import Add, Tallies
from tests.integration.conftest import Make
from tests.integration.topics import read_all
from tests.process import ROOT, Role, wait_until
from tests.services import Kafka, Redis

TAKEN_OVER_S = 10.0  # 5 s on a machine that has nothing else to do

ACTOR = (ROOT / "tests" / "actors" / "tally.py").read_text("utf-8")
LISTENER = """
import os
from hiveio import Actor, Event

class Added(Event):
    amount: int

class Listener(Actor):
    def start(self):
        self.file = open(os.environ["SEEN"], "a", buffering=1)

    def perform(self, event: Added, context) -> None:
        self.file.write(f"{context.id} {context.version} {context.position[1]} {context.position[2]}\\n")
"""


class Seen(NamedTuple):
    """What came to the consumer's handler."""

    id: str
    version: int
    offset: int
    place: int


def seen(file: Path) -> list[Seen]:
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [Seen(id, *map(int, numbers)) for id, *numbers in lines]


def check(events: list[Seen]) -> None:
    """In the order of the log, each once, and the versions of every aggregate without a gap."""
    places = [(event.offset, event.place) for event in events]
    assert places == sorted(set(places))
    for id in {event.id for event in events}:
        versions = [event.version for event in events if event.id == id]
        assert versions == list(range(1, len(versions) + 1)), id


@pytest.fixture
def listener(kafka: Kafka, topic: str, tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "seen"
    environ = {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": topic,
        "EVENT_STORE_FROM_START": "true",
        "SEEN": str(file),
    }
    with Role("consumer", environ, actor=LISTENER, wait=False) as role:
        yield file
        assert role.process.poll() is None


def publishing(roles: list[Role]) -> Role:
    """The one whose session began last."""
    began = [
        (line["time"], number)
        for number, role in enumerate(roles)
        for line in role.logs()
        if line["message"].startswith("publishing ")
    ]
    return roles[max(began)[1]]


def add(role: Role, id: str) -> bool:
    try:
        answer = httpx.post(f"{role.url}/tallies/{id}", json={"type": "Add", "payload": {"amount": 1}}, timeout=30)
    except httpx.TransportError:
        return False
    return answer.status_code == 200


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_a_holder_that_is_gone_is_succeeded_and_the_consumer_sees_no_gap(
    fault: str, processor: Make, listener: Path
) -> None:
    with ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(8))
        roles = [stack.enter_context(processor(wait=False)) for _ in range(2)]
        for role in roles:
            role.ready()
        accepted = sum(pool.map(lambda n: add(roles[n % 2], f"c{n % 5}"), range(60)))
        assert accepted == 60
        wait_until(lambda: len(seen(listener)) == 60, 30, "the first 60 events")
        holder = publishing(roles)
        other = roles[1 - roles.index(holder)]
        load = [pool.submit(add, roles[n % 2], f"c{n % 5}") for n in range(100)]  # under load
        wait_until(lambda: sum(answer.done() for answer in load) > 20)
        holder.kill() if fault == "killed" else holder.pause()
        lost_at = time.monotonic()
        assert wait_until(lambda: add(other, "last"), 15, "the other one goes on")
        wait_until(lambda: any(event.id == "last" for event in seen(listener)), 30, "taken over")
        took_s = time.monotonic() - lost_at
        print(f"holder {fault}: the next event came to the consumer after {took_s:.1f} s")
        if fault == "paused":
            holder.resume()
            load += [pool.submit(add, roles[n % 2], f"c{n % 5}") for n in range(60)]
        accepted += sum(answer.result() for answer in load)
        events = httpx.get(f"{other.url}/tallies/last", timeout=30).json()["payload"]["sum"] + sum(
            httpx.get(f"{other.url}/tallies/c{n}", timeout=30).json()["payload"]["sum"] for n in range(5)
        )
        assert events >= accepted
        wait_until(lambda: len(seen(listener)) >= events, 30, f"all {events} events")
        check(seen(listener))
        assert len(seen(listener)) == events
        assert took_s < TAKEN_OVER_S


def repeated(kafka: Kafka, topic: str) -> int:
    """The most records in a row that are repeats."""
    last, row, most = (-1, -1), 0, 0
    for message in read_all(kafka.brokers, topic):
        found = published(message, 0)
        assert found is not None
        row = row + 1 if (found.offset, found.event_index) <= last else 0
        last, most = max(last, (found.offset, found.event_index)), max(most, row)
    return most


async def test_sessions_that_overlap_repeat_and_never_leave_a_gap(
    kafka: Kafka, redis: Redis, topic: str, listener: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody holds the lease, and sessions end when they like: whatever interleaving comes of it."""
    dice = random.Random(topic)

    async def lease(self: Cache, partition: int, holder: str, ttl_ms: int) -> tuple[Watermark | None, str]:
        return (await self.read(partition)).watermark, holder if dice.random() < 0.9 else "another"

    monkeypatch.setattr(Cache, "lease", lease)
    monkeypatch.setattr("hiveio.transaction.leader.RENEW_S", 0.02)
    monkeypatch.setattr("hiveio.transaction.leader.AWAY_S", 0.02)
    monkeypatch.setattr("hiveio.transaction.publisher.GROUP", 7)
    monkeypatch.setattr("hiveio.transaction.publisher.MAX_GROUP", 7)
    monkeypatch.setattr("hiveio.transaction.publisher.LIVE", 2)  # so what the scope hands on is often given up
    original_send = Session.send

    async def send(self: Session, group: list[Outgoing]) -> tuple[int, int] | None:
        if dice.random() < 0.02:
            raise RuntimeError("a fault of ours")
        return await original_send(self, group)

    monkeypatch.setattr(Session, "send", send)
    sessions = itertools.count()
    last, sources = Resume.last, Counts[str]()
    verdicts, notify, stop = Scope.verdicts, Scope.notify_judged, Scope.stop_judged

    async def counted_last(self: Resume) -> Published | None:
        next(sessions)
        return await last(self)

    async def counted_verdicts(self: Scope, first: int, end: int) -> str:
        found = await verdicts(self, first, end)
        sources["log"] += len(found)
        return found

    counting: dict[OnJudged, OnJudged] = {}

    def counted_notify(self: Scope, on_judged: OnJudged) -> None:
        def counted(*record: Any) -> None:
            ended = sources["ended"]
            on_judged(*record)
            sources["given up" if sources["ended"] > ended else "scope"] += 1

        counting[on_judged] = counted
        notify(self, counted)

    def counted_stop(self: Scope, on_judged: OnJudged) -> None:
        sources["ended"] += 1
        if on_judged in counting:
            stop(self, counting.pop(on_judged))

    monkeypatch.setattr(Resume, "last", counted_last)
    monkeypatch.setattr(Scope, "verdicts", counted_verdicts)
    monkeypatch.setattr(Scope, "notify_judged", counted_notify)
    monkeypatch.setattr(Scope, "stop_judged", counted_stop)
    settings = Settings(brokers=kafka.brokers, topic=topic, cache_url=redis.url)
    made = contracts([Tallies])
    logs = [TransactionLog(settings, made) for _ in range(3)]
    try:
        for log in logs:
            await log.start()
        while any([await log.ready() for log in logs]):
            await asyncio.sleep(0.01)
        sent = 0
        until = time.monotonic() + 8
        for turn in itertools.count():
            if time.monotonic() > until and next(sessions) >= 20:
                break
            if turn % 10 == 0:  # a pause in which a publisher gets to the end, after which the scope hands on
                while len(seen(listener)) < sent:
                    await asyncio.sleep(0.01)
            envelopes = [Envelope(message=Add(1, times=n % 3 + 1), id=f"c{n % 4}") for n in range(12)]
            commands = [logs[n % 3].engine.submit(made[0], envelope) for n, envelope in enumerate(envelopes)]
            answers = await asyncio.gather(*[command.future for command in commands])
            sent += sum(
                len(events) if isinstance(events := msgspec.json.decode(answer.encoded or b""), list) else 1
                for answer in answers
            )
        while len(seen(listener)) < sent:
            await asyncio.sleep(0.05)
    finally:
        for log in logs:
            await log.stop()
    written = len(read_all(kafka.brokers, topic))
    print(f"{next(sessions)} sessions; {sent} events, written {written} times; {dict(sources)}")
    assert all(sources[source] for source in ("log", "scope", "given up")), sources
    assert written > sent, "nothing was repeated: the sessions did not overlap"
    assert 0 < repeated(kafka, topic) <= 2 * 7, "a session that has repeated what another one published goes on"
    check(seen(listener))
    assert len(seen(listener)) == sent
