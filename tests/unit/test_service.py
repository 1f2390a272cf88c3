"""The order in which a service starts and stops, and what it says before."""

import asyncio

import pytest

from hiveio import Actor, Command, Event, Query
from hiveio import service as service_module
from hiveio.actor import contracts
from hiveio.config import Settings
from hiveio.envelope import Envelope, Outcome
from hiveio.errors import BadAnnotation, StartRaises
from hiveio.http.routes import check_reached, messages
from hiveio.peers import Health, Peers
from hiveio.service import Service

LIFE: list[str] = []


class Opened(Event):
    pass


class Listener(Actor):
    async def start(self) -> None:
        LIFE.append("actor opens")

    async def stop(self) -> None:
        LIFE.append("actor closes")

    def perform(self, event: Opened) -> None:
        """Takes events."""


class Source:
    """A component that brings messages between its start and its stop."""

    name = "source"

    async def start(self) -> None:
        LIFE.append("messages come")

    async def stop(self) -> None:
        LIFE.append("no message any more")

    async def ready(self) -> str | None:
        return None

    def alive(self) -> bool:
        return True


async def test_an_actor_is_open_while_messages_come() -> None:
    LIFE.clear()
    service = Service(Settings(), contracts([Listener]))
    service.use(Source())
    await service.start()
    await service.stop()
    assert LIFE == ["actor opens", "messages come", "no message any more", "actor closes"]


async def test_a_start_that_does_not_return_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting(Actor):
        async def start(self) -> None:
            await asyncio.Event().wait()

        def perform(self, event: Opened) -> None: ...

    monkeypatch.setattr(service_module, "START_TIMEOUT_S", 0.05)
    with pytest.raises(StartRaises, match=r"^Waiting\.start did not return within 0\.05 s$"):
        await Service(Settings(), contracts([Waiting])).start()


async def test_each_worker_answers_for_all_of_them() -> None:
    peers = Peers(2)
    service = Service(Settings(), contracts([Listener]))
    await service.start()
    service.peers, service.slot = peers, peers.enter([])
    other = peers.enter([service.slot])
    assert service.slot != other
    assert await service.health() is Health.READY
    assert (await service.readiness())["workers"] == "1 of the other 1 are not ready; the log says why"
    peers.report(other, Health.READY)
    assert await service.readiness() == {"Listener": None, "workers": None}
    peers.report(other, Health.STUCK)
    assert service.dead() == ["another worker"]
    peers.leave(other)
    assert not service.dead()
    assert (await service.readiness())["workers"], "until another has taken its place"
    assert peers.enter([service.slot]) == other


class Ask(Query):
    pass


class Do(Command):
    pass


def test_what_a_role_does_not_bring_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Both(Actor):
        path = "/both"

        def perform(self, message: Do | Ask) -> None: ...

    class Asked(Actor):
        path = "/asked"

        def perform(self, message: Ask) -> None: ...

    async def handler(envelope: Envelope) -> Outcome:
        return Outcome()

    service = Service(Settings(), contracts([Both, Listener]))
    service.receives(["topic"], service.contracts[1])
    routes = messages(service.contracts[0], handler)
    check_reached(service, routes)
    assert [record.message for record in caplog.records] == [
        "Both.perform takes Ask, which this image passes to no actor"
    ]
    service.contracts += contracts([Asked])
    with pytest.raises(BadAnnotation, match=r"Asked.perform takes Ask, which this image"):
        check_reached(service, routes)
