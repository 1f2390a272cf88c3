"""What the services of a folder are given: ports, topics, the place of their data."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hiveio.dev.actors import Found
from hiveio.dev.process import HOST
from hiveio.dev.services import Addresses
from hiveio.dev.spares import PYTHON

FIRST_PORT = 3001
# In this order they are given ports and are shown: who writes comes before who reads.
ORDER = ("stream-processor", "producer", "consumer", "base")

# They would name one port for all services, one topic, or a Redis that is not ours.
WITHOUT_EFFECT = ("ADMIN_PORT", "EVENT_STORE_PRODUCER_TOPIC", "LOCK_URLS")

# A service that drains waits for requests that may still come, in proportion to this: here nobody is patient.
DRAIN_MS = 1_000


def ordered(found: Sequence[Found]) -> list[Found]:
    return sorted(found, key=lambda each: (ORDER.index(each.role), each.name))


def project_name(folder: Path) -> str:
    """What topics and groups begin with."""
    return re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("-._") or "dev"


class Topics(NamedTuple):
    """Of a service: its own, those that its events are written to, those that it reads, and those with commands."""

    own: str
    writes: Sequence[str] = ()
    reads: Sequence[str] = ()
    commands: Sequence[str] = ()

    @property
    def all(self) -> set[str]:
        return {*self.writes, *self.reads, *self.commands}


def topics_of(project: str, found: Sequence[Found]) -> dict[str, Topics]:
    """By the name of each service.

    Each service that writes has a topic of its own, unless its actor names one. A consumer reads those with the events
    that it takes, and a topic of its own where nobody writes these. A process manager reads the topics of those to
    which it sends commands too, where the answers are; its commands name these topics, so they are called so.
    """
    receivers = {service for each in found for service in each.sends}
    own = {each.name: each.short if each.short in receivers else _topic(project, each.short) for each in found}
    writes = {each.name: {event: topic or own[each.name] for event, topic in each.gives.items()} for each in found}
    topics = {}
    for each in found:
        reads = set[str]()
        if each.process or each.role == "consumer":
            reads = {topic for events in writes.values() for event, topic in events.items() if event in each.takes}
            reads |= {topic for topic in own.values() if topic in each.sends}
            reads = reads or {_topic(project, "events")}
        commands = [f"{own[sender.name]}.commands" for sender in found if own[each.name] in sender.sends]
        topics[each.name] = Topics(own[each.name], sorted(set(writes[each.name].values())), sorted(reads), commands)
    return topics


def _topic(project: str, name: str) -> str:
    """Kafka takes fewer letters than Python does in the name of a module."""
    return f"{project}.{re.sub(r'[^a-zA-Z0-9._-]+', '-', name)}"


def environment(
    each: Found, project: str, folder: Path, data: Path, port: int, addresses: Addresses, topics: Topics
) -> Mapping[str, str]:
    """The environment of a service: ours, and over it what `hiveio dev` decides."""
    given = {
        "ACTOR_PATH": str(folder),
        "ACTOR_MODULE": each.name,
        "BIND": HOST,
        "PORT": str(port),
        "CLUSTER_SIZE": "1",
        **dict.fromkeys(WITHOUT_EFFECT, ""),
        **PYTHON,
    }
    if each.role != "base":
        given |= {"EVENT_STORE_BROKERS": addresses.brokers, "CACHE_URL": addresses.cache}
        given["EVENT_STORE_TOPIC"] = topics.own
    if topics.reads:
        given |= {
            "EVENT_STORE_CONSUMER_TOPIC": ",".join(topics.reads),
            "EVENT_STORE_GROUP_ID": f"{project}.{each.short}",
            "EVENT_STORE_FROM_START": "true",
        }
    if topics.commands:
        given["COMMAND_TOPICS"] = ",".join(topics.commands)
    if each.role == "consumer":
        given["DATABASE"] = os.environ.get("DATABASE", str(data / f"{each.short}.sqlite"))
    return {"DRAIN_TIMEOUT": str(DRAIN_MS), **os.environ, **given}
