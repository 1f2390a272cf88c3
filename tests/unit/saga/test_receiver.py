"""Commands of processes come from a topic: each is executed once or refused on record, and answered with its cause."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from hiveio import Rejected
from hiveio.config import Settings
from hiveio.envelope import Context, Envelope, encode_message
from hiveio.errors import ConfigError, Invalid, Malformed, TooLarge
from hiveio.headers import Headers
from hiveio.kafka.tail import LogRecord
from hiveio.messages import CommandRefused
from hiveio.saga.receiver import CommandCodec, Commands, ReceivedCommand, check_command_topics, receiving
from hiveio.testing import Service
from hiveio.transaction import journal
from hiveio.transaction.process import Process
from hiveio.transaction.publisher import COMMANDS, EVENTS, Origin
from hiveio.transaction.record import Cause, Commit
from tests.actors.fulfilment import Fulfilment, OrderPlaced, Progress
from tests.actors.tally import Add, Added, Tallies, Tally
from tests.garbage import TIMES, nothing_to_collect
from tests.unit.consumer.consumer_memory import Partition, Record
from tests.unit.saga.test_inbox import inboxed

SELF = "memory"


def sent(number: int, id: str, body: bytes, service: str = SELF, process: str = "Fulfilment/o1") -> Record:
    headers: list[tuple[str, bytes | None]] = [
        ("hive-service", service.encode()),
        ("hive-position", b"0:%d:0" % number),
        ("hive-log", b"log"),
    ]
    headers += [("hive-process", process.encode()), ("content-type", b"application/json")]
    if number > 1:
        headers.append(("hive-previous", b"0:%d:0" % (number - 1)))
    return id.encode(), body, headers


def add(amount: int) -> bytes:
    return encode_message(Add(amount))


class Capped(Tallies):
    """Refuses what is too much."""

    faults = False

    def perform(self, tally: Tally | None, command: Add) -> Added | list[Added]:
        if Capped.faults:
            raise RuntimeError("a fault")
        if command.amount > 100:
            raise Rejected("that is too much", limit=100)
        return [] if command.amount == 0 else Added(command.amount)


def member(partition: Partition, service: Service) -> Any:
    handler = receiving(service.contracts, service.transactions, SELF)
    return partition.member(Commands, handler=lambda made: handler, codec=CommandCodec(SELF))


def commits(service: Service) -> list[Commit]:
    return [each.record for each in service.records() if each.verdict and isinstance(each.record, Commit)]


def answers(service: Service) -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    """What is published: the type, the payload and the headers of each record."""
    found = []
    for logged in service.records():
        if logged.verdict:
            message = LogRecord(logged.offset, f"w-{logged.offset:x}", b"", 0)
            for out in EVENTS.outgoing(Origin(SELF, "log", 0), message, logged.record):
                value = msgspec.json.decode(out.value or b"")
                found.append((value["type"], value["payload"], {name: str(text) for name, text in out.headers}))
    return found


async def test_a_group_that_is_reset_gives_all_commands_again_and_none_is_executed_twice() -> None:
    partition = Partition(
        [sent(1, "a", add(5)), sent(2, "b", add(7)), sent(3, "x", add(9), "stock"), sent(4, "a", add(3))]
    )
    async with Service(Capped) as service:
        for _ in range(3):
            partition.committed = None
            async with member(partition, service) as reading:
                await reading.until(lambda counts=reading.consumer.counts: (counts.handled, counts.skipped) == (3, 1))
        assert (await service.read(Capped, "a"))[0] == Tally(8, 2)
        assert (await service.read(Capped, "b"))[0] == Tally(7, 1)
        assert (await service.read(Capped, "x"))[0] is None, "it is for another service"
        assert len(commits(service)) == 3
        kept = Process.of(service.log.folds[0].aggregates["Tally/a"].process)
        assert kept.taken == {"t/log/0": (4, 0)}, "one position for each stream, whatever the number of commands"
        assert [headers["hive-cause"] for _, _, headers in answers(service)] == [
            "t/log/0/1:0",
            "t/log/0/2:0",
            "t/log/0/4:0",
        ]
        assert {headers["hive-process"] for _, _, headers in answers(service)} == {"Fulfilment/o1"}


@pytest.mark.parametrize("body", [add(1), add(101), b"nonsense"], ids=["accepted", "refused", "undecodable"])
async def test_a_command_leaves_nothing_to_the_collector(body: bytes) -> None:
    records = [sent(number, f"a{number}", body) for number in range(1, 2 * TIMES + 1)]
    partition = Partition(records[:TIMES])
    async with Service(Capped) as service, member(partition, service) as reading:
        await reading.until(lambda: reading.consumer.counts.handled == TIMES)
        with nothing_to_collect():
            partition.write(*records[TIMES:])
            await reading.until(lambda: reading.consumer.counts.handled == 2 * TIMES)


async def test_what_cannot_be_done_is_refused_on_record_and_answered() -> None:
    bodies = [add(101), b'{"type":"Add","payload":{"amount":"x"}}', b'{"type":"Ship"}', b"nonsense", add(0), add(1)]
    partition = Partition([sent(number, "a", body) for number, body in enumerate(bodies, 1)])
    async with Service(Capped) as service, member(partition, service) as reading:
        await reading.until(lambda: reading.consumer.counts.handled == len(bodies))
        found = answers(service)
        assert [kind for kind, _, _ in found] == [*["CommandRefused"] * 4, "CommandAccepted", "Added"]
        problems = [payload["problem"] for _, payload, _ in found[:4]]
        assert [problem["status"] for problem in problems] == [422, 422, 404, 404]
        assert problems[0] | {"type": ""} == {
            "type": "", "title": "Rejected", "status": 422, "detail": "that is too much", "limit": 100,
        }  # fmt: skip
        assert problems[1]["pointer"] == "/payload/amount"
        assert problems[2]["detail"] == "memory takes no command 'Ship'."
        assert found[0][1] | {"problem": 0} == {"service": SELF, "id": "a", "command": "Add", "problem": 0}
        outcomes = [headers.get("hive-outcome") for _, _, headers in found]
        assert outcomes == [*["refused"] * 4, "accepted", None]
        assert all("hive-version" not in headers for _, _, headers in found[:5])
        assert (await service.read(Capped, "a")) == (Tally(1, 1), 1), "a refusal is no event"


async def test_a_command_that_fails_is_a_dead_letter_and_those_behind_it_for_the_aggregate_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    partition = Partition([sent(1, "a", add(5)), sent(2, "a", add(7)), sent(3, "b", add(1))])
    async with Service(Capped) as service:
        monkeypatch.setattr(Capped, "faults", True)
        async with member(partition, service) as reading:
            await reading.until(lambda: partition.committed is not None and partition.committed[0] == 3)
            assert not commits(service)
            monkeypatch.setattr(Capped, "faults", False)
            await partition.mark("retry")
            await reading.until(lambda: reading.consumer.counts.redriven == 3)
        partition.committed = None
        async with member(partition, service) as reading:
            await reading.until(lambda: partition.committed is not None and partition.committed[0] == 3)
        assert (await service.read(Capped, "a"))[0] == Tally(12, 2)
        causes = [record.cause for record in commits(service) if record.command.target == "Tally/a"]
        assert [cause.offset for cause in causes if cause] == [1, 2], "in order"


def received(body: bytes, id: str = "a", position: tuple[int, int, int] | None = (0, 7, 0), **headers: str) -> Envelope:
    sent = Headers({"hive-log": "log", "hive-process": "Fulfilment/o1"} | headers)
    context = Context(topic="t", topic_id="id", partition=0, offset=7, position=position, headers=sent)
    return Envelope(message=ReceivedCommand(body), id=id, headers=sent, record=context)


async def test_an_answer_that_was_lost_is_found_in_the_state() -> None:
    async with Service(Tallies) as service:
        handle = receiving(service.contracts, service.transactions, SELF)
        assert (await handle(received(add(5)))).encoded == b'{"type":"Added","payload":{"amount":5}}'
        assert (await handle(received(add(5)))).encoded == b"null"
        assert (await handle(received(add(5), position=(1, 7, 0)))).encoded != b"null", "another scope of the sender"
        assert (await service.read(Tallies, "a"))[0] == Tally(10, 2)


async def test_a_record_that_no_process_has_sent_is_a_dead_letter() -> None:
    async with Service(Tallies) as service:
        handle = receiving(service.contracts, service.transactions, SELF)
        with pytest.raises(Invalid, match="so no process has sent it"):
            await handle(received(add(5), position=None))
        with pytest.raises(Malformed, match="is no id of an aggregate"):
            await handle(received(add(5), id="\udcff"))
        assert not commits(service)


async def test_a_refusal_that_the_engine_gives_without_a_record_is_recorded_too() -> None:
    class Far(Tallies):
        async def perform(self, tally: Tally | None, command: Add, tx: Any) -> Added:  # type: ignore[override]
            await tx.get(Far, "another")
            return Added(1)

    settings = Settings(partitions=64)
    async with Service(Far, settings=settings) as service:
        await receiving(service.contracts, service.transactions, SELF)(received(add(5)))
        found = [record for partition in range(64) for record in refusals(service, partition)]
        assert [refusal["title"] for refusal in found] == ["Several Scopes"]


async def test_a_refusal_that_the_log_does_not_take_either_is_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Service(Capped) as service:
        submit, times = service.transactions.engine.submit, 0

        def counted(*arguments: Any) -> Any:
            nonlocal times
            times += 1
            assert times < 5, "it does not try for ever"
            return submit(*arguments)

        monkeypatch.setattr(service.transactions.engine, "submit", counted)
        monkeypatch.setattr(journal, "SNAPSHOTS_BYTES", 1)
        with pytest.raises(TooLarge):
            await receiving(service.contracts, service.transactions, SELF)(received(add(1)))
        assert not commits(service)


def test_two_actors_that_take_one_command_stop_the_start() -> None:
    class Second(Tallies):
        name = "Second"

    service = Service(Tallies, Second)
    with pytest.raises(ConfigError, match="Tally and Second both take Add"):
        receiving(service.contracts, service.transactions, SELF)


def refusals(service: Service, partition: int) -> Sequence[dict[str, Any]]:
    records = [each.record for each in service.records(partition)]
    return [record.refusal for record in records if isinstance(record, Commit) and record.refusal]


async def test_the_process_gets_the_refusal_of_its_command_once() -> None:
    async with Service(Fulfilment) as service:
        await service.deliver(Fulfilment, OrderPlaced("o1", 5), source="a")
        handle = inboxed(service, service.contracts[0])
        refused = CommandRefused("payments", "o1", "ReservePayment", {"detail": "no money", "status": 422})
        own = service.transactions.outbox_stream

        async def answer(cause: str, process: str) -> None:
            headers = Headers({"hive-cause": cause, "hive-process": process})
            context = Context(topic="payments", topic_id="id", partition=0, offset=3, headers=headers)
            body = Envelope(message=refused, id="o1", headers=headers, record=context)
            await handle(body)

        await answer("orders.commands/log/0/1:0", "Fulfilment/o1")
        await answer(f"{own}0/1:0", "Another/o1")
        assert (await service.read(Fulfilment, "o1"))[0] == Progress("o1"), "commands of others"
        for _ in range(2):
            await answer(f"{own}0/1:0", "Fulfilment/o1")
        assert (await service.read(Fulfilment, "o1"))[0] == Progress("o1", "payments: no money")
        assert len(commits(service)) == 2


@pytest.mark.parametrize("name", ["^.*commands", "orders", "orders.transactions"])
def test_a_name_that_is_no_topic_of_commands_stops_the_start(name: str) -> None:
    check_command_topics(Settings(command_topics=("orders.commands",)))
    with pytest.raises(ConfigError, match="the commands of a service are on the topic"):
        check_command_topics(Settings(command_topics=(name,)))


def test_a_cause_is_read_as_it_was_written() -> None:
    cause = Cause("orders.commands/id/0", 7, 1, "Fulfilment/o1", "ReservePayment")
    assert cause.text == "orders.commands/id/0/7:1"
    assert msgspec.json.decode(msgspec.json.encode(cause), type=Cause) == cause


async def test_one_trace_goes_through_events_processes_and_commands() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with Service(Fulfilment) as service:
        await service.deliver(Fulfilment, OrderPlaced("o1", 5), source="a", headers={"traceparent": trace})
        (record,) = commits(service)
        (command,) = COMMANDS.outgoing(Origin(SELF, "log", 0), LogRecord(1, "w-1", b"", 0), record)
        assert ("traceparent", trace) in command.headers
    async with Service(Tallies) as service:
        await receiving(service.contracts, service.transactions, SELF)(received(add(5), traceparent=trace))
        ((_, _, headers),) = answers(service)
        assert headers["traceparent"] == trace
