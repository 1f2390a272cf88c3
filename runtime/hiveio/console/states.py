"""The states of an aggregate after each of its events, folded by the ``replay`` of its own actor."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from hiveio.actor import Contract
from hiveio.console.records import Row
from hiveio.envelope import encode_json
from hiveio.transaction.record import Commit

FOLDED = 2_000  # records of an aggregate from its first one on; of a longer history no states are shown


class Step(NamedTuple):
    """An event, the version after it, and the state after it as JSON, or ``fault``: why it cannot be folded."""

    row: Row
    version: int
    event: bytes
    state: bytes | None
    fault: str


def steps(name: str, rows: Sequence[Row], contracts: Mapping[str, Contract]) -> list[Step]:
    """All events of an aggregate by the accepted records that wrote it, oldest first. It calls the actor's code."""
    contract = contracts.get(name.partition("/")[0])
    state: Any = None
    fault = "" if contract is not None else "this actor is not here: set ACTOR_MODULE"
    version, found = 0, []
    for row in rows:
        for event in _events(name, row):
            version += 1
            encoded = None
            if contract is not None and not fault:
                try:
                    state, encoded = _folded(contract, state, event)
                except BaseException as error:  # an actor may raise whatever it likes
                    fault = f"it cannot be folded: {type(error).__name__}: {error}"
            found.append(Step(row, version, event, encoded, fault))
    return found


def _events(name: str, row: Row) -> list[bytes]:
    if not isinstance(row.record, Commit):
        return []
    return [bytes(event) for write in row.record.writes if write.aggregate == name for event in write.events]


def _folded(contract: Contract, state: Any, event: bytes) -> tuple[Any, bytes]:
    """The state after an event, decoded from its snapshot, as every instance has it."""
    assert contract.replay is not None
    snapshot = encode_json(contract.replay(state, contract.event_codec.decode(msgspec.Raw(event))[0]))
    return contract.model_decoder.decode(snapshot), snapshot
