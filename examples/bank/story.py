"""``make run``: a bank on hiveio, played as a story in which every step is checked.

Each step sends a request as any client would, and then looks at what it led to: the record in Kafka, the snapshot in
Redis, the event topic, the projection. With ``--once`` it ends after the story, with exit code 0 only if every step
came out right. Without it, everything keeps running until Ctrl-C. With ``--composed`` it is played with the services
that ``docker compose up --wait`` has started, on fresh volumes. With ``--partitions=12`` the topics are those of
``deploy/``.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import httpx

from hiveio.dev.services import JARS
from hiveio.transaction.record import Commit
from tests.services import ServiceFailed, ServiceUnavailable

from .display import Display, Progress, money
from .scene import Scene
from .world import LOG, TOPIC, VISITS, Composed, Logged, World

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NAMES = {"kafka": "Apache Kafka", "redis": "Valkey"}


class Step(NamedTuple):
    title: str
    play: Callable[[Scene], None]

    @property
    def about(self) -> str:
        return " ".join((self.play.__doc__ or "").split())


def flux(kind: str, **payload: Any) -> dict[str, Any]:
    """A Flux Standard Action."""
    return {"type": kind, "payload": payload}


def accepted(log: list[Logged]) -> list[int]:
    """For each record accepted, the number of aggregates it writes."""
    return [len(r.record.writes) for r in log if r.accepted and isinstance(r.record, Commit)]


def open_accounts(scene: Scene) -> None:
    """The answer comes when the service has read its own record back from Kafka and knows it to be accepted."""
    for id, owner in (("ada", "Ada Lovelace"), ("bob", "Bob Noyce")):
        answer = scene.send("stream-processor", "POST", f"/accounts/{id}", flux("Open", owner=owner))
        scene.expect(f"{owner} has an account", (200, flux("Opened", owner=owner)), answer[:2])
    scene.expect("two records in the log, each accepted", [1, 1], accepted(scene.log()))
    snapshots = scene.snapshots(("ada", 1), ("bob", 1))
    scene.expect("two snapshots", {"ada": "Ada Lovelace", "bob": "Bob Noyce"}, _each(snapshots, "owner"))


def deposit(scene: Scene) -> None:
    """Amounts are whole cents. The ETag is the account's version: If-Match with it refuses to work on an older one."""
    answer = scene.send("stream-processor", "POST", "/accounts/ada", flux("Deposit", amount=100_00))
    scene.expect("answered with the event", (200, flux("Deposited", amount=100_00)), answer[:2])
    scene.expect("version 2", '"2"', answer.headers.get("etag"))
    scene.expect("one record, accepted", [1], accepted(scene.log()))
    scene.expect(f"the balance is {money(100_00)}", {"ada": 100_00}, _each(scene.snapshots(("ada", 2)), "balance"))


def transfer(scene: Scene) -> None:
    """Two accounts change, in one record: both or neither, for every reader. Then the events are published."""
    answer = scene.send("stream-processor", "POST", "/accounts/ada", flux("Transfer", to="bob", amount=30_00))
    scene.expect("answered with the event", (200, flux("TransferSent", recipient="bob", amount=30_00)), answer[:2])
    scene.expect("one record with both accounts, accepted", [2], accepted(scene.log()))
    balances = _each(scene.snapshots(("ada", 3), ("bob", 2)), "balance")
    scene.expect(f"{money(70_00)} and {money(30_00)}", {"ada": 70_00, "bob": 30_00}, balances)
    kinds = [event["type"] for event in scene.events(TOPIC, 5)]
    in_order = ["Opened", "Opened", "Deposited", "TransferSent", "TransferReceived"]
    scene.expect("the event topic has all of it, in the order of the log", in_order, kinds)


def overdraft(scene: Scene) -> None:
    """A refusal is a problem document (RFC 9457) with the words of the actor, so the client knows why."""
    answer = scene.send("stream-processor", "POST", "/accounts/bob", flux("Withdraw", amount=500_00))
    expected = {"title": "Rejected", "status": 422, "detail": "overdrawn", "balance": 30_00, "amount": 500_00}
    found = {name: answer.body.get(name) for name in expected}
    scene.expect("refused with 422, and the reason", (422, expected), (answer.status, found))
    scene.expect("a problem document", "application/problem+json", answer.headers["content-type"])
    scene.expect("nothing was written", [], accepted(scene.log()))
    scene.expect("the balance stays", {"bob": 30_00}, _each(scene.snapshots(("bob", 2)), "balance"))


def visits(scene: Scene) -> None:
    """Unordered messages. Each is checked, and answered when Kafka has stored it."""
    pages = ["/", "/prices", "/transfer"]
    for page in pages:
        answer = scene.send("producer", "POST", "/visits", {"page": page, "visitor": "ada"})
        scene.expect("stored", (200, page), (answer.status, answer.body.get("payload", {}).get("page")))
    written = [event["payload"]["page"] for event in scene.events(VISITS, 3)]
    scene.expect("three records on the topic", sorted(pages), sorted(written))


def quote(scene: Scene) -> None:
    """A calculation over HTTP: no log, no state. The query comes from path and query string."""
    answer = scene.send("base", "GET", "/quotes/10000?express=true")
    scene.expect(f"a fee of {money(1_00)}", (200, flux("Fee", amount=100_00, fee=1_00)), answer[:2])
    answer = scene.send("base", "GET", "/quotes/free")
    scene.expect("nonsense is refused, with the field", (422, "/amount"), (answer.status, answer.body.get("pointer")))


def statement(scene: Scene) -> None:
    """The consumer reads the event topic into SQLite, with its position in the same transaction: each event once."""

    def complete(body: Any) -> bool:
        return len(body.get("payload", {}).get("lines", [])) >= 3

    answer = scene.eventually("consumer", "/statements/ada", complete)
    found = answer.body.get("payload", {})
    lines = [(line["text"], line["amount"]) for line in found.get("lines", [])]
    booked = [("opened for Ada Lovelace", 0), ("deposit", 100_00), ("transfer to bob", -30_00)]
    scene.expect("three lines", booked, lines)
    scene.expect(f"and the balance is {money(70_00)}, as in the snapshot", 70_00, found.get("balance"))


def sent_twice(scene: Scene) -> None:
    """A client that got no answer sends again, with the same Idempotency-Key. It is booked once and answered alike."""
    message = flux("Deposit", amount=5_00)
    first, second = (
        scene.send("stream-processor", "POST", "/accounts/bob", message, Idempotency_Key="salary-of-may")
        for _ in range(2)
    )
    scene.expect("the same answer twice", (200, first.body), (second.status, second.body))
    positions = [answer.headers.get("hive-position") for answer in (first, second)]
    scene.expect("from the same position in the log", positions[0], positions[1])
    scene.expect("one record, accepted", [1], accepted(scene.log()))
    scene.expect(f"booked once: {money(35_00)}", {"bob": 35_00}, _each(scene.snapshots(("bob", 3)), "balance"))


def lost_cache(scene: Scene) -> None:
    """Redis is a view of the log. It may be lost at any time: the service folds it again, and no answer is wrong."""
    scene.empty_redis()
    answer = scene.send("stream-processor", "POST", "/accounts/ada", flux("Deposit", amount=1_00))
    scene.expect("the next command", (200, flux("Deposited", amount=1_00)), answer[:2])
    scene.expect("one record, accepted", [1], accepted(scene.log()))
    for id, cents in (("ada", 71_00), ("bob", 35_00)):
        answer = scene.send("stream-processor", "GET", f"/accounts/{id}")
        balance = answer.body.get("payload", {}).get("balance")
        scene.expect(f"the balance is right: {money(cents)}", (200, cents), (answer.status, balance))
    balances = _each(scene.snapshots(("ada", 4), ("bob", 3)), "balance")
    scene.expect("and Redis has all of it again", {"ada": 71_00, "bob": 35_00}, balances)


def _each(snapshots: dict[str, Any], field: str) -> dict[str, Any]:
    return {id: (state or {}).get(field) for id, state in snapshots.items()}


STEPS = (
    Step("Two accounts are opened", open_accounts),
    Step("A deposit", deposit),
    Step("A transfer over both accounts, as one transaction", transfer),
    Step("An overdraft is refused", overdraft),
    Step("Page visits, through the producer", visits),
    Step("A fee quote, from base", quote),
    Step("A statement, from the consumer's projection", statement),
    Step("The same command twice, booked once", sent_twice),
    Step("Redis is emptied while it runs", lost_cache),
)


def play(world: World, display: Display, steps: Sequence[Step]) -> list[str]:
    """Play the steps, and return what did not come out right, by step."""
    wrong = []
    with httpx.Client(timeout=15, trust_env=False) as client:
        scene = Scene(world, display, client)
        for number, step in enumerate(steps, 1):
            display.step(number, step.title, step.about)
            scene.wrong = []
            try:
                step.play(scene)
            except (httpx.HTTPError, OSError, LookupError, ValueError) as error:
                scene.wrong.append(f"{type(error).__name__}: {error}")
                display.checked("the step could not be finished", right=False, found=scene.wrong[-1])
            wrong += [f"{number} {step.title}: {text}" for text in scene.wrong]
    return wrong


def invite(world: World, display: Display) -> None:
    """What a person may try next."""
    display.heading("Yours to try", "bold")
    console = display.console
    for role in world.roles.values():
        console.print(
            f"  [bold]{role.name:17}[/] {role.url}  [dim]bank/{role.module}.py · /openapi.json · /readyz?verbose[/]"
        )
    console.print(f"  [bold]{'Kafka':17}[/] {world.kafka.brokers}  [dim]topics {LOG}, {TOPIC}, {VISITS}[/]")
    console.print(f"  [bold]{'Redis':17}[/] {world.redis.url}\n")
    url = {name: role.url for name, role in world.roles.items()}
    for line in (
        curl(url["stream-processor"] + "/accounts/ada", flux("Deposit", amount=500)),
        curl(url["stream-processor"] + "/accounts/ada", flux("Transfer", to="bob", amount=100)),
        curl(url["stream-processor"] + "/accounts/bob"),
        curl(url["consumer"] + "/statements/bob"),
        curl(url["producer"] + "/visits", {"page": "/prices"}),
        curl(url["base"] + "/quotes/10000?express=true"),
    ):
        display.say(f"  {line}")


def curl(url: str, body: Any = None) -> str:
    if body is None:
        return f"curl -i '{url}'"
    return f"curl -i '{url}' -H 'content-type: application/json' -d '{json.dumps(body)}'"


def run(display: Display, world: World, steps: Sequence[Step], *, once: bool) -> int:
    """Start everything, play the story, and end everything. The exit code."""
    display.title("a small bank, and where its money goes")
    with world:
        with Progress(display.console) as progress:
            if not isinstance(world, Composed):
                progress.began("jars", JARS)
                world.prepare(lambda text: progress.began("jars", f"{JARS}: {text}"))
                progress.began("jars", JARS)
                progress.done("jars")
            world.start(
                lambda service: progress.began(service.name, NAMES.get(service.name, f"hiveio/{service.name}")),
                lambda service: progress.done(service.name),
            )
        wrong = play(world, display, steps)
        if wrong:
            display.heading("Not everything came out right", "bold red")
            for text in wrong:
                display.say(f"✗ {text}", "bold red")
        else:
            display.heading(f"All {len(steps)} steps came out right", "bold green")
        if not once:
            invite(world, display)
            try:
                display.say("\n  Everything keeps running. Ctrl-C ends it.", "dim")
                while True:
                    time.sleep(1)  # a pause without an end would not notice a signal that came just before it
            except KeyboardInterrupt:
                display.say("\n  Ending …", "dim")
    return 1 if wrong else 0


def main(arguments: Sequence[str], steps: Sequence[Step] = STEPS) -> int:
    """The exit code: 0 if every step came out right, 1 if one did not, 2 if a service is missing here."""
    parser = argparse.ArgumentParser(prog="story", description="A bank on hiveio, played as a story.")
    parser.add_argument("--once", action="store_true", help="end after the story")
    parser.add_argument(
        "--composed", action="store_true", help="play it with the services that `docker compose up` has started"
    )
    parser.add_argument(
        "--partitions", type=int, default=1, metavar="N", help="the number of partitions of the topics (1)"
    )
    options = parser.parse_args(arguments)
    for number in ENDINGS:
        signal.signal(number, end)
    display = Display(patient=not options.once)
    try:
        return run(display, Composed() if options.composed else World(options.partitions), steps, once=options.once)
    except (ServiceUnavailable, ServiceFailed) as error:
        display.say(f"\n✗ {error}", "bold red")
        return 2
    except KeyboardInterrupt:
        return 130


def end(number: int, frame: FrameType | None) -> NoReturn:
    for ending in ENDINGS:
        signal.signal(ending, signal.SIG_IGN)  # a second Ctrl-C does not cut the ending short
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
