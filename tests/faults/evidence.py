"""Reads what is left after a run, with plain clients of its own."""

import time
from collections.abc import Iterator
from typing import Any, cast

from confluent_kafka import Consumer, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient
from redis import Redis as RedisClient
from redis.exceptions import RedisError

from tests.faults.checker import Evidence
from tests.faults.fold import Fold, Record
from tests.faults.stored import CacheDump, OnTopic
from tests.keys import strays

READ_S = 30.0


def gather(brokers: str, url: str, topic: str, within_s: float = 30.0) -> Evidence:
    """The evidence once it is at rest: all of the log applied and published. After ``within_s`` as it is then."""
    until = time.monotonic() + within_s
    while True:
        try:
            evidence = read(brokers, url, topic)
            if at_rest(evidence) or time.monotonic() > until:
                return evidence
        except (KafkaException, RedisError):
            if time.monotonic() > until:
                raise
        time.sleep(0.3)


def at_rest(evidence: Evidence) -> bool:
    if evidence.cache.watermark.partition("|")[0] != str(len(evidence.log)):
        return False
    fold = Fold()
    for record in evidence.log:
        fold.take(record)
    positions = {message.headers.get("hive-position") for message in evidence.events}
    return not fold.events or fold.events[-1].position in positions


def log_of(brokers: str, topic: str) -> list[Record]:
    return [
        Record(m.offset() or 0, (m.key() or b"").decode(), m.value() or b"", m.timestamp()[1])
        for m in messages(brokers, topic)
    ]


def read(brokers: str, url: str, topic: str) -> Evidence:
    log_topic = f"{topic}.transactions"
    log = log_of(brokers, log_topic)
    events = [
        OnTopic(
            m.offset() or 0,
            (m.key() or b"").decode(),
            m.value() or b"",
            {name: text.decode() for name, text in cast("list[tuple[str, bytes]]", m.headers() or [])},
        )
        for m in messages(brokers, topic)
    ]
    admin = AdminClient({"bootstrap.servers": brokers})
    described = admin.describe_topics(TopicCollection([log_topic]), request_timeout=10)[log_topic].result(10)
    return Evidence(log, events, dump(url, f"{log_topic}/0/{described.topic_id}"), str(described.topic_id))


def messages(brokers: str, topic: str) -> Iterator[Message]:
    """All messages of a topic's first partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "checker",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
        }
    )
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
        consumer.assign([TopicPartition(topic, 0, 0)])
        until, position = time.monotonic() + READ_S, 0
        while position < end and time.monotonic() < until:
            for message in consumer.consume(10_000, 0.5):
                if message.error() is not None:
                    raise KafkaException(message.error())
                position = (message.offset() or 0) + 1
                if position <= end:
                    yield message
    finally:
        consumer.close()


def dump(url: str, scope: str) -> CacheDump:
    """The cache of one scope, at one watermark (MULTI: all keys at once)."""
    client: Any = RedisClient.from_url(url, socket_timeout=10)
    try:
        head = f"hive:{{{scope}}}:"
        marks = [k for k in client.scan_iter(match="hive:*", count=1000) if k.decode().count(":") == 2]
        marks = [k for k in marks if client.type(k) == b"string" and client.get(k).count(b"|") >= 4]
        marks = [k for k in marks if k.decode().startswith(head)]
        if len(marks) != 1:
            return CacheDump(f"watermarks: {marks}")
        mark = marks[0].decode()
        generation = client.get(mark).decode().split("|")[3]
        prefix = f"{mark}:{generation}:"
        keys = [key.decode() for key in client.scan_iter(count=1000)]
        names = [name for name in keys if name.startswith(prefix)]
        entries = [name for name in names if name.startswith(f"{prefix}a:")]
        chunks = [name for name in names if name.startswith(f"{prefix}verdicts:")]
        pipeline = client.pipeline(transaction=True)
        for name in (mark, *entries, *chunks, f"{prefix}floor"):
            pipeline.get(name)
        pipeline.hgetall(f"{prefix}ids")
        pipeline.hgetall(f"{prefix}writers")
        watermark, *values, floor, ids, writers = pipeline.execute()
        return CacheDump(
            watermark.decode(),
            dict(zip([name.removeprefix(f"{prefix}a:") for name in entries], values[: len(entries)], strict=True)),
            {name.decode(): text.decode() for name, text in ids.items()},
            {int(name.rpartition(":")[2]): bits for name, bits in zip(chunks, values[len(entries) :], strict=True)},
            int(floor or 0),
            {name.decode(): text.decode() for name, text in writers.items()},
            strays(keys),
        )
    finally:
        client.close()
