"""The record of what a command has led to."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

from hiveio.errors import Problem, Rejected, TooLarge
from hiveio.http.problem import encode_problem
from hiveio.transaction.command import InFlight
from hiveio.transaction.journal import RECORD_LIMIT
from hiveio.transaction.record import Cause, Commit, ProcessStep, Read, Write
from hiveio.transaction.tx import Tx

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def validated(
    command: InFlight, tx: Tx, raw: dict[str, list[Raw]], refusal: Problem | None, chained: bool
) -> tuple[Read, ...]:
    """The reads on which the verdict depends: those of aggregates that are not written, if they may be of different
    offsets, if others may have changed them since, or if the actor asks for it."""
    if len(raw) == len(tx.entries):
        return ()
    read = [(name, entry) for name, entry in tx.entries.items() if name not in raw]
    # After its lock was lost, others may have changed an aggregate: its tip is then not its state at ``next``.
    stale = any(command.scope.view.entries.get(name) is not entry for name, entry in read)
    # Without its lock, others may have changed one in records that were answered and are not read here yet.
    unlocked = any(tx.pipelines[name].unlocked for name, _ in read)
    if stale or unlocked or chained or refusal is not None or command.contract.serializable:
        return tuple([Read(name, entry.head or "") for name, entry in read])
    return ()


def record_of(
    command: InFlight,
    writes: tuple[Write, ...],
    reads: tuple[Read, ...],
    refusal: Problem | None,
    step: ProcessStep | None,
    cause: Cause | None,
) -> Commit:
    """The record of a decision."""
    return Commit(
        command.id,
        writes,
        reads,
        command.keyed,
        command.hash,
        None if refusal is None else _decode(encode_problem(refusal)),
        command.trace.get("traceparent", ""),
        {} if refusal is None else refusal.headers,
        command.trace.get("tracestate", ""),
        command.scope.view.next,
        tuple([(name, value.decode("latin-1")) for name, value in command.passed]) if command.passed else (),
        step,
        cause,
    )


def check_passed(passed: Sequence[tuple[str, bytes]], events: int) -> None:
    """The record has these headers once, and each of its events has them on the topic. Raises TooLarge."""
    size = events * sum(len(name) + len(value) for name, value in passed)
    if size > RECORD_LIMIT:
        raise TooLarge(
            f"The headers of EVENT_HEADERS would have {size} bytes in the {events} events of this command; at most "
            f"{RECORD_LIMIT} are allowed."
        )


def problem_of(document: dict[str, Any], headers: dict[str, str]) -> Problem:
    """The problem of a document, which was a refusal or another answer that nothing changes any more."""
    found = Rejected(document.pop("detail", ""))
    found.urn, found.title, found.status = document.pop("type"), document.pop("title"), document.pop("status")
    found.members, found.headers = document, headers
    return found
