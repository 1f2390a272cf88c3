"""How far publishing is behind is true on every instance, even if no one publishes, and the alarm fires."""

import pytest

from tests.alarms import alarms, publisher_lag
from tests.integration.accounts import ACTOR, send  # noqa: F401 - ACTOR is what `processor` starts
from tests.integration.conftest import Make
from tests.integration.topics import largest_record, read_all
from tests.process import wait_until
from tests.services import Kafka

pytestmark = pytest.mark.timeout(120, func_only=True)
STUCK = {"HiveioEventsAreNotPublished"}


def test_a_stuck_publisher_is_seen_by_all_instances(processor: Make, kafka: Kafka, topic: str) -> None:
    with processor() as one, processor(CLUSTER_SIZE="2") as two:
        both = (one, two)
        assert send(one, "ada", "Open", owner="ada").status_code == 200
        wait_until(lambda: len(read_all(kafka.brokers, topic)) == 1, 30, "published")
        largest_record(kafka.brokers, topic, 60)  # the event topic takes no event any more, whoever sends it
        for _ in range(3):
            assert send(two, "ada", "Deposit", amount=1).status_code == 200
        for role in both:
            wait_until(lambda role=role: publisher_lag(role.url)[0] >= 3, what="the records")  # type: ignore[misc]
        for number in range(5):  # records without events
            assert send(one, "ada", "Open", {"Idempotency-Key": f"k{number}"}, owner="eve").status_code == 422
        for role in both:
            assert not alarms(role.url) - STUCK
            wait_until(lambda role=role: alarms(role.url) == STUCK, 30, "the alarm")  # type: ignore[misc]
            records, seconds = publisher_lag(role.url)
            assert (records, seconds > 10) == (8, True)
        assert len(read_all(kafka.brokers, topic)) == 1
        one.kill()  # whoever held the lease
        assert alarms(two.url) == STUCK
        two.kill()
        largest_record(kafka.brokers, topic, 1_000_000)
        # What follows the last event in the log writes no events, so it is no lag.
        with processor() as last:
            wait_until(lambda: len(read_all(kafka.brokers, topic)) == 4, 30, "published")
            # Before the first look there is no lag either, and that look may have begun before all was published.
            wait_until(lambda: publisher_lag(last.url) == (0, 0) and not alarms(last.url), what="no lag")
            assert send(last, "ada", "Open", {"Idempotency-Key": "k"}, owner="eve").status_code == 422
            assert send(last, "ada", "Deposit", amount=1).status_code == 200
            wait_until(lambda: len(read_all(kafka.brokers, topic)) == 5, 30, "published")
            wait_until(lambda: publisher_lag(last.url) == (0, 0), what="no lag")
