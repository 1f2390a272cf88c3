"""hiveio/stream-processor: a command comes in, the actor decides on its aggregate, the log says whether it counts."""

from hiveio.http.routes import Route
from hiveio.saga import driven, sending, taking
from hiveio.service import Service
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.routes import commands, outcomes, snapshots, transacting


def stream_processor(service: Service) -> list[Route]:
    log = service.use(TransactionLog(service.settings, service.contracts, service.telemetry.observer()))
    for contract in service.contracts:
        service.sends(service.settings.written_topic, contract)
    for consumer in (*driven(service, log), *sending(service, log), *taking(service, log)):
        service.use(consumer)
    traced = service.telemetry.transacting
    return [
        outcomes(log),
        *(
            route
            for contract in service.contracts
            for route in (*commands(contract, traced(transacting(contract, log), contract)), snapshots(contract, log))
        ),
    ]
