"""What an actor does wrong concerns the message that it was given, and nothing and nobody else."""

from typing import Any

import httpx

from tests.process import Role
from tests.services import Kafka, Redis

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
        assert put(role, "one").status_code == 200
        assert put(role, "never", "reject").status_code == 422
        assert put(role, "never", "reject", **{"Idempotency-Key": "k"}).status_code == 422
        assert put(role, "never", "nothing").status_code == 200
        assert put(role, "never", "nothing", **{"Idempotency-Key": "n"}).status_code == 200
        assert items(role) == ["one"]
        assert put(role, "two").status_code == 200
        assert items(role) == ["one", "two"]
    with Role("stream-processor", environ, actor=BASKETS) as role:
        assert items(role) == ["one", "two"]
