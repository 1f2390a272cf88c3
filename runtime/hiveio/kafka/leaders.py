"""Who leads a partition, asked of each of its brokers.

A leader that was cut off from the other brokers and from the controllers, and not from us, does not learn that another
one was elected. It answers a fetch with nothing, a produce request with a time-out, and who asks it names itself. None
of that makes a client look elsewhere: librdkafka asks the broker that it spoke to last.
"""

import asyncio
import logging
import random
from collections import Counter

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import ClusterMetadata, PartitionMetadata  # type: ignore[attr-defined]

from hiveio.config import Settings
from hiveio.kafka.away import address
from hiveio.kafka.client import begin_with, client_config, make
from hiveio.kafka.threads import blocking

ASK_S = 2.0
logger = logging.getLogger("hiveio.kafka")
_silent = logging.Logger("silent", logging.CRITICAL + 1)


class Leaders:
    """Finds out whether the brokers of a partition disagree."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._addresses: dict[int, str] = {}  # also of brokers that the others no longer name

    async def learn(self) -> None:
        """Remember where the brokers are."""
        await blocking(self._ask, self._settings.brokers, self._topic)

    async def disagree(self, topic: str, partition: int) -> bool:
        """Whether the brokers that have this partition name different leaders. Then new clients begin with those that
        most of them agree with (see ``begin_with``)."""
        found = await blocking(self._ask, self._settings.brokers, topic)
        known = _partition(found, topic, partition)
        if known is None:
            return False
        asked = [self._addresses[broker] for broker in known.replicas if broker in self._addresses]
        answers = await asyncio.gather(*[blocking(self._ask, each, topic) for each in asked])
        named = {
            each: told.leader
            for each, answer in zip(asked, answers, strict=True)
            if (told := _partition(answer, topic, partition)) is not None and told.leader >= 0
        }
        votes = Counter(named.values())
        if len(votes) < 2:
            return False
        # Of three replicas the two that suffice for writing know the new leader; of two, the next try may be the other.
        leader = max(votes, key=lambda each: (votes[each], random.random()))
        knowing = ",".join(each for each, named_leader in named.items() if named_leader == leader)
        logger.warning(
            "the brokers of %s/%d disagree about its leader (%s): clients are made anew, and ask %s first",
            *(topic, partition, ", ".join(f"{each} names {who}" for each, who in named.items()), knowing),
        )
        begin_with(self._settings, knowing)
        return True

    def _ask(self, brokers: str, topic: str) -> ClusterMetadata | None:
        """What one of these brokers says, if it answers."""
        config = client_config(self._settings, bootstrap_servers=brokers, logger=_silent, log_level=0)
        try:
            found: ClusterMetadata = make(Producer, config).list_topics(topic, timeout=ASK_S)
        except KafkaException:
            return None
        for broker in found.brokers.values():
            self._addresses[broker.id] = address(broker)
        return found


def _partition(found: ClusterMetadata | None, topic: str, partition: int) -> PartitionMetadata | None:
    return None if found is None else found.topics[topic].partitions.get(partition)
