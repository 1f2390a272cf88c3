"""Kafka, as the rest of the runtime sees it. The only package that imports confluent_kafka."""

from confluent_kafka import Message

from hiveio.kafka.assigned import Lane, Note, Start
from hiveio.kafka.client import client_config
from hiveio.kafka.poller import Poller
from hiveio.kafka.sender import Sender
from hiveio.kafka.topics import ensure_topic

__all__ = ["Lane", "Message", "Note", "Poller", "Sender", "Start", "client_config", "ensure_topic"]
