"""Faults 69 to 71: what a consumer's store, the repeats of publishers, and its dead letters may meet."""

import uuid

import pytest

from hiveio import Unavailable
from hiveio.consumer.letters import headers_of
from hiveio.kafka.session import MOST, OVERLAPPING
from tests.faults.proxy import Passing, Proxy
from tests.integration.consumers import Recorder, member, plain, positioned, settings
from tests.integration.test_dead_letters import QUICK, Choosy, Made, ask, keyed
from tests.integration.test_projection import Postgresql, at
from tests.integration.topics import make_topic, read_all, write
from tests.services import Kafka, Postgres

__all__ = ["settings"]

pytestmark = pytest.mark.kafka


@pytest.mark.fault(69)
async def test_69_the_connection_to_postgresql_is_cut_at_commit(
    kafka: Kafka, topic: str, settings: Made, postgres: Postgres
) -> None:
    """Before its effect or after it, which nobody can tell: it is tried again, and the effect is there once."""
    make_topic(kafka.brokers, topic)

    def is_commit(message: Passing) -> bool:
        return b"COMMIT" in message.request

    with Proxy(postgres.port) as proxy:
        url = postgres.url.replace(f":{postgres.port}/", f":{proxy.port}/")
        kind = type("Projected", (Postgresql,), {"url": url, "schema": f"s{uuid.uuid4().hex}"})
        async with member(settings(**QUICK | {"consumer_attempts": 1}), kind) as one:
            await one.until(one.partitions)
            for amount, gate in enumerate([proxy.up, proxy.down] * 2):
                gate.cut(is_commit, times=1)
                write(kafka.brokers, topic, plain([amount]))
                await one.until(lambda: one.consumer.counts.handled == amount + 1)  # noqa: B023
                assert gate.count == 1
            assert (one.consumer.counts.dead, one.consumer.counts.retried) == (0, 4), "no attempt of a real failure"
            assert await one.actor.amounts() == [0, 1, 2, 3]
            for gate in (proxy.up, proxy.down):
                gate.cut(is_commit, times=1)
                with pytest.raises(Unavailable, match="PostgreSQL"):
                    await one.actor.take(at(0), 4)


@pytest.mark.fault(70)
async def test_70_a_store_ahead_of_the_commit_behind_as_many_repeats_as_there_may_be(
    kafka: Kafka, topic: str, settings: Made
) -> None:
    """All other sessions but one had their most events under way, and wrote what it had published long before."""
    published, repeats = positioned(range(MOST + 2)), [*positioned(range(MOST))] * (OVERLAPPING - 1)

    class Ahead(Recorder):
        """Another instance has stored all that is there, and was killed before its commit."""

        def position(self, topic: str, partition: int) -> int:
            return len(published) + len(repeats)

    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, [*published, *repeats, *positioned([MOST + 2, MOST + 3])])
    async with member(settings(), Ahead) as one:
        await one.until(lambda: len(one.actor.seen) == 2 or one.consumer.stopped())
        assert (one.consumer.stopped(), one.actor.amounts()) == (None, [MOST + 2, MOST + 3])


@pytest.mark.fault(71)
async def test_71_letters_of_an_earlier_owner_come_late(
    kafka: Kafka, topic: str, settings: Made, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy of a letter is none; a letter of what was handled meanwhile parks its key, and the log says so."""
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("b", 1)))
    dead = f"{topic}.{made.group_id}.dead"

    def late(origin: str, key: str) -> None:
        headers = {name: text.decode() for name, text in headers_of(read_all(kafka.brokers, dead)[0]).items()}
        write(kafka.brokers, dead, [(0, key, b"{}", headers | {"hive-dead-origin": origin})])

    async with member(made) as one:
        choosy = Choosy(one, 0)
        await one.until(lambda: one.consumer.counts.dead and one.consumer.counts.handled == 1)
        late(f"{topic}/0/0", "a")
        write(kafka.brokers, topic, keyed(("a", 2)))
        await one.until(lambda: one.consumer.counts.parked == 1)
        assert not [text for text in caplog.messages if "came late" in text]
        late(f"{topic}/0/1", "b")
        await one.until(lambda: one.consumer._lanes[topic, 0].parked == 2)
        (told,) = [text for text in caplog.messages if "came late" in text]
        assert f"{topic}/0/1" in told
        ask(kafka, made, "dropped", "b")
        await one.until(lambda: one.consumer._lanes[topic, 0].parked == 1)
        choosy.bad = set()
        ask(kafka, made, "retry", "a")
        await one.until(lambda: not one.consumer._lanes[topic, 0].shelf.busy)
        assert one.actor.amounts() == [1, 0, 2]
        assert one.consumer.counts.redriven == 2
