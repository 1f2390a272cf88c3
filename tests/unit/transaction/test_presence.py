"""Instances announce themselves for people who look: nothing depends on it, and nothing is left of those that end."""

import asyncio
import time
from collections.abc import Sequence
from typing import cast

import msgspec
import pytest

from hiveio.config import Settings
from hiveio.errors import Unavailable, backend_away
from hiveio.transaction import presence
from hiveio.transaction.cache import Cache
from hiveio.transaction.presence import FORGOTTEN_S, Announcement, Presence, announcements


class Hash:
    """The hash of instances in Redis."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.away = False
        self.calls = 0

    def _call(self) -> None:
        self.calls += 1
        if self.away:
            raise backend_away("Redis is away")

    async def announce(self, instance: str, text: bytes, forgotten_s: int) -> None:
        self._call()
        assert forgotten_s == FORGOTTEN_S
        self.held[instance] = text

    async def announced(self) -> dict[str, bytes]:
        self._call()
        return self.held

    async def withdraw(self, instances: Sequence[str]) -> None:
        self._call()
        for each in instances:
            del self.held[each]


def old(id: str, seen_s: float) -> bytes:
    seen = time.time() - seen_s
    return msgspec.json.encode(Announcement(id, "h", 1, False, "0.1.0", "9c", "bank", (), seen - 60, seen))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Hash:
    monkeypatch.setattr(presence, "ANNOUNCE_S", 0.01)
    return Hash()


def started(held: Hash, **settings: object) -> Presence:
    made = Presence(cast(Cache, held), Settings(**settings), "me", "9c1f0a77", ["B", "A"])  # type: ignore[arg-type]
    made.start()
    return made


async def until_called(held: Hash, times: int) -> None:
    async with asyncio.timeout(5):
        while held.calls < times:
            await asyncio.sleep(0.001)


async def test_an_instance_says_where_its_probes_are_until_it_stops(held: Hash) -> None:
    instance = started(held, bind="127.0.0.1", port=3000, admin_port=3001, secure=True, client_id="accounts",
                       given=frozenset({"client_id"}))  # fmt: skip
    await until_called(held, 3)
    (said,) = announcements(held.held.values())
    assert (said.id, said.host, said.port, said.secure) == ("me", "127.0.0.1", 3001, True)
    assert (said.service, said.fingerprint, said.actors) == ("accounts", "9c1f0a77", ("A", "B"))
    assert abs(said.seen - time.time()) < 5
    await instance.stop()
    assert held.held == {}


async def test_without_an_address_of_its_own_it_says_that_of_its_machine(held: Hash) -> None:
    instance = started(held, bind="::")
    await until_called(held, 1)
    (said,) = announcements(held.held.values())
    assert said.host not in ("::", "")
    await instance.stop()


async def test_who_died_long_ago_is_forgotten_and_who_died_a_moment_ago_is_not(held: Hash) -> None:
    held.held = {"long": old("long", FORGOTTEN_S + 1), "now": old("now", 60.0), "torn": b"{"}
    instance = started(held)
    await until_called(held, 3)
    assert held.held.keys() == {"me", "now"}
    await instance.stop()


async def test_a_redis_that_is_away_is_no_fault(held: Hash) -> None:
    held.away = True
    instance = started(held)
    await until_called(held, 3)
    held.away = False
    await until_called(held, 6)
    assert "me" in held.held
    held.away = True
    await instance.stop()
    with pytest.raises(Unavailable):
        await held.announced()
