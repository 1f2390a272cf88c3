"""Sessions that share producers, on a real Kafka that refuses what one of them sends."""

import asyncio

import pytest

from hiveio.config import Settings
from hiveio.kafka.session import Session
from hiveio.kafka.session_clients import SHARED, Outgoing, Oversized, Replaced, SessionClients
from tests.integration.topics import make_topic, read_all
from tests.services import Kafka

BYTES = 900_000  # that the topic takes
GROUP = [Outgoing("small", b"{}", [])] * 3
REFUSED = [Outgoing("large", b"x" * 950_000, []), Outgoing("after", b"x" * 100_000, [])]  # two requests


async def test_what_stands_behind_a_refused_request_is_not_sent_and_no_other_partition_is_refused(
    kafka: Kafka, topic: str
) -> None:
    make_topic(kafka.brokers, topic, SHARED + 1, {"max.message.bytes": str(BYTES)})
    clients = SessionClients(Settings(brokers=kafka.brokers), "test")
    try:
        well, ill = Session(clients, topic, 0), Session(clients, topic, SHARED)
        assert await well.send(GROUP) == (0, 2)
        with pytest.raises(Oversized, match=f"{topic}/{SHARED}"):
            await ill.send(REFUSED)  # the first that the client sends to this partition
        assert not ill.usable
        with pytest.raises(Replaced):
            await well.send(GROUP)
        well, alone = Session(clients, topic, 0), Session(clients, topic, SHARED)
        assert await well.send(GROUP) == (3, 5)
        with pytest.raises(Oversized):
            await alone.send([*GROUP, *REFUSED])
        assert await well.send(GROUP) == (6, 8)
        assert len(read_all(kafka.brokers, topic)) in (9, 10, 11, 12), "what stands before it may be refused with it"
    finally:
        await clients.stop()
    clients = SessionClients(Settings(brokers=kafka.brokers), "test")
    try:
        well, ill = Session(clients, topic, 0), Session(clients, topic, SHARED)
        for session in (well, ill):
            await session.send(GROUP)
        refused, under_way = await asyncio.gather(ill.send(REFUSED), well.send(GROUP), return_exceptions=True)
        assert isinstance(refused, Oversized)
        assert under_way == (12, 14) or isinstance(under_way, Replaced)
    finally:
        await clients.stop()
    assert {message.key() for message in read_all(kafka.brokers, topic)} == {b"small"}
