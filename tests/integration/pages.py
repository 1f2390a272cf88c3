"""An actor whose snapshots are as large as its events say, and records of it that a plain producer writes."""

import itertools
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hiveio import Actor, Command, Event, Model

if TYPE_CHECKING:
    from tests.integration.topics import Written

SIZE = 700_000


class Fill(Command):
    size: int


class Filled(Event):
    size: int
    ballast: str = ""


class Page(Model):
    text: str


class Pages(Actor):
    path = "/pages/{id}"
    name = "Page"

    def perform(self, page: Page | None, command: Fill) -> Filled:
        return Filled(command.size)

    def replay(self, page: Page | None, event: Filled) -> Page:
        return Page("x" * event.size)


class Writer:
    """Makes records that are accepted: each names the last one of its page as the head."""

    def __init__(self) -> None:
        self._heads: dict[str, tuple[str, int]] = {}
        self._count = itertools.count(1)

    def records(self, pages: Iterable[int], *, size: int = SIZE, ballast: int = 0) -> "list[Written]":
        made: list[Written] = []
        for page in pages:
            name, tx = f"Page/{page}", f"written-{next(self._count)}"
            head, version = self._heads.get(name, ("", 0))
            event = {"type": "Filled", "payload": {"size": size, "ballast": "b" * ballast}}
            body = {"kind": "commit", "command": [name, tx], "writes": [[name, head, version, [event]]]}
            made.append((0, tx, json.dumps(body).encode(), {}))
            self._heads[name] = (tx, version + 1)
        return made
