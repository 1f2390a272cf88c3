"""The four services of ``examples/orders`` as processes: orders are fulfilled or compensated, over kills and resets."""

from typing import Any

import pytest

from tests.orders import answered, check_commands, reset, shop
from tests.process import wait_until
from tests.services import Kafka, Redis

pytestmark = [pytest.mark.timeout(170)]


def test_orders_are_fulfilled_or_compensated_whatever_is_killed_or_given_again(own_kafka: Kafka, redis: Redis) -> None:
    with shop(own_kafka, redis) as made:
        made.post("payments", "/wallets/ada", "TopUp", amount=2_000_00)
        made.post("stock", "/articles/tea", "Receive", quantity=25)
        made.place("paid", "ada", "tea", 100)
        made.until("paid", "confirmed")
        made.place("poor", "ada", "tea", 999_999)
        assert made.until("poor", "cancelled")["reason"] == "payments: there is not enough money"
        made.place("unknown", "bob", "tea", 5)
        assert made.until("unknown", "cancelled")["reason"] == "payments: this customer has no wallet"
        made.place("empty", "ada", "coffee", 7)
        assert made.until("empty", "cancelled")["reason"] == "stock: there is no such article"
        made.place("late", "ada", "tea", 1_500_00)
        assert made.until("late", "cancelled")["reason"] == "the payment was not approved in time"

        def wallet() -> dict[str, Any]:
            return made.state("payments", "/wallets/ada")

        wait_until(lambda: wallet().get("reserved") == {"paid": 100} and not wallet()["held"], 20, "all is released")
        assert wallet()["available"] == 2_000_00 - 100

        for number in range(20):
            made.place(f"o{number}", "ada", "tea", 10)
            if number == 0:  # one is paid before the payments are away
                made.until("o0", "confirmed")
            if number == 5:
                made.kill("payments")
            if number == 10:
                made.kill("fulfilment")
            if number == 15:
                made.kill("stock")
        reset(own_kafka, "payments.receiver", ("fulfilment.commands",))
        reset(own_kafka, "fulfilment", ("orders", "payments", "stock"))
        made.start("payments", "fulfilment", "stock")
        # Some may have waited for the payments for too long.
        orders = [made.until(f"o{number}", "confirmed", "cancelled", within_s=60) for number in range(20)]
        confirmed = [f"o{number}" for number, order in enumerate(orders) if order["status"] == "confirmed"]
        assert confirmed
        paid = {"paid": 100} | dict.fromkeys(confirmed, 10)
        wait_until(lambda: wallet().get("reserved") == paid, 20, "what is not confirmed is released")
        assert wallet()["available"] == 2_000_00 - sum(paid.values())
        picked = len(confirmed) + 1
        assert made.state("stock", "/articles/tea") == {"there": 25 - picked, "picked": picked}
        wait_until(lambda: answered(own_kafka), 20, "all is answered")
        check_commands(own_kafka)
