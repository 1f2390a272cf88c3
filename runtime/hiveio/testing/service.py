"""A stream processor in memory: the engine, the scopes and the rule of production over ``hiveio.testing.memory``."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import msgspec
from msgspec import Raw, Struct

from hiveio.actor import Actor, Contract, contracts
from hiveio.conditions import Conditions, conditions, etag
from hiveio.config import Settings
from hiveio.envelope import Envelope, Outcome, encode_json, encode_message
from hiveio.errors import NotFound, Unauthorized
from hiveio.headers import HeaderView
from hiveio.identity import Identity, check_scopes
from hiveio.messages import Event
from hiveio.testing.memory import MemoryCache, MemoryLog, MemoryTransactionLog
from hiveio.testing.processes import PendingDeadline
from hiveio.transaction.cache import fingerprint
from hiveio.transaction.process import Due, Input
from hiveio.transaction.record import Record, aggregate

Version = int | Literal["*"] | None

_split = msgspec.json.Decoder(list[Raw]).decode


class Answer(Struct):
    """The answer to a command: the events of its aggregate, the version after them, and the position of their record.

    ``body`` is the encoded value, and ``headers`` are the headers of the answer, without those of its content.
    """

    events: list[Event]
    version: int | None
    position: str | None
    body: bytes
    headers: Mapping[str, str] = {}


class Logged(Struct):
    """A record of the transaction log. ``verdict`` is what the rule alone says of it, without the engine."""

    offset: int
    record: Record
    verdict: bool


class Service:
    """``async with Service(AccountActor) as service``.

    ``settings`` are those of production, such as EVENT_STORE_PARTITIONS and REQUEST_TIMEOUT; those of brokers and Redis
    have no effect. With the ``log`` of another service it goes on with the records of that one. With its ``cache`` too,
    the two services are instances of one cluster.
    """

    def __init__(
        self,
        *actors: type[Actor] | Contract,
        settings: Settings | None = None,
        log: MemoryLog | None = None,
        cache: MemoryCache | None = None,
    ) -> None:
        made = [actor for actor in actors if isinstance(actor, Contract)]
        self.contracts = [*made, *contracts([actor for actor in actors if not isinstance(actor, Contract)])]
        self.settings = log.settings if log else memory_settings(settings)
        self.log = log or MemoryLog(self.settings)
        self.cache = cache or MemoryCache(self.settings, fingerprint(self.contracts))
        self.transactions = MemoryTransactionLog(self.contracts, self.log, self.cache)
        self._by_kind = {contract.kind: contract for contract in self.contracts}

    async def __aenter__(self) -> Self:
        await self.transactions.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.transactions.stop()

    async def submit(
        self,
        actor: type[Actor],
        id: str,
        message: Struct,
        *,
        key: str | None = None,
        if_match: Version = None,
        if_none_match: Version = None,
        meta: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        identity: Identity | None = None,
    ) -> Answer:
        """Send a command through the wire format. Raises the Problem that HTTP would answer with, and what actors
        raise."""
        contract = self._by_kind[actor]
        admit(contract, identity)
        body = encode_message(message, None if meta is None else Raw(encode_json(meta)))
        decoded, raw_meta = contract.command_codec.decode(body)
        sent = HeaderView.of(headers or {})
        asked = asking(if_match, if_none_match)
        envelope = Envelope(
            message=decoded,
            id=id,
            meta=raw_meta,
            key=key,
            conditions=asked,
            body=body,
            headers=sent,
            identity=identity,
        )
        return self._answer(contract, await self.transactions.engine.submit(contract, envelope).future)

    async def deliver(
        self,
        actor: type[Actor],
        event: Event,
        *,
        source: str,
        id: str | None = None,
        key: str | None = None,
        meta: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Give an event from another service to its process. ``source`` is where it comes from: one that the process
        has taken already has no effect. ``key`` is the key of the record. ``id`` is that of the process, where it is no
        event that ``correlates`` names. Raises what ``submit`` raises."""
        contract = self._by_kind[actor]
        body = encode_message(event, None if meta is None else Raw(encode_json(meta)))
        decoded, raw_meta = contract.input_codec.decode(body)
        process = id if id is not None else contract.correlates[type(event).__name__](decoded, key)
        sent = HeaderView.of(headers or {})
        envelope = Envelope(message=decoded, id=process, meta=raw_meta, body=body, headers=sent)
        return self._answer(contract, await self.transactions.engine.submit(contract, envelope, Input(source)).future)

    async def fire(self, deadline: PendingDeadline) -> Answer:
        """Fire a deadline, as the leader does. One that is not pending any more has no effect. Raises Unavailable
        before its time."""
        contract = next(contract for contract in self.contracts if contract.name == deadline.actor)
        name, due = aggregate(deadline.actor, deadline.id), Due(deadline.due, Raw(deadline.event))
        return self._answer(contract, await self.transactions.engine.fire(name, deadline.name, due))

    @staticmethod
    def _answer(contract: Contract, outcome: Outcome) -> Answer:
        answered = outcome.encoded or b"null"
        events = _split(answered) if answered.startswith(b"[") else [Raw(answered)] if answered != b"null" else []
        tag = outcome.headers.get("ETag")
        return Answer(
            [contract.event_codec.decode(event)[0] for event in events],
            int(tag.strip('"')) if tag else None,
            outcome.headers.get("Hive-Position"),
            answered,
            outcome.headers,
        )

    async def read(self, actor: type[Actor], id: str) -> tuple[Any, int]:
        """The state and version of an aggregate; (None, 0) if it has never existed."""
        contract = self._by_kind[actor]
        try:
            return await self.transactions.engine.read(contract, id, contract.reads)
        except NotFound:
            return None, 0

    async def outcome(self, transaction: str, identity: Identity | None = None) -> dict[str, Any]:
        """The outcome of a transaction, by the id that a 504 carries. This closes a command that was not executed."""
        return await self.transactions.engine.outcome(transaction, identity)

    def records(self, partition: int = 0) -> Sequence[Logged]:
        """The records of the transaction log. The first one pins the format."""
        return [Logged(*judged) for judged in self.log.judged(partition)]

    def lose_cache(self) -> None:
        """Lose the cache, as after FLUSHALL. It is rebuilt from the log: until then, commands and reads may raise
        Unavailable."""
        self.cache.forget_all()


def admit(contract: Contract, identity: Identity | None) -> None:
    """Refuse a caller as HTTP would, if the actor requires a scope. Raises Unauthorized, Forbidden."""
    if contract.requires and identity is None:
        raise Unauthorized("The request has no bearer token.")
    if identity is not None:
        check_scopes(contract.requires, identity)


def asking(if_match: Version, if_none_match: Version) -> Conditions | None:
    """The conditions that HTTP would send for a version or ``*``; None where there are none."""
    sent = {b"if-match": if_match, b"if-none-match": if_none_match}
    given = [(name, (each if each == "*" else etag(each)).encode()) for name, each in sent.items() if each is not None]
    return conditions(given) if given else None


def memory_settings(settings: Settings | None) -> Settings:
    given = settings or Settings()
    return dataclasses.replace(given, brokers="memory", topic=given.topic or "memory", cache_url="redis://memory")
