"""A second opinion: porcupine, a checker of linearizability written by others, on what clients were answered.

It knows nothing of the log: only when each request was sent and answered, and what the answer said of one aggregate.
"""

import json
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults.checker import Call, Result
from tests.services import ServiceUnavailable, jars

SOURCE = Path(__file__).with_name("porcupine")
HAPPENED_NOT = {Result.CONFLICT, Result.NOT_EXECUTED}


def porcupine() -> Path:
    """The checker, built once. Raises ServiceUnavailable where there is no Go, or its module cannot be had."""
    go = shutil.which("go")
    if go is None:
        raise ServiceUnavailable("go is not in PATH")
    binary = jars.cache() / "porcupine"
    with jars.exclusive(jars.cache() / "porcupine.making"):
        newest = max(path.stat().st_mtime for path in SOURCE.iterdir())
        if not binary.exists() or binary.stat().st_mtime < newest:
            done = subprocess.run(
                [go, "build", "-o", str(binary), "."],
                cwd=SOURCE,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            if done.returncode:
                raise ServiceUnavailable(f"porcupine cannot be built: {done.stderr.strip()}")
    return binary


def second_opinion(history: Sequence[Call]) -> tuple[bool, str]:
    """Whether every aggregate's history is linearizable, and what porcupine said of each."""
    text = "".join(json.dumps(operation) + "\n" for operation in operations(history))
    done = subprocess.run([porcupine()], input=text, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def operations(history: Sequence[Call]) -> Iterator[dict[str, Any]]:
    commands: dict[str, list[Call]] = defaultdict(list)
    for call in history:
        if call.command is not None:
            commands[call.marker].append(call)
        elif call.result is Result.READ and call.level != "cached":
            state = call.answer or {}
            balance = state.get("balance", state.get("sum", 0))
            yield _operation(call.target, [call], Read=True, Version=call.version or 0, Balance=balance)
    for calls in commands.values():
        yield from _of_command(calls)


def _of_command(calls: list[Call]) -> Iterator[dict[str, Any]]:
    first, command = calls[0], calls[0].command
    assert command is not None
    payload, kind = command["payload"], command["type"]
    amount, parts = payload.get("amount", 0), payload.get("parts", 1)
    signed = {"Withdraw": -amount, "Transfer": -amount, "Take": -amount, "Add": amount * parts, "Witness": 0}
    changes = [(first.target, parts, signed.get(kind, amount))]
    if kind == "Transfer":
        changes.append((f"Account/{payload['to']}", 1, amount))
    accepted = [call for call in calls if call.result is Result.ACCEPTED]
    refused = [call for call in calls if call.result is Result.REFUSED]
    if accepted:
        for name, events, change in changes:
            version = accepted[0].version if name == first.target else -1
            yield _operation(name, calls, accepted, Events=events, Amount=change, Version=version)
    elif refused:
        if refused[0].status == 422 and kind != "Take":
            needed = -amount * parts if kind == "Add" else amount
            yield _operation(first.target, calls, refused, Refused=True, Needed=needed)
    elif not all(call.result in HAPPENED_NOT for call in calls) and not any(c.result is Result.CONFLICT for c in calls):
        for name, events, change in changes:
            yield _operation(name, calls, Unknown=True, Events=events, Amount=change)


def _operation(name: str, calls: Sequence[Call], answered: Sequence[Call] = (), **what: Any) -> dict[str, Any]:
    """Between its first request and its first definite answer; clients of porcupine do one thing at a time, so each
    operation is a client of its own."""
    start, ended = min(call.called for call in calls), min(call.answered for call in answered or calls)
    return {
        "Aggregate": name,
        "Client": 0,
        "Call": int(start * 1e9),
        "Return": int(ended * 1e9),
        "Version": -1,
    } | what
