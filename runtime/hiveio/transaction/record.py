"""Records of the transaction log, encoded and decoded.

A record is one Kafka message that holds one whole transaction. Its key is the transaction id, ``<writer>-<number>``:
each append has a new one, and the (hexadecimal) numbers of a writer rise in the order of its appends. Its value
is JSON. An aggregate is named ``<actor>/<id>``, a command by its target and its key.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import msgspec
from msgspec import Raw, Struct

from hiveio.errors import Corrupt
from hiveio.identity import Identity

FIRST_FORMAT = 1
FORMAT = 3  # the newest format that this version knows, and the format of the logs that it creates
PROCESSES = 3  # the format from which on a record may have a step of a process


class CommandId(NamedTuple):
    """The identity of a command, which is executed at most once: its target and its key.

    The key is its Idempotency-Key or a fresh one. Where requests are authenticated, the subject of the caller and a
    line break stand before it, and neither has a line break. So nobody learns of the command of another, or keeps it
    from being executed, by guessing its key.
    """

    target: str
    key: str

    @classmethod
    def of(cls, target: str, key: str, identity: Identity | None) -> Self:
        return cls(target, key if identity is None else f"{identity.subject}\n{key}")

    @property
    def caller(self) -> str:
        """The subject of its caller; empty where requests are not authenticated."""
        return self.key.rpartition("\n")[0]

    @property
    def given(self) -> str:
        """The key without the caller."""
        return self.key.rpartition("\n")[2]

    @property
    def text(self) -> str:
        # With the length, "a/b" + "c" and "a" + "b/c" differ.
        return f"{len(self.target)}:{self.target}/{self.key}"


def aggregate(actor: str, id: str) -> str:
    return f"{actor}/{id}"


class Write(Struct, frozen=True, array_like=True):
    """An aggregate that a transaction writes: the head and the version that it was decided on, and its new events as
    envelopes."""

    aggregate: str
    head: str
    version: int
    events: tuple[Raw, ...] = ()


class Read(Struct, frozen=True, array_like=True):
    """An aggregate that a transaction has read, with the head that the verdict compares."""

    aggregate: str
    head: str


class Format(Struct, frozen=True, tag_field="kind", tag="format"):
    """The first record of each partition, which pins what verdicts depend on.

    ``actors`` are the actors of the service that created the log, by which other services are refused; no verdict
    depends on them. An older log has none.
    """

    format: int
    partitions: int
    hash: str
    idempotency_count: int
    idempotency_time_ms: int
    actors: tuple[str, ...] = ()


class Upgrade(Struct, frozen=True, tag_field="kind", tag="upgrade"):
    """From the next record on, the rules of this format hold for the partition. It is void if they hold already."""

    format: int


class Send(Struct, frozen=True, array_like=True):
    """A command, as an envelope, to the aggregate ``id`` of another service, which its event topic names."""

    service: str
    id: str
    message: Raw


class Schedule(Struct, frozen=True, array_like=True):
    """A deadline: its event, as an envelope, comes to the process so long after the log's time at its record. One that
    is pending under the same name is put off to that."""

    name: str
    after_ms: int
    event: Raw


class ProcessStep(Struct, frozen=True, omit_defaults=True):
    """What a transaction of a process holds besides its events, so that all of it happens or nothing. Its process is
    the target of the command. It counts from format 3 on, and is nothing to older formats.

    ``source`` names the input that the process has taken. ``cancels`` are names of deadlines. ``fires`` is the name of
    the deadline that this transaction is for, and ``due`` when that is: until the log's time has come to it, the
    transaction is void.

    ``parks`` is the event of an input that waits, because the process is ``stuck`` or others wait already; its name is
    ``source`` or ``fires``. ``stuck`` says why the process cannot go on. ``unparks`` is the name of the first input
    that waits, which is handled or skipped by this transaction.

    ``answers`` is the position in the outbox, as ``offset:index``, of the command of this process that the input
    answers. With ``ends`` the process has ended.
    """

    source: str = ""
    sends: tuple[Send, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    cancels: tuple[str, ...] = ()
    fires: str = ""
    due: int = 0
    parks: tuple[Raw, ...] = ()  # one at most
    stuck: str = ""
    unparks: str = ""
    answers: str = ""
    ends: bool = False


class Cause(Struct, frozen=True, array_like=True):
    """The command of a process, taken from a topic of commands, that a transaction executes or refuses. It counts from
    format 3 on.

    ``stream`` names the topic, the log from which it is published (by its topic id) and the partition; ``offset`` and
    ``index`` are its position there. ``process`` has sent it, and ``command`` is its type.
    """

    stream: str
    offset: int
    index: int
    process: str
    command: str

    @property
    def text(self) -> str:
        return f"{self.stream}/{self.offset}:{self.index}"


class Commit(Struct, frozen=True, tag_field="kind", tag="commit", omit_defaults=True):
    """A transaction of one scope. Its first write is the target of the command, also if it gains no events.

    ``seen``: its writer had read everything below this offset when it appended the record. ``refusal`` is the problem
    document of a refused command, which writes no events; ``headers`` are those of its answer. ``trace`` and
    ``tracestate`` are the trace context of the command, and ``passed`` the headers of EVENT_HEADERS, as latin-1, which
    its events have in their headers. No verdict depends on these five. ``process`` is there where the target is a
    process, and ``cause`` where a process of a service has sent the command.
    """

    command: CommandId
    writes: tuple[Write, ...]
    reads: tuple[Read, ...] = ()
    keyed: bool = False
    hash: str = ""
    refusal: dict[str, Any] | None = None
    trace: str = ""
    headers: dict[str, str] = {}
    tracestate: str = ""
    seen: int = 0
    passed: tuple[tuple[str, str], ...] = ()
    process: ProcessStep | None = None
    cause: Cause | None = None


class Barrier(Struct, frozen=True, tag_field="kind", tag="barrier", omit_defaults=True):
    """Moves the heads of its aggregates, and closes a command that has not been executed. ``seen`` as in Commit."""

    aggregates: tuple[str, ...]
    command: CommandId | None = None
    keyed: bool = False
    seen: int = 0


class Foreign(Struct, frozen=True):
    """Bytes that no version of this package wrote: no JSON object with a ``kind``. They are void for every reader."""


Record = Format | Upgrade | Commit | Barrier | Foreign
Transactional = Commit | Barrier  # they move heads, execute or close a command, and have the numbers of their writer


class _Kind(Struct):
    kind: Raw | msgspec.UnsetType = msgspec.UNSET


encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], Record] = msgspec.json.Decoder(Format | Upgrade | Commit | Barrier).decode
_kind_decoder = msgspec.json.Decoder(_Kind)
_FOREIGN = Foreign()


def decode(value: bytes) -> Record:
    """The record in these bytes, or Foreign if there is none. Raises Corrupt for an object with a ``kind`` that this
    version cannot read: a newer version may give it a meaning, and two versions must not judge one record differently.
    """
    try:
        record = _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if not value.lstrip().startswith(b"{"):
            return _FOREIGN
        try:
            if _kind_decoder.decode(value).kind is msgspec.UNSET:
                return _FOREIGN
        except RecursionError:
            pass  # an object all the same
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return _FOREIGN
        raise Corrupt(
            f"this version does not know the record ({error}): a newer version may have written it, so nothing "
            "is judged beyond it; run the newest version that has written to this log"
        ) from None
    if not isinstance(record, Transactional) and not isinstance(record, Foreign) and record.format > FORMAT:
        raise Corrupt(
            f"the log has format {record.format} from here on, and this version knows format {FORMAT}: run a newer one"
        )
    return record


def written(record: Record) -> tuple[str, ...]:
    """The aggregates whose heads a record moves, if it is accepted."""
    if isinstance(record, Commit):
        return tuple([write.aggregate for write in record.writes])
    return record.aggregates if isinstance(record, Barrier) else ()


def too_old(where: str, format: int, needed: int) -> str:
    """Why a service does not work on a log of this format."""
    return (
        f"{where} has format {format}, and process managers and COMMAND_TOPICS need format {needed}: run hiveio "
        "upgrade, and start this service again"
    )


def published(record: Record) -> int:
    """How many records an accepted one becomes on the event topic: its events, or else the outcome of a command that
    has a cause."""
    if not isinstance(record, Commit):
        return 0
    return sum(len(write.events) for write in record.writes) or int(record.cause is not None)


def named(record: Record) -> tuple[str, ...]:
    """The aggregates that a record names: those that it writes or moves, and those whose reading it validates."""
    if isinstance(record, Commit):
        writes, reads = record.writes, record.reads
        if len(writes) == 1 and not reads:  # as most have
            return (writes[0].aggregate,)
        return (*written(record), *[read.aggregate for read in reads])
    return written(record)
