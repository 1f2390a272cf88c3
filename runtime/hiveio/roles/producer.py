"""hiveio/producer: a message comes in, the actor checks it, and its events are answered once Kafka has stored them."""

from hiveio.actor import performing
from hiveio.http.routes import Route
from hiveio.producer import published
from hiveio.service import Service


def producer(service: Service) -> list[Route]:
    return published(service, performing)
