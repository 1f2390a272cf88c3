"""What the description of a service says of commands."""

from typing import Any

from examples.orders.fulfilment import Fulfilment
from examples.orders.payments import WalletActor
from hiveio.actor import contracts
from hiveio.config import Settings
from hiveio.http.asyncapi import document
from hiveio.saga.receiver import receiver_group
from hiveio.service import Service


def operations(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = document(service.channels, service.settings)["operations"]
    return found


def names(operation: dict[str, Any]) -> list[str]:
    return [message["$ref"].rpartition("/")[2] for message in operation["messages"]]


def test_commands_that_are_taken_and_sent_are_described() -> None:
    payments = Service(Settings(topic="payments", command_topics=("fulfilment.commands",)), contracts([WalletActor]))
    for contract in payments.contracts:
        payments.takes_commands(payments.settings.command_topics, contract, receiver_group(payments.settings))
    (taken,) = operations(payments).values()
    assert taken["action"] == "receive"
    assert names(taken) == ["TopUp", "Reserve", "Approve", "Release"]
    assert taken["bindings"]["kafka"]["groupId"]["enum"] == ["payments.receiver"]
    fulfilment = Service(Settings(topic="fulfilment"), contracts([Fulfilment]))
    for contract in fulfilment.contracts:
        fulfilment.sends_commands(fulfilment.settings.outbox_topic, contract)
    (sent,) = operations(fulfilment).values()
    assert (sent["action"], sent["channel"]["$ref"]) == ("send", "#/channels/fulfilment.commands")
    assert names(sent) == ["Reserve", "Release", "Pick", "Confirm", "Cancel"]
