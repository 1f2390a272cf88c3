"""Events come from a consumer to their processes: each has its effect once, however often it is handed over."""

import asyncio
from typing import Any, ClassVar

import pytest

from hiveio import ProcessManager
from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import Context, Envelope, Handler, Outcome, encode_message
from hiveio.errors import ConfigError, Conflict, HiveError, Quarantined, Unavailable, Unknown
from hiveio.saga.inbox import check_topics, inbox, source_of
from hiveio.testing import Service
from hiveio.transaction.process import Process
from hiveio.transaction.record import Commit
from tests.actors.fulfilment import Fulfilment, OrderPlaced, PaymentReserved, Progress, Started
from tests.unit.consumer.consumer_memory import Partition, Record


def record(key: bytes, event: Any) -> Record:
    return key, encode_message(event), [("hive-actor", b"Order")]


def inboxed(service: Service, contract: Contract) -> Handler:
    return inbox(contract, {each.name: each for each in service.contracts}, service.transactions)


def sources(service: Service, name: str) -> tuple[str, ...]:
    return Process.of(service.log.folds[0].aggregates[name].process).sources


class Choosy(ProcessManager):
    path = "/choosy/{id}"
    correlates = {OrderPlaced: "order", PaymentReserved: "order"}  # noqa: RUF012
    quarantined: ClassVar[bool] = True

    def perform(self, state: Progress | None, event: OrderPlaced | PaymentReserved) -> Started | None:
        return Started(event.order) if isinstance(event, OrderPlaced) else None

    def replay(self, state: Progress | None, event: Started) -> Progress:
        return Progress(event.order)


async def test_a_group_that_is_reset_gives_everything_again_and_nothing_has_a_second_effect() -> None:
    orders = [record(b"k", OrderPlaced(id, 5)) for id in ("o1", "o2")]
    partition = Partition([orders[0], record(b"k", PaymentReserved("o1")), orders[1]])
    async with Service(Fulfilment) as service:
        for _ in range(3):
            partition.committed = None
            async with partition.member(Fulfilment, handler=lambda made: inboxed(service, made)) as member:
                await member.until(lambda: member.consumer.counts.handled == 3)
            assert partition.committed is not None
            assert partition.committed[0] == 3
        assert sources(service, "Fulfilment/o1") == ("t/id/0/0", "t/id/0/1")
        assert (await service.read(Fulfilment, "o1"))[0] == Progress("o1", "paid")
        assert sources(service, "Fulfilment/o2") == ("t/id/0/2",)
        assert sum(isinstance(logged.record, Commit) for logged in service.records()) == 3


def quarantined(handler: Handler) -> Handler:
    """The handler, while a process is in quarantine: its orders are dead letters."""

    async def handle(envelope: Envelope) -> Outcome:
        if isinstance(envelope.message, OrderPlaced) and Choosy.quarantined:
            raise HiveError("it is in quarantine")
        return await handler(envelope)

    return handle


async def test_a_dead_letter_that_is_tried_again_comes_after_younger_events_and_counts() -> None:
    partition = Partition([record(b"k", OrderPlaced("o1", 5)), record(b"other", PaymentReserved("o1"))])
    async with (
        Service(Choosy) as service,
        partition.member(Choosy, handler=lambda made: quarantined(inboxed(service, made))) as member,
    ):
        await member.until(lambda: member.consumer.counts.handled == 1 and member.consumer.counts.dead == 1)
        assert partition.kept() == [(0, "failed")]
        assert sources(service, "Choosy/o1") == ("t/id/0/1",)
        Choosy.quarantined = False
        await partition.mark("retry")
        await member.until(lambda: member.consumer.counts.redriven == 1)
        assert sources(service, "Choosy/o1") == ("t/id/0/1", "t/id/0/0"), "the offset of the record itself"
        assert (await service.read(Choosy, "o1"))[0] == Progress("o1")


async def test_events_of_other_types_are_skipped_and_park_nothing() -> None:
    """The topics of other services have more than what drives a process."""
    other: Record = (b"k", b'{"type":"OrderChanged","payload":{"order":"o1"}}', [("hive-actor", b"Order")])
    partition = Partition([other, record(b"k", OrderPlaced("o1", 5))])
    async with (
        Service(Fulfilment) as service,
        partition.member(Fulfilment, handler=lambda made: inboxed(service, made)) as member,
    ):
        await member.until(lambda: member.consumer.counts.handled == 1)
        assert (member.consumer.counts.skipped, member.consumer.counts.dead) == (1, 0)
        assert partition.kept() == []


@pytest.mark.parametrize(
    ("raised", "comes"),
    [
        (Unavailable("a"), Unavailable),
        (Conflict("a"), Unavailable),
        (Unknown("a"), Unavailable),
        (Quarantined("a"), HiveError),
        (RuntimeError("a"), RuntimeError),
    ],
)
async def test_what_is_not_definite_is_asked_for_again_and_holds_up_nobody_else(
    raised: Exception, comes: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Service(Fulfilment) as service:

        class Submitted:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        Submitted.future.set_exception(raised)
        monkeypatch.setattr(service.transactions.engine, "submit", lambda *_: Submitted)
        context = Context(topic="t", topic_id="id", partition=0, offset=7)
        with pytest.raises(comes) as found:
            await inboxed(service, service.contracts[0])(Envelope(message=OrderPlaced("o1", 5), id="k", record=context))
        assert isinstance(found.value, Unavailable) == (comes is Unavailable)


async def test_an_answer_that_was_lost_is_found_in_the_state() -> None:
    async with Service(Fulfilment) as service:
        contract, context = service.contracts[0], Context(topic="t", topic_id="id", partition=0, offset=7)
        handle = inboxed(service, contract)
        await service.deliver(Fulfilment, OrderPlaced("o1", 5), source=source_of(context))
        before = len(service.log.partitions[0])
        await handle(Envelope(message=OrderPlaced("o1", 5), record=context))
        assert len(service.log.partitions[0]) == before
        again = Context(topic="t", topic_id="another", partition=0, offset=7)
        await handle(Envelope(message=PaymentReserved("o1"), record=again))
        assert (await service.read(Fulfilment, "o1"))[0].status == "paid"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"topic": "orders"}, "EVENT_STORE_CONSUMER_TOPIC is not set, so process managers would read orders"),
        ({"producer_topic": "orders", "consumer_topic": ("^ord.*",)}, r"\^ord.* matches orders"),
        (
            {"topic": "orders", "consumer_topic": ("^ord",), "kafka": {"group.protocol": "classic"}},
            r"\^ord matches orders",
        ),
        ({"topic": "orders", "consumer_topic": ("^ord",)}, ""),
        ({"topic": "orders", "producer_topic": "own"}, ""),
        ({"topic": "own", "consumer_topic": ("orders", "payments")}, ""),
        ({"topic": "own", "consumer_topic": ("orders", "own")}, ""),
        ({"topic": "own", "consumer_topic": ("^orders.*",)}, ""),
    ],
)
def test_a_service_does_not_read_its_own_events_without_meaning_to(settings: dict[str, Any], text: str) -> None:
    if not text:
        check_topics(Settings(**settings))
        return
    with pytest.raises(ConfigError, match=text):
        check_topics(Settings(**settings))
