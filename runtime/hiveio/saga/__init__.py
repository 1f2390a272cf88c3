"""Process managers between services: what comes from topics, and what goes to services that speak HTTP only.

Each function gives the consumers that a stream processor needs for it, and says in the description of the service what
they receive and send. All raise ConfigError.
"""

from hiveio.consumer import Consumer
from hiveio.saga.inbox import AnswerCodec, check_topics, inbox
from hiveio.saga.over_http import over_http
from hiveio.saga.receiver import receiver, receiver_group
from hiveio.service import Service
from hiveio.transaction.component import TransactionLog

__all__ = ["driven", "sending", "taking"]


def driven(service: Service, log: TransactionLog) -> list[Consumer]:
    """Of the events that drive the processes of this service."""
    managers = [contract for contract in service.contracts if contract.process]
    if not managers:
        return []
    check_topics(service.settings)
    for contract in managers:
        service.receives(service.settings.read_topics, contract)
    named = {contract.name: contract for contract in managers}
    handlers = [(contract, service.telemetry.processing(inbox(contract, named, log))) for contract in managers]
    return [Consumer(service.settings, handlers, with_record=True, codec=AnswerCodec(managers, log))]


def sending(service: Service, log: TransactionLog) -> list[Consumer]:
    """Of the commands of its processes for services that speak HTTP only."""
    managers = [contract for contract in service.contracts if contract.process]
    for contract in managers:
        service.sends_commands(service.settings.outbox_topic, contract)
    return [*over_http(service.settings, managers, log, service.telemetry.processing)] if managers else []


def taking(service: Service, log: TransactionLog) -> list[Consumer]:
    """Of the commands of processes that this service takes."""
    settings = service.settings
    if not settings.command_topics:
        return []
    for contract in service.contracts:
        service.takes_commands(settings.command_topics, contract, receiver_group(settings))
    return [receiver(settings, service.contracts, log, service.telemetry.processing)]
