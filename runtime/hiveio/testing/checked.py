"""A contract that finds faults of its actor: it changes an argument, or gives another result for the same arguments."""

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec

from hiveio.actor import Actor, Contract, Transaction
from hiveio.envelope import encode_json
from hiveio.messages import Command, Deadline, Event


def checked(contract: Contract, faults: list[str]) -> Contract:
    """The contract, with checks. Each event is folded twice, and the arguments of ``perform`` and ``replay`` are
    compared before and after the call: in production nobody else sees such a change, so it is a fault to rely on one.
    Faults are added to the list as sentences.
    """
    _watch_perform(contract, faults)
    _watch_replay(contract, faults)
    return contract


class _Watched:
    """The arguments of a call, as they are before it."""

    def __init__(self, called: str) -> None:
        self._called = called
        self._given: list[tuple[str, Any, str]] = []

    def add(self, what: str, value: Any) -> Any:
        if value is not None:
            self._given.append((what, value, _shown(value)))
        return value

    def faults(self) -> list[str]:
        return [
            f"{self._called} changed the {what} that it was given: it was {before} and is now {_shown(value)}"
            for what, value, before in self._given
            if _shown(value) != before
        ]


class _Reads:
    """A ``tx`` that watches the states which it gives."""

    def __init__(self, tx: Transaction, watched: _Watched) -> None:
        self._tx, self._watched = tx, watched

    async def get(self, actor: type[Actor], id: str) -> Any:
        return self._watched.add("state", await self._tx.get(actor, id))

    def emit(self, actor: type[Actor], id: str, event: Event) -> None:
        self._tx.emit(actor, id, event)

    def send(self, service: str, id: str, command: Command) -> None:
        self._tx.send(service, id, command)

    def schedule(self, deadline: Deadline, *, after: timedelta, name: str = "") -> None:
        self._tx.schedule(deadline, after=after, name=name)

    def cancel(self, kind: type[Deadline], name: str = "") -> None:
        self._tx.cancel(kind, name)

    def end(self) -> None:
        self._tx.end()


def _watch_perform(contract: Contract, faults: list[str]) -> None:
    invoke = contract.invoke

    def invoked(state: Any, message: Any, context: Any, tx: Transaction | None) -> Any:
        watched = _Watched(f"{contract.kind.__name__}.perform")
        watched.add("message", message)
        watched.add("state", state)
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
        watched.add("state", state)
        watched.add("event", event)
        first = replay(state, event)
        faults.extend(changes := watched.faults())
        folded = encode_json(first)
        if not changes and folded != (second := encode_json(replay(state, event))):
            text = f"{called} is not deterministic: for {event!r} on {state!r} it returned"
            faults.append(f"{text} {folded.decode()} first and then {second.decode()}")
        if not isinstance(first, contract.model or object):
            faults.append(f"{called} returned {first!r} for {event!r}, which is not a {_name(contract.model)}")
        return first

    contract.replay = twice


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _shown(value: Any) -> str:
    try:
        return encode_json(value).decode()
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        return repr(value)  # it holds a value that JSON does not have
