"""hiveio/producer: a message comes in, the actor checks it, and its events are answered once Kafka has stored them."""

from hiveio.actor import performing
from hiveio.kafka import Sender
from hiveio.process import serve
from hiveio.producer import publishing
from hiveio.routes import Route, messages
from hiveio.service import Service


def producer(service: Service) -> list[Route]:
    settings = service.settings
    sender = service.use(Sender(settings, topic=settings.written_topic))
    return [
        route
        for contract in service.contracts
        for route in messages(contract, publishing(performing(contract), contract, sender, settings))
    ]


if __name__ == "__main__":
    serve(producer)
