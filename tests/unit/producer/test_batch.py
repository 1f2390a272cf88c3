"""The records of a batch that are refused."""

from typing import cast

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


async def test_a_batch_with_refused_records_leaves_nothing_to_the_collector() -> None:
    made = service()
    contract, unused = made.contracts[0], cast("Sender", Late())
    publishing = Publishing(performing(contract), contract, unused, Settings(topic="t"), None)
    intake = Intake(made, contract.command_codec, publishing)
    edge = Edge(made, messages(contract, publishing, success=200, intake=intake))
    body = b"[%b]" % b",".join([b"1", b'{"type":"Unheard"}', deposit(13)])
    for _ in range(TIMES):
        answer = await call(edge, "POST", "/accounts/1", body)
        assert [each["status"] for each in answer.json] == [422, 422, 422]
    with nothing_to_collect():
        for _ in range(TIMES):
            await call(edge, "POST", "/accounts/1", body)
