"""What the services of a folder are given: ports, topics, the place of their data."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hiveio.dev.actors import Found
from hiveio.dev.process import HOST
from hiveio.dev.services import Addresses
from hiveio.dev.spares import PYTHON

FIRST_PORT = 3001
# In this order they are given ports and are shown: who writes comes before who reads.
ORDER = ("stream-processor", "producer", "consumer", "base")

# A service that drains waits for requests that may still come, in proportion to this: here nobody is patient.
DRAIN_MS = 1_000


def ordered(found: Sequence[Found]) -> list[Found]:
    return sorted(found, key=lambda each: (ORDER.index(each.role), each.name))


def project_name(folder: Path) -> str:
    """What topics and groups begin with."""
    return re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("-._") or "dev"


def topics_of(project: str, found: Sequence[Found]) -> dict[str, list[str]]:
    """By the name of each service the topics that it writes, or reads.

    Each service that writes has a topic of its own, unless its actor names one. A consumer reads those with the events
    that it takes, and a topic of its own where nobody writes these.
    """
    writes = {
        each.name: {event: topic or f"{project}.{each.short}" for event, topic in each.gives.items()} for each in found
    }
    topics = {name: sorted(set(events.values())) for name, events in writes.items() if events}
    for each in found:
        if each.role == "consumer":
            wanted = {topic for events in writes.values() for event, topic in events.items() if event in each.takes}
            topics[each.name] = sorted(wanted) or [f"{project}.events"]
    return topics


def environment(
    each: Found, project: str, folder: Path, data: Path, port: int, addresses: Addresses, topics: Sequence[str]
) -> Mapping[str, str]:
    """The environment of a service: ours, and over it what `hiveio dev` decides."""
    given = {
        "ACTOR_PATH": str(folder),
        "ACTOR_MODULE": each.name,
        "BIND": HOST,
        "PORT": str(port),
        "CLUSTER_SIZE": "1",
        **PYTHON,
    }
    if each.role != "base":
        given |= {"EVENT_STORE_BROKERS": addresses.brokers, "CACHE_URL": addresses.cache}
        # A stream processor names its log after its topic; what an actor's `topic` names is not decided here.
        given["EVENT_STORE_TOPIC"] = f"{project}.{each.short}"
    if each.role == "consumer":
        given |= {
            "EVENT_STORE_CONSUMER_TOPIC": ",".join(topics),
            "EVENT_STORE_GROUP_ID": f"{project}.{each.short}",
            "EVENT_STORE_FROM_START": "true",
        }
        given["DATABASE"] = os.environ.get("DATABASE", str(data / f"{each.short}.sqlite"))
    return {"DRAIN_TIMEOUT": str(DRAIN_MS), **os.environ, **given}
