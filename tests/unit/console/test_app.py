"""The console as an application: what it answers where something cannot be shown or done."""

import time
from typing import cast

import httpx
import pytest

from hiveio.config import Settings
from hiveio.console.app import Console
from hiveio.status import Collector, Status


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
