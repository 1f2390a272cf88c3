"""Faults 90 to 92: what processes lead through four services, while all of these fail."""

import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis as redis_client

from tests.orders import NAMES, Shop, answered, check_commands, reset, shop
from tests.process import wait_until
from tests.services import Kafka, Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(400, func_only=True)]

ORDERS = 500
SKUS, CUSTOMERS = 4, 20
MONEY, PIECES = 1_000, 100  # so some have too little money, and some articles run out
PAUSED_S = 3.0  # longer than a lease
SETTLED_S = 120.0


def place_all(made: Shop, play: Callable[[int], None]) -> None:
    """Place orders, many at once, and play a fault now and then."""
    numbers, one_at_a_time = itertools.count(), threading.Lock()

    def one(number: int) -> None:
        customer, sku = f"c{number % CUSTOMERS}", f"s{number % SKUS}"
        made.place(f"o{number}", customer, sku, 10 + 30 * (number % 3))
        if (count := next(numbers)) % (ORDERS // 6) == ORDERS // 12:
            with one_at_a_time:
                play(count // (ORDERS // 6))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(ORDERS)))


def prepare(made: Shop) -> None:
    for number in range(CUSTOMERS):
        made.post("payments", f"/wallets/c{number}", "TopUp", amount=MONEY)
    for number in range(SKUS):
        made.post("stock", f"/articles/s{number}", "Receive", quantity=PIECES)


def well(made: Shop) -> None:
    """Every process has ended, none half; money and goods add up; each command was executed once and answered."""
    made.until("o0", "confirmed", "cancelled", within_s=SETTLED_S)
    statuses = [made.until(f"o{number}", "confirmed", "cancelled", within_s=SETTLED_S) for number in range(ORDERS)]
    confirmed = {number for number, order in enumerate(statuses) if order["status"] == "confirmed"}
    assert 0 < len(confirmed) < ORDERS
    print(f"{len(confirmed)} of {ORDERS} confirmed")
    wait_until(lambda: answered(made.kafka), SETTLED_S, "each command is answered")
    for number in range(ORDERS):
        assert not made.state("fulfilment", f"/fulfilments/o{number}"), f"the process of o{number} has not ended"
    for number in range(CUSTOMERS):
        wallet = made.state("payments", f"/wallets/c{number}")
        mine = {f"o{each}": 10 + 30 * (each % 3) for each in confirmed if each % CUSTOMERS == number}
        assert wallet == {"available": MONEY - sum(mine.values()), "reserved": mine, "held": {}}
    for number in range(SKUS):
        picked = sum(each % SKUS == number for each in confirmed)
        assert made.state("stock", f"/articles/s{number}") == {"there": PIECES - picked, "picked": picked}
    check_commands(made.kafka)


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
