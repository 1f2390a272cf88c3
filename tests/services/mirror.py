"""Kafka's MirrorMaker, which copies topics into another cluster. `python -m tests.services.mirror` writes its lock."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from hiveio.dev import jars
from hiveio.dev.kafka import java
from hiveio.dev.process import Service

LOCK = Path(__file__).with_name("mirror.lock")
ROOTS = (
    "org.apache.kafka:connect-mirror:4.3.1",
    "org.apache.kafka:connect-runtime:4.3.1",
    "org.apache.kafka:kafka-clients:4.3.1",
    "org.apache.logging.log4j:log4j-core:2.25.1",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.1",
)
_INTERNAL = ("offset-syncs.topic", "config.storage", "offset.storage", "status.storage", "checkpoints.topic")
_TUNING = [
    *(f"{topic}.replication.factor=1" for topic in (*_INTERNAL, "heartbeats.topic")),  # for clusters of one broker
    "plugin.discovery=service_load",  # else it looks into every jar, which takes several seconds
]


class MirrorMaker(Service):
    """One node, with these properties. It looks for topics when it starts, and begins at their first records."""

    name = "mirror"

    def __init__(self, properties: str) -> None:
        super().__init__(None, None)
        self._properties = properties

    def _command(self) -> list[str]:
        path = self.folder / "mm2.properties"
        path.write_text("\n".join([self._properties, *_TUNING]))
        return java(mirror_home(print), self.folder, "org.apache.kafka.connect.mirror.MirrorMaker", str(path))

    def _probe(self) -> Callable[[], bool]:
        return lambda: True  # it is seen by what it copies


def mirror_home(progress: jars.Progress) -> Path:
    """The folder with its jars, in `jars`. Raises ServiceUnavailable."""
    home = jars.cache() / f"mirror-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    with jars.exclusive(jars.cache() / "mirror.making"):
        jars.download(home / "jars", progress, LOCK)
    return home


if __name__ == "__main__":
    jars.write_lock(LOCK, ROOTS)
