"""What processes cost: steps a second beside plain commands, and how long a process over three services takes."""

import statistics
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from confluent_kafka import Consumer, TopicPartition

from tests.bench.bench import Bench, Lost
from tests.bench.measure import Row, Sample
from tests.bench.stream import DISTINCT
from tests.orders import Shop, answered, check_commands, shop
from tests.process import wait_until

STEPS = 6  # of an order: three events come to its process, and three commands to services
CUSTOMERS = 200
LOOK_S = 0.002  # between two looks at an order
WITHIN_S = 300.0


def sagas(bench: Bench) -> None:
    """Orders over four services: the steps of many at once, and the time that one takes, beside plain commands."""
    clients, orders = max(bench.clients), max(20, bench.records // 200)
    with bench.role("stream-processor", "tally:Tallies") as role:
        measure = bench.http(role, DISTINCT, clients)
        bench.add(
            [Row("sagas", "commands on distinct aggregates", clients, tuple(measure() for _ in range(bench.rounds)))]
        )
    with shop(bench.kafka, bench.redis, wait_s=3_600) as made:
        for number in range(CUSTOMERS):
            made.post("payments", f"/wallets/c{number}", "TopUp", amount=1_000_000)
            made.post("stock", f"/articles/s{number}", "Receive", quantity=1_000_000)
        many = tuple(at_once(bench, made, f"many{number}", orders) for number in range(bench.rounds))
        alone = tuple(one_by_one(made, f"alone{number}", max(5, orders // 50)) for number in range(bench.rounds))
        wait_until(lambda: answered(made.kafka), WITHIN_S, "each command is answered")
        check_commands(made.kafka)
    bench.add(
        [Row("sagas", f"steps of {orders:,} orders at once", 0, many), Row("sagas", "orders, one by one", 1, alone)]
    )
    bench.show("sagas")


def at_once(bench: Bench, made: Shop, name: str, orders: int) -> Sample:
    """Place orders while nobody leads them, then let them go: the steps a second from the first confirmation on."""
    made.roles.pop("fulfilment").stop()
    with closing(topic_end(made, "orders")) as end:
        first = next(end) + orders  # an order that was answered may be published a moment later
        with ThreadPoolExecutor(8) as pool, bench.console.status(f"sagas: {orders:,} orders are placed"):
            list(pool.map(lambda n: made.place(f"{name}-{n}", *parties(n), 1), range(orders)))
        wait_until(lambda: next(end) >= first, WITHIN_S, "all orders are published")
        with bench.console.status(f"sagas: {orders:,} orders are fulfilled"):
            made.begin("fulfilment")
            until, began = time.monotonic() + WITHIN_S, time.monotonic()
            while (now := next(end)) < first + orders:
                assert time.monotonic() < until, f"{now - first} of {orders} orders are confirmed"
                if now == first:
                    began = time.monotonic()
                time.sleep(0.01)
            took = time.monotonic() - began
            made.start()
    return Sample((now - first) * STEPS / took, 0, 0, 0)


def parties(number: int) -> tuple[str, str]:
    """The customer and the article of an order."""
    return f"c{number % CUSTOMERS}", f"s{number % CUSTOMERS}"


def one_by_one(made: Shop, name: str, orders: int) -> Sample:
    """The time from an order to its confirmation."""
    taken = []
    for number in range(orders):
        began = time.monotonic()
        made.place(f"{name}-{number}", *parties(number), 1)
        while made.state("orders", f"/orders/{name}-{number}").get("status") != "confirmed":
            if time.monotonic() - began > WITHIN_S:
                raise Lost(f"sagas: the order {name}-{number} is not confirmed")
            time.sleep(LOOK_S)
        taken.append((time.monotonic() - began) * 1000)
    rate = 1000 / statistics.mean(taken)
    return Sample(rate, statistics.median(taken), sorted(taken)[int(len(taken) * 0.99)], 0)


def topic_end(made: Shop, topic: str) -> Generator[int]:
    """The end of a topic, whenever it is asked for."""
    consumer = Consumer({"bootstrap.servers": made.kafka.brokers, "group.id": "bench"})
    try:
        while True:
            yield int((consumer.get_watermark_offsets(TopicPartition(topic, 0), 10) or (0, 0))[1])
    finally:
        consumer.close()
