"""How many replicas a topic has: what a new topic needs, and whether an older one has it."""

from collections.abc import Collection, Sequence

import msgspec
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    ResourceType,
)

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka.client import answered

USUAL, SAFE = 3, "2"  # the replicas of a topic by default, and min.insync.replicas if it has as many
TIMEOUT_S = 10.0
SHOWN = 50  # partitions named in one line
_SILENT = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT)


def required(settings: Settings, brokers: Collection[int]) -> int:
    """The fewest replicas that a topic should have while these brokers are up."""
    return settings.replication or min(USUAL, len(brokers))


def of_new(settings: Settings, client: AdminClient, name: str, brokers: Collection[int]) -> tuple[int, dict[str, str]]:
    """The number of replicas for a new topic while these brokers are up, and the property that goes with it.

    Raises Unavailable while too few are up, because the topic would keep the smaller number of replicas.
    """
    if not brokers:  # a cluster that has just started says so for a moment
        raise Unavailable(f"topic {name} is to be made, and no broker is up")
    defaults = _defaults(client, next(iter(brokers)))
    default = int(defaults.get("default.replication.factor", 1))
    replicas = settings.replication or max(default, min(USUAL, len(brokers)))
    if replicas > len(brokers):
        why = "EVENT_STORE_REPLICATION" if settings.replication else "default.replication.factor of the brokers"
        raise Unavailable(
            f"topic {name} is to be made with {replicas} replicas ({why}), and {len(brokers)} brokers are up: start "
            f"the others, or set EVENT_STORE_REPLICATION={len(brokers)}"
        )
    weak = int(defaults.get("min.insync.replicas", 1)) < int(SAFE)
    return replicas, {"min.insync.replicas": SAFE} if replicas >= USUAL and weak else {}


def _defaults(client: AdminClient, broker: int) -> dict[str, str]:
    """The configuration of a broker; empty if the user may not see it, as with most providers of Kafka."""
    resource = ConfigResource(ResourceType.BROKER, str(broker))
    try:
        entries = answered(client.describe_configs([resource], request_timeout=TIMEOUT_S)[resource], TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].code() in _SILENT:
            raise
        return {}
    return {key: entry.value for key, entry in entries.items() if entry.value is not None}


def doubt(settings: Settings, name: str, assigned: Sequence[Sequence[int]], brokers: Collection[int]) -> str:
    """A line about a topic with too few replicas, with the remedy; empty if it has as many as it should."""
    least, asked = min(map(len, assigned)), required(settings, brokers)
    if least >= asked:
        return ""
    why = "EVENT_STORE_REPLICATION" if settings.replication else f"there are {len(brokers)} brokers"
    line = f"Topic {name} has {least} replicas, and {asked} are wanted ({why}): records are lost with their brokers; "
    if len(brokers) < asked:
        return f"{line}{len(brokers)} brokers are up: start the others"
    few = [(number, replicas) for number, replicas in enumerate(assigned) if len(replicas) < asked]
    plan = {
        "version": 1,
        "partitions": [
            {"topic": name, "partition": number, "replicas": _more(replicas, asked, sorted(brokers), number)}
            for number, replicas in few[:SHOWN]
        ],
    }
    rest = f" (the first {SHOWN} of {len(few)} partitions)" if len(few) > SHOWN else ""
    return (
        f"{line}run kafka-reassign-partitions.sh --bootstrap-server {settings.brokers} --execute "
        f"--reassignment-json-file {name}.json with this file{rest}: {msgspec.json.encode(plan).decode()}"
    )


def _more(replicas: Sequence[int], asked: int, brokers: Sequence[int], turn: int) -> list[int]:
    """The present replicas and further ones, not the same for each partition."""
    others = [broker for broker in brokers if broker not in replicas]
    turn %= max(1, len(others))
    return [*replicas, *others[turn:], *others[:turn]][:asked]
