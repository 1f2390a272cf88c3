"""Page visits (hiveio/producer): many, unordered, each worth little. They are checked and written to a topic."""

from typing import Annotated

from msgspec import Meta

from hiveio import Actor, Command, Event, Rejected


class Visit(Command):
    page: Annotated[str, Meta(pattern="^/", max_length=2000)]
    visitor: str = "somebody"


class PageVisited(Event):
    page: str
    visitor: str


class VisitsActor(Actor):
    path = "/visits"  # without {id} the records have no key and spread over all partitions

    def perform(self, visit: Visit) -> PageVisited:
        if visit.page.startswith("/internal/"):
            raise Rejected("internal pages are not counted")
        return PageVisited(visit.page, visit.visitor)
