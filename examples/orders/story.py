"""``make run STORY=orders``: orders that are fulfilled, and orders that are taken back, each step checked.

Each step places an order as a customer would, and then looks at what it led to in the four services. With ``--once`` it
ends after the story, with exit code 0 only if every step came out right. With ``--composed`` it is played with the
services that ``docker compose --profile orders up --wait`` has started, on fresh volumes.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from examples.bank.display import Display, Progress, money
from examples.bank.story import ENDINGS, NAMES, Step, curl, end, flux
from examples.bank.world import Container, Role
from tests.services import Kafka, Redis, Service, ServiceFailed, ServiceUnavailable, kafka_home

WITHIN_S = 30.0
WAIT_S = "4"  # for a payment that waits for its approval
PORTS = {"orders": "3011", "payments": "3012", "stock": "3013", "fulfilment": "3014"}


class Shop:
    """Kafka, Valkey and the four services, on this machine or in containers."""

    def __init__(self, display: Display, composed: bool, environ: Mapping[str, str] = os.environ) -> None:
        self.display, self._stack = display, ExitStack()
        self.client = self._stack.enter_context(httpx.Client(timeout=20, trust_env=False))
        self.wrong: list[str] = []
        self.backends: list[Service] = []
        self.services: dict[str, Role | Container] = {}
        if composed:
            for name, port in PORTS.items():
                self.services[name] = Container(name, environ.get(f"{name.upper()}_PORT", port))
            return
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hiveio-orders-")))
        kafka, redis = Kafka(folder=folder / "kafka"), Redis(folder=folder / "redis")
        self.backends = [kafka, redis]
        for name in PORTS:
            settings = {"EVENT_STORE_BROKERS": kafka.brokers, "CACHE_URL": redis.url, "EVENT_STORE_TOPIC": name}
            if name == "fulfilment":
                settings |= {"EVENT_STORE_CONSUMER_TOPIC": "orders,payments,stock", "EVENT_STORE_GROUP_ID": name}
                settings |= {"EVENT_STORE_FROM_START": "true", "PAYMENT_WAIT": WAIT_S}
            else:
                settings["COMMAND_TOPICS"] = "fulfilment.commands"
            role = Role("stream-processor", name, settings, folder, package="orders", name=name)
            self.services[name] = role
        for service in (*self.backends, *self.services.values()):
            self._stack.callback(service.close)

    def __enter__(self) -> "Shop":
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda service: service.stop(), self.services.values()))
        self._stack.close()

    def start(self, progress: Progress) -> None:
        """Raises ServiceUnavailable, ServiceFailed."""
        if self.backends:
            progress.began("jars", "Kafka's jars (43 MB, fetched once)")
            kafka_home(lambda text: progress.began("jars", text))
            progress.done("jars")
        for group in (self.backends, list(self.services.values())):
            for service in group:
                progress.began(service.name, NAMES.get(service.name, service.name))
                service.launch()
            for service in group:
                service.wait()
                progress.done(service.name)

    # -- what a step may do

    def post(self, service: str, path: str, message: dict[str, Any]) -> None:
        """Send a command. A 503 says that nothing happened and when to try again."""
        self.display.request(service, "POST", path, {}, message)
        began, until = time.monotonic(), time.monotonic() + WITHIN_S
        while True:
            found = self.client.post(self.services[service].url + path, json=message)
            if found.status_code != 503 or time.monotonic() > until:
                break
            time.sleep(0.2)
        self.display.answer(found.status_code, [], found.json(), (time.monotonic() - began) * 1000)

    def expect(self, text: str, service: str, path: str, right: Callable[[dict[str, Any]], bool]) -> None:
        """What a service says of an aggregate becomes right within some seconds."""
        until, found = time.monotonic() + WITHIN_S, dict[str, Any]()
        with self.display.waiting(text):
            while time.monotonic() < until and not (found and right(found)):
                answer = self.client.get(self.services[service].url + path)
                found = answer.json()["payload"] if answer.status_code == 200 else {}
                time.sleep(0.1)
        is_right = bool(found) and right(found)
        self.display.checked(f"{text}: {found}" if is_right else text, right=is_right, found=repr(found))
        if not is_right:
            self.wrong.append(text)

    def order(self, id: str, customer: str, sku: str, quantity: int, amount: int) -> None:
        self.post(
            "orders", f"/orders/{id}", flux("Place", customer=customer, sku=sku, quantity=quantity, amount=amount)
        )

    def becomes(self, id: str, status: str, reason: str = "") -> None:
        path, right = f"/orders/{id}", {"status": status, "reason": reason}
        said = f"the order is {status}" + (f", because {reason}" if reason else "")
        self.expect(said, "orders", path, lambda found: all(found[name] == text for name, text in right.items()))

    def ended(self, id: str) -> None:
        """The process of an order has ended: nothing is kept of its state."""
        until, status, path = time.monotonic() + WITHIN_S, 0, f"/fulfilments/{id}"
        with self.display.waiting("the process has ended"):
            while time.monotonic() < until and status != 404:
                status = self.client.get(self.services["fulfilment"].url + path).status_code
        self.display.checked("the process has ended", right=status == 404, found=str(status))
        if status != 404:
            self.wrong.append("the process has ended")

    def wallet(self, available: int, **reserved: int) -> None:
        right = {"available": available, "reserved": reserved, "held": {}}
        self.expect(f"the wallet has {money(available)}", "payments", "/wallets/ada", lambda found: found == right)


def prepare(shop: Shop) -> None:
    """Ada has money, and there are five packets of tea."""
    shop.post("payments", "/wallets/ada", flux("TopUp", amount=2_000_00))
    shop.post("stock", "/articles/tea", flux("Receive", quantity=5))
    shop.wallet(2_000_00)


def fulfilled(shop: Shop) -> None:
    """The fulfilment reserves the money, picks the goods and confirms the order: three commands to three services."""
    shop.order("one", "ada", "tea", 2, 9_00)
    shop.becomes("one", "confirmed")
    shop.ended("one")
    shop.wallet(1_991_00, one=9_00)
    shop.expect("three packets are left", "stock", "/articles/tea", lambda found: found["there"] == 3)


def refused(shop: Shop) -> None:
    """Payments refuses the command. The refusal comes to the process that has sent it, with the reason."""
    shop.order("two", "ada", "tea", 1, 9_999_00)
    shop.becomes("two", "cancelled", "payments: there is not enough money")


def missing(shop: Shop) -> None:
    """Stock refuses after the money was reserved, so the process gives it back."""
    shop.order("three", "ada", "tea", 4, 18_00)
    shop.becomes("three", "cancelled", "stock: it is out of stock")
    shop.wallet(1_991_00, one=9_00)


def overdue(shop: Shop) -> None:
    """A large amount waits for an approval, which does not come. The process has set itself a deadline."""
    shop.order("four", "ada", "tea", 1, 1_500_00)
    shop.expect("the money is held", "payments", "/wallets/ada", lambda found: found["held"] == {"four": 1_500_00})
    shop.becomes("four", "cancelled", "the payment was not approved in time")
    shop.wallet(1_991_00, one=9_00)


STEPS: Sequence[tuple[str, Callable[[Shop], None]]] = (
    ("A wallet and a shelf", prepare),
    ("An order is paid, picked and confirmed", fulfilled),
    ("A payment is refused", refused),
    ("The goods are not there: the money goes back", missing),
    ("A deadline is missed", overdue),
)


def run(shop: Shop, *, once: bool) -> int:
    display, wrong = shop.display, []
    display.title("an order, and the services that it goes through")
    with shop:
        with Progress(display.console) as progress:
            shop.start(progress)
        for number, (title, play) in enumerate(STEPS, 1):
            display.step(number, title, Step(title, play).about)  # type: ignore[arg-type]
            shop.wrong = []
            try:
                play(shop)
            except (httpx.HTTPError, OSError, LookupError, ValueError) as error:
                shop.wrong.append(f"{type(error).__name__}: {error}")
            wrong += [f"{number} {title}: {text}" for text in shop.wrong]
        display.heading(*(("Not everything came out right", "bold red") if wrong else (_all_right(), "bold green")))
        for text in wrong:
            display.say(f"✗ {text}", "bold red")
        if not once:
            for name, service in shop.services.items():
                display.say(f"  {name:12} {service.url}  /openapi.json · /asyncapi.json · /readyz?verbose")
            url = shop.services["orders"].url + "/orders/mine"
            display.say("  " + curl(url, flux("Place", customer="ada", sku="tea", quantity=1, amount=500)))
            display.say("\n  Everything keeps running. Ctrl-C ends it.", "dim")
            try:
                while True:
                    time.sleep(1)  # a pause without an end would not notice a signal that came just before it
            except KeyboardInterrupt:
                display.say("\n  Ending …", "dim")
    return 1 if wrong else 0


def _all_right() -> str:
    return f"All {len(STEPS)} steps came out right"


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 if every step came out right, 1 if one did not, 2 if a service is missing here."""
    parser = argparse.ArgumentParser(prog="story", description="A shop on hiveio, played as a story.")
    parser.add_argument("--once", action="store_true", help="end after the story")
    parser.add_argument("--composed", action="store_true", help="play it with the services of `docker compose up`")
    options = parser.parse_args(arguments)
    for number in ENDINGS:
        signal.signal(number, end)
    display = Display(patient=not options.once)
    try:
        return run(Shop(display, options.composed), once=options.once)
    except (ServiceUnavailable, ServiceFailed) as error:
        display.say(f"\n✗ {error}", "bold red")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
