"""Faults of actors in the log: one form in every role, with the actor's own frames first and without ours."""

import logging
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from hiveio.actor import Contract
from hiveio.envelope import Envelope
from hiveio.errors import text_of

_OURS = str(Path(__file__).parent)


def log_fault(
    logger: logging.Logger,
    error: BaseException,
    contract: Contract | None,
    envelope: Envelope | None = None,
    *,
    what: str = "",
    **fields: Any,
) -> None:
    """``AccountActor failed at Deposit: KeyError: 'ada'``, with the fields of ``about`` and a traceback.

    ``what`` names what failed where there is no message. If a frame is the actor's, those of this package are left
    out; if none is, it may be a fault of ours.
    """
    found = about(contract, envelope)
    if error.__cause__ is not None and not isinstance(error.__cause__, Exception):
        error = error.__cause__  # what was contained
    frames = error.__traceback__
    own = contract.kind.__module__.partition(".")[0] if contract is not None else ""
    if any(_module(frame).partition(".")[0] == own for frame in _walk(frames)):
        frames = _without_ours(frames)
    logger.error(
        "%s failed%s: %s: %s",
        what or (contract.kind.__name__ if contract is not None else "the service"),
        f" at {found['message_type']}" if "message_type" in found else "",
        type(error).__name__,
        text_of(error),
        exc_info=(type(error), error, frames),
        extra=found | fields,
    )


def about(contract: Contract | None, envelope: Envelope | None) -> dict[str, Any]:
    """The fields by which a line names an actor and its message: ``actor``, ``message_type``, ``id``; of a list also
    ``messages``, their number. The ``request_id`` is there by itself."""
    found: dict[str, Any] = {"actor": contract.name} if contract is not None else {}
    if envelope is not None:
        found |= about_message(envelope.message)
        if envelope.id:
            found["id"] = envelope.id
    return found


def about_message(message: Any) -> dict[str, Any]:
    if isinstance(message, list):
        kinds = dict.fromkeys(type(each).__name__ for each in message)
        return {"message_type": ", ".join(kinds), "messages": len(message)}
    return {"message_type": type(message).__name__}


def is_ours(filename: str) -> bool:
    """Whether the file is one of this package."""
    return filename.startswith(_OURS)


def _walk(frames: TracebackType | None) -> Iterable[TracebackType]:
    while frames is not None:
        yield frames
        frames = frames.tb_next


def _module(frames: TracebackType) -> str:
    return str(frames.tb_frame.f_globals.get("__name__", ""))


def _without_ours(frames: TracebackType | None) -> TracebackType | None:
    kept: TracebackType | None = None
    for frame in reversed(list(_walk(frames))):
        if not is_ours(frame.tb_frame.f_code.co_filename):
            kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return kept
