"""What the failure of a delivery means: the record was certainly refused, or its outcome is unknown.

The outcome of a failed delivery is unknown, unless Kafka refused the batch when it was sent for the first time: a
record whose earlier attempt got no answer may be stored, whatever Kafka answers to a later one.
"""

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError

from hiveio.errors import Forbidden, Invalid, Problem, TooLarge, Unavailable

Refusal = tuple[type[Problem], str]  # what clients are told; the error's own text is for the log
_INVALID: Refusal = Invalid, "Kafka found it invalid"
_LARGE: Refusal = TooLarge, "it is too large"
_DENIED: Refusal = Forbidden, "this service may not write to the topic"
_MISSING: Refusal = Unavailable, "the topic was not found"
_UNSUPPORTED: Refusal = Unavailable, "Kafka does not support what this service sends"
# What is wrong with a record, or with another one of its batch: only if it was sent alone, it is surely this record.
_OF_A_BATCH: dict[int, Refusal] = {
    KafkaError.INVALID_RECORD: _INVALID,
    KafkaError._INVALID_DIFFERENT_RECORD: _INVALID,
    KafkaError.POLICY_VIOLATION: (Invalid, "a policy of Kafka forbids it"),
    KafkaError.INVALID_TIMESTAMP: (Unavailable, "the clocks of this service and of Kafka differ"),
    KafkaError.MSG_SIZE_TOO_LARGE: _LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE: _LARGE,
    KafkaError.INVALID_MSG_SIZE: _LARGE,
}
_OF_A_TOPIC: dict[int, Refusal] = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: _DENIED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: _DENIED,
    KafkaError.TOPIC_EXCEPTION: _MISSING,
    KafkaError.UNKNOWN_TOPIC_OR_PART: _MISSING,
    KafkaError.UNKNOWN_TOPIC_ID: _MISSING,
    KafkaError._UNKNOWN_TOPIC: _MISSING,
    KafkaError._UNKNOWN_PARTITION: _MISSING,
    KafkaError.UNSUPPORTED_VERSION: _UNSUPPORTED,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT: _UNSUPPORTED,
    KafkaError.UNSUPPORTED_COMPRESSION_TYPE: _UNSUPPORTED,
    KafkaError.INVALID_REQUIRED_ACKS: _UNSUPPORTED,
}
_LINE = re.compile(r"(\S+ \[\d+\]) (?:changed PID|with \d+ message|beginning partition drain)")


def concerns_batch(error: KafkaError) -> bool:
    """Whether Kafka may have refused another record of the batch."""
    return error.code() in _OF_A_BATCH


def refusal(error: KafkaError, topic: str) -> Problem | None:
    """The answer to a record that Kafka definitely refused; None if the error is no refusal."""
    found = _OF_A_BATCH.get(error.code()) or _OF_A_TOPIC.get(error.code())
    if found is None:
        return None
    kind, reason = found
    return kind(f"The topic {topic} does not accept the record: {reason}. Nothing was stored.")


def failed(reason: str) -> Problem:
    """The answer to a record of which a producer that failed for good has sent nothing.

    The code of a fatal error says no more than that, so a missing right is recognised by the text. The text names
    brokers, so it is for the log alone.
    """
    if "authorization failed" in reason.lower():
        return Forbidden("This service may not write to its topic. Nothing was stored.")
    text = f"the Kafka producer failed: {reason}; nothing was stored"
    return Unavailable("The Kafka producer failed. Nothing was stored.", inside=text)


class Attempts:
    """Learns from librdkafka's log when records are sent again whose earlier attempt may have been stored.

    A Python client does not learn what became of the attempts of a record. The debug context ``eos``, which is silent
    while all goes well, says when a partition is drained because something is to be sent again. That is harmless if
    it follows from a batch that was refused (the sequence has a gap then, so nothing after it can be stored until the
    partition gets new numbers), and before the first numbers. An object of this class is the logger of a client.
    """

    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        self._numbered: set[str] = set()
        self._listening = self._numbers_seen = False
        self._resent_at = 0.0

    def log(self, level: int, format: str, *arguments: Any) -> None:
        self._listening = self._listening or level <= logging.DEBUG
        if arguments and arguments[0] in ("NEWPID", "ERRSEQ", "DRAIN") and (found := _LINE.search(arguments[-1])):
            partition = found[1]
            if arguments[0] == "NEWPID":
                self._numbers_seen = True
                self._numbered.add(partition)
            elif arguments[0] == "ERRSEQ":
                self._numbered.discard(partition)
            elif partition in self._numbered:
                self._resent_at = time.monotonic()
        self._log(level, format, *arguments)

    def once(self, produced_at: float) -> bool:
        """Whether all that was produced at this monotonic time or later was certainly sent once at most."""
        return self._numbers_seen and self._resent_at < produced_at

    @property
    def nothing_sent(self) -> bool:
        """Whether no partition has sequence numbers yet, without which nothing is sent."""
        return self._listening and not self._numbers_seen
