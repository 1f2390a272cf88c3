"""The cache of the transaction log in Redis: for each scope, the fold of its log up to a watermark.

``keys`` has the map of its keys.

One script (apply) makes every change that counts, and it compares the watermark first. So a cache that fell back to an
older state is the fold of a shorter log, with the watermark of that. A generation that proves wrong is abandoned.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import msgspec

from hiveio.actor import Contract
from hiveio.redis import Argument, Redis, Script
from hiveio.transaction.entry import CacheReply, Watermark, WatermarkReply
from hiveio.transaction.process import unmarked
from hiveio.transaction.record import FORMAT
from hiveio.transaction.rule import IdWindow, Writer

PROBED_MS = 60_000  # how long the key that a readiness probe writes is kept
LEFTOVERS = 1_000  # keys that one SCAN looks at
SAMPLE = 20_000  # keys that are looked at when an instance starts

READ_BYTES = 1_000_000  # the most of one answer to calls that read one aggregate each
LOAD_BYTES = 4_000_000  # the most of one answer to a call that loads many
MAILBOX_PACKETS = 100  # that wait in a mailbox; further ones are not put there
TAKEN_PACKETS = 16  # of them in one answer: they may be large, and an answer that is not whole in time is lost
MAILBOX_MS = 5_000  # after the last packet, a mailbox that nobody empties is dropped

_READ, _PREPARE, _APPLY, _VERDICTS, _RESET, _LEASE, _WATERMARK, _LOOK, _DUE, _LISTED = (
    Script(name)
    for name in ("read", "prepare", "apply", "verdicts", "reset", "lease", "watermark", "look", "due", "listed")
)
_SEND = Script("send")


_pack = msgspec.msgpack.Encoder().encode
LAYOUT = 4  # of these keys and values; another layout is another cache, which is folded from the log
# The newest format that versions knew whose watermarks had so many parts: those up to layout 2, and those of layout 3.
FORMER_PARTS = {5: 1, 8: 2}


class Look(NamedTuple):
    """What an instance that does not follow a scope sees of it. ``text`` is the watermark as it is stored."""

    text: bytes
    watermark: Watermark | None
    served: bool  # another instance leads it, or folds its cache
    rest: str  # where its last leader left it at rest: see ``note_rest``


def _replies(text: bytes, found: Sequence[tuple[bytes | None, bytes | None]]) -> list[CacheReply]:
    watermark = Watermark.parse(text)
    return [CacheReply(watermark, *pair) for pair in found]


def _reply(text: bytes, found: Sequence[tuple[bytes | None, bytes | None]]) -> CacheReply:
    return CacheReply(Watermark.parse(text), *found[0])


def fingerprint(contracts: Iterable[Contract]) -> str:
    """A text that names the models of the snapshots: another model or ``schema_version`` is another cache."""
    meaning = [
        (c.name, c.kind.schema_version, msgspec.json.schema(c.model) if c.model else None)
        for c in sorted(contracts, key=lambda contract: contract.name)
    ]
    return f"{zlib.crc32(msgspec.json.encode((LAYOUT, meaning), order='deterministic')):08x}"


def taken(contracts: Iterable[Contract]) -> str:
    """A text that names the commands that the actors take. Who knows other fields of a command would leave out some."""
    commands = [
        (c.name, [(name, msgspec.json.schema(kind)) for name, kind in sorted(c.commands.items())])
        for c in sorted(contracts, key=lambda contract: contract.name)
    ]
    return f"{zlib.crc32(msgspec.json.encode(commands, order='deterministic')):08x}"


class Cache:
    """The calls to the cache. Each is one script, and calls to one script in the same tick are sent together."""

    def __init__(self, redis: Redis, topic: str, topic_id: str, meaning: str, taken: str = "") -> None:
        """``meaning`` is the fingerprint of the models. ``taken`` names the commands, where any are forwarded."""
        self.redis, self._topic, self.topic_id, self._meaning = redis, topic, topic_id, meaning
        self._forwards = f"{meaning}:{taken}"  # an instance forwards to those of which this is the same

    def away(self, partition: int | None = None) -> str:
        """Why the cache of a scope, or of any scope, does not answer, or "" while it does. Publishers ask all the time,
        so they notice when it is back."""
        return self.redis.away("" if partition is None else self.mark(partition))

    async def probe(self, partition: int) -> None:
        """Raises Unavailable where Redis takes no writes: a PING says nothing about rights, room or replicas."""
        await self.redis.execute("SET", f"{self.scope(partition)}:ready", "", "PX", PROBED_MS)

    def scope(self, partition: int) -> str:
        return f"hive:{{{self._topic}/{partition}/{self.topic_id}}}"

    def mark(self, partition: int) -> str:
        return f"{self.scope(partition)}:{self._meaning}"

    async def watermark(self, partition: int) -> WatermarkReply:
        text, parts = await self.redis.call(_WATERMARK, self.mark(partition), (), ())
        texts = [part.decode() for part in parts]
        writers = dict(zip(texts[::2], map(Writer.parse, texts[1::2]), strict=True))
        return WatermarkReply(text, Watermark.parse(text), writers)

    def read(self, partition: int, aggregate: str = "", command: str = "") -> "asyncio.Future[CacheReply]":
        """An aggregate, a command id, or both; without either the watermark alone."""
        return self.redis.call(_READ, self.mark(partition), (READ_BYTES,), (1, aggregate, command), _reply)

    async def load(self, partition: int, pairs: Sequence[tuple[str, str]]) -> list[CacheReply]:
        """The same for pairs of an aggregate and a command id, all at one watermark: the first ones, as many as fit
        into one answer, and at least one."""
        own: list[Argument] = [len(pairs), *(part for pair in pairs for part in pair)]
        replies: list[CacheReply] = await self.redis.call(_READ, self.mark(partition), (LOAD_BYTES,), own, _replies)
        return replies

    async def prepare(
        self, partition: int, token: str, ttl_ms: int, heads: Sequence[tuple[str, str]]
    ) -> tuple[Watermark | None, bool]:
        """The watermark, and the vote of the cache: yes, unless one of the aggregates has another head or the intent of
        another instance."""
        own: list[Argument] = [token, len(heads), *(part for pair in heads for part in pair)]
        text, vote = await self.redis.call(_PREPARE, self.mark(partition), (self.scope(partition), ttl_ms), own)
        return Watermark.parse(text), vote == 1

    async def apply(
        self,
        partition: int,
        base: Watermark,
        to: Watermark,
        verdicts: str,
        entries: Sequence[tuple[str, bytes]],
        ids: Sequence[tuple[str, str]],
        window: IdWindow,
        published: int,
        unfolded: Sequence[str],
        writers: Sequence[tuple[str, str]],
        processes: Sequence[tuple[str, int]],
    ) -> Watermark | None:
        """Move the cache from ``base`` to ``to``, if ``base`` is its watermark. Returns the watermark after that.

        ``unfolded`` names the entries that have events which are not folded, and ``<actor>/`` for each unknown actor.
        ``writers`` are those that have moved on; a forgotten writer has the text "". ``processes`` are what is
        listed of the processes among the entries: see ``listed``.
        """
        # A few packed arguments instead of thousands, because the client encodes each one by itself.
        snapshots = [part for name, entry in entries for part in (name, entry.decode())]  # its Lua does not unpack bin
        named = [_pack(list(chain.from_iterable(pairs))) for pairs in (ids, writers, processes)]
        packed = (_pack(snapshots), named[0], _pack(unfolded), *named[1:])
        arguments: list[Argument] = [base.text, to.text, base.offset, verdicts, *window, published, *packed]
        _, text = await self.redis.call(_APPLY, self.mark(partition), (), arguments)
        return Watermark.parse(text)

    async def verdicts(self, partition: int, first: int, end: int) -> tuple[Watermark | None, str]:
        """The watermark, and for each offset '1' (accepted), '0' (void) or '?' (not on record)."""
        text, verdicts = await self.redis.call(_VERDICTS, self.mark(partition), (), (first, end))
        return Watermark.parse(text), verdicts.decode()

    async def due(
        self, partition: int, first: int, count: int, by: int
    ) -> tuple[Watermark | None, int, list[tuple[str, int]]]:
        """The watermark; how many processes have a deadline that is due ``by`` this time; and ``count`` processes with
        deadlines and when the first deadline of each is due, from number ``first`` on in the order of that."""
        text, (number, *found) = await self.redis.call(_DUE, self.mark(partition), (), (first, count, by))
        pairs = zip(found[::2], found[1::2], strict=True)
        return Watermark.parse(text), number, [(name.decode(), int(at)) for name, at in pairs]

    async def processes(self, partition: int, part: int, first: int, count: int) -> tuple[int, list[tuple[str, int]]]:
        """Of the processes that run (RUNNING), are stuck (STUCK) or wait for an answer (WAITS), how many there are, and
        ``count`` of them from number ``first`` on: the name, and since when it waits by the log's clock."""
        _, (number, *found) = await self.redis.call(_LISTED, self.mark(partition), (), (part, first, count))
        pairs = zip(found[::2], found[1::2], strict=True)
        return number, [(unmarked(name.decode()), int(at) - part) for name, at in pairs]

    async def ask(self, partition: int, name: str, what: str) -> None:
        """Ask the leader of a scope to do something with a process. A scope that nobody follows is opened for it."""
        await self.redis.execute("HSET", f"{self.scope(partition)}:asked", name, what)
        await self.redis.execute("DEL", f"{self.mark(partition)}:rest")

    async def asked(self, partition: int) -> dict[str, str]:
        """What the leader was asked to do, by process."""
        found = await self.redis.execute("HGETALL", f"{self.scope(partition)}:asked")
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return {name.decode(): what.decode() for name, what in pairs}

    async def answered(self, partition: int, name: str) -> None:
        """It is done, or cannot be done."""
        await self.redis.execute("HDEL", f"{self.scope(partition)}:asked", name)

    async def reset(self, partition: int, found: bytes, to: Watermark) -> bool:
        """Start a new generation at the watermark ``to``, if the cache still has the watermark ``found``. Returns
        whether it had."""
        moved, _ = await self.redis.call(_RESET, self.mark(partition), (), (found, to.text))
        return bool(moved == 1)

    async def lease(self, partition: int, holder: str, ttl_ms: int) -> tuple[Watermark | None, str]:
        """The watermark, and who has the lease of the scope's leader: the holder, for the next ``ttl_ms``, unless
        another one has it. With 0 the holder gives it back, if it has it."""
        return await self._lease(partition, f"{self.scope(partition)}:publisher", holder, ttl_ms)

    async def lease_fold(self, partition: int, holder: str, ttl_ms: int) -> tuple[Watermark | None, str]:
        """The watermark, and who folds this cache: the holder, for the next ``ttl_ms``, unless another one does."""
        return await self._lease(partition, f"{self.mark(partition)}:fold", holder, ttl_ms)

    async def _lease(self, partition: int, key: str, holder: str, ttl_ms: int) -> tuple[Watermark | None, str]:
        text, found = await self.redis.call(_LEASE, self.mark(partition), (key,), (holder, ttl_ms))
        return Watermark.parse(text), found.decode("utf-8", "replace")

    async def leader(self, partition: int) -> str:
        """The holder of the lease of the scope's publisher; "" if nobody has it."""
        found = await self.redis.execute("GET", f"{self.scope(partition)}:publisher")
        return (found or b"").decode("utf-8", "replace")

    async def look(self, partition: int) -> Look:
        """The state of a scope that is not followed."""
        lease = f"{self.scope(partition)}:publisher"
        text, (served, rest) = await self.redis.call(_LOOK, self.mark(partition), (lease,), ())
        return Look(text, Watermark.parse(text), bool(served), rest.decode())

    async def note_rest(self, partition: int, log_end: int, ends: Sequence[int]) -> None:
        """Note that everything below these ends of the log and of the event topic is applied and published, and that
        the leader leaves the scope."""
        await self.redis.execute("SET", f"{self.mark(partition)}:rest", rest(log_end, ends))

    def published_key(self, partition: int, kind: str) -> str:
        """The key that is there once ``kind`` ("events" or "commands") of this log were published."""
        return f"{self.scope(partition)}:published" if kind == "events" else f"{self.scope(partition)}:outbox"

    async def note_published(self, partition: int, kind: str) -> None:
        """Note that ``kind`` of this log were published."""
        await self.redis.execute("SET", self.published_key(partition, kind), "")

    async def published(self, partition: int, kind: str) -> bool:
        """Whether somebody has noted that ``kind`` of this log were published."""
        return bool(await self.redis.execute("EXISTS", self.published_key(partition, kind)))

    async def others(self) -> list[str]:
        """The topic ids of other logs of this name that this Redis has seen. Adds this log to them."""
        name = f"hive:logs:{{{self._topic}}}"
        await self.redis.execute("SADD", name, self.topic_id)
        return sorted({id.decode() for id in await self.redis.execute("SMEMBERS", name)} - {self.topic_id})

    async def some_unfolded(self, partition: int, generation: str, most: int) -> tuple[int, list[str]]:
        """How many aggregates have such events, unknown actors included, and the names of some of them."""
        key = f"{self.mark(partition)}:{generation}:unfolded"
        count = await self.redis.execute("SCARD", key)
        found = await self.redis.execute("SRANDMEMBER", key, most) if count else []
        return int(count), sorted(name.decode("utf-8", "replace") for name in found)

    async def announce(self, instance: str, text: bytes, forgotten_s: int) -> None:
        """Note what an instance says of itself. All of it is forgotten when none has done so for ``forgotten_s``."""
        await self.redis.execute("HSET", self._instances, instance, text)
        await self.redis.execute("EXPIRE", self._instances, forgotten_s)

    async def announced(self) -> dict[str, bytes]:
        """What each instance has said of itself."""
        found = await self.redis.execute("HGETALL", self._instances)
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return {name.decode("utf-8", "replace"): text for name, text in pairs}

    async def withdraw(self, instances: Sequence[str]) -> None:
        await self.redis.execute("HDEL", self._instances, *instances)

    @property
    def _instances(self) -> str:
        return f"hive:instances:{{{self._topic}/{self.topic_id}}}"

    def mailbox(self, instance: str) -> str:
        return f"hive:mail:{{{self._topic}/{self.topic_id}/{instance}}}"

    def send(self, instance: str, packet: bytes, *, commands: bool) -> "asyncio.Future[bool]":
        """Put a packet into the mailbox of an instance. False if it was not put there: because the mailbox is full,
        or, where it has ``commands``, because the instance takes none from instances with these models and commands."""
        common = (self._forwards if commands else "", MAILBOX_PACKETS, MAILBOX_MS)
        return self.redis.call(_SEND, self.mailbox(instance), common, (packet,), lambda batch, put: bool(put))

    async def take_commands(self, instance: str, for_ms: int) -> None:
        """Note that an instance takes commands of others for so long."""
        await self.redis.execute("SET", f"{self.mailbox(instance)}:open", self._forwards, "PX", for_ms)

    async def takes_commands(self, instance: str) -> bool:
        """Whether an instance takes commands of others that have the same models and commands."""
        found = await self.redis.execute("GET", f"{self.mailbox(instance)}:open")
        return bool(found == self._forwards.encode())

    async def take_no_commands(self, instance: str) -> None:
        await self.redis.execute("DEL", f"{self.mailbox(instance)}:open")

    async def receive(self, instance: str, wait_s: float) -> list[bytes]:
        """The first packets of the mailbox of an instance, or after so long none."""
        mailbox = self.mailbox(instance)
        pop = ("BLMPOP", str(wait_s), 1, mailbox, "LEFT", "COUNT", TAKEN_PACKETS)
        found = await self.redis.execute(*pop, key=mailbox)
        return list(found[1]) if found else []

    async def forget(self, partition: int, generation: str) -> None:
        """Remove all keys of a generation."""
        prefix = f"{self.mark(partition)}:{generation}:"
        async for keys in self.redis.scan(_escaped(prefix) + "*", LEFTOVERS, prefix):
            if keys:
                await self.redis.execute("UNLINK", *keys)

    async def aggregates(self, partition: int, generation: str) -> AsyncIterator[str]:
        """The names of all aggregates of a generation, in no order."""
        prefix = f"{self.mark(partition)}:{generation}:a:"
        async for keys in self.redis.scan(_escaped(prefix) + "*", LEFTOVERS, prefix):
            for key in keys:
                yield key.decode("utf-8", "replace").removeprefix(prefix)

    async def sampled(self) -> list[tuple[int, str]]:
        """Some aggregates of all scopes with their partitions, from the caches of all versions of the models: those
        among the first ``SAMPLE`` keys of this Redis."""
        prefix, suffix = f"hive:{{{self._topic}/", f"/{self.topic_id}}}"
        found: list[tuple[int, str]] = []
        looked_at = 0
        async for keys in self.redis.scan(f"{_escaped(prefix)}*{_escaped(suffix)}:*:a:*", LEFTOVERS):
            for key in keys:
                partition, _, rest = key.decode("utf-8", "replace").removeprefix(prefix).partition(suffix)
                found.append((int(partition), rest.partition(":a:")[2]))
            looked_at += LEFTOVERS
            if looked_at >= SAMPLE:
                break
        return found

    async def unfolded(self, partition: int, generation: str) -> set[str]:
        """The aggregates whose entry has events that are not folded, and ``<actor>/`` for each unknown actor."""
        found = await self.redis.execute("SMEMBERS", f"{self.mark(partition)}:{generation}:unfolded")
        return {name.decode("utf-8", "replace") for name in found}


async def former_marks(redis: Redis, topic: str, topic_id: str) -> dict[bytes, bytes]:
    """The watermarks of a log, by their keys, that versions which do not know the newest format have left there or
    still move. Raises Unavailable."""
    found: dict[bytes, bytes] = {}
    async for keys in redis.scan(_escaped(f"hive:{{{topic}/") + "*" + _escaped("}:") + "?" * 8, LEFTOVERS):
        for key in keys:
            watermark = await redis.execute("GET", key) or b""
            parts = watermark.split(b"|", 8)
            if len(parts) > 2 and parts[2] == topic_id.encode():
                known = FORMER_PARTS.get(len(parts)) or int(parts[7])
                if known < FORMAT:
                    found[key] = watermark
    return found


def rest(log_end: int, ends: Sequence[int]) -> str:
    """The note of a scope at rest. Where it says something else, there is work left, or a topic is another one."""
    return ":".join(map(str, (log_end, *ends)))


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "*?[]{}\\^" else c for c in text)
