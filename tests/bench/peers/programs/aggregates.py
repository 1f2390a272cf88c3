"""eventsourcing-py on PostgreSQL behind FastAPI: the tally of the benchmarks as its aggregate.

It has what its documentation offers to be fast: a cache of aggregates, and a connection for each thread. A lock for
each aggregate of this one process, which is ours, spares it the conflicts that it would have to retry.
"""

import threading
import uuid
from typing import Any, Literal

from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.domain import Aggregate, event
from fastapi import FastAPI
from pydantic import BaseModel
from serve import SETTINGS, serve


class Add(BaseModel):
    amount: int


class Message(BaseModel):
    type: Literal["Add"]
    payload: Add


class Added(BaseModel):
    type: Literal["Added"] = "Added"
    payload: Add


class Tally(Aggregate):
    def __init__(self, name: str, amount: int) -> None:
        self.name = name
        self.sum = amount
        self.count = 1

    @staticmethod
    def create_id(name: str, amount: int = 0) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_URL, f"/tallies/{name}")

    @event("Added")
    def add(self, amount: int) -> None:
        self.sum += amount
        self.count += 1


class Tallies(Application[uuid.UUID]):
    def add(self, name: str, amount: int) -> None:
        try:
            tally: Any = self.repository.get(Tally.create_id(name))
            tally.add(amount)
        except AggregateNotFoundError:
            tally = Tally(name=name, amount=amount)
        self.save(tally)


tallies = Tallies(SETTINGS["environ"])
locks: dict[str, threading.Lock] = {}
application = FastAPI()


@application.get("/readyz")
async def readyz() -> None:
    """The Role of the tests waits for it."""


@application.post("/tallies/{id}")
def add(id: str, message: Message) -> Added:  # not async: FastAPI runs it in one of its threads
    with locks.setdefault(id, threading.Lock()):
        tallies.add(id, message.payload.amount)
    return Added(payload=message.payload)


if __name__ == "__main__":
    serve(application)
