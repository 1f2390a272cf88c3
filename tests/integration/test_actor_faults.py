"""What an actor does wrong concerns the message that it was given, and nothing else."""

import json
import uuid
from typing import Any

import httpx
import pytest

from hiveio.errors import StartRaises
from tests.integration.topics import Written, make_topic, read_all, write
from tests.process import Role, wait_until
from tests.services import Kafka, Redis

# What is no Exception, what cannot be shown, and what no future takes.
HOW = ["exit", "interrupt", "cancelled", "generator", "own", "group", "mute", "mute too", "careless", "stop"]
ASYNC = [*HOW[:-1], "cancels itself"]  # a coroutine that raises StopIteration is Python's own RuntimeError
RAISE = """
import asyncio, sys, time
from hiveio import Actor, Command, Context, Event, Model, Query, Rejected

class Own(BaseException):
    pass

class Other(Exception):
    pass

class Mute(Exception):
    def __str__(self):
        raise ValueError("it has no text")

class Careless(Rejected):
    headers = {"Retry-After": 60}

    def __init__(self):
        pass

class MuteToo(BaseException):
    def __str__(self):
        return None

async def fails():
    sys.exit(4)

def raises(how):
    match how:
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "cancelled":
            raise asyncio.CancelledError
        case "generator":
            raise GeneratorExit
        case "own":
            raise Own("of its own")
        case "group":
            raise BaseExceptionGroup("several", [SystemExit(5), Own()])
        case "mute":
            raise Mute
        case "mute too":
            raise MuteToo
        case "careless":
            raise Careless
        case "stop":
            next(iter([]))
        case "other":
            raise Other("one of the usual ones")
        case "block":
            time.sleep(3)

async def raises_async(how):
    if how == "cancels itself":
        asyncio.current_task().cancel()
        await asyncio.sleep(1)
    if how == "task":
        asyncio.ensure_future(fails())
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    raises(how)
"""

BASKETS = """
from hiveio import Actor, Command, Event, Model, Rejected

class Put(Command):
    item: str
    then: str = ""

class Added(Event):
    item: str

class Basket(Model):
    items: list[str] = []

class Baskets(Actor):
    path = "/baskets/{id}"
    name = "Basket"

    def perform(self, basket: Basket | None, command: Put) -> Added | None:
        if basket is not None:
            basket.items.append(command.item)
        match command.then:
            case "reject":
                raise Rejected("not today")
            case "nothing":
                return None
        return Added(command.item)

    def replay(self, basket: Basket | None, event: Added) -> Basket:
        return Basket([*(basket.items if basket else []), event.item])
"""


def put(role: Role, item: str, then: str = "", id: str = "a", **headers: str) -> httpx.Response:
    body = {"type": "Put", "payload": {"item": item, "then": then}}
    return httpx.post(f"{role.url}/baskets/{id}", json=body, headers=headers, timeout=30)


def items(role: Role, id: str = "a") -> Any:
    return httpx.get(f"{role.url}/baskets/{id}", timeout=30).json()["payload"]["items"]


def test_a_refused_command_changes_no_state_and_nothing_in_redis(kafka: Kafka, redis: Redis, topic: str) -> None:
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "CACHE_URL": redis.url, "EVENT_STORE_TOPIC": topic}
    with Role("stream-processor", environ, actor=BASKETS) as role:
        assert "hive-position" in put(role, "one").headers
        assert put(role, "never", "reject").status_code == 422
        assert put(role, "never", "reject", **{"Idempotency-Key": "k"}).status_code == 422
        assert put(role, "never", "nothing").status_code == 200
        for _ in range(2):
            nothing = put(role, "never", "nothing", **{"Idempotency-Key": "n"})
            assert (nothing.status_code, nothing.headers["etag"]) == (200, '"1"')
            assert "hive-position" not in nothing.headers, "no event would ever come to it"
        assert items(role) == ["one"]
        assert put(role, "two").status_code == 200
        assert items(role) == ["one", "two"]
    with Role("stream-processor", environ, actor=BASKETS) as role:
        assert items(role) == ["one", "two"]


def faults(role: Role) -> list[dict[str, Any]]:
    """The log lines about actors."""
    return [line for line in role.complaints() if "traceback" in line]


def blocked(role: Role, method: str) -> dict[str, Any]:
    """The log lines about an actor that blocked the loop, at the end of it."""
    text = f"{method} blocked the event loop for "
    line: dict[str, Any]
    (line,) = wait_until(lambda: [line for line in role.complaints() if line["message"].startswith(text)], 10, text)
    assert 1.7 < line["blocked_s"] < 8  # it counts from a look at the loop, which may be late
    assert f"{method} has blocked the event loop" in role.text()
    assert "time.sleep(3)" in line["traceback"]
    assert "hiveio/" not in line["traceback"]
    return line


def lives(role: Role, pid: int) -> None:
    assert [worker.pid for worker in role.workers()] == [pid]
    assert role.process.poll() is None


BASE = (
    RAISE
    + """
class Plain(Command):
    how: str

class Later(Command):
    how: str

class Odd(Command):
    how: str

    def __post_init__(self):
        raises(self.how)

class Ask(Query):
    path = "/asks"
    how: str

class Faulty(Actor):
    path = "/faults/{id}"
    how = ""

    def perform(self, message: Plain | Odd | Ask | Later) -> str:
        if isinstance(message, Later):
            return raises_async(message.how)
        if message.how.startswith("ready "):
            self.how = message.how.removeprefix("ready ")
        raises(message.how)
        return "well" if message.how != "unspeakable" else object()

    def ready(self):
        raises(self.how)
        return True
"""
)


def test_what_an_actor_raises_ends_nothing_but_its_request() -> None:
    with Role("base", actor=BASE) as role, httpx.Client(base_url=role.url, timeout=10) as client:
        (pid,) = [worker.pid for worker in role.workers()]

        def send(type: str, how: str) -> httpx.Response:
            return client.post("/faults/a", json={"type": type, "payload": {"how": how}})

        for how in HOW:
            for kind in ("Plain", "Odd"):
                assert (kind, how, send(kind, how).status_code) == (kind, how, 500)
            assert (how, client.get("/asks", params={"how": how}).status_code) == (how, 500)
        for how in [how for how in ASYNC if how != "cancels itself"]:
            assert (how, send("Later", how).status_code) == (how, 500)
        assert send("Plain", "unspeakable").status_code == 500
        assert send("Later", "task").status_code == 200  # the task is not its answer, and ends no process
        assert send("Plain", "").text == '"well"'
        for how in HOW:
            send("Plain", f"ready {how}")
            assert client.get("/readyz").status_code == 503
            assert client.get("/livez").status_code == 200
        send("Plain", "ready ")
        assert client.get("/readyz").status_code == 200
        lives(role, pid)
        first = faults(role)[0]
        logged = {line["message"] for line in faults(role)}
        for fault in ("RuntimeError: the actor raised Mute: its text", "MuteToo: its text cannot be shown (TypeError)"):
            assert any(line.startswith(f"Faulty failed at Plain: {fault}") for line in logged)
        assert not [line for line in role.complaints() if line["message"] == "POST /faults/a failed"], (
            "and named nobody"
        )
        answer = send("Plain", "block")
        line = blocked(role, "Faulty.perform")
        assert (line["actor"], line["message_type"], line["id"]) == ("Faulty", "Plain", "a")
        assert line["request_id"] == answer.headers["x-request-id"]
        assert first["message"] == "Faulty failed at Plain: SystemExit: 3"
        assert {name: first[name] for name in ("level", "actor", "message_type", "id", "method", "path")} == {
            "level": "error",
            "actor": "Faulty",
            "message_type": "Plain",
            "id": "a",
            "method": "POST",
            "path": "/faults/{id}",
        }
        assert first["request_id"]
        frames = [line for line in first["traceback"].splitlines() if line.startswith("  File")]
        assert frames[0].endswith("in perform")
        assert len(frames) == 2
        assert "SystemExit: 3" in first["traceback"]


@pytest.mark.parametrize("how", ["exit", "cancelled", "other"])
def test_an_actor_that_cannot_start_ends_the_service_with_one_line(how: str) -> None:
    actor = (
        RAISE
        + f"""
class Never(Command):
    pass

class Unready(Actor):
    path = "/never"

    def perform(self, message: Never) -> int:
        return 1

    async def start(self):
        await raises_async({how!r})
"""
    )
    role = Role("base", actor=actor, wait=False)
    with role:
        assert role.ended(20) == StartRaises.exit_code
    (line,) = role.errors
    assert line.startswith(
        "Unready.start raised " if how != "cancelled" else "Unready.start awaited a task that was cancelled"
    )


PRODUCER = (
    RAISE
    + """
class Plain(Event):
    how: str

class Later(Event):
    how: str

class Faulty(Actor):
    path = "/faults/{id}"

    def perform(self, message: Plain | Later) -> Plain | Later:
        if isinstance(message, Later):
            return self.later(message)
        raises(message.how)
        return message

    async def later(self, message):
        await raises_async(message.how)
        return message
"""
)


def test_a_producer_refuses_one_record_and_stores_the_others(kafka: Kafka, topic: str) -> None:
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic}
    with Role("producer", environ, actor=PRODUCER) as role, httpx.Client(base_url=role.url, timeout=10) as client:
        (pid,) = [worker.pid for worker in role.workers()]
        for kind, hows in (("Plain", HOW), ("Later", HOW[:-1])):
            batch = []
            for how in hows:
                message = {"type": kind, "payload": {"how": how}}
                assert client.post("/faults/a", json=message).status_code == 500
                batch += [message, {"type": kind, "payload": {"how": ""}}]
            answers = client.post("/faults/a", json=batch).json()
            assert [answer["status"] for answer in answers] == [500, 200] * len(hows)
        lives(role, pid)
        logged = faults(role)
        assert {(line["actor"], line["message_type"], line["id"]) for line in logged} == {
            ("Faulty", "Plain", "a"),
            ("Faulty", "Later", "a"),
        }
        assert [line["record"] for line in logged if "record" in line][:3] == [0, 2, 4]
    assert len(read_all(kafka.brokers, topic)) == len(HOW) + len(HOW[:-1])


PROCESSOR = (
    RAISE
    + """
from hiveio import Transaction

class Do(Command):
    how: str = ""
    at: str = ""

class Done(Event):
    how: str

class State(Model):
    done: int = 0

class _Base(Actor):
    def scope(self, id):
        raises(id.removeprefix("scope-"))
        return "all"

    def replay(self, state: State | None, event: Done) -> State:
        raises(event.how.removeprefix("replay "))
        return State((state.done if state else 0) + 1)

    def upcast(self, type, payload):
        raises(payload["how"].removeprefix("upcast "))
        return type, payload

class Plain(_Base):
    path = "/plain/{id}"

    def perform(self, state: State | None, command: Do) -> Done:
        raises(command.how)
        return Done("" if command.how == "block" else command.how)  # it would block replay as well

class Doing(Do):
    pass

class Later(_Base):
    path = "/later/{id}"

    async def perform(self, state: State | None, command: Doing, tx: Transaction) -> Done:
        if command.at:
            await tx.get(Plain, command.at)
            tx.emit(Plain, command.at, Done(command.how))
        else:
            await raises_async(command.how)
        return Done("" if command.how == "block" else command.how)  # it would block replay as well
"""
)


def test_a_command_that_raises_anything_is_one_500_and_others_go_on(kafka: Kafka, redis: Redis, topic: str) -> None:
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "CACHE_URL": redis.url, "EVENT_STORE_TOPIC": topic}
    with (
        Role("stream-processor", environ, actor=PROCESSOR) as role,
        httpx.Client(base_url=role.url, timeout=10) as client,
    ):
        (pid,) = [worker.pid for worker in role.workers()]

        def send(kind: str, how: str, id: str = "a", at: str = "", **headers: str) -> int:
            body = {"type": "Do" if kind == "plain" else "Doing", "payload": {"how": how, "at": at}}
            return client.post(f"/{kind}/{id}", json=body, headers=headers).status_code

        assert send("plain", "") == send("later", "", at="a") == 200
        for number, how in enumerate(HOW):
            key = {"Idempotency-Key": f"k{number}"}
            assert (how, send("plain", how), send("plain", how, **key)) == (how, 500, 500)
            assert (how, send("plain", f"replay {how}"), send("plain", f"upcast {how}")) == (how, 500, 500)
            assert (how, send("plain", "", id=f"scope-{how}")) == (how, 500)
            assert (how, client.get(f"/plain/scope-{how}").status_code) == (how, 500)
            assert (how, send("later", f"replay {how}", at="a"), send("later", "", at=f"scope-{how}")) == (
                how,
                500,
                500,
            )
        for how in ASYNC:
            assert (how, send("later", how)) == (how, 500)
        assert send("later", "task") in (200, 500)
        assert send("plain", "", **{"Idempotency-Key": "k0"}) == 200, "nothing was recorded under it"
        assert send("later", "", at="a") == 200
        assert client.get("/plain/a").json()["payload"] == {"done": 4}
        lives(role, pid)
        logged = faults(role)
        first = logged[0]
        assert send("plain", "block", id="b") == send("later", "block", id="b") == 200
        for method, kind in (("Plain.perform", "Do"), ("Later.perform", "Doing")):
            line = blocked(role, method)
            assert (line["message_type"], line["id"]) == (kind, "b")
            assert line["request_id"]
        assert first["message"] == "Plain failed at Do: SystemExit: 3"
        assert {"actor": "Plain", "message_type": "Do", "id": "a"}.items() <= first.items()
        assert first["request_id"]
        frames = [line for line in first["traceback"].splitlines() if line.startswith("  File")]
        assert frames[0].endswith("in perform")
        assert not [frame for frame in frames if "hiveio/" in frame]


CONSUMER = (
    RAISE
    + """
class Happened(Event):
    how: str

class Later(Event):
    how: str

class Ask(Query):
    path = "/asks"
    how: str = ""

class Listener(Actor):
    def __init__(self):
        self.seen = 0

    def perform(self, message: EVENTS | Ask) -> int:
        if isinstance(message, Ask):
            raises(message.how)
            return self.seen
        if isinstance(message, list):
            return self.all(message)
        return self.one(message)

    async def all(self, messages):
        for message in messages:
            await self.one(message)

    def one(self, message):
        if isinstance(message, Later):
            return self.later(message)
        raises(message.how)
        return self.none()

    async def later(self, message):
        await raises_async(message.how)
        self.seen += 1

    async def none(self):
        self.seen += 1
"""
)


@pytest.mark.parametrize(
    ("events", "environ"),
    [
        ("Happened | Later", {}),
        ("list[Happened | Later]", {}),
        ("Happened | Later", {"CONSUMER_CONCURRENCY": "4"}),
    ],
    ids=["one at a time", "lists", "parallel keys"],
)
def test_an_event_that_raises_anything_is_a_dead_letter(
    kafka: Kafka, topic: str, events: str, environ: dict[str, str]
) -> None:
    group = uuid.uuid4().hex
    settings = {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": group,
        "EVENT_STORE_FROM_START": "true",
        "CONSUMER_ATTEMPTS": "2",
        "CONSUMER_BACKOFF": "1",
        **environ,
    }
    bad = [("Happened", how) for how in HOW] + [("Later", how) for how in ASYNC]
    records: list[Written] = []
    for number, (kind, how) in enumerate(bad):
        records.append((0, f"bad-{number}", json.dumps({"type": kind, "payload": {"how": how}}).encode(), {}))
        records.append((0, f"good-{number}", json.dumps({"type": kind, "payload": {"how": ""}}).encode(), {}))
    records.append((0, "slow", json.dumps({"type": "Happened", "payload": {"how": "block"}}).encode(), {}))
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, records)
    with (
        Role("consumer", settings, actor=CONSUMER.replace("EVENTS", events)) as role,
        httpx.Client(base_url=role.url, timeout=10) as client,
    ):
        (pid,) = [worker.pid for worker in role.workers()]
        wait_until(lambda: client.get("/asks").json() == len(bad) + 1, 30, "the good ones are handled")
        wait_until(lambda: len(read_all(kafka.brokers, f"{topic}.{group}.dead")) == len(bad), 30, "the others are kept")
        for how in HOW:
            assert (how, client.get("/asks", params={"how": how}).status_code) == (how, 500)
        role.ready()
        lives(role, pid)
        logged = [line for line in faults(role) if "attempts" in line]
        assert len(logged) == len(bad)
        assert {line["actor"] for line in logged} == {"Listener"}
        first = next(line for line in logged if line["id"] == "bad-0")
        assert first["record"] == f"{topic}/0/0"
        assert first["message_type"] == "Happened"
        frames = [line for line in first["traceback"].splitlines() if line.startswith("  File")]
        assert not [frame for frame in frames if "hiveio/" in frame]
        assert frames[-1].endswith("in raises")
        line = blocked(role, "Listener.one")
        assert (line["actor"], line["message_type"]) == ("Listener", "Happened")
        assert "list" in events or line["record"] == f"{topic}/0/{len(records) - 1}"
