"""A consumer's actor without a state of its own, so that it may have several workers."""

from hiveio import Actor, Event, Query, Rejected


class Opened(Event):
    owner: str


class Statement(Query):
    path = "/statements/{account}"
    account: str


class Listener(Actor):
    def perform(self, message: Opened | Statement) -> None:
        if isinstance(message, Statement):
            raise Rejected(f"there is no statement of {message.account}")
