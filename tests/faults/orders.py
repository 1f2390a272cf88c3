"""Orders that go through four services while faults are played, and what must have become of them at the end."""

import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.orders import Shop, answered, check_commands
from tests.process import wait_until

ORDERS = 500
SKUS, CUSTOMERS = 4, 20
MONEY, PIECES = 1_000, 100  # so some have too little money, and some articles run out
SETTLED_S = 120.0
OVERDUE = "the payment was not approved in time"

Play = Callable[[int], None]


def prepare(made: Shop) -> None:
    for number in range(CUSTOMERS):
        made.post("payments", f"/wallets/c{number}", "TopUp", amount=MONEY)
    for number in range(SKUS):
        made.post("stock", f"/articles/s{number}", "Receive", quantity=PIECES)


def amount(number: int) -> int:
    return 10 + 30 * (number % 3)


def place(made: Shop, number: int) -> None:
    made.place(f"o{number}", f"c{number % CUSTOMERS}", f"s{number % SKUS}", amount(number))


def place_all(made: Shop, play: Play) -> None:
    """Place orders, many at once, and play a fault now and then."""
    numbers, one_at_a_time = itertools.count(), threading.Lock()

    def one(number: int) -> None:
        place(made, number)
        if (count := next(numbers)) % (ORDERS // 6) == ORDERS // 12:
            with one_at_a_time:
                play(count // (ORDERS // 6))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(ORDERS)))


def place_during(made: Shop, plays: list[Callable[[], None]]) -> None:
    """Play one fault after the other, and place a share of the orders while each of them is played."""
    size = -(-ORDERS // len(plays))
    with ThreadPoolExecutor(8) as pool, ThreadPoolExecutor(1) as player:
        for turn, play in enumerate(plays):
            playing = player.submit(play)
            share = range(turn * size, min(ORDERS, (turn + 1) * size))
            list(pool.map(lambda number: place(made, number), share))
            playing.result()


def well(made: Shop, over_http: str = "") -> dict[int, Mapping[str, Any]]:
    """Every process has ended, none half; money and goods add up; each command was executed once and answered. Returns
    the orders."""
    made.until("o0", "confirmed", "cancelled", within_s=SETTLED_S)
    orders = {n: made.until(f"o{n}", "confirmed", "cancelled", within_s=SETTLED_S) for n in range(ORDERS)}
    confirmed = {number for number, order in orders.items() if order["status"] == "confirmed"}
    assert 0 < len(confirmed) < ORDERS
    print(f"{len(confirmed)} of {ORDERS} confirmed")
    wait_until(lambda: answered(made.kafka, over_http), SETTLED_S, "each command is answered")
    for number in range(ORDERS):
        assert not made.state("fulfilment", f"/fulfilments/o{number}"), f"the process of o{number} has not ended"
    for number in range(CUSTOMERS):
        mine = {f"o{each}": amount(each) for each in confirmed if each % CUSTOMERS == number}
        becomes(made, "payments", f"/wallets/c{number}", available=MONEY - sum(mine.values()), reserved=mine, held={})
    for number in range(SKUS):
        picked = sum(each % SKUS == number for each in confirmed)
        becomes(made, "stock", f"/articles/s{number}", there=PIECES - picked, picked=picked)
    check_commands(made.kafka, over_http)
    return dict(orders)


def becomes(made: Shop, service: str, path: str, **state: Any) -> None:
    """A state is right, or is within a moment: what nobody answers may be on its way."""
    try:
        wait_until(lambda: made.state(service, path) == state, 5)
    except AssertionError:
        assert made.state(service, path) == state, path
