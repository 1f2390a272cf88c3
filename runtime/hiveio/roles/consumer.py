"""hiveio/consumer: events come in from the log, the actor keeps its projection, queries are answered from it."""

from hiveio.actor import performing
from hiveio.consumer import FRESH, Consumer, fresh
from hiveio.http.routes import Route, queries
from hiveio.service import Service


def consumer(service: Service) -> list[Route]:
    telemetry = service.telemetry
    handlers = [(contract, telemetry.processing(performing(contract))) for contract in service.contracts]
    for contract in service.contracts:
        service.receives(service.settings.read_topics, contract)
    events = service.use(Consumer(service.settings, handlers, with_record=telemetry.active))
    return [
        route for contract, handler in handlers for route in queries(contract, fresh(handler, contract, events), FRESH)
    ]
