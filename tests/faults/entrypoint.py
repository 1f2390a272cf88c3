"""Serves as images/stream-processor does, built wrong on purpose: ``HIVEIO_BROKEN`` lists how.

``lockless`` and ``alone`` break nothing that may count: safety does not depend on locks, nor on who executes a command.
``older`` is no fault but an older version, and ``narrow`` and ``hasty`` are ones with smaller bounds.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

import hiveio.kafka.delivery
from hiveio.actor import Actor, Contract
from hiveio.envelope import Codec
from hiveio.errors import Corrupt, Unavailable
from hiveio.kafka.appender import Appender
from hiveio.kafka.delivery import Client
from hiveio.kafka.session import Session
from hiveio.kafka.session_clients import Outgoing
from hiveio.kafka.tail import LogRecord, Tail
from hiveio.roles.stream_processor import stream_processor
from hiveio.server.process import serve
from hiveio.transaction import cache, following, rebuild, rule, view
from hiveio.transaction.command import InFlight
from hiveio.transaction.engine import Engine
from hiveio.transaction.following import Following
from hiveio.transaction.forwarding import Forwarding
from hiveio.transaction.leader import Leader
from hiveio.transaction.lock import Locked, Redlock
from hiveio.transaction.mailbox import Packet
from hiveio.transaction.performer import Performer
from hiveio.transaction.proof import Consistency
from hiveio.transaction.publisher import Publisher
from hiveio.transaction.record import Commit, Record
from hiveio.transaction.rule import Effects
from hiveio.transaction.scope import Scope
from hiveio.transaction.tx import Tx
from hiveio.transaction.view import View

LATE_S = 1.5
LEAK = 10_000  # bytes
FEW = 1_000
HASTY_S = 0.3
REPORTED_S = 5.0  # for which a record waits for its report, at most
FAR = 20  # records


def lockless() -> None:
    """Every lock is given to everybody, and no command is given to another instance: they meet at the log."""

    def acquire(
        self: Redlock, scope: str, aggregates: Sequence[str], done: Callable[[Locked], None], waited_s: float = 0.0
    ) -> None:
        asyncio.get_running_loop().call_soon(done, Locked(time.monotonic() + 1))

    def release(self: Redlock, scope: str, aggregates: Sequence[str], tip: str = "") -> None:
        """Nothing is held."""

    setattr(Redlock, "acquire", acquire)  # noqa: B010 - a method is not assigned to elsewhere
    setattr(Redlock, "release", release)  # noqa: B010
    alone()


def alone() -> None:
    """No command is given to another instance."""
    setattr(Forwarding, "forwards", lambda self, command: False)  # noqa: B010


def acknowledges_on_report() -> None:
    """A command counts as accepted when Kafka has stored its record."""
    append, original, read = Appender.append, Appender._report, Tail._hand_over
    unreported = set[str]()  # keys of records of this process

    def append_and_note(self: Appender, partition: int, key: str, value: bytes, *, in_flight: int = 0) -> None:
        unreported.add(key)
        append(self, partition, key, value, in_flight=in_flight)

    def key_of(message: Message) -> str:
        return (message.key() or b"").decode()

    def read_late(self: Tail, messages: list[Message]) -> None:
        end = time.monotonic() + REPORTED_S
        while not unreported.isdisjoint(map(key_of, messages)) and time.monotonic() < end:
            time.sleep(0.01)  # on the tail's thread: the report comes first, every time
        read(self, messages)

    def producer(config: dict[str, Any]) -> Producer:
        return Producer(config | {"delivery.report.only.error": False})

    def stored(self: Appender, key: str, offset: int) -> None:
        engine: Any = self._failed.__self__  # type: ignore[attr-defined]
        for scope in engine._scopes:
            pending = scope.journal.pending.get(key)
            if pending is not None and pending.target:
                (command,) = pending.settled.args  # who is called with its verdict
                command.answer(offset)

    def report(self: Appender, client: Client, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.loop.call_soon_threadsafe(stored, self, key_of(message), message.offset() or 0)
        unreported.discard(key_of(message))
        original(self, client, error, message)

    setattr(hiveio.kafka.delivery, "Producer", producer)  # noqa: B010
    setattr(Appender, "append", append_and_note)  # noqa: B010
    setattr(Appender, "_report", report)  # noqa: B010
    setattr(Tail, "_hand_over", read_late)  # noqa: B010


def accepts_everything() -> None:
    """Heads are not compared."""
    assert hasattr(rule, "_heads_match")
    setattr(rule, "_heads_match", lambda commit, lookup: True)  # noqa: B010


def trusts_the_lock() -> None:
    """Redlock is believed: what is appended while the lock is certainly held counts, whatever the log says."""
    append, judge, heads_match, own = Performer._append, View.judge, rule._heads_match, [False]

    def append_while_held(self: Performer, command: InFlight, tx: Tx, *given: Any) -> None:
        if time.monotonic() > tx.locked_until:
            raise Unavailable("the lock ran out")
        append(self, command, tx, *given)

    def judge_own(self: View, message: LogRecord, record: Record, results: Any = None) -> Effects:
        own[0] = bool(results)
        return judge(self, message, record, results)

    setattr(Performer, "_append", append_while_held)  # noqa: B010
    setattr(View, "judge", judge_own)  # noqa: B010
    setattr(rule, "_heads_match", lambda *given: own[0] or heads_match(*given))  # noqa: B010


def keeps_the_lease() -> None:
    """An instance that does not get on does not give the lease back."""

    async def check(self: Publisher) -> None:
        """All is well."""

    async def leads(self: Leader) -> bool:
        return await self._renew()

    setattr(Publisher, "_check", check)  # noqa: B010
    assert hasattr(Leader, "_is_leading")
    setattr(Leader, "_is_leading", leads)  # noqa: B010


def applies_blindly() -> None:
    """The cache is moved from whatever watermark it has."""
    line = "if present ~= ARGV[1] then return {0, present} end\n"
    assert line in cache._APPLY.text
    cache._APPLY.text = cache._APPLY.text.replace(line, "")
    cache._APPLY.sha = sha1(cache._APPLY.text.encode(), usedforsecurity=False).hexdigest()


def believes_the_leader() -> None:
    """A linearizable read is answered as a current one."""
    original = Scope.caught_up

    async def caught_up(self: Scope, consistency: Consistency) -> None:
        await original(self, "current")

    setattr(Scope, "caught_up", caught_up)  # noqa: B010


def publishes_late() -> None:
    """Events wait before they are sent."""
    original = Session.send

    async def send(self: Session, group: Sequence[Outgoing]) -> None:
        await asyncio.sleep(LATE_S)
        await original(self, group)

    setattr(Session, "send", send)  # noqa: B010


def leaks() -> None:
    """Something is kept of every record, for ever."""
    original, kept = View.judge, list[bytes]()

    def judge(self: View, *given: Any) -> Effects:
        kept.append(os.urandom(LEAK))
        return original(self, *given)

    setattr(View, "judge", judge)  # noqa: B010


def knows_few() -> None:
    """A view of few aggregates and command ids: it is soon as large as it gets."""
    for bound in ("AGGREGATES", "RECENT"):
        assert getattr(view, bound) > FEW
        setattr(view, bound, FEW)


def older() -> None:
    """A version before ``Noted`` was added. The models are the same, so it shares the cache with today's."""
    original = Contract.__init__

    def init(self: Contract, kind: type[Actor]) -> None:
        original(self, kind)
        if self.events.pop("Noted", None) is not None:
            self.event_codec = Codec(self.events.values(), strict=False)

    setattr(Contract, "__init__", init)  # noqa: B010


def stops_at_poison() -> None:
    """A scope that stops at the command with the key ``poison``, which others can judge."""
    original = Scope.decoded

    def decoded(self: Scope, message: LogRecord) -> Record:
        record = original(self, message)
        if isinstance(record, Commit) and record.command.key == "poison":
            raise Corrupt("poison")
        return record

    setattr(Scope, "decoded", decoded)  # noqa: B010


def hasty() -> None:
    """A scope is followed only for a moment after its last use, and a cache is soon far behind."""
    original = Following.__init__

    def init(self: Following, *given: Any, **named: Any) -> None:
        original(self, *given, **named | {"unused_s": HASTY_S})

    following.FOLLOW_S = following.SWEEP_S = HASTY_S
    following.TRIED, rebuild.FAR = 0, FAR
    setattr(Following, "__init__", init)  # noqa: B010


def forgetful() -> None:
    """Before a shared command is performed, nobody looks whether it was executed or its id may be forgotten."""
    assert hasattr(Engine, "_may_perform")
    setattr(Engine, "_may_perform", lambda self, pipeline, command: True)  # noqa: B010


def unrecorded() -> None:
    """Whoever takes back a command that it has forwarded keeps no record of its refusal."""
    share = InFlight.share

    def share_only(self: InFlight) -> None:
        repeatable = self.repeatable
        share(self)
        self.repeatable = repeatable

    setattr(InFlight, "share", share_only)  # noqa: B010


def gullible() -> None:
    """A packet that comes again is taken for a new one."""
    taken = Forwarding._taken

    def take(self: Forwarding, packet: Packet) -> None:
        self._peer(packet.sender).latest = 0
        taken(self, packet)

    setattr(Forwarding, "_taken", take)  # noqa: B010


WAYS = {
    "gullible": gullible,
    "forgetful": forgetful,
    "unrecorded": unrecorded,
    "poison": stops_at_poison,
    "lockless": lockless,
    "alone": alone,
    "report": acknowledges_on_report,
    "rule": accepts_everything,
    "trust": trusts_the_lock,
    "apply": applies_blindly,
    "believe": believes_the_leader,
    "late": publishes_late,
    "keep": keeps_the_lease,
    "leak": leaks,
    "narrow": knows_few,
    "older": older,
    "hasty": hasty,
}

if __name__ == "__main__":
    for way in filter(None, os.environ.get("HIVEIO_BROKEN", "").split(",")):
        WAYS[way]()
    serve(stream_processor)
