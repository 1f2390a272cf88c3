"""Fault 98: deadlines of processes in scopes that nobody uses, and while no instance is there."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from hiveio.transaction import record as records
from hiveio.transaction.record import Commit
from tests.faults.orders import ORDERS, OVERDUE
from tests.integration.topics import read_all
from tests.orders import Shop, answered, check_commands, headers, shop
from tests.process import wait_until
from tests.services import Kafka, Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(400, func_only=True)]

WAIT_S = 10.0  # until a payment is overdue
LATE_S = 1.0  # that a deadline may be late while the service is up
BUSY_S = 5.0  # the same on a machine that has something else to do, where a leader may pause for two seconds
PARTITIONS = 3


@pytest.fixture
def orders_kafka() -> Any:
    with Kafka() as service:
        yield service


@pytest.mark.fault(98)
def test_98_deadlines_fire_in_scopes_that_nobody_uses_and_after_the_service_was_away(
    orders_kafka: Kafka, redis: Redis
) -> None:
    entrypoints = {"fulfilment": Path(__file__).parent / "entrypoint.py"}
    further = {"fulfilment": {"HIVEIO_BROKEN": "hasty"}}  # a scope is left as soon as nobody uses it
    with shop(
        orders_kafka, redis, wait_s=WAIT_S, partitions=PARTITIONS, further=further, entrypoints=entrypoints
    ) as made:
        made.post("payments", "/wallets/rich", "TopUp", amount=1_000_000_000)
        hold(made, range(ORDERS))
        times = wait_until(lambda: fired(made, ORDERS), WAIT_S + 60, "all deadlines have fired")
        late = [fired - scheduled - WAIT_S for scheduled, fired in times.values()]
        print(f"{len(late)} deadlines: {statistics.median(late):.2f} s late, {max(late):.2f} at most")
        assert min(late) >= -0.1  # the log's clock says the same, but for the time between two records
        assert statistics.median(late) < LATE_S
        assert max(late) < 2 * BUSY_S
        with redis_client.Redis.from_url(redis.url) as client:
            rest = "hive:{fulfilment.transactions*:rest"
            wait_until(lambda: len(client.keys(rest)) == PARTITIONS, 30, "all scopes are left at rest")
        for how in ("stop", "kill"):
            first = len(fired(made, 0) or {})
            hold(made, range(ORDERS + first, ORDERS + first + 50))
            wait_until(lambda: len(started(made)) == first + 50, 30, "all have begun")  # noqa: B023
            made.kill("fulfilment") if how == "kill" else made.roles.pop("fulfilment").stop()
            time.sleep(WAIT_S + 1)
            made.start("fulfilment")
            up = time.monotonic()
            wait_until(lambda: fired(made, first + 50), 20, "all deadlines have fired")  # noqa: B023
            took = time.monotonic() - up
            print(f"{how}: {took:.2f} s after it was ready")
            assert took < BUSY_S
        wait_until(lambda: answered(orders_kafka), 30, "each command is answered")
        for number in (0, ORDERS - 1):
            assert made.until(f"h{number}", "cancelled")["reason"] == OVERDUE
        wallet = made.state("payments", "/wallets/rich")
        assert wallet == {"available": 1_000_000_000, "reserved": {}, "held": {}}
        check_commands(orders_kafka)


def hold(made: Shop, numbers: range) -> None:
    """Orders whose payment waits for an approval that does not come."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: made.place(f"h{number}", "rich", "s0", 200_000), numbers))


def started(made: Shop) -> list[str]:
    return [kind for kind, _ in headers(made.kafka, "fulfilment") if kind == "FulfilmentStarted"]


def fired(made: Shop, count: int) -> dict[str, tuple[float, float]] | None:
    """When each deadline was scheduled and has fired, by the timestamps of the log, once so many have fired."""
    scheduled: dict[str, float] = {}
    found: dict[str, tuple[float, float]] = {}
    for message in sorted(read_all(made.kafka.brokers, "fulfilment.transactions"), key=lambda each: each.offset() or 0):
        record, at = records.decode(message.value() or b""), message.timestamp()[1] / 1000
        if isinstance(record, Commit) and record.process is not None:
            name = record.command.target
            if record.process.schedules:
                scheduled.setdefault(name, at)
            if record.process.fires and name not in found:
                found[name] = scheduled[name], at
    return found if len(found) >= count else None
