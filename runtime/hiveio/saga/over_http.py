"""Commands of processes for services that take them over HTTP only: COMMAND_URLS says where they are.

The topic of commands of this service is read by a group of its own. Each command is sent with an ``Idempotency-Key``,
again and again until there is a definite answer, and for COMMAND_WINDOW at most: for that time its receiver has to
remember the key. What is older may have been executed, and is a dead letter. Commands for one aggregate go in order.

The process is given the answer: the events of it that ``perform`` takes, or CommandRefused.
"""

import asyncio
import dataclasses
import http.client
import re
import ssl
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Raw

from hiveio.abortable import Abortable
from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.consumer import Consumer
from hiveio.envelope import Context, Envelope, Handler, Outcome, encode_message
from hiveio.errors import HiveError, Invalid, Unavailable
from hiveio.headers import trace_context
from hiveio.messages import CommandAccepted, CommandRefused
from hiveio.saga.inbox import give
from hiveio.saga.receiver import CommandCodec, Commands, Traced, cause_of, type_of
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.process import Input
from hiveio.transaction.record import Cause

CONCURRENCY = 32  # commands that are being sent, in each partition
MOST_BYTES = 1 << 20  # of an answer
# What says nothing about the command: it may be tried again. So does a 409 with Retry-After: the key is in work.
AGAIN = frozenset({401, 408, 425, 429})


class Answer(NamedTuple):
    status: int
    retry_after: str | None
    body: bytes


class Sending(Consumer):
    """Sends the commands for one service. That it does not answer is no reason to take no requests."""

    async def ready(self) -> str | None:
        return await self._poller.ready()


def over_http(settings: Settings, contracts: Sequence[Contract], log: TransactionLog, traced: Traced) -> list[Sending]:
    """A consumer for each service of COMMAND_URLS: one that is away holds up no other. ``traced`` wraps the handler of
    a group. Raises ConfigError."""
    found = []
    for service, url in settings.command_urls:
        reading = dataclasses.replace(
            settings,
            consumer_topic=(settings.outbox_topic,),
            group_id=f"{settings.written_topic}.http.{service}",
            from_start=True,
            consumer_concurrency=max(CONCURRENCY, settings.consumer_concurrency),
        )
        handler = sending(contracts, log, url, settings.command_window_s, settings.request_timeout_ms / 1000)
        handler = traced(handler, reading.group_id)
        name, codec = f"commands to {service}", CommandCodec(service)
        found.append(Sending(reading, [(Contract(Commands), handler)], name=name, with_record=True, codec=codec))
    return found


def sending(
    contracts: Sequence[Contract], log: TransactionLog, template: str, window_s: float, timeout_s: float
) -> Handler:
    """The handler that sends commands to one service, and gives its answers to the processes. ``template`` is the URL.

    Raises Unavailable where it has to be handed over again, Invalid once it must not be sent any more.
    """
    by_name = {contract.name: contract for contract in contracts if contract.process}
    threads = ThreadPoolExecutor(CONCURRENCY, "command")
    context = ssl.create_default_context() if template.startswith("https:") else None

    async def handle(envelope: Envelope) -> Outcome:
        body, record, headers = envelope.message.body, envelope.record, envelope.headers
        cause, service = cause_of(envelope, type_of(body)), headers["hive-service"]
        actor, _, id = cause.process.partition("/")
        contract = by_name.get(actor)
        if contract is None:
            raise Invalid(f"the process {cause.process} belongs to an actor that is not here")
        age_s = time.time() - record.time
        if age_s > window_s:
            raise Invalid(
                f"this command is {age_s:.0f} s old, and COMMAND_WINDOW={window_s:.0f} s is how long {service} "
                "remembers an Idempotency-Key: it may have been executed already. Ask the service, and then drop this "
                "dead letter, or send the command by hand"
            )
        url = template.replace("{id}", quote(envelope.id, safe=""))
        sent = {"content-type": "application/json", "idempotency-key": key_of(cause), **trace_context(headers)}
        post = _Post(url, body, sent, timeout_s, context)
        try:
            async with asyncio.timeout(timeout_s):  # the wait for a thread included
                answer = await asyncio.get_running_loop().run_in_executor(threads, post.answer)
        except (OSError, http.client.HTTPException) as error:  # TimeoutError is an OSError
            raise Unavailable(f"{service} at {url} did not answer: {error!r}") from None
        finally:
            post.abort()
        inputs, position = _inputs(contract, cause, service, envelope.id, answer), f"{cause.offset}:{cause.index}"
        for name, given in inputs:
            message, meta = contract.input_codec.decode(given)
            answered = Envelope(message=message, meta=meta, headers=headers, record=Context(id=id, headers=headers))
            await give(log, contract, id, answered, Input(f"http/{cause.text}/{name}", answers=position))
        if not inputs:
            accepted = Envelope(message=CommandAccepted(service, id, cause.command), headers=headers)
            await give(log, contract, id, accepted, Input(answers=position))
        return Outcome()

    return handle


def key_of(cause: Cause) -> str:
    """The Idempotency-Key of a command: the same whoever sends it."""
    return blake2b(cause.text.encode(), digest_size=16).hexdigest()


class _Post(Abortable):
    def __init__(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float, context: ssl.SSLContext | None
    ) -> None:
        super().__init__()
        self._parts, self._body, self._headers = urlsplit(url), body, headers
        self._timeout_s, self._context = timeout_s, context

    def answer(self) -> Answer:
        """Raises OSError, HTTPException."""
        parts, timeout_s = self._parts, self._timeout_s
        connection: http.client.HTTPConnection
        if self._context is not None:
            connection = http.client.HTTPSConnection(parts.netloc, timeout=timeout_s, context=self._context)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
        try:
            connection.connect()
            self.opened(connection.sock)
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, self._body, dict(self._headers))
            response = connection.getresponse()
            body = response.read(MOST_BYTES + 1)
            if response.length and len(body) <= MOST_BYTES:  # a bounded read that ends early raises nothing itself
                raise http.client.IncompleteRead(body, response.length)
            return Answer(response.status, response.headers.get("retry-after"), body)
        finally:
            connection.close()


def _inputs(contract: Contract, cause: Cause, service: str, id: str, answer: Answer) -> list[tuple[str, bytes]]:
    """What the process is given, as envelopes with their names in the answer. Raises Unavailable where the answer is
    not definite."""
    status = answer.status
    if status in AGAIN or status >= 500 or (status == 409 and answer.retry_after is not None):
        raise Unavailable(f"{service} answered the command {cause.command} for {id} with {status}")
    if status >= 400:
        if "CommandRefused" not in contract.inputs:
            return []
        return [("CommandRefused/0", encode_message(CommandRefused(service, id, cause.command, _problem(answer))))]
    if not 200 <= status <= 299:
        raise HiveError(f"{service} answered the command {cause.command} for {id} with {status}; correct COMMAND_URLS")
    if len(answer.body) > MOST_BYTES:
        raise Invalid(
            f"{service} has executed the command {cause.command} for {id}, and its answer has more than {MOST_BYTES} "
            "bytes, so no process is given its events"
        )
    found: list[tuple[str, bytes]] = []
    seen = Counter[str]()  # of each type, so that a name is the same for a version that takes other types
    for event in _events(answer.body):
        if (kind := type_of(event)) in contract.subscribes:
            found.append((f"{kind}/{seen[kind]}", bytes(event)))
            seen[kind] += 1
    return found


_split = msgspec.json.Decoder(list[Raw]).decode
_document = msgspec.json.Decoder(dict[str, Any]).decode


def _events(body: bytes) -> list[Raw]:
    try:
        return _split(body) if re.match(rb"\s*\[", body) else [Raw(body)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []


def _problem(answer: Answer) -> dict[str, Any]:
    """The problem document of a refusal; one made of the status where there is none."""
    try:
        found = _document(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = {}
    title = http.client.responses.get(answer.status, "Error")
    return {"type": "about:blank", "title": title, "detail": title} | found | {"status": answer.status}
