"""Where aggregates belong, and the last records of a log, read in bounded bites."""

from collections.abc import Callable
from typing import Any

import pytest

from hiveio.actor import contracts
from hiveio.errors import Corrupt
from hiveio.transaction import placement
from hiveio.transaction.placement import Placement, last_records
from hiveio.transaction.record import Barrier, CommandId, Commit, Foreign, Read, Record, Write, encode
from hiveio.transaction.rule import scope_of
from tests.faults.actors import AccountActor

HERE, ELSEWHERE = (next(f"Account/{n}" for n in range(20) if scope_of(f"{n}", 2) == scope) for scope in (0, 1))


def commit(written: str, read: str = "") -> Commit:
    return Commit(CommandId(written, "k"), (Write(written, "", 0),), (Read(read, ""),) if read else ())


@pytest.mark.parametrize(
    "record", [commit(ELSEWHERE), commit(HERE, ELSEWHERE), Barrier((HERE, ELSEWHERE)), commit("Account/raises")]
)
def test_each_aggregate_of_a_record_has_its_place(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    def scope(self: Any, id: str) -> str:
        if id == "raises":
            raise SystemExit
        return id

    monkeypatch.setattr(AccountActor, "scope", scope)
    by_name = {contract.name: contract for contract in contracts([AccountActor])}
    Placement(by_name, "log", 1).check(0, 7, record)
    Placement({}, "log", 2).check(0, 7, record)  # of an actor that is not here
    Placement(by_name, "log", 2, f"Account/other, {ELSEWHERE}").check(0, 7, record)
    placement = Placement(by_name, "log", 2)
    placement.check(0, 7, Foreign())
    placement.check(0, 7, record, {ELSEWHERE: 1})
    if record == commit("Account/raises"):
        placement.check(0, 7, record)  # what this version cannot place, it cannot write either
    else:
        with pytest.raises(Corrupt, match=f"log/0/7 has {ELSEWHERE}, which belongs to partition 1"):
            placement.check(0, 7, record)


class Message:
    def __init__(self, offset: int, value: bytes) -> None:
        self._offset, self._value = offset, value

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return self._value

    def key(self) -> bytes:
        return b"tx"

    def timestamp(self) -> tuple[int, int]:
        return 0, 0


class Log:
    def __init__(self, values: list[bytes], first: int = 0) -> None:
        self.values, self.first, self.reads = values, first, list[tuple[int, int]]()

    async def bounds(self, partition: int) -> tuple[int, int]:
        return self.first, self.first + len(self.values)

    async def read_each(self, partition: int, offset: int, end: int, made: Callable[[Any], Any]) -> list[Any]:
        self.reads.append((offset, end))
        return [made(Message(at, self.values[at - self.first])) for at in range(offset, end)]


@pytest.mark.parametrize(
    ("values", "reads", "count"),
    [
        ([], [(5, 5)], 0),
        ([encode(commit(HERE))] * 7, [(5, 12)], 7),
        ([encode(commit(HERE))] * 50, [(45, 55), (5, 45)], 50),
        ([encode(commit(HERE))] * 500, [(495, 505), (405, 495)], 100),
        ([encode(commit(HERE)).ljust(placement.BYTES)] * 500, [(495, 505)], 10),
        ([b'{"kind":"new"}', b"[]"], [(5, 7)], 1),  # the scope reports what this version cannot read
    ],
)
async def test_the_last_records_are_read_in_bounded_bites(
    values: list[bytes], reads: list[tuple[int, int]], count: int
) -> None:
    log: Any = Log(values, 5)
    found = await last_records(log, 0)
    assert (log.reads, len(found)) == (reads, count)
    assert [offset for offset, _ in found] == sorted(offset for offset, _ in found)
