"""The console in a real browser: keyboard, phone, dark and light, a slider through time, and a redrive by hand.

`make pictures` runs it, and keeps the pictures of the documents that it makes.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import require, required
from tests.integration.accounts import ACTOR, send  # noqa: F401 - ACTOR is what `processor` starts
from tests.integration.bank import Bank, Console
from tests.integration.test_console import bank  # noqa: F401 - a fixture
from tests.integration.test_outbox import commands
from tests.integration.topics import make_topic, write
from tests.process import ROOT, Role, wait_until
from tests.services import Kafka, Redis

sync_api = pytest.importorskip("playwright.sync_api")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 860}
FULFILMENT = (ROOT / "tests" / "actors" / "fulfilment.py").read_text("utf-8")
PICTURES = ROOT / "docs" / "pictures"
MOST_BYTES = 150_000  # of a picture


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    """A broker of its own: the topics have the names that the pictures show."""
    with required("kafka"), Kafka() as service:
        yield service


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    """A server of its own, as the names of topics are part of its keys."""
    with required("redis"), Redis() as service:
        yield service


@pytest.fixture
def topic() -> str:
    """The name that the pictures show."""
    return "bank"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = shutil.which("chromium") or require("chromium", "it is Debian's package chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Tab:
    """A page of the browser that notes what it asks for, and what goes wrong in it."""

    def __init__(self, browser: Any, url: str, **settings: Any) -> None:
        self.context = browser.new_context(viewport=DESK, **settings)
        self.page = self.context.new_page()
        self.url, self.wrong, self.asked = url, [], set[str]()  # type: ignore[var-annotated]
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda line: self.wrong.append(line.text) if line.type == "error" else None)
        self.page.on("request", lambda request: self.asked.add(re.sub(r"^(\w+://[^/]+).*", r"\1", request.url)))

    def open(self, path: str) -> Any:
        self.page.goto(self.url + path)
        return self.page

    def close(self) -> None:
        self.context.close()
        assert self.wrong == []
        assert self.asked == {self.url}  # nothing is loaded from elsewhere


def picture(page: Any, folder: Path, name: str) -> None:
    path = folder / f"console-{name}.png"
    page.screenshot(path=path)
    assert path.stat().st_size < MOST_BYTES


def retry_a_stuck_process(kafka: Kafka, redis: Redis, browser: Any, pictures: Path) -> None:
    """An order with a wrong amount is corrected by a command, and what waits for its process is tried again."""

    def written(kind: str, order: str, headers: dict[str, str] | None = None, **payload: object) -> None:
        event = json.dumps({"type": kind, "payload": {"order": order, **payload}}).encode()
        write(kafka.brokers, "orders", [(0, order, event, headers or {})])

    make_topic(kafka.brokers, "orders")
    settings = {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "CACHE_URL": redis.url,
        "EVENT_STORE_TOPIC": "fulfilment",
        "EVENT_STORE_GROUP_ID": "fulfilment",
        "EVENT_STORE_CONSUMER_TOPIC": "orders",
        "EVENT_STORE_FROM_START": "true",
    }
    with (
        Role("stream-processor", settings, actor=FULFILMENT) as role,
        Console(role.environ, "--write") as console,
    ):
        written("OrderPlaced", "o6", amount=5)
        written("OrderPlaced", "o7", amount=-1)
        sent = wait_until(lambda: commands(kafka, "fulfilment"), 30)[0][2]
        cause = f"fulfilment.commands/{sent['hive-log']}/{sent['hive-position'].replace(':', '/', 1)}"
        written("PaymentReserved", "o6", {"hive-cause": cause, "hive-process": "Fulfilment/o6"})
        written("PaymentReserved", "o7")
        wait_until(lambda: "1 stuck process " in console.page("/"), 60)
        tab = Tab(browser, console.url, color_scheme="light")
        page = tab.open("/")
        page.keyboard.press("4")
        page.wait_for_url("**/processes")
        page.wait_for_selector("text=Fulfilment/o6")
        tab.open("/processes/Fulfilment/o6").wait_for_selector("text=answered by")
        picture(page, pictures, "process")
        page = tab.open("/processes")
        page.get_by_role("link", name="Fulfilment/o7").first.click()
        assert "Rejected: a negative amount" in page.locator("main").inner_text()
        assert httpx.post(f"{role.url}/fulfilments/o7", json={"type": "Abandon"}).status_code == 200
        page.get_by_role("button", name="Try again").click()
        page.wait_for_selector("text=will be given OrderPlaced")
        page.get_by_role("button", name="Try again").click()
        page.wait_for_selector("text=handled or skipped what waited: PaymentReserved", timeout=30_000)
        wait_until(lambda: "runs" in page.locator("dl").first.inner_text(), 15, "the page shows that it runs")
        page.set_viewport_size(PHONE)
        for path in ("/processes", "/processes/Fulfilment/o7"):
            wide, window = tab.open(path).evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert wide <= window, path
        tab.close()


def test_in_a_browser(
    bank: Bank,  # noqa: F811
    browser: Any,
    kafka: Kafka,
    redis: Redis,
    tmp_path: Path,
) -> None:
    pictures = PICTURES if os.environ.get("HIVEIO_PICTURES") else tmp_path
    with Console.of(bank, "--write") as console:
        wait_until(lambda: "2 open dead letters" in console.page("/"), 60)
        wait_until(lambda: "balance" in console.page("/aggregate?name=AccountActor/ada"), 30)
        tab = Tab(browser, console.url, color_scheme="light")
        page = tab.open("/")
        assert page.locator("figure").count() == 6
        light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        picture(page, pictures, "overview")

        page.keyboard.press("2")
        page.wait_for_url("**/log/0")
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.getAttribute('href')").startswith("/log/0/")
        picture(page, pictures, "log")
        page.keyboard.press("/")
        page.keyboard.type("AccountActor/ada")
        page.keyboard.press("Enter")
        page.wait_for_selector(".slider input")
        assert page.locator(".steps > li:visible").count() == 1
        assert "Version 3" in page.locator(".steps > li:visible").inner_text()
        page.keyboard.press("Escape")
        page.locator("h1").click()
        page.keyboard.press("ArrowLeft")
        assert "Version 2" in page.locator(".steps > li:visible").inner_text()
        assert "5" in page.locator(".steps > li:visible pre .new").first.inner_text()
        picture(page, pictures, "aggregate")
        page.get_by_role("button", name="All").click()
        assert page.locator(".steps > li:visible").count() == 3

        page = tab.open("/log/0")
        last = page.locator("tbody tr a").first.inner_text()
        for number in range(8):
            assert send(bank.accounts, f"new{number}", "Open", owner="new").status_code == 200
        first = page.locator("tbody tr a").first
        wait_until(lambda: first.inner_text() != last, 15, "the page has renewed itself")

        page.route("**/log/0", lambda route: route.fulfill(body="a token is needed", content_type="text/plain"))
        page.wait_for_selector("text=The console does not answer; the page is as it was.")
        page.unroute("**/log/0")
        page.wait_for_selector("text=The console does not answer", state="detached")

        bank.cure()
        page = tab.open(f"/dead/{bank.group}")
        picture(page, pictures, "dead-letters")
        page.get_by_role("button", name=re.compile("Try again")).click()
        page.get_by_role("button", name="Try again").click()
        page.wait_for_selector("text=There are no open dead letters.", timeout=30_000)
        tab.close()
        retry_a_stuck_process(kafka, redis, browser, pictures)

        dark = Tab(browser, console.url, color_scheme="dark")
        page = dark.open("/")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != light
        picture(page, pictures, "overview-dark")
        page.set_viewport_size(PHONE)
        for path in (
            "/",
            "/log/0",
            "/aggregate?name=AccountActor/ada",
            "/groups",
            "/instances",
            f"/groups/{bank.group}",
        ):
            page = dark.open(path)
            wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert wide <= window, path
        picture(dark.open("/"), pictures, "phone")
        dark.close()

        plain = Tab(browser, console.url, java_script_enabled=False)
        assert plain.open("/aggregate?name=AccountActor/ada").locator(".steps > li").count() == 3
        plain.close()
    assert {path.name for path in pictures.iterdir()} == {path.name for path in PICTURES.iterdir()}
