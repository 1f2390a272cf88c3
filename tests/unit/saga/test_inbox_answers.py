"""A process knows which of its commands are not answered, and an ended one keeps nothing but that it has ended."""

from typing import Any

import pytest

from hiveio import KEY, Actor, Command, CommandRefused, Deadline, Event, Model, ProcessManager, Transaction
from hiveio.envelope import Context, Envelope, encode_message
from hiveio.errors import Invalid, NotFound, Rejected
from hiveio.headers import Headers
from hiveio.messages import CommandAccepted
from hiveio.saga.inbox import AnswerCodec
from hiveio.testing import Service, given
from hiveio.transaction.process import RUNNING, WAITS, Process
from tests.unit.consumer.consumer_memory import Partition, Record
from tests.unit.saga.test_inbox import inboxed
from tests.unit.transaction.test_engine import until


class Called(Event):
    pass


class Left(Event):
    pass


class Over(Deadline):
    pass


class Book(Command):
    pass


class Note(Command):
    text: str = ""


class Step(Event):
    pass


class Steps(Model):
    taken: int = 0


class Trip(ProcessManager):
    """Books a room and a seat, and ends when the traveller has left."""

    path = "/trips/{id}"
    correlates = {Called: KEY, Left: KEY}  # noqa: RUF012

    def perform(self, state: Steps | None, message: Called | Left | Over | Note, tx: Transaction) -> Step | list[Step]:
        match message:
            case Called():
                tx.send("rooms", "r", Book())
                tx.send("seats", "s", Book())
            case Left():
                tx.end()
        return Step()

    def replay(self, state: Steps | None, event: Step) -> Steps:
        return Steps(state.taken + 1 if state else 1)


class Writing(Actor):
    path = "/writings/{id}"

    def perform(self, state: Steps | None, command: Note, tx: Transaction) -> None:
        tx.emit(Trip, command.text, Step())

    def replay(self, state: Steps | None, event: Step) -> Steps:
        return Steps()

    def scope(self, id: str) -> str:
        return "all"


def kept(service: Service, id: str = "t1") -> Process:
    return Process.of(service.log.folds[0].aggregates[f"Trip/{id}"].process)


def causes(service: Service) -> list[bytes]:
    """What the answers to the commands of the process have as their cause."""
    stream = service.transactions.outbox_stream
    return [f"{stream}0/{position}".encode() for position in kept(service).sent]


def answer(cause: bytes, kind: str = "Booked", key: bytes = b"r", process: bytes = b"Trip/t1", **more: bytes) -> Record:
    headers: list[tuple[str, bytes | None]] = [
        ("hive-actor", b"Room"),
        ("hive-cause", cause),
        ("hive-process", process),
    ]
    headers += [(name.replace("_", "-"), text) for name, text in more.items()]
    return key, b'{"type":"%s","payload":{}}' % kind.encode(), headers


async def listed(service: Service, part: int) -> list[tuple[str, int]]:
    await until(lambda: service.transactions.scopes[0].applied)
    return (await service.cache.processes(0, part, 0, 10))[1]


async def test_any_record_that_a_command_has_led_to_answers_it_and_a_repeat_changes_nothing() -> None:
    """Also one of a type that no process takes, and an outcome. Else it would be said for ever to wait."""
    async with Service(Trip) as service:
        await service.deliver(Trip, Called(), source="a", id="t1")
        assert [*kept(service).sent] == ["1:0", "1:1"]
        room, seat = causes(service)
        partition = Partition(
            [
                answer(room),
                answer(room),
                answer(b"other.commands/x/0/1:1"),
                answer(seat, process=b"Trip/t2"),
                answer(seat, process=b"None/t1"),
                answer(seat, "CommandAccepted", hive_outcome=b"accepted"),
            ]
        )
        codec = AnswerCodec(service.contracts, service.transactions)
        made = partition.member(Trip, handler=lambda made: inboxed(service, made), codec=codec)
        before = len(service.log.partitions[0])
        async with made as member:
            await member.until(lambda: member.consumer.counts.handled + member.consumer.counts.skipped == 6)
            assert partition.kept() == []
        assert kept(service) == Process(("a",))
        assert len(service.log.partitions[0]) == before + 2, "the others have led to no record"
        assert (await service.read(Trip, "t1"))[0] == Steps(1), "perform was not told"


async def test_an_event_that_drives_a_process_answers_too_and_that_of_another_one_answers_its_sender() -> None:
    async with Service(Trip) as service:
        await service.deliver(Trip, Called(), source="a", id="t1")
        (room, seat), context = causes(service), Context(topic="t", topic_id="id", partition=0, offset=7)
        handle = inboxed(service, service.contracts[0])

        def headers(cause: bytes) -> Headers:
            return Headers([("hive-cause", cause), ("hive-process", "Trip/t1")])

        await handle(Envelope(message=Called(), id="t2", headers=headers(room), record=context))
        assert ([*kept(service).sent], len(kept(service, "t2").sent)) == (["1:1"], 2)
        await handle(Envelope(message=Called(), id="t1", headers=headers(seat), record=context))
        assert "1:1" not in kept(service).sent
        assert len(kept(service).sent) == 2, "those that it has sent now"


async def test_a_refusal_answers_also_where_perform_does_not_take_it() -> None:
    async with Service(Trip) as service:
        await service.deliver(Trip, Called(), source="a", id="t1")
        codec = AnswerCodec(service.contracts, service.transactions)
        room, seat = causes(service)
        body = encode_message(CommandRefused("rooms", "r", "Book", {}))
        found, _ = codec.decode(body, [("hive-cause", room), ("hive-process", b"Trip/t1")])
        assert isinstance(found, CommandAccepted)
        with pytest.raises(Invalid):
            codec.decode(body, [("hive-actor", b"Room")])
        with pytest.raises(Invalid):  # what a process takes has to fit
            codec.decode(b'{"type":"Called","payload":[]}', [("hive-cause", seat), ("hive-process", b"Trip/t1")])


async def test_the_cache_lists_who_runs_and_since_when_one_waits_for_an_answer() -> None:
    async with Service(Trip) as service:
        for id in ("t1", "t2"):
            await service.deliver(Trip, Called(), source="a", id=id)
        assert [name for name, _ in await listed(service, RUNNING)] == ["Trip/t1", "Trip/t2"]
        sent = kept(service).sent["1:0"]
        assert ("Trip/t1", sent) in await listed(service, WAITS)
        await service.deliver(Trip, Left(), source="b", id="t1")
        assert [name for name, _ in await listed(service, RUNNING)] == ["Trip/t2"]
        assert [name for name, _ in await listed(service, WAITS)] == ["Trip/t2"]


async def test_an_ended_process_keeps_nothing_and_what_comes_later_has_no_effect() -> None:
    async with Service(Trip, Writing) as service:
        for source, event in (("a", Called()), ("b", Left())):
            await service.deliver(Trip, event, source=source, id="all")
        ended = service.log.folds[0].aggregates["Trip/all"]
        assert (Process.of(ended.process), ended.version) == (Process(ended=True), 2)
        await until(lambda: service.transactions.scopes[0].applied)
        assert service.cache.scopes[0].entries["Trip/all"].endswith(b'{"ended":true}'), "and no snapshot"
        before = len(service.log.partitions[0])
        for source in ("a", "b", "c"):
            await service.deliver(Trip, Left(), source=source, id="all")
        assert len(service.log.partitions[0]) == before
        with pytest.raises(NotFound, match="Trip all has ended"):
            await service.submit(Trip, "all", Note())
        with pytest.raises(Rejected, match="Trip all has ended, and takes no event"):
            await service.submit(Writing, "all", Note("all"))
        assert await service.read(Trip, "all") == (None, 0)


def test_a_test_sees_that_a_process_has_ended() -> None:
    trip = given(Trip).when(Called(), id="1")
    with pytest.raises(AssertionError, match="a process that has ended"):
        trip.then_ended()
    trip.when(Left(), id="1").then(Step()).then_ended().then_state(None)
    trip.when(Called(), id="1").then().then_sent()


@pytest.mark.parametrize("later", [Called(), Left()])
async def test_the_view_of_another_instance_has_the_same(later: Any) -> None:
    async with Service(Trip) as service:
        for number, event in enumerate((Called(), Left(), later)):
            await service.deliver(Trip, event, source=f"s{number}", id="t1")
        mine = service.transactions.scopes[0].view.entries["Trip/t1"]
        async with Service(Trip, log=service.log) as other:
            await other.deliver(Trip, Called(), source="x", id="t2")
            found = other.transactions.scopes[0].view.entries.get("Trip/t1")
            assert found is not None
            assert (found.text, found.state, found.snapshot) == (mine.text, None, b"")
