"""Faults 90 to 94: what processes lead through four services, while all of these and what is between them fail."""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import redis as redis_client
from confluent_kafka import Producer

from hiveio.transaction.record import Barrier, encode
from tests.faults.orders import OVERDUE, place_all, place_during, prepare, well
from tests.faults.proxy import FETCH, PRODUCE, Proxy
from tests.faults.proxy import kafka as of_kafka
from tests.faults.stage import Broker
from tests.integration.topics import configure
from tests.orders import NAMES, answered, check_commands, reset, shop
from tests.process import wait_until
from tests.services import HOST, Kafka, Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(400, func_only=True)]

PAUSED_S = 3.0  # longer than a lease
OFFSET_COMMIT = 8  # of Kafka's protocol


@pytest.fixture
def orders_kafka() -> Any:
    with Kafka() as service:
        yield service


@pytest.mark.fault(90)
def test_90_every_service_is_killed_and_begins_again(orders_kafka: Kafka, redis: Redis) -> None:
    with shop(orders_kafka, redis, wait_s=60, partitions=3) as made:
        prepare(made)

        def play(turn: int) -> None:
            name = NAMES[1 + turn % 3]  # orders are placed meanwhile
            made.kill(name)
            time.sleep(random.uniform(0, 1))
            made.start(name)

        place_all(made, play)
        made.kill("orders")
        made.start("orders")
        well(made)


@pytest.mark.fault(91)
def test_91_every_service_is_paused_past_its_lease_beside_a_second_instance(orders_kafka: Kafka, redis: Redis) -> None:
    """Overlapping sessions of the outbox, two members with one partition, and deadlines that come meanwhile."""
    seconds = [f"{name}-2" for name in NAMES]
    with shop(orders_kafka, redis, wait_s=8, partitions=3) as made:
        made.start(*seconds)
        prepare(made)

        def play(turn: int) -> None:
            role = made.roles[(*NAMES[1:], *seconds[1:])[turn % 6]]
            role.pause()
            time.sleep(PAUSED_S)
            role.resume()

        place_all(made, play)
        well(made)


@pytest.mark.fault(92)
def test_92_the_cache_is_lost_and_groups_begin_again(orders_kafka: Kafka, redis: Redis) -> None:
    with shop(orders_kafka, redis, wait_s=60, partitions=3) as made:
        prepare(made)

        def play(turn: int) -> None:
            with redis_client.Redis.from_url(redis.url) as client:
                client.flushall()

        place_all(made, play)
        for name in NAMES[1:]:
            made.roles.pop(name).stop()
        partitions = range(3)
        reset(orders_kafka, "fulfilment", NAMES[:3], partitions)
        for name in NAMES[1:3]:
            reset(orders_kafka, f"{name}.receiver", ("fulfilment.commands",), partitions)
        made.start(*NAMES[1:])
        well(made)
        time.sleep(5)  # what is read again has no effect
        well(made)


@pytest.mark.fault(93)
def test_93_every_service_is_cut_off_from_kafka_and_redis_at_many_steps(redis: Redis) -> None:
    with Broker() as broker, ExitStack() as stack:
        caches = {name: stack.enter_context(Proxy(redis.port)) for name in NAMES}
        further = {
            name: {"EVENT_STORE_BROKERS": broker.proxied, "CACHE_URL": f"redis://{HOST}:{cache.port}"}
            for name, cache in caches.items()
        }
        made = stack.enter_context(shop(broker.kafka, redis, wait_s=60, partitions=3, further=further))
        prepare(made)

        def loses_answers(api: int, topic: str = "") -> None:
            """It has had its effect, and nobody knows."""
            lost = broker.proxy.down.cut(of_kafka(api, topic), 3)
            assert lost.struck.wait(20), f"nothing of {api} {topic} was lost"
            time.sleep(0.5)
            broker.open()

        def late(api: int, topic: str = "") -> None:
            """It has its effect once others have taken over."""
            held = broker.proxy.up.hold(of_kafka(api, topic))
            assert held.struck.wait(20), f"nothing of {api} {topic} was held"
            time.sleep(PAUSED_S)
            broker.open()

        def without_kafka() -> None:
            broker.proxy.refuse()
            time.sleep(PAUSED_S)
            broker.open()

        def without_redis(name: str) -> None:
            lost = caches[name].down.cut(times=20)
            assert lost.struck.wait(20)
            time.sleep(0.5)
            caches[name].refuse()
            time.sleep(PAUSED_S)
            caches[name].open()

        topics = ("fulfilment.transactions", "fulfilment.commands", "payments.transactions", "payments", "stock")
        plays: list[Callable[[], None]] = [partial(loses_answers, PRODUCE, topic) for topic in topics]
        plays += [partial(loses_answers, OFFSET_COMMIT), partial(late, OFFSET_COMMIT), partial(late, FETCH)]
        plays += [partial(late, PRODUCE, topic) for topic in topics[:3]]
        plays += [without_kafka, *[partial(without_redis, name) for name in NAMES]]
        place_during(made, plays)
        well(made)


@pytest.mark.fault(94)
def test_94_the_clocks_of_logs_jump_ahead_and_back(orders_kafka: Kafka, redis: Redis) -> None:
    """By a broker's clock, or by that of whoever writes: here the logs take the timestamps that records bring."""
    wait_s, partitions = 10.0, 3
    with shop(orders_kafka, redis, wait_s=wait_s, partitions=partitions) as made:
        prepare(made)
        made.post("payments", "/wallets/rich", "TopUp", amount=10_000_000)
        logs = [f"{name}.transactions" for name in NAMES]
        for log in logs:
            configure(orders_kafka.brokers, log, {"message.timestamp.type": "CreateTime"})
        pen = Producer({"bootstrap.servers": orders_kafka.brokers, "acks": "all", "linger.ms": 1})

        def jump(turn: int, ahead_s: float) -> None:
            """One record says that it is this time. All others say what time it is."""
            stamp = int((time.time() + ahead_s) * 1000)
            for log in logs:
                for partition in range(partitions):
                    pen.produce(log, encode(Barrier(())), f"pen{turn}{ahead_s}-1", partition, timestamp=stamp)
            assert pen.flush(20) == 0

        def play(turn: int) -> None:
            jump(turn, (3_000, -3_000, 30, -30, 86_400, 3_000)[turn % 6])

        def overdue(id: str) -> float:
            """So long an order waits for an approval that does not come."""
            began = time.monotonic()
            made.place(id, "rich", "s0", 1_000_000)
            assert made.until(id, "cancelled", within_s=4 * wait_s)["reason"] == OVERDUE
            return time.monotonic() - began

        place_all(made, play)
        well(made)
        took = overdue("held")
        assert wait_s <= took < wait_s + 5  # neither at once nor never
        wait_until(lambda: answered(made.kafka), 30, "each command is answered")
        check_commands(made.kafka)
