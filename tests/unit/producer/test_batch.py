"""The records of a batch that are refused, and those that do not come."""

import asyncio
import time
from typing import Any, cast

from hiveio.actor import performing
from hiveio.config import Settings
from hiveio.http.edge import Edge
from hiveio.http.routes import messages
from hiveio.kafka import Sender
from hiveio.producer.batch import Intake
from hiveio.producer.publishing import Publishing
from tests.garbage import TIMES, nothing_to_collect
from tests.unit.http.test_edge import call, deposit, service
from tests.unit.producer.test_publishing import Late


def taking_batches(**environ: str) -> Edge:
    made = service(**environ)
    contract, unused = made.contracts[0], cast("Sender", Late())
    publishing = Publishing(performing(contract), contract, unused, Settings(topic="t"), None)
    intake = Intake(made, contract.command_codec, publishing)
    return Edge(made, messages(contract, publishing, success=200, intake=intake))


async def test_where_all_its_times_are_over_at_once_the_answers_are_given() -> None:
    """Those for the next bytes and for the whole request end in one turn of a loop that had no CPU for long."""
    edge = taking_batches(REQUEST_TIMEOUT="300")
    edge.watch()
    sent: list[Any] = []
    answer = asyncio.create_task(call(edge, "POST", "/accounts/1", [b"[%b," % deposit(13)], hang=True, sent=sent))
    await asyncio.sleep(0.05)  # it waits for more
    time.sleep(0.5)  # noqa: ASYNC251
    first, rest = (await answer).json
    assert (first["status"], rest["status"], rest["rest"]) == (422, 408, True)
    edge.unwatch()


async def test_a_batch_with_refused_records_leaves_nothing_to_the_collector() -> None:
    edge = taking_batches()
    body = b"[%b]" % b",".join([b"1", b'{"type":"Unheard"}', deposit(13)])
    for _ in range(TIMES):
        answer = await call(edge, "POST", "/accounts/1", body)
        assert [each["status"] for each in answer.json] == [422, 422, 422]
    with nothing_to_collect():
        for _ in range(TIMES):
            await call(edge, "POST", "/accounts/1", body)
