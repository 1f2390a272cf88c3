"""hiveio/base: a message or a query comes in, the actor performs, its answer goes out."""

from hiveio.actor import performing
from hiveio.http.routes import Route, messages, queries
from hiveio.service import Service


def base(service: Service) -> list[Route]:
    return [
        route
        for contract in service.contracts
        for route in (*messages(contract, performing(contract)), *queries(contract, performing(contract)))
    ]
