"""What the failure of a delivery means: the record was refused for certain, or nobody knows.

A failed delivery is an unknown outcome, unless Kafka answered that it refuses the batch, and this was the first time
that the batch was sent: a record whose earlier attempt got no answer may be stored, whatever is said of a later one.
"""

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError

from hiveio.errors import Forbidden, Invalid, Problem, TooLarge, Unavailable

# What is wrong with a record, or with the batch that it was sent in: only sent alone does it tell of the record.
_OF_A_BATCH: dict[int, type[Problem]] = {
    KafkaError.INVALID_RECORD: Invalid,
    KafkaError._INVALID_DIFFERENT_RECORD: Invalid,
    KafkaError.POLICY_VIOLATION: Invalid,
    KafkaError.INVALID_TIMESTAMP: Unavailable,  # the clocks of this service and of Kafka differ
    KafkaError.MSG_SIZE_TOO_LARGE: TooLarge,
    KafkaError.RECORD_LIST_TOO_LARGE: TooLarge,
    KafkaError.INVALID_MSG_SIZE: TooLarge,
}
_OF_A_TOPIC: dict[int, type[Problem]] = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: Forbidden,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: Forbidden,
    KafkaError.TOPIC_EXCEPTION: Unavailable,
    KafkaError.UNKNOWN_TOPIC_OR_PART: Unavailable,
    KafkaError.UNKNOWN_TOPIC_ID: Unavailable,
    KafkaError._UNKNOWN_TOPIC: Unavailable,
    KafkaError._UNKNOWN_PARTITION: Unavailable,
    KafkaError.UNSUPPORTED_VERSION: Unavailable,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT: Unavailable,
    KafkaError.UNSUPPORTED_COMPRESSION_TYPE: Unavailable,
    KafkaError.INVALID_REQUIRED_ACKS: Unavailable,
}
_LINE = re.compile(r"(\S+ \[\d+\]) (?:changed PID|with \d+ message|beginning partition drain)")


def concerns_batch(error: KafkaError) -> bool:
    """Whether it may be another record of the batch that is refused."""
    return error.code() in _OF_A_BATCH


def refusal(error: KafkaError, topic: str) -> Problem | None:
    """What Kafka's definite refusal of a record is for a client; None where the error is none."""
    kind = _OF_A_BATCH.get(error.code()) or _OF_A_TOPIC.get(error.code())
    return None if kind is None else kind(f"topic {topic} does not take the record: {error.str()}; nothing was stored")


def failed(reason: str) -> Problem:
    """The answer to a record of which a producer that failed for good has sent nothing.

    An error that is fatal has a code that says no more than that: only the reason tells of a missing right. It is for
    the log alone: it names brokers.
    """
    if "authorization failed" in reason.lower():
        return Forbidden("this service may not write to its topic; nothing was stored")
    text = f"the Kafka producer failed: {reason}; nothing was stored"
    return Unavailable("the Kafka producer failed; nothing was stored", inside=text)


class Attempts:
    """Hears from librdkafka's log when records are sent again of which an earlier attempt may have been stored.

    A Python client is not told what became of the attempts of a record. The debug context ``eos``, which is silent
    while all goes well, tells when a partition is drained because something is to be sent again. That is harmless
    where it follows from a batch that was refused (the sequence has a gap then, so nothing behind it can be stored,
    until the partition gets new numbers), and before the first numbers. It stands in for the logger of a client.
    """

    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        self._numbered: set[str] = set()
        self._listening = self._heard = False
        self._again_at = 0.0

    def log(self, level: int, format: str, *arguments: Any) -> None:
        self._listening = self._listening or level <= logging.DEBUG
        if arguments and arguments[0] in ("NEWPID", "ERRSEQ", "DRAIN") and (found := _LINE.search(arguments[-1])):
            partition = found[1]
            if arguments[0] == "NEWPID":
                self._heard = True
                self._numbered.add(partition)
            elif arguments[0] == "ERRSEQ":
                self._numbered.discard(partition)
            elif partition in self._numbered:
                self._again_at = time.monotonic()
        self._log(level, format, *arguments)

    def once(self, since: float) -> bool:
        """Whether what was handed over since then, on the monotonic clock, was surely sent once at most."""
        return self._heard and self._again_at < since

    @property
    def nothing_sent(self) -> bool:
        """Whether no partition got numbers yet, without which nothing is sent."""
        return self._listening and not self._heard
