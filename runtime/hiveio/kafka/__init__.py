"""Kafka, as the rest of the runtime sees it. The only package that imports confluent_kafka."""

from confluent_kafka import Message

from hiveio.kafka.assigned import CommitMetadata, Lane, Start
from hiveio.kafka.client import client_config
from hiveio.kafka.poller import Poller
from hiveio.kafka.sender import Sender
from hiveio.kafka.topics import ensure_topic

__all__ = ["CommitMetadata", "Lane", "Message", "Poller", "Sender", "Start", "client_config", "ensure_topic"]
