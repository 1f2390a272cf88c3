"""Sessions share few producers, and one that fails takes no other partition with it twice."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka.session import Session
from hiveio.kafka.session_clients import SHARED, Outgoing, Replaced, SessionClients
from tests.unit.kafka.test_delivery import client_threads, until_ended

SETTINGS = Settings(brokers="nowhere:1", kafka={"test.mock.num.brokers": "1"})  # librdkafka is its own broker
NOWHERE = 999  # a partition that the topic does not have
GROUP = [Outgoing("key", b"{}", []) for _ in range(20)]


@pytest.fixture
async def clients() -> AsyncIterator[SessionClients]:
    others = client_threads()
    made = SessionClients(SETTINGS, "test")
    yield made
    threads = client_threads() - others
    await made.stop()
    await until_ended(threads)


async def test_sessions_share_clients_and_send_side_by_side(clients: SessionClients) -> None:
    sessions = [Session(clients, "events", partition) for partition in range(4)]
    assert len({clients.take("events", partition) for partition in range(4)}) == SHARED
    for first in (0, len(GROUP)):
        landed = await asyncio.gather(*[session.send(GROUP) for session in sessions])
        assert landed == [(first, first + len(GROUP) - 1)] * 4


async def test_a_failure_ends_all_sessions_of_its_client_and_the_next_one_is_its_own_alone(
    clients: SessionClients,
) -> None:
    aside = Session(clients, "events", 0)
    well, ill = Session(clients, "events", 1), Session(clients, "events", NOWHERE)
    assert clients.take("events", 1) is clients.take("events", NOWHERE) is not clients.take("events", 0)
    await well.send(GROUP)
    sending = asyncio.ensure_future(well.send(GROUP))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match=f"{NOWHERE}: .*partition"):
        await ill.send(GROUP)
    assert await sending == (len(GROUP), 2 * len(GROUP) - 1), "what is under way comes to its end"
    assert not ill.usable
    assert not well.usable, "what is stored before may be lost with the leader: only the old client's numbers tell"
    assert aside.usable
    with pytest.raises(Replaced):
        await well.send(GROUP)
    again = Session(clients, "events", 1), Session(clients, "events", NOWHERE)
    with pytest.raises(Unavailable):
        await again[1].send(GROUP)
    assert again[0].usable
    assert aside.usable
    assert await again[0].send(GROUP)


async def test_a_client_is_given_up_with_what_it_holds(clients: SessionClients) -> None:
    session = Session(clients, "events", 0)
    sending = asyncio.ensure_future(session.send(GROUP))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert not session.usable
    session = Session(clients, "events", 0)
    sending = asyncio.ensure_future(session.send(GROUP))
    await asyncio.sleep(0)
    clients.renew()
    with pytest.raises(Replaced):
        await sending
    assert not session.usable
