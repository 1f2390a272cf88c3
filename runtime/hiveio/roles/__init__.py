"""The four roles. A role is one function, from a service to its routes, in a module of its own: only the one that runs
is imported.
"""

import importlib
from typing import NamedTuple

from hiveio.http.routes import Build


class About(NamedTuple):
    does: str
    settings: tuple[str, ...] = ()  # those without which it does not start


ROLES: dict[str, About] = {
    "base": About("answers messages and queries over HTTP"),
    "producer": About(
        "takes messages over HTTP and writes their events to Kafka", ("EVENT_STORE_BROKERS", "EVENT_STORE_TOPIC")
    ),
    "consumer": About(
        "keeps a projection of events from Kafka and answers queries",
        ("EVENT_STORE_BROKERS", "EVENT_STORE_TOPIC", "EVENT_STORE_GROUP_ID"),
    ),
    "stream-processor": About(
        "decides on commands for aggregates, in transactions", ("EVENT_STORE_BROKERS", "EVENT_STORE_TOPIC", "CACHE_URL")
    ),
}


def build_of(role: str) -> Build:
    """What ``hiveio.server.process.serve`` is called with. ``role`` is a name of ROLES."""
    assert role in ROLES, role
    name = role.replace("-", "_")
    build: Build = getattr(importlib.import_module(f"hiveio.roles.{name}"), name)
    return build
