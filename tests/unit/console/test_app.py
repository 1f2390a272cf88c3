"""The console as an application: what it answers where something cannot be shown or done."""

import time
from typing import Any, cast

import httpx
import pytest

from hiveio.config import Settings
from hiveio.console.app import Console
from hiveio.console.dead import Found
from hiveio.consumer.dead_letters.opened import DeadLetter
from hiveio.status import Collector, Status


class Record:
    def offset(self) -> int:
        return 7


class Looks:
    """A collector that finds a service without a log."""

    caches = ()

    async def look(self) -> Status:
        return Status(time=time.time(), topic="bank", log="")


@pytest.mark.parametrize(
    ("method", "path", "status", "renewed"),
    [("GET", "/log", 404, True), ("GET", "/processes/A/1", 404, True), ("POST", "/processes/A/1", 403, False)],
)
async def test_a_page_that_cannot_be_shown_is_renewed_and_what_cannot_be_done_is_not_asked_for_again(
    method: str, path: str, status: int, renewed: bool
) -> None:
    console = Console(Settings(topic="bank"), [], cast(Collector, Looks()), write=False)
    console.history.start()
    try:
        transport = httpx.ASGITransport(console.application(""))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.request(method, path, headers={"origin": "http://localhost"})
    finally:
        await console.history.stop()
    assert (answer.status_code, "data-live" in answer.text) == (status, renewed)


async def test_what_came_since_the_confirmation_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(Settings(topic="bank"), [], cast(Collector, Looks()), write=True)
    record: Any = Record()
    dead = [DeadLetter("bank.g.dead", 0, key, f"bank/0/{at}", record, {}) for at, key in enumerate((b"ada", b"bob"))]
    dropped: list[DeadLetter] = []
    monkeypatch.setattr(console.dead, "look", lambda name: Found(dead, len(dead), {}))

    def write(name: str, kind: str, chosen: list[DeadLetter]) -> int:
        dropped.extend(chosen)
        return len(chosen)

    monkeypatch.setattr(console.dead, "write", write)
    transport = httpx.ASGITransport(console.application(""))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

        async def drop(confirmed: str) -> httpx.Response:
            form = {"action": "dropped", "which": "all", "confirmed": confirmed}
            return await client.post("/dead/g", data=form, headers={"origin": "http://localhost"})

        for confirmed in ("", "1", "yes", "-2"):
            answer = await drop(confirmed)
            assert (answer.status_code, dropped) == (200, [])
            assert "2 dead letters of the group g will be dropped" in answer.text
            assert 'name="confirmed" value="2"' in answer.text
        assert (await drop("2")).status_code == 303
    assert dropped == dead
