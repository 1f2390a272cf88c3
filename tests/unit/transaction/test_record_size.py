"""What a command costs in the log and on the event topic, in bytes: the table of docs/operations.md."""

import re

import pytest

from hiveio import Identity, testing
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.publisher import Origin, outgoing
from hiveio.transaction.record import Commit, encode
from tests.faults.actors import AccountActor, Deposit
from tests.process import ROOT

UUID = "0b6e3b1c-6b0e-4e0a-9f5e-0e6a1d2c3b4f"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def table() -> dict[str, int]:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8").split("### Runbook: capacity")[1]
    return {name: int(size.replace(",", "")) for name, size in re.findall(r"^\| ([^|]+?) \| ([\d,]+) B", text, re.M)}


async def sizes(key: str | None = None, identity: Identity | None = None, trace: str = "") -> tuple[int, int]:
    """Bytes of the record in the log without its event, and of the headers of the event on its topic."""
    async with testing.Service(AccountActor) as service:
        for number in range(2):
            await service.submit(
                AccountActor,
                "customer-000042",
                Deposit(5, "x"),
                key=key and f"{key[:-1]}{number}",
                identity=identity,
                headers={"traceparent": trace} if trace else None,
            )
        record = service.records()[-1].record
        assert isinstance(record, Commit)
        value = encode(record)
        (event,) = outgoing(Origin("t", "log", 0), LogRecord(1_000_000, "0123456789abcdef-3e8", value, 0), record)
        event.headers.append(("hive-previous", "0:999999:0"))
        transaction_id = 20
        headers = sum(len(name) + len(str(text)) for name, text in event.headers)
        return len(value) - len(event.value or b"") + transaction_id, headers


async def test_the_table_of_the_runbook_is_true() -> None:
    plain, headers = await sizes()
    measured = {
        "a command in the log, without its event": plain,
        "an `Idempotency-Key` of 36 characters in the log": (await sizes(UUID))[0] - plain,
        "a caller with a `sub` of 36 characters in the log": (await sizes(None, Identity.of(UUID)))[0] - plain,
        "a trace in the log": (await sizes(None, None, TRACE))[0] - plain,
        "the headers of an event on its topic": headers,
        "the caller there": (await sizes(None, Identity.of(UUID)))[1] - headers,
    }
    written = table()
    assert {name: pytest.approx(written[name], rel=0.05) for name in measured} == measured
