"""The routes of an actor in the transaction log: commands to its aggregates, their states, and outcomes."""

import asyncio
from collections.abc import Mapping

from hiveio.actor import Contract
from hiveio.envelope import Envelope, Handler, Outcome
from hiveio.errors import Invalid
from hiveio.http.routes import About, Route, messages, query_parameters
from hiveio.http.schemas import union
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.proof import CONSISTENCIES, Consistency


def transacting(contract: Contract, log: TransactionLog) -> Handler:
    """The handler that performs a command on its aggregate, as a transaction."""

    async def handle(envelope: Envelope) -> Outcome:
        command = log.engine.submit(contract, envelope)
        try:
            return await command.future
        except asyncio.CancelledError:  # the deadline of the edge came first; its own answer may have come since
            return log.engine.expire(command)

    return handle


def commands(contract: Contract, handler: Handler) -> list[Route]:
    """POST on the path of the actor: a command to one of its aggregates, which is answered with its events."""
    about = About(
        accepts=("Idempotency-Key", "If-Match", "If-None-Match"),
        answers_with=("ETag", "Hive-Position"),
        problems=(404, 409, 412),
    )
    returned = [kind for kind in contract.returns if kind in contract.events.values()]
    events = union(returned if returned and not contract.wants_tx else contract.events.values())
    # The answer is the envelope of one event, an array of several, or null.
    return messages(contract, handler, about=about, gives=events | list[events] | None)  # type: ignore[valid-type]


def snapshots(contract: Contract, log: TransactionLog) -> Route:
    """GET on the path of the actor answers with the state of an aggregate and its ETag, as new as ``?consistency=`` or
    else ``reads`` of the actor asks for. A header says if it is a cached one."""

    def decode(body: bytes, id: str, parameters: Mapping[str, str], query: bytes) -> tuple[Consistency, None]:
        consistency = query_parameters(query).get("consistency", [contract.reads])[-1] if query else contract.reads
        if consistency not in CONSISTENCIES:
            raise Invalid(
                f"consistency is {consistency!r}; it must be cached, current or linearizable.", pointer="/consistency"
            )
        return consistency, None

    async def handle(envelope: Envelope) -> Outcome:
        consistency = envelope.message
        state, version = await log.engine.read(contract, envelope.id, consistency)
        headers = {"ETag": f'"{version}"'} | ({"Hive-Consistency": "cached"} if consistency == "cached" else {})
        return Outcome(state, headers=headers)

    return Route(
        method="GET",
        path=contract.path,
        decode=decode,
        handler=handle,
        contract=contract,
        gives=contract.model,
        about=About(
            accepts=("If-Match", "If-None-Match"),
            query={"consistency": {"type": "string", "enum": list(CONSISTENCIES), "default": contract.reads}},
            answers_with=("ETag", "Hive-Consistency"),
            problems=(404, 412),
        ),
        summary="The state of an aggregate",
    )


_OUTCOME = {
    "title": "Outcome",
    "description": "What became of a transaction. If it was refused, `problem` says why. If it is closed, its command "
    "was not executed and never will be.",
    "type": "object",
    "properties": {
        "outcome": {"type": "string", "enum": ["accepted", "refused", "closed", "unknown"]},
        "position": {"type": "string", "description": "where it is in the transaction log"},
        "version": {"type": "integer", "description": "of the aggregate after it"},
        "value": {"description": "the answer to its command"},
        "problem": {"type": "object", "description": "RFC 9457", "additionalProperties": True},
        "detail": {"type": "string"},
    },
    "required": ["outcome"],
}


def outcomes(log: TransactionLog) -> Route:
    """GET /transactions/{id} answers with the definite outcome of a transaction. It closes one that is still open."""

    async def handle(envelope: Envelope) -> Outcome:
        return Outcome(await log.engine.outcome(envelope.id, envelope.identity))

    return Route(
        method="GET",
        path="/transactions/{id}",
        decode=lambda body, id, parameters, query: (None, None),
        handler=handle,
        answer=_OUTCOME,
        about=About(problems=(404,)),
        summary="The outcome of a transaction",
        ours=True,
    )
