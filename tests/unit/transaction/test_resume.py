"""A broker that was the leader until it was cut off names an old end of the log: which must not be taken for a loss."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from hiveio import testing
from hiveio.errors import Corrupt, Unavailable
from hiveio.testing.memory import MemoryCache, MemoryReader
from hiveio.transaction import anchor, resume
from hiveio.transaction.resume import Published, Resume
from tests.faults.actors import AccountActor, Deposit
from tests.unit.transaction.test_engine import hold, until


class Cache:
    """What all instances know of what was published."""

    has_published = False

    def scope(self, partition: int) -> str:
        return f"hive:{{log/{partition}/id}}"

    def published_key(self, partition: int, kind: str) -> str:
        return f"{self.scope(partition)}:published"

    async def note_published(self, partition: int, kind: str) -> None:
        self.has_published = True

    async def published(self, partition: int, kind: str) -> bool:
        return self.has_published


class Events:
    def __init__(self, end: int = 1) -> None:
        self.end = end

    async def bounds(self, partition: int) -> tuple[int, int]:
        return 0, self.end


class OldEnd(MemoryReader):
    """Knows the log up to ``known``, as a broker does that is cut off."""

    known = 1

    async def end(self, partition: int) -> int:
        return min(self.known, await super().end(partition))

    async def read(self, partition: int, offset: int, *, end: bool = False) -> Any:
        return await super().read(partition, offset) if offset < self.known else None


def resuming(service: testing.Service, last: Published, monkeypatch: pytest.MonkeyPatch) -> Resume:
    async def found(*_: Any) -> Published:
        return last

    scope = service.transactions.scopes[0]

    async def proved() -> int:
        await scope.caught_up("linearizable")
        return scope.view.next

    monkeypatch.setattr(resume, "last_event", found)
    cache: Any = Cache()
    events: Any = Events()
    log = OldEnd(service.log)
    return Resume(cache, log, events, 0, what="events", log_where="log/0", where="events/0", proved=proved)


async def test_publishing_waits_for_a_better_broker_instead_of_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    async with testing.Service(AccountActor) as service:
        for number in range(3):
            await service.submit(AccountActor, "a", Deposit(1, str(number)))
        last = Published("0:3:0", 3, 0, service.log.partitions[0][3].key)
        resume_ = resuming(service, last, monkeypatch)
        with pytest.raises(Unavailable, match="names an old end of log/0"):
            await resume_.last()
        OldEnd.known = 4
        try:
            assert await resume_.last() == last
        finally:
            OldEnd.known = 1


async def test_publishing_stops_at_a_log_that_was_surely_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async with testing.Service(AccountActor) as service:
        await service.submit(AccountActor, "a", Deposit(1, "all that is left"))
        resume_ = resuming(service, Published("0:99:0", 99, 0, "gone"), monkeypatch)
        with pytest.raises(Corrupt, match="ends before that"):
            await resume_.last()
        monkeypatch.setattr(resume, "PROOF_S", 0.05)
        release = hold(service)
        with pytest.raises(Unavailable, match="so its end is unknown"):
            await resume_.last()
        release()


async def test_an_instance_with_an_old_end_does_not_fold_the_cache_of_the_others_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with testing.Service(AccountActor) as service:
        for number in range(3):
            await service.submit(AccountActor, "a", Deposit(1, str(number)))
        scope, cache = service.transactions.scopes[0], service.cache
        await until(lambda: scope.mirror.watermark.offset == 4)
        found = anchor.Anchor(cache, OldEnd(service.log), 0, "log/0", "memory")
        with pytest.raises(Unavailable, match="beyond the end 1 that Kafka names"):
            await found.find()
        assert generation(cache) == scope.mirror.watermark.generation
        right = anchor.Anchor(cache, MemoryReader(service.log), 0, "log/0", "memory")
        assert await right.find() == (scope.mirror.watermark, dict(scope.view.state.writers), 4)
        monkeypatch.setattr(anchor, "OLD_END_S", 0.0)  # it stays so: the log was cut
        fresh, writers, end = await found.find()
        assert (fresh.offset, writers, end) == (0, {}, 1)
        assert generation(cache) == fresh.generation
        await asyncio.sleep(0)


def generation(cache: MemoryCache) -> str:
    return cache.scopes[0].watermark.generation


async def test_an_emptied_topic_is_not_published_again_by_an_instance_that_never_found_an_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing(*_: Any) -> None:
        return None

    monkeypatch.setattr(resume, "last_event", nothing)
    cache: Any = Cache()
    anything: Any = Events(0)
    alone = False

    async def proved() -> int:
        if alone:
            await asyncio.sleep(60)
        return 0

    one, standby = (
        Resume(cache, anything, anything, 0, what="events", log_where="log/0", where="events/0", proved=proved)
        for _ in range(2)
    )
    assert await one.last() is None  # nothing was ever published
    assert await standby.last() is None
    await one.note()  # its first events are on the topic, which is deleted then and made anew; or so it seems
    with pytest.raises(Unavailable, match="events/0 had events, and a broker"):
        await standby.last()
    monkeypatch.setattr(resume, "OLD_END_S", 0.0)
    monkeypatch.setattr(resume, "PROOF_S", 0.05)
    alone = True
    with pytest.raises(Unavailable, match="log/0 took no record"):
        await standby.last()
    alone, anything.end = False, 1  # it has learnt of another leader
    with pytest.raises(Unavailable, match="events/0 had events, and a broker"):
        await standby.last()
    anything.end = 0
    with pytest.raises(Corrupt, match="emptied or recreated"):
        await standby.last()


class Topic:
    """An event topic with these positions, as its leader tells it; ``known`` is the end that the broker names."""

    def __init__(self, *positions: str) -> None:
        self._positions = positions
        self.known = len(positions)
        self.asked = 0

    async def bounds(self, partition: int) -> tuple[int, int]:
        self.asked += 1
        return 0, self.known

    async def read_each(self, partition: int, offset: int, end: int, made: Callable[[Any], Any]) -> list[Any]:
        return [
            made(
                SimpleNamespace(
                    headers=lambda at=at: [("hive-position", self._positions[at].encode()), ("hive-id", b"x.0")],
                    offset=lambda at=at: at,
                )
            )
            for at in range(offset, end)
        ]


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        ([], None),
        (["no event of ours", "1:9:0"], None),  # records of others, which are passed over
        (["0:0:0", "0:0:1"], None),  # an overtaken session has repeated what this one published
        (["0:1:0", "0:2:0"], "has published 0:2:0"),
        (
            ["0:1:0", "0:0:1", "no event of ours"],
            "has published 0:1:0",
        ),  # and a third one repeated an older one behind it
        (["0:1:0"], "names an old end"),
    ],
)
async def test_a_session_that_another_one_has_overtaken_ends(between: list[str], reason: str | None) -> None:
    topic: Any = Topic("0:0:0", "0:0:1", *between, "0:1:0")
    anything: Any = None

    async def proved() -> int:
        return 1

    session = Resume(anything, anything, topic, 0, what="events", log_where="log/0", where="events/0", proved=proved)
    session.end, at = 2, 2 + len(between)
    if reason == "names an old end":
        topic.known = 2
    if reason is None:
        await session.landed((at, at), "0:1:0")
        asked = topic.asked
        await session.landed((at + 1, at + 4), "0:1:1")
        assert topic.asked == asked == (1 if between else 0), "where there is no other session, nothing is asked for"
    else:
        with pytest.raises(Unavailable, match=reason):
            await session.landed((at, at), "0:1:0")
    with pytest.raises(Unavailable, match="did not report at which offsets"):
        await session.landed(None, "0:1:0")


async def test_a_session_resumes_after_the_highest_position_and_not_after_a_repeat_at_the_end() -> None:
    topic: Any = Topic("0:0:0", "0:1:0", "0:2:0", "no event of ours", "0:1:0", "no event of ours")
    cache: Any = Cache()
    log: Any = SimpleNamespace(read=AsyncMock(return_value=SimpleNamespace(key="x")))

    async def proved() -> int:
        return 9

    found = await Resume(cache, log, topic, 0, what="events", log_where="log/0", where="events/0", proved=proved).last()
    assert found is not None
    assert found.position == "0:2:0"
