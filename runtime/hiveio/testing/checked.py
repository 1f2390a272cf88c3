"""A contract that looks at what its actor does: with what it is given, and whether it does the same each time."""

import inspect
from collections.abc import Callable
from typing import Any

import msgspec

from hiveio.actor import Actor, Contract, Event, Transaction
from hiveio.envelope import encode_json


def checked(contract: Contract, faults: list[str]) -> Contract:
    """Every event is folded twice, and what ``perform`` and ``replay`` are given is compared before and after: in
    production nobody else would see such a change, so whoever relies on it is wrong. Faults are added to the list.
    """
    _watch_perform(contract, faults)
    _watch_replay(contract, faults)
    return contract


class _Watched:
    """Values that an actor is given, as they are then."""

    def __init__(self, called: str) -> None:
        self._called = called
        self._given: list[tuple[str, Any, str]] = []

    def give(self, what: str, value: Any) -> Any:
        if value is not None:
            self._given.append((what, value, _shown(value)))
        return value

    def faults(self) -> list[str]:
        return [
            f"{self._called} changed the {what} that it was given: it was {before} and is {_shown(value)}"
            for what, value, before in self._given
            if _shown(value) != before
        ]


class _Reads:
    """A ``tx`` that watches what it gives."""

    def __init__(self, tx: Transaction, watched: _Watched) -> None:
        self._tx, self._watched = tx, watched

    async def get(self, actor: type[Actor], id: str) -> Any:
        return self._watched.give("state", await self._tx.get(actor, id))

    def emit(self, actor: type[Actor], id: str, event: Event) -> None:
        self._tx.emit(actor, id, event)


def _watch_perform(contract: Contract, faults: list[str]) -> None:
    invoke = contract.invoke

    def invoked(state: Any, message: Any, context: Any, tx: Transaction | None) -> Any:
        watched = _Watched(f"{contract.kind.__name__}.perform")
        watched.give("message", message)
        watched.give("state", state)
        look: Callable[[], None] = lambda: faults.extend(watched.faults())  # noqa: E731
        waits = False
        try:
            result = invoke(state, message, context, _Reads(tx, watched) if tx is not None else None)
            waits = inspect.isawaitable(result)
            return _waited(result, look) if waits else result
        finally:
            if not waits:
                look()

    contract.invoke = invoked


async def _waited(result: Any, look: Callable[[], None]) -> Any:
    try:
        return await result
    finally:
        look()


def _watch_replay(contract: Contract, faults: list[str]) -> None:
    replay = contract.replay
    if replay is None:
        return
    called = f"{contract.kind.__name__}.replay"

    def twice(state: Any, event: Any) -> Any:
        watched = _Watched(called)
        watched.give("state", state)
        watched.give("event", event)
        first = replay(state, event)
        faults.extend(changes := watched.faults())
        folded = encode_json(first)
        if not changes and folded != (second := encode_json(replay(state, event))):
            text = f"{called} is not deterministic: {event!r} on {state!r} gave"
            faults.append(f"{text} {folded.decode()} and then {second.decode()}")
        if not isinstance(first, contract.model or object):
            faults.append(f"{called} gave {first!r} for {event!r}, which is no {contract.model}")
        return first

    contract.replay = twice


def _shown(value: Any) -> str:
    try:
        return encode_json(value).decode()
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        return repr(value)  # what was put into it is nothing that JSON has
