"""Two instances over one log and one cache, and a mail between them that loses, doubles and holds what they send.

``leader`` leads the only scope, and ``other`` forwards to it what both work on.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from hiveio import Actor, Command, Context, Event, Model, Rejected, testing
from hiveio.config import Settings
from hiveio.errors import AWAY, KeyReused, TooLarge, Unavailable, Unknown
from hiveio.logs import request_id
from hiveio.testing.service import Answer
from hiveio.transaction import forwarding, mailbox
from hiveio.transaction.command import InFlight
from hiveio.transaction.contention import Contention
from hiveio.transaction.forwarding import Forwarding
from hiveio.transaction.mailbox import Packet
from hiveio.transaction.record import Barrier, Commit
from hiveio.transaction.rule import IdRecord
from tests.faults.actors import AccountActor, Add, Deposit, Deposited, TallyActor, Think, Transfer, Withdraw
from tests.unit.transaction.test_engine import hold, token, until
from tests.unit.transaction.test_mailbox import Mail

LEADER, OTHER = "leader", "other"


class Open(Command):
    marker: str


class Refuse(Command):
    marker: str


class Break(Command):
    marker: str


class Wait(Command):
    marker: str


class Opened(Event):
    marker: str
    request: str
    headers: list[tuple[str, str | None]]


class Door(Model):
    opened: int = 0


ASKED = ("X-Custom", "x-custom", "X-CUSTOM", "x-empty", "x-missing")


class DoorActor(Actor):
    path = "/doors/{id}"
    name = "Door"
    performed: Counter[str]

    def perform(self, door: Door | None, command: Open | Refuse | Break | Wait, context: Context) -> Opened:
        self.performed[command.marker] += 1
        if isinstance(command, Refuse):
            raise Rejected("locked", headers={"Retry-After": "7"}, opened=door.opened if door else 0, by={"who": "ä"})
        if isinstance(command, Break):
            raise RuntimeError("broken")
        if isinstance(command, Wait):
            raise Unavailable("closed for lunch")
        return Opened(command.marker, request_id.get(), [(name, context.headers.get(name)) for name in ASKED])

    def replay(self, door: Door | None, event: Opened) -> Door:
        return Door((door or Door()).opened + 1)


class Pair:
    """The two instances, their mail, and their forwarding."""

    def __init__(self, leader: testing.Service, other: testing.Service, leads: str) -> None:
        self.leader, self.other, self.mail = leader, other, Mail()
        self.leads = leads
        self._before = 0  # commits that were there before the test has begun
        self.forwardings: dict[str, Forwarding] = {}
        for name, service in ((LEADER, leader), (OTHER, other)):
            engine, contracts = service.transactions.engine, {each.name: each for each in service.contracts}
            found = Forwarding(self.mail, name, contracts, lambda scope: self.leads, engine.submit, engine.execute)
            self.forwardings[name] = found
            engine.forward_by(found)

    async def work_on(self, *aggregates: str, known: bool = True) -> None:
        """Both work on these, as they know, and take commands of each other. The other one has heard of the leader, if
        that is ``known``."""
        for name, service in ((LEADER, self.leader), (OTHER, self.other)):
            service.transactions.scopes[0].contention.note(aggregates)
            self.forwardings[name].look_at(service.transactions.scopes, lambda scope: True)
        await until(lambda: self.mail.takers == {LEADER, OTHER})
        if known:
            self.mail.put(OTHER, packed(Packet(LEADER, answers=(mailbox.Answer(0, "working"),))))
            await until(lambda: not self.mail.boxes[OTHER])

    async def deposit(self, amount: int = 100, *, known: bool = True) -> None:
        """Something is in the account a, and both work on it."""
        await self.leader.submit(AccountActor, "a", Deposit(amount, "first"))
        await until(lambda: self.other.transactions.scopes[0].view.next == 2)
        self._before = 1
        await self.work_on("Account/a", known=known)

    async def taken(self) -> None:
        """The leader has taken and executed all that was put into its mailbox."""
        await until(lambda: not self.mail.boxes[LEADER])
        await until(lambda: not self.leader.transactions.engine.work.open)

    async def rests(self) -> None:
        """Nothing is left of what was at work."""
        engines = [service.transactions.engine for service in (self.leader, self.other)]
        await until(lambda: not any(each.work.open or each.pipelines or each.keys_in_work for each in engines))
        await until(lambda: not self.leader.cache.locks)

    async def answered(self, count: int = 1) -> None:
        """The leader has answered so many commands."""
        await until(lambda: len(self.outcomes) >= count)

    @property
    def outcomes(self) -> list[str]:
        """Of the leader's answers, without those that say that it is at work."""
        return [each.outcome for each in self.mail.answers(OTHER) if each.outcome != "working"]

    @property
    def forwarded(self) -> int:
        return len(self.mail.commands(LEADER))

    def commits(self) -> list[Commit]:
        """The commits that were accepted, without that of ``deposit``."""
        return [commit for _, commit in self._commits()]

    def by(self) -> list[str]:
        """Who has executed these."""
        own = _writer(self.leader.transactions.scopes[0].journal.fresh())
        return [LEADER if _writer(transaction) == own else OTHER for transaction, _ in self._commits()]

    def _commits(self) -> list[tuple[str, Commit]]:
        log, judged = self.leader.log.partitions[0], self.leader.records()
        found = [(message.key, each.record) for message, each in zip(log, judged, strict=True) if each.verdict]
        commits = [(transaction, record) for transaction, record in found if isinstance(record, Commit)]
        return commits[self._before :]


def _writer(transaction: str) -> str:
    return transaction.rpartition("-")[0]


@asynccontextmanager
async def pair(*actors: type[Actor], settings: Settings | None = None, leads: str = LEADER) -> AsyncIterator[Pair]:
    served = actors or (AccountActor,)
    async with (
        testing.Service(*served, settings=settings) as leader,
        testing.Service(*served, log=leader.log, cache=leader.cache) as other,
    ):
        found = Pair(leader, other, leads)
        try:
            yield found
        finally:
            for each in found.forwardings.values():
                await each.stop()


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of an instance stays known in a slow run, and none is silent for too long."""
    monkeypatch.setattr(forwarding, "TAKES_S", 1_000.0)
    monkeypatch.setattr(forwarding, "SILENT_S", 1_000.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance is silent after a moment, and does not say that it is at work."""
    for name, value in (("SILENT_S", 0.05), ("LOOK_S", 0.01), ("WORKING_S", 1_000.0)):
        monkeypatch.setattr(forwarding, name, value)


def task(service: testing.Service, command: Command, id: str = "a", **more: Any) -> "asyncio.Task[Answer]":
    return asyncio.create_task(service.submit(AccountActor, id, command, **more))


def expire(service: testing.Service) -> None:
    """The deadline of the only command that this instance has taken and not answered has come."""
    (command,) = service.transactions.engine.work.open
    command.deadline = 0.0


# -- the leader executes it


async def test_the_leader_executes_a_contended_command_and_the_client_gets_its_answer_as_from_there() -> None:
    async with pair() as both:
        await both.deposit()
        answer = await both.other.submit(AccountActor, "a", Deposit(5, "five"))
        assert (both.forwarded, both.by()) == (1, [LEADER])
        assert answer.events == [Deposited(5, "five")]
        assert answer.headers == {"ETag": '"2"', "Hive-Position": answer.position}
        assert (answer.version, len(both.leader.records())) == (2, 3)
        assert (answer.position or "").endswith("/2")
        assert both.leader.records()[2].verdict


async def test_commands_of_one_aggregate_keep_their_order() -> None:
    async with pair() as both:
        await both.deposit()
        markers = [f"{number}" for number in range(30)]
        tasks = [task(both.other, Deposit(1, marker)) for marker in markers]
        versions = [(await each).version for each in tasks]
        assert versions == [*range(2, 32)]
        assert both.by() == 30 * [LEADER]
        assert [command.number for command in both.mail.commands(LEADER)] == [*range(1, 31)]
        assert sum(bool(packet.commands) for _, packet in both.mail.sent) == 1, "they came together"


async def test_what_one_instance_alone_works_on_is_not_forwarded() -> None:
    async with pair() as both:
        await both.deposit()
        await both.other.submit(AccountActor, "b", Deposit(5, "five"))
        assert (both.forwarded, both.by()) == (0, [OTHER])
        await both.leader.submit(AccountActor, "a", Deposit(5, "its own"))
        assert not both.mail.commands(LEADER)


@pytest.mark.parametrize("leads", ["", OTHER])
async def test_nothing_is_forwarded_where_nobody_is_known_to_lead_or_this_instance_leads(leads: str) -> None:
    async with pair(leads=leads) as both:
        await both.deposit()
        await both.other.submit(AccountActor, "a", Deposit(5, "five"))
        assert (both.mail.commands(LEADER), both.mail.commands(OTHER), both.by()) == ([], [], [OTHER])


async def test_a_command_whose_record_is_void_goes_to_the_leader() -> None:
    """It learns in this way that the other one works on the aggregate too."""
    async with pair() as both:
        await both.deposit()
        both.other.transactions.scopes[0].contention = Contention()
        release = hold(both.other)
        await both.leader.submit(AccountActor, "a", Deposit(1, "before it"))
        sent = task(both.other, Deposit(5, "five"))
        await until(lambda: len(both.leader.log.partitions[0]) == 4)
        assert not both.forwarded
        release()
        assert (await sent).version == 3
        assert (both.forwarded, both.by()) == (1, [LEADER, LEADER])
        await both.rests()


async def test_the_request_id_is_that_of_the_command_whoever_forwards_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command whose record is void is forwarded when that is read back, and not in the context of its request."""
    monkeypatch.setattr(DoorActor, "performed", Counter(), raising=False)
    async with pair(DoorActor) as both:
        await both.leader.submit(DoorActor, "a", Open("first"))
        await until(lambda: both.other.transactions.scopes[0].view.next == 2)
        await both.work_on("Door/a")
        both.other.transactions.scopes[0].contention = Contention()
        release = hold(both.other)
        await both.leader.submit(DoorActor, "a", Open("before it"))
        before = request_id.set("the request")
        sent = asyncio.create_task(both.other.submit(DoorActor, "a", Open("one")))
        request_id.reset(before)
        await until(lambda: len(both.leader.log.partitions[0]) == 4)
        release()
        (opened,) = (await sent).events
        assert both.forwarded == 1
        assert isinstance(opened, Opened)
        assert opened.request == "the request"


async def test_the_headers_and_the_request_id_reach_the_actor_at_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DoorActor, "performed", Counter(), raising=False)
    async with pair(DoorActor) as both:
        await both.work_on("Door/a")
        before = request_id.set("the request")
        headers = {"x-CuStOm": "välue", "x-empty": ""}
        answer = await both.other.submit(DoorActor, "a", Open("one"), headers=headers)
        request_id.reset(before)
        assert (both.forwarded, both.by()) == (1, [LEADER])
        (opened,) = answer.events
        assert isinstance(opened, Opened)
        assert opened.request == "the request"
        assert opened.headers == [*((name, "välue") for name in ASKED[:3]), ("x-empty", ""), ("x-missing", None)]


async def test_a_refusal_is_passed_on_whole_and_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DoorActor, "performed", Counter(), raising=False)
    async with pair(DoorActor) as both:
        await both.work_on("Door/a")
        with pytest.raises(Rejected, match="locked") as refused:
            await both.other.submit(DoorActor, "a", Refuse("no"))
        problem = refused.value
        assert (problem.status, problem.title, problem.urn) == (422, Rejected.title, "urn:hiveio:problem:rejected")
        assert problem.members == {"opened": 0, "by": {"who": "ä"}}
        assert problem.headers == {"Retry-After": "7"}
        (record,) = both.commits()
        assert record.refusal is not None
        assert (both.forwarded, both.by()) == (1, [LEADER])


async def test_a_fault_of_the_actor_reaches_the_client_and_the_log_is_left_to_the_edge_of_its_instance(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The edge logs the fault when it answers 500; nobody else does."""
    monkeypatch.setattr(DoorActor, "performed", Counter(), raising=False)
    async with pair(DoorActor) as both:
        await both.work_on("Door/a")
        caplog.set_level(logging.INFO)
        with pytest.raises(RuntimeError, match="broken"):
            await both.other.submit(DoorActor, "a", Break("broken"))
        assert both.forwarded == 1
        assert both.outcomes == ["declined"]
        assert DoorActor.performed["broken"] == 2
        assert not caplog.records
        assert (await both.other.submit(DoorActor, "a", Open("next"))).version == 1
        assert both.by() == [LEADER], "a fault is no reason to avoid the leader"


async def test_an_actor_that_is_unavailable_is_no_reason_to_avoid_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DoorActor, "performed", Counter(), raising=False)
    async with pair(DoorActor) as both:
        await both.work_on("Door/a")
        with pytest.raises(Unavailable, match="closed for lunch"):
            await both.other.submit(DoorActor, "a", Wait("waits"))
        assert both.outcomes == ["declined"]
        await both.other.submit(DoorActor, "a", Open("next"))
        assert (both.forwarded, both.by()) == (2, [LEADER])


async def test_a_keyed_command_and_its_repeat_have_one_answer_and_another_body_is_refused() -> None:
    async with pair() as both:
        await both.deposit()
        first = await both.other.submit(AccountActor, "a", Deposit(5, "five"), key="k")
        again = await both.other.submit(AccountActor, "a", Deposit(5, "five"), key="k")
        there = await both.leader.submit(AccountActor, "a", Deposit(5, "five"), key="k")
        assert first == again == there
        with pytest.raises(Rejected, match="Idempotency-Key 'k' was used before with another body") as reused:
            await both.other.submit(AccountActor, "a", Deposit(6, "five"), key="k")
        assert (reused.value.status, reused.value.title) == (KeyReused.status, KeyReused.title)
        assert (both.forwarded, both.by()) == (3, [LEADER])


async def test_a_key_that_is_forgotten_is_a_new_one_for_the_leader_too() -> None:
    async with pair(settings=Settings(idempotency_count=3, idempotency_time_s=0)) as both:
        await both.deposit()
        await both.leader.submit(AccountActor, "a", Deposit(5, "five"), key="k")
        scope = both.leader.transactions.scopes[0]
        (recorded,) = [id for text, id in scope.view.recent.items() if text.endswith("/k")]
        await until_forgotten(both, recorded)
        answer = await both.other.submit(AccountActor, "a", Deposit(6, "six"), key="k")
        assert both.forwarded == 1
        assert answer.events == [Deposited(6, "six")]


async def until_forgotten(both: Pair, id: IdRecord) -> None:
    """Other records come until the window does not hold the command id any more, anywhere."""
    views = [service.transactions.scopes[0].view for service in (both.leader, both.other)]
    while any(view.remembers(id, IdRecord(view.next, view.time, True)) for view in views):
        await asyncio.sleep(0.001)  # the log's clock goes on with the timestamps of records
        await both.leader.submit(AccountActor, "b", Deposit(1, "other"))


async def test_a_key_that_is_in_work_at_the_leader_is_executed_once() -> None:
    async with pair() as both:
        await both.deposit()
        release = hold(both.leader)
        first = task(both.leader, Deposit(5, "five"), key="k")
        await until(lambda: len(both.leader.log.partitions[0]) == 3)
        second = task(both.other, Deposit(5, "five"), key="k")
        await both.answered()
        assert both.outcomes == ["declined"]
        release()
        assert await first == await second
        assert both.by() == [LEADER]
        await both.other.submit(AccountActor, "a", Deposit(6, "six"))
        assert both.forwarded == 2, "that is no reason to avoid the leader"


# -- what is not forwarded


@pytest.mark.parametrize(
    "more",
    [
        {"if_match": 1},
        {"headers": {"Authorization": "Bearer secret"}},
        {"headers": {"cookie": "secret"}},
        {"headers": {"Proxy-Authorization": "secret"}},
    ],
    ids=str,
)
async def test_what_is_secret_or_conditional_stays_here(more: dict[str, Any]) -> None:
    async with pair() as both:
        await both.deposit()
        await both.other.submit(AccountActor, "a", Deposit(5, "five"), **more)
        assert (both.forwarded, both.by()) == (0, [OTHER])


async def test_a_large_command_stays_here() -> None:
    async with pair() as both:
        await both.deposit()
        await both.other.submit(AccountActor, "a", Deposit(5, forwarding.BODY_BYTES * "a"))
        assert (both.forwarded, both.by()) == (0, [OTHER])


async def test_secret_headers_that_no_actor_can_see_are_left_out() -> None:
    async with pair(TallyActor) as both:
        await both.work_on("Tally/a")
        headers = {"authorization": "Bearer secret", "Cookie": "secret", "x-other": "value"}
        await both.other.submit(TallyActor, "a", Add(1, "one"), headers=headers)
        (command,) = both.mail.commands(LEADER)
        assert command.headers == (("x-other", b"value"),)
        assert both.by() == [LEADER]


async def test_secret_headers_that_go_on_to_events_stay_here() -> None:
    async with pair(TallyActor, settings=Settings(event_headers=("cookie",))) as both:
        await both.work_on("Tally/a")
        await both.other.submit(TallyActor, "a", Add(1, "one"), headers={"Cookie": "secret"})
        assert (both.forwarded, both.by()) == (0, [OTHER])


# -- the leader takes none, or declines


async def test_the_leader_is_asked_whether_it_takes_commands_before_it_is_given_one() -> None:
    async with pair() as both:
        await both.deposit(known=False)
        await both.other.submit(AccountActor, "a", Deposit(5, "not forwarded"))
        await until(lambda: both.mail.questions == [LEADER])
        await asyncio.sleep(0)
        await both.other.submit(AccountActor, "a", Deposit(5, "forwarded"))
        await both.other.submit(AccountActor, "a", Deposit(5, "and this one"))
        assert (both.by(), both.mail.questions) == ([OTHER, LEADER, LEADER], [LEADER])


async def test_where_the_leader_takes_none_a_command_is_executed_here_and_not_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pair() as both:
        await both.deposit(known=False)
        await both.forwardings[LEADER].take_no_commands()
        with pytest.raises(Rejected, match="overdrawn"):
            await both.other.submit(AccountActor, "a", Withdraw(500, "too much"))
        await until(lambda: both.mail.questions == [LEADER])
        await asyncio.sleep(0)
        with pytest.raises(Rejected, match="overdrawn"):
            await both.other.submit(AccountActor, "a", Withdraw(500, "too much"))
        assert not both.commits(), "a refusal leaves no record where the command is not shared"
        sent, pipelines = task(both.other, Think(1_000, 1, "too long")), both.other.transactions.engine.pipelines
        await until(lambda: (a := pipelines.get("Account/a")) and a.performing)
        expire(both.other)
        with pytest.raises(Unavailable, match="The actor did not decide") as late:
            await sent
        assert late.value.status == 503
        assert (await both.other.submit(AccountActor, "a", Deposit(5, "five"))).version == 2
        assert (both.forwarded, both.by()) == (0, [OTHER])


async def test_one_that_takes_none_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "CLOSED_S", 0.02)
    async with pair() as both:
        await both.deposit(known=False)
        monkeypatch.setattr(mailbox, "SAY_S", 1_000.0)  # so the leader does not say that it takes commands
        both.mail.takers.clear()
        await both.other.submit(AccountActor, "a", Deposit(5, "five"))
        await until(lambda: len(both.mail.questions) == 1)
        both.mail.takers.add(LEADER)
        async with asyncio.timeout(10):
            while not both.forwarded:
                await both.other.submit(AccountActor, "a", Deposit(5, "five"))
        assert len(both.mail.questions) == 2


async def test_a_leader_that_has_closed_its_mailbox_is_avoided_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as both:
        await both.deposit()
        monkeypatch.setattr(mailbox, "SAY_S", 1_000.0)  # so the leader does not say that it takes commands
        both.mail.takers.clear()
        await both.other.submit(AccountActor, "a", Deposit(5, "five"))
        both.mail.takers.add(LEADER)
        await both.other.submit(AccountActor, "a", Deposit(5, "more"))
        assert (both.by(), both.mail.questions) == ([OTHER, OTHER], [])


async def test_a_command_that_the_leader_cannot_execute_is_executed_here_and_not_shared() -> None:
    """Of a newer version, say, whose actors the leader does not have."""
    async with pair(AccountActor, DoorActor) as both:
        await both.deposit()
        engine = both.leader.transactions.engine
        without = Forwarding(both.mail, LEADER, {}, lambda scope: LEADER, engine.submit, engine.execute)
        await both.forwardings[LEADER].stop()
        both.forwardings[LEADER] = without
        without.look_at(both.leader.transactions.scopes, lambda scope: True)
        with pytest.raises(Rejected, match="overdrawn"):
            await both.other.submit(AccountActor, "a", Withdraw(500, "too much"))
        assert both.outcomes == ["busy"]
        assert not both.commits()
        await both.other.submit(AccountActor, "a", Deposit(5, "five"))
        assert (both.forwarded, both.by()) == (1, [OTHER]), "the leader is avoided for a while"


async def test_a_declined_command_that_comes_again_is_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis may fall back to a state in which the packet is in the mailbox again. By then the other instance has
    refused the command, and has left no record of that."""
    async with pair() as both:
        await both.deposit()
        engine = both.leader.transactions.engine
        monkeypatch.setattr(engine.work, "check", _full)
        with pytest.raises(Rejected, match="overdrawn"):
            await both.other.submit(AccountActor, "a", Withdraw(500, "too much"))
        assert both.outcomes == ["busy"]
        assert not both.commits()
        monkeypatch.undo()
        await both.leader.submit(AccountActor, "a", Deposit(1_000, "more"))
        ((_, again),) = [each for each in both.mail.sent if each[1].commands]
        both.mail.put(LEADER, packed(again))
        await both.taken()
        assert (await both.leader.read(AccountActor, "a"))[0].balance == 1_100


async def test_an_unexpected_error_says_nothing_of_what_was_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is no decline: after one, a refusal would be answered without a record."""
    async with pair() as both:
        await both.deposit()
        engine = both.leader.transactions.engine
        execute = engine.execute

        def broken(command: InFlight) -> None:
            execute(command)
            raise AssertionError("a pipeline never goes from here to there")

        monkeypatch.setattr(engine, "execute", broken)
        answer = await both.other.submit(AccountActor, "a", Withdraw(60, "once"))
        assert (answer.version, both.by()) == (2, [LEADER])


def _full() -> None:
    raise Unavailable("10000 commands are in work. Try again later.")


def packed(packet: Packet) -> bytes:
    return msgspec.msgpack.encode(packet)


# -- the leader is silent, or late


@pytest.mark.usefixtures("impatient")
async def test_what_a_silent_leader_has_is_executed_here_and_by_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async with pair() as both:
        await both.deposit()
        both.mail.hold(LEADER)
        answer = await both.other.submit(AccountActor, "a", Deposit(5, "five"))
        assert (both.forwarded, both.by()) == (1, [OTHER])
        assert "leader does not answer the commands that were forwarded to it" in caplog.text
        again = await both.other.submit(AccountActor, "a", Deposit(6, "six"))
        assert (both.forwarded, again.version) == (1, 3), "it is avoided"
        both.mail.release(LEADER)
        await both.answered()
        (late,) = both.mail.answers(OTHER)
        assert (late.outcome, late.body, late.headers) == ("accepted", answer.body, answer.headers)
        assert both.by() == [OTHER, OTHER]
        assert len(both.leader.records()) == 4, "the leader has found it on record"


@pytest.mark.usefixtures("impatient")
async def test_a_late_leader_that_is_behind_the_log_appends_a_void_record() -> None:
    async with pair() as both:
        await both.deposit()
        both.mail.hold(LEADER)
        release = hold(both.leader)
        both.leader.transactions.scopes[0].contention = Contention()  # so it reads nothing that is newer than its view
        answer = await both.other.submit(AccountActor, "a", Deposit(5, "five"))
        both.mail.release(LEADER)
        await until(lambda: len(both.leader.log.partitions[0]) == 4)
        release()
        await both.answered()
        assert [logged.verdict for logged in both.leader.records()] == [True, True, True, False]
        assert both.mail.answers(OTHER)[0].body == answer.body
        assert both.by() == [OTHER]
        assert (await both.leader.read(AccountActor, "a"))[0].balance == 105


async def test_the_answer_that_was_lost_is_repeated_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "LOOK_S", 0.01)
    async with pair() as both:
        await both.deposit()
        both.mail.copies = lambda to, packet: 0 if packet.answers else 1
        sent = task(both.other, Deposit(5, "five"))
        await both.answered()
        monkeypatch.setattr(forwarding, "SILENT_S", 0.0)
        answer = await sent
        (lost,) = [each for each in both.mail.answers(OTHER) if each.outcome == "accepted"]
        assert (answer.body, answer.headers) == (lost.body, lost.headers)
        assert (len(both.leader.records()), both.by()) == (3, [LEADER])


@pytest.mark.usefixtures("impatient")
async def test_a_refusal_of_a_command_that_came_back_holds_for_the_leader_whatever_has_changed_since() -> None:
    async with pair() as both:
        await both.deposit()
        both.mail.hold(LEADER)
        with pytest.raises(Rejected, match="overdrawn"):
            await both.other.submit(AccountActor, "a", Withdraw(500, "too much"))
        (refused,) = both.commits()
        assert refused.refusal is not None
        await both.leader.submit(AccountActor, "a", Deposit(1_000, "more"))
        both.mail.release(LEADER)
        await both.answered()
        assert both.mail.answers(OTHER)[0].outcome == "refused"
        assert (await both.leader.read(AccountActor, "a"))[0].balance == 1_100
        assert both.by() == [OTHER, LEADER]


async def test_a_command_of_which_nobody_knows_whether_it_was_sent_is_executed_here_and_shared() -> None:
    async with pair() as both:
        await both.deposit()
        both.mail.send_error = Unavailable("The answer of Redis was lost.")
        both.mail.hold(LEADER)
        with pytest.raises(Rejected, match="overdrawn"):
            await both.other.submit(AccountActor, "a", Withdraw(500, "too much"))
        assert both.by() == [OTHER]
        await both.leader.submit(AccountActor, "a", Deposit(1_000, "more"))
        both.mail.release(LEADER)
        await both.answered()
        assert (await both.leader.read(AccountActor, "a"))[0].balance == 1_100


async def test_a_command_that_came_back_waits_until_the_state_that_it_has_read_is_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The leader has executed it already, and its record is one of those on which that state rests."""
    monkeypatch.setattr(forwarding, "LOOK_S", 0.01)
    async with pair() as both:
        await both.deposit()
        engine, scope = both.other.transactions.engine, both.leader.transactions.scopes[0]
        release = hold(both.other)
        both.mail.copies = lambda to, packet: 0 if packet.answers else 1
        sent = task(both.other, Withdraw(60, "once"))
        await until(lambda: scope.mirror.watermark.offset == 3)
        monkeypatch.setattr(forwarding, "SILENT_S", 0.0)
        await until(lambda: len(engine.tasks))
        for _ in range(20):
            await asyncio.sleep(0)
        release()
        assert (await sent).version == 2
        assert (both.by(), len(both.leader.records())) == ([LEADER], 3)


async def test_a_command_that_came_back_is_looked_up_where_the_view_has_forgotten_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarding, "LOOK_S", 0.01)
    async with pair() as both:
        await both.deposit()
        view = both.other.transactions.scopes[0].view
        both.mail.copies = lambda to, packet: 0 if packet.answers else 1
        sent = task(both.other, Withdraw(60, "once"))
        await until(lambda: view.next == 3)
        view.recent.clear()
        view.ids_from = view.next
        await until(lambda: both.leader.transactions.scopes[0].mirror.watermark.offset == 3)
        monkeypatch.setattr(forwarding, "SILENT_S", 0.0)
        assert (await sent).version == 2
        assert (both.by(), len(both.leader.records())) == ([LEADER], 3)


@pytest.mark.usefixtures("impatient")
async def test_a_command_that_came_back_and_fails_here_may_still_be_executed_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The leader may have another version of the actor, or another state."""
    monkeypatch.setattr(DoorActor, "performed", Counter(), raising=False)
    async with pair(DoorActor) as both:
        await both.work_on("Door/a")
        both.mail.hold(LEADER)
        with pytest.raises(Unknown, match="may be executed") as unknown:
            await both.other.submit(DoorActor, "a", Break("broken"))
        assert isinstance(unknown.value.__cause__, RuntimeError), "the edge writes it to the log"
        assert (await both.other.outcome(unknown.value.members["transaction"]))["outcome"] == "closed"


@pytest.mark.usefixtures("impatient")
async def test_a_command_that_came_back_and_is_too_large_may_still_be_executed_elsewhere() -> None:
    """That it is too large is on no record, so the leader may come to another decision on another state."""
    async with pair(TallyActor) as both:
        await both.work_on("Tally/a")
        both.mail.hold(LEADER)
        with pytest.raises(Unknown, match="may be executed") as unknown:
            await both.other.submit(TallyActor, "a", Add(1, 1_000 * "x", parts=1_000))
        found = await both.other.outcome(unknown.value.members["transaction"])
        assert found["outcome"] == "closed"


async def test_that_a_command_is_too_large_is_passed_on() -> None:
    async with pair(TallyActor) as both:
        await both.work_on("Tally/a")
        with pytest.raises(Rejected) as refused:
            await both.other.submit(TallyActor, "a", Add(1, 1_000 * "x", parts=1_000))
        assert (refused.value.status, refused.value.title) == (TooLarge.status, TooLarge.title)
        assert not both.commits()


async def test_a_leader_at_work_keeps_the_command_of_a_slow_actor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (("SILENT_S", 1.5), ("WORKING_S", 0.02), ("LOOK_S", 0.01)):
        monkeypatch.setattr(forwarding, name, value)
    async with pair() as both:
        await both.deposit()
        answer = await both.other.submit(AccountActor, "a", Think(2.5, 5, "slow"))
        assert (answer.version, both.by(), len(both.leader.records())) == (2, [LEADER], 3)
        assert not caplog.records
        assert any(answer.outcome == "working" for answer in both.mail.answers(OTHER))


# -- packets that come twice


async def test_a_packet_that_comes_twice_is_executed_and_answered_once() -> None:
    async with pair() as both:
        await both.deposit()
        both.mail.copies = lambda to, packet: 2
        answers = [task(both.other, Deposit(1, f"{number}")) for number in range(5)]
        assert [(await each).version for each in answers] == [2, 3, 4, 5, 6]
        assert both.by() == 5 * [LEADER]
        assert len(both.leader.records()) == 7, "and none is void"


async def test_a_packet_that_comes_again_after_its_answer_changes_nothing() -> None:
    async with pair() as both:
        await both.deposit()
        answer = await both.other.submit(AccountActor, "a", Deposit(5, "five"))
        ((_, again),) = [each for each in both.mail.sent if each[1].commands]
        both.mail.put(LEADER, packed(again))
        await both.taken()
        assert (len(both.leader.records()), answer.version) == (3, 2)
        assert (await both.other.submit(AccountActor, "a", Deposit(5, "next"))).version == 3


async def test_a_packet_that_cannot_be_read_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with pair() as both:
        await both.deposit()
        both.mail.put(LEADER, b"\xc1")
        both.mail.put(OTHER, b"\xc1")
        assert (await both.other.submit(AccountActor, "a", Deposit(5, "five"))).version == 2
        assert both.by() == [LEADER]
        assert [record.getMessage() for record in caplog.records] == 2 * [
            "the mailbox of this instance has a packet that cannot be read; it is dropped"
        ]


async def test_many_commands_are_split_into_packets_and_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "PACKET_BYTES", 2_000)
    async with pair() as both:
        await both.deposit()
        answers = [task(both.other, Deposit(1, 500 * "x")) for number in range(12)]
        assert [(await each).version for each in answers] == [*range(2, 14)]
        assert both.by() == 12 * [LEADER]
        counts = [len(packet.commands) for _, packet in both.mail.sent if packet.commands]
        assert sum(counts) == 12
        assert max(counts) <= 4


# -- at the deadline, and when ids are forgotten


async def test_without_an_answer_at_the_deadline_the_outcome_is_unknown_and_definite_when_asked_for() -> None:
    async with pair() as both:
        await both.deposit()
        both.mail.hold(LEADER)
        sent = task(both.other, Deposit(5, "five"))
        await until(lambda: both.forwarded)
        expire(both.other)
        with pytest.raises(Unknown, match="There was no verdict") as unknown:
            await sent
        asked_for = unknown.value.members["transaction"]
        assert (await both.other.outcome(asked_for))["outcome"] == "closed"
        both.mail.release(LEADER)
        await both.answered()
        assert (await both.leader.outcome(asked_for))["outcome"] == "closed"
        assert not both.commits(), "it was closed before the leader had it"


async def test_a_command_whose_answer_never_comes_is_found_on_record_when_asked_for() -> None:
    async with pair() as both:
        await both.deposit()
        both.mail.copies = lambda to, packet: 0 if packet.answers else 1
        sent = task(both.other, Deposit(5, "five"))
        await both.answered()
        expire(both.other)
        with pytest.raises(Unknown) as unknown:
            await sent
        found = await both.other.outcome(unknown.value.members["transaction"])
        assert (found["outcome"], found["version"]) == ("accepted", 2)
        assert both.by() == [LEADER]


async def test_the_leader_declines_a_command_whose_id_may_be_forgotten() -> None:
    async with pair(settings=Settings(idempotency_count=5)) as both:
        await both.deposit()
        both.mail.hold(LEADER)
        sent = task(both.other, Deposit(5, "five"))
        await until(lambda: both.forwarded)
        for number in range(7):
            await both.leader.submit(AccountActor, "b", Deposit(1, f"{number}"))
        both.mail.release(LEADER)
        assert (await sent).version == 2
        assert both.outcomes == ["declined"]
        assert both.by() == [*7 * [LEADER], OTHER]


async def test_a_command_that_came_back_too_late_for_its_id_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "LOOK_S", 0.01)
    async with pair(settings=Settings(idempotency_count=5)) as both:
        await both.deposit()
        both.mail.hold(LEADER)
        sent = task(both.other, Deposit(5, "five"))
        await until(lambda: both.forwarded)
        for number in range(7):
            await both.leader.submit(AccountActor, "b", Deposit(1, f"{number}"))
        await until(lambda: both.other.transactions.scopes[0].view.next == 9)
        monkeypatch.setattr(forwarding, "SILENT_S", 0.0)
        with pytest.raises(Unknown, match="may be executed") as unknown:
            await sent
        assert (await both.other.outcome(unknown.value.members["transaction"]))["outcome"] == "unknown"
        assert both.by() == 7 * [LEADER]


async def test_a_command_that_was_void_too_often_is_closed_before_it_is_refused() -> None:
    """So that nobody executes it later."""
    async with pair(settings=Settings(lock_retry_count=0)) as both:
        await both.deposit()
        release = hold(both.leader)
        both.leader.transactions.scopes[0].contention = Contention()
        await both.other.outcome(token("a", "never sent"))  # a barrier, after which what the leader decides is void
        sent = task(both.other, Deposit(5, "five"))
        await until(lambda: len(both.leader.log.partitions[0]) == 4)
        release()
        with pytest.raises(Rejected, match="was changed by others 1 times") as refused:
            await sent
        assert (refused.value.status, both.outcomes) == (409, ["refused"])
        (command,) = both.mail.commands(LEADER)
        last = both.leader.records()[-1].record
        assert isinstance(last, Barrier)
        assert last.command is not None
        assert last.command.key == command.key


# -- the end of an instance


async def test_an_instance_that_ends_takes_no_commands_and_answers_those_that_it_has() -> None:
    async with pair() as both:
        await both.deposit()
        release = hold(both.leader)
        sent = task(both.other, Deposit(5, "five"))
        await until(lambda: len(both.leader.log.partitions[0]) == 3)
        leaving = both.forwardings[LEADER]
        await leaving.take_no_commands()
        assert LEADER not in both.mail.takers
        drained = asyncio.create_task(both.leader.transactions.engine.drain(5.0))
        await asyncio.sleep(0)
        assert not sent.done()
        release()
        await drained
        await leaving.stop()
        assert (await sent).version == 2
        assert (await both.other.submit(AccountActor, "a", Deposit(6, "six"))).version == 3
        assert both.by() == [LEADER, OTHER]


async def test_a_command_that_an_instance_could_not_end_before_its_own_end_is_executed_here() -> None:
    async with pair() as both:
        await both.deposit()
        sent = task(both.other, Think(0.5, 5, "slow"))
        await until(lambda: both.leader.transactions.engine.work.open)
        leaving = both.forwardings[LEADER]
        await leaving.take_no_commands()
        await both.leader.transactions.engine.drain(0.05)
        await leaving.stop()
        await both.answered()
        assert both.outcomes == ["declined"]
        assert (await sent).version == 2
        assert both.by() == [OTHER]


async def test_the_commands_that_an_instance_has_forwarded_are_unknown_at_its_end() -> None:
    async with pair() as both:
        await both.deposit()
        both.mail.hold(LEADER)
        sent = task(both.other, Deposit(5, "five"))
        await until(lambda: both.forwarded)
        await both.other.transactions.engine.drain(0.01)
        with pytest.raises(Unknown, match="before this instance ended") as unknown:
            await sent
        both.mail.release(LEADER)
        await both.answered()
        found = await both.leader.outcome(unknown.value.members["transaction"])
        assert (found["outcome"], found["version"]) == ("accepted", 2)


async def test_nothing_fails_where_redis_is_away_when_an_instance_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(instance: str) -> None:
        raise Unavailable(AWAY)

    async with pair() as both:
        await both.deposit()
        monkeypatch.setattr(both.mail, "take_no_commands", away)
        await both.forwardings[LEADER].take_no_commands()


# -- all of it at once


@pytest.mark.usefixtures("impatient")
async def test_whatever_the_mail_does_each_command_has_its_effect_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "AVOIDED_S", 0.02)
    async with pair() as both:
        await both.deposit()
        copies, had = [1, 2, 1, 0, 1, 1, 3, 1], {"a": 100, "b": 0}
        both.mail.copies = lambda to, packet: copies[len(both.mail.sent) % len(copies)]

        async def client(service: testing.Service, name: str) -> None:
            for number in range(12):
                key = f"{name}-{number}" if number % 2 else None
                try:
                    if number % 4 == 3:
                        await service.submit(AccountActor, "a", Transfer("b", 20, f"{name}-{number}"), key=key)
                        had["a"] -= 20
                        had["b"] += 20
                    elif number % 3 == 2:
                        await service.submit(AccountActor, "a", Withdraw(40, f"{name}-{number}"), key=key)
                        had["a"] -= 40
                    else:
                        await service.submit(AccountActor, "a", Deposit(7, f"{name}-{number}"), key=key)
                        had["a"] += 7
                except Rejected:
                    pass

        async with asyncio.timeout(60):
            services = (("one", both.leader), ("two", both.other))
            await asyncio.gather(*[client(service, f"{name}-{k}") for name, service in services for k in range(4)])
        assert {id: (await both.leader.read(AccountActor, id))[0].balance for id in had} == had
        assert both.forwarded
        assert OTHER in both.by()
        await both.rests()
