"""A Redis that answers, and refuses: 503 with its reason in every role that uses one, never 500, and 200 afterwards."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any

import httpx
import pytest
import redis as redis_client

from hiveio.errors import AWAY
from tests.integration.accounts import TAKES_DEPOSITS
from tests.integration.topics import read_all
from tests.process import Role, wait_until
from tests.services import Kafka, Redis

RIGHTS = ["~hive:*", "+@read", "+@write", "+@scripting", "+@connection", "+config|get", "+info", "+time"]

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
Admin = Any  # the client's types know no bytes
Change = Callable[[Admin], object]


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with Redis(options={"enable-debug-command": "local", "busy-reply-threshold": "100"}) as service:
        yield service


def _wrong_type(admin: Admin) -> None:
    """What stays is kept aside, what has a time to live is not."""
    with admin.pipeline() as together:
        for name in admin.keys("hive:*"):
            if admin.type(name) != b"list":
                together.copy(name, b"kept:" + name).delete(name).lpush(name, "by hand")
        together.execute()


def _right_type(admin: Admin) -> None:
    """All at once: a role that saw some of it would take its cache for lost."""
    with admin.pipeline() as together:
        for name in admin.keys("hive:*"):
            if admin.type(name) == b"list" and admin.lindex(name, 0) == b"by hand":
                together.delete(name)
        for name in admin.keys("kept:*"):
            together.rename(name, name.removeprefix(b"kept:"))
        together.execute()


def _password(admin: Admin, password: str) -> None:
    admin.execute_command("ACL", "SETUSER", "ada", "resetpass", f">{password}")
    admin.execute_command("CLIENT", "KILL", "USER", "ada")


def _is_busy(admin: Admin) -> None:
    """A script of somebody else runs without an end."""
    script = threading.Thread(target=_run, args=(admin.get_connection_kwargs()["port"], "EVAL", "while true do end", 0))
    script.start()
    wait_until(lambda: _answer(admin, "PING").startswith("BUSY"), 10, "a script that runs for long")


def _is_not_busy(admin: Admin) -> None:
    admin.script_kill()
    wait_until(lambda: _answer(admin, "PING") == "True", 10, "the end of the script")


def _is_loading(admin: Admin) -> None:
    """It reads its data again, as after a restart, and slowly."""
    admin.config_set("rdbcompression", "no")
    admin.config_set("loading-process-events-interval-bytes", 1024)
    for number in range(400):
        admin.set(f"other:{number}", b"x" * 2048)
    admin.config_set("key-load-delay", 50_000)  # microseconds
    threading.Thread(target=_run, args=(admin.get_connection_kwargs()["port"], "DEBUG", "RELOAD")).start()
    wait_until(lambda: "loading" in _answer(admin, "GET", "other:0"), 10, "its data are loaded")


def _is_loaded(admin: Admin) -> None:
    admin.config_set("key-load-delay", 0)
    wait_until(lambda: "loading" not in _answer(admin, "GET", "other:0"), 10, "the end of loading")


def _run(port: int, *command: str | int) -> None:
    with redis_client.Redis(port=port) as client, contextlib.suppress(redis_client.RedisError):
        client.execute_command(*command)


def _answer(admin: Admin, *command: str) -> str:
    try:
        return str(admin.execute_command(*command))
    except redis_client.RedisError as error:
        return str(error)


REFUSALS: dict[str, tuple[Change, Change]] = {
    "no permissions": (
        lambda admin: admin.execute_command("ACL", "SETUSER", "ada", "-evalsha"),
        lambda admin: admin.execute_command("ACL", "SETUSER", "ada", "+evalsha"),
    ),
    "permission": (  # on keys, noticed inside of a script
        lambda admin: admin.execute_command("ACL", "SETUSER", "ada", "resetkeys", "~other:*"),
        lambda admin: admin.execute_command("ACL", "SETUSER", "ada", "resetkeys", "~hive:*"),
    ),
    "maxmemory": (lambda admin: admin.config_set("maxmemory", 1), lambda admin: admin.config_set("maxmemory", 0)),
    "replica": (lambda admin: admin.replicaof("127.0.0.1", 1), lambda admin: admin.replicaof("NO", "ONE")),
    "WRONGTYPE": (_wrong_type, _right_type),
    "BUSY": (_is_busy, _is_not_busy),
    "is loading": (_is_loading, _is_loaded),
    "invalid username-password": (lambda admin: _password(admin, "other"), lambda admin: _password(admin, "right")),
}


def _reported(role: Role, reason: str, *, in_log: bool) -> bool:
    """By readiness; or, where only some keys are concerned, by a line of the log."""
    if in_log:
        return any(line["level"] == "error" and reason in line["message"] for line in role.complaints())
    answer = httpx.get(role.url + "/readyz?verbose")
    return answer.status_code == 503 and reason in answer.text


def assert_plain(answer: httpx.Response) -> None:
    """The client is answered that a backend is away: not which one, where it is, or what it said."""
    unavailable = {"type": "urn:hiveio:problem:unavailable", "title": "Service Unavailable", "status": 503}
    assert (answer.status_code, answer.json()) == (503, {**unavailable, "detail": AWAY})


def test_a_redis_that_refuses_is_503(kafka: Kafka, server: Redis, topic: str) -> None:
    with ExitStack() as stack:
        admin: Admin = stack.enter_context(redis_client.Redis(port=server.port))
        admin.execute_command("ACL", "SETUSER", "ada", "on", ">right", *RIGHTS)
        settings = {
            "EVENT_STORE_BROKERS": kafka.brokers,
            "CACHE_URL": f"redis://ada:right@127.0.0.1:{server.port}",
            "REQUEST_TIMEOUT": "4000",
        }
        roles = producer, processor = [
            stack.enter_context(Role(name, settings | {"EVENT_STORE_TOPIC": f"{topic}-{name}"}, actor=TAKES_DEPOSITS))
            for name in ("producer", "stream-processor")
        ]
        keys = map("k{}".format, count())

        def post(role: Role, key: str = "", id: str = "1") -> httpx.Response:
            headers = {"Idempotency-Key": key or next(keys)}
            return httpx.post(f"{role.url}/accounts/{id}", json={"amount": 1}, headers=headers, timeout=30)

        assert [post(role).status_code for role in roles] == [200, 200]
        for reason, (refuse, mend) in REFUSALS.items():
            refuse(admin)
            answer = post(producer, "k0" if reason == "WRONGTYPE" else "")  # a key that is there already
            assert_plain(answer)
            # The log is in Kafka: what the stream processor knows of an aggregate may be enough for a command.
            if (answer := post(processor)).status_code != 200:
                assert_plain(answer)
            # It goes on with what it knows until it has been refused itself.
            wait_until(lambda: post(processor, id=next(keys)).status_code == 503, 10, f"{reason}: commands are refused")
            assert_plain(post(processor, id=next(keys)))
            for role in roles:
                reported = partial(_reported, role, reason, in_log=reason == "WRONGTYPE" and role is processor)
                wait_until(reported, 10, f"{role.name} says {reason}")
            mend(admin)
            for role in roles:
                role.ready()
            answer = post(producer)
            assert answer.status_code == 200, (reason, answer.text)
            # It takes commands once a script of its own has come through again, and readiness runs none.
            wait_until(lambda: post(processor).status_code == 200, 20, f"{reason}: commands are taken again")
        for role in roles:
            assert not any(line.get("status") == 500 or "Traceback" in str(line) for line in role.logs()), role.text()
        stored = {dict(message.headers() or [])["hive-key"] for message in read_all(kafka.brokers, f"{topic}-producer")}
        assert len(stored) == 1 + len(REFUSALS)
