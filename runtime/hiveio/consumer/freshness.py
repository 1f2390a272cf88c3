"""Queries that know how fresh they are: a client that wrote something may ask for an answer that has seen it."""

import asyncio
import re
from typing import Any

from hiveio.actor import Contract
from hiveio.consumer.component import Consumer
from hiveio.envelope import Envelope, Handler, Outcome
from hiveio.errors import Refused, Unavailable
from hiveio.http.routes import About
from hiveio.messages import Query

WAIT_S = 5.0  # where the client does not say how long
LOOK_S = 0.005  # between two looks at the position
PARKED = "Hive-Parked"
FRESH = About(accepts=("Hive-Position", "Prefer"), answers_with=("Age", PARKED))
_POSITION = re.compile(r"(.+)/([0-9]{1,10})/([0-9]{1,18})")
_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})"?', re.IGNORECASE)


def fresh(handler: Handler, contract: Contract, consumer: Consumer) -> Handler:
    """Answers a query that carries ``Hive-Position`` once the projection has reached it: read your own writes.

    It waits as long as ``Prefer: wait=<seconds>`` (RFC 7240) says, else ``WAIT_S``, and less than REQUEST_TIMEOUT;
    then, or where another instance has the partition, 503. Several positions are separated by commas. Where the
    projection is behind, ``Age`` (RFC 9111) says by how many seconds.

    Where events of the key that a query asks about wait as dead letters, ``Hive-Parked: 1`` says so; with
    ``parked = "unavailable"`` on the actor it is 503 instead.

    Raises Refused (400) for what is no position, or one of a topic that is not consumed.
    """
    key_fields = {kind: _key_field(kind, contract) for kind in contract.queries.values()}
    refuses = contract.kind.parked == "unavailable"

    async def handle(envelope: Envelope) -> Outcome:
        asked = envelope.headers.get("hive-position")
        if asked is not None:
            wait = _WAIT.search(envelope.headers.get("prefer") or "")
            wait_s = min(float(wait[1]) if wait else WAIT_S, consumer.longest_wait_s)
            until = asyncio.get_running_loop().time() + wait_s
            for text in asked.split(","):
                await _until(consumer, contract, text.strip(), until, wait_s)
        key = envelope.id or _text(envelope.message, key_fields.get(type(envelope.message)))
        parked = bool(key) and consumer.has_parked(contract, key)
        if parked and refuses:
            away = Unavailable(f"Events of {key} wait as dead letters, so the answer would not be complete.")
            away.headers[PARKED] = "1"
            raise away
        outcome = await handler(envelope)
        if parked:
            outcome.headers = {**outcome.headers, PARKED: "1"}
        if (age_s := consumer.age_s) >= 1:
            outcome.headers = {**outcome.headers, "Age": str(int(age_s))}
        return outcome

    return handle


def _key_field(kind: type[Query], contract: Contract) -> str | None:
    """The field of a query that is the key of its events, where the path has no ``{id}``."""
    if contract.key in kind.__struct_fields__:
        return contract.key
    names = re.findall(r"{(\w+)}", kind.path or contract.path)
    return names[0] if len(names) == 1 and names[0] in kind.__struct_fields__ else None


def _text(query: Any, field: str | None) -> str:
    value = getattr(query, field) if field else None
    return "" if value is None else str(value)


async def _until(consumer: Consumer, contract: Contract, text: str, until: float, wait_s: float) -> None:
    found = _POSITION.fullmatch(text)
    if found is None:
        raise Refused(f"Hive-Position is {text[:100]!r}; it must look like orders/0/17.")
    position = found[1], int(found[2]), int(found[3])
    clock = asyncio.get_running_loop().time
    while not await consumer.reached(contract, *position):
        if clock() >= until:
            raise Unavailable(f"The projection has not reached the position {text} within {wait_s:g} s. Ask again.")
        await asyncio.sleep(LOOK_S)
