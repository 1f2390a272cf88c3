"""``hiveio status`` over a stream processor and a consumer that work on a real Kafka and Redis."""

import re
import subprocess
from collections.abc import Iterator
from itertools import count

import msgspec
import pytest

from hiveio.status import Status
from tests.integration.accounts import ACTOR as ACCOUNTS
from tests.integration.accounts import send
from tests.integration.bank import HIVEIO, Bank, Console, hiveio, look, opened
from tests.integration.conftest import Make
from tests.integration.topics import largest_record
from tests.process import wait_until
from tests.services import Kafka

# What `processor` starts. An instance that ends has a second to say so, and would be listed as gone afterwards.
ACTOR = f"""{ACCOUNTS}
from hiveio.transaction import presence
presence.STOP_S = 20.0
"""


@pytest.fixture
def bank(processor: Make, topic: str) -> Iterator[Bank]:
    with opened(processor, topic) as bank:
        yield bank


def test_one_look_shows_scopes_groups_dead_letters_and_instances(bank: Bank) -> None:
    for id in ("ada", "bob", "zoe"):  # zoe is in the other scope
        assert send(bank.accounts, id, "Open", owner=id).status_code == 200
    assert send(bank.accounts, "mallory", "Open", owner="poison").status_code == 200
    assert send(bank.accounts, "mallory", "Deposit", amount=1).status_code == 200

    def settled() -> Status | None:
        status = bank.status()
        if status.problems or not all(each.ready for each in status.instances):
            return None
        # An instance looks once a second how far the events have come.
        if all(each.applied == each.end == each.judged and each.leader and not each.has_work for each in status.scopes):
            events = sum(scope.events_end for scope in status.scopes)
            dead = sum(group.dead.count for group in status.groups)
            return status if (events, dead) == (5, 2) and not any(group.lag for group in status.groups) else None
        return None

    status: Status = wait_until(settled, 60, "all is applied, published and handled")
    assert status.problems == []
    assert [scope.partition for scope in status.scopes] == [0, 1]
    assert sum(scope.events_end for scope in status.scopes) == 5
    assert [(scope.void_share, scope.publisher_lag) for scope in status.scopes] == [(0.0, 0), (0.0, 0)]
    group = next(group for group in status.groups if group.name == bank.group)
    assert (group.state, len(group.members), group.lag_s) == ("STABLE", 1, 0.0)
    assert (group.dead.keys, group.dead.reasons) == (1, {"failed": 1, "parked": 1})
    accounts, statements = status.instances
    assert (accounts.service, accounts.ready, accounts.gone) == ("accounts", True, False)
    assert accounts.url.endswith(f":{bank.accounts.port}")
    assert (accounts.leads, accounts.actors) == ([0, 1], ["AccountActor"])
    assert (statements.id, statements.ready) == (bank.statements.url, True)
    assert status.warnings == [f"Group {bank.group} has 2 open dead letters of 1 key."]

    shown = hiveio(bank.accounts, "status")
    assert (shown.returncode, shown.stderr) == (1, "")
    assert "ATTENTION\n! Group " in shown.stdout
    assert accounts.id in shown.stdout

    bank.accounts.kill()
    after = bank.status()
    assert any("does not answer" in problem for problem in after.problems)
    assert [scope.end for scope in after.scopes] == [scope.end for scope in status.scopes]
    assert after.instances[0].id == accounts.id
    assert after.instances[0].ready is None


def test_it_names_who_holds_up_publishing_and_who_has_gone(processor: Make, kafka: Kafka, topic: str) -> None:
    with processor() as first, processor() as second:

        def ports() -> set[str]:
            return {each.url.rpartition(":")[2] for each in look(first).instances}

        wait_until(lambda: ports() == {str(first.port), str(second.port)}, 30, "both are shown")
        largest_record(kafka.brokers, topic, 60)  # the event topic takes no event any more, whoever sends it
        ids, numbers = {each.id for each in look(first).instances}, count()

        def waits() -> bool:
            """The broker may go by the old bound for a moment still, and store the first events."""
            assert send(first, f"ada{next(numbers)}", "Open", owner="ada").status_code == 200
            return any((scope.publisher_lag_s or 0) > 1 for scope in look(first).scopes)

        wait_until(waits, 30, "events wait to be published")
        # Whoever fails to publish gives the lease back at once, so most looks find no leader.
        with Console(first.environ, every_s=0.1) as console:

            def blamed() -> str:
                found = re.search(r"have waited \d+ s to be published by (\w+)\.", console.page("/"))
                return found[1] if found else ""

            assert wait_until(blamed, 60, "the console names who holds up publishing") in ids

        def warning() -> str:  # for a moment there may be no leader, while the next one finds out
            return next((each for each in look(first).warnings if "to be published by" in each), "")

        warned = wait_until(warning, 60, "so does the status")
        assert warned.rpartition(" ")[2].rstrip(".") in ids
        assert second.stop() == 0
        assert ports() == {str(first.port)}


def test_a_scope_that_was_left_at_rest_needs_nobody(processor: Make) -> None:
    with processor(EVENT_STORE_PARTITIONS="2") as role:
        assert send(role, "ada", "Open", owner="ada").status_code == 200
        assert role.stop() == 0
        # No instance says any more which models it has, so the actor itself does.
        done = subprocess.run(
            [HIVEIO, "status", "--json"], env=role.environ, capture_output=True, timeout=60, check=False
        )
    status = msgspec.json.decode(done.stdout, type=Status)
    assert (status.warnings, status.problems, status.instances, status.partitions) == ([], [], [], 2)
    assert [(scope.leader, scope.rest) for scope in status.scopes if scope.end > 1] == [("", True)]
    assert done.returncode == 0
