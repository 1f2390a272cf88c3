"""Records of the transaction log, encoded and decoded.

A record is one Kafka message that holds one whole transaction. Its key is the transaction id, ``<writer>-<number>``:
one per append, never used twice, with numbers (hexadecimal) that rise in the order in which a writer appends. Its value
is JSON. An aggregate is named ``<actor>/<id>``, a command by its target and its key.
"""

from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from hiveio.errors import Corrupt

FIRST_FORMAT = 1
FORMAT = 2  # the newest that this version knows, and that of the logs which it makes


class CommandId(NamedTuple):
    """What is executed at most once: the Idempotency-Key (or a fresh one) at its target."""

    target: str
    key: str

    @property
    def text(self) -> str:
        # The length keeps "a/b" + "c" and "a" + "b/c" apart.
        return f"{len(self.target)}:{self.target}/{self.key}"


def aggregate(actor: str, id: str) -> str:
    return f"{actor}/{id}"


class Write(Struct, frozen=True, array_like=True):
    """An aggregate written: the head it was performed on, its version before, and its events as envelopes."""

    aggregate: str
    head: str
    version: int
    events: tuple[Raw, ...] = ()


class Read(Struct, frozen=True, array_like=True):
    """An aggregate read, and validated at commit."""

    aggregate: str
    head: str


class Format(Struct, frozen=True, tag_field="kind", tag="format"):
    """The first record of every partition pins what verdicts depend on.

    ``actors`` are those of the service that made the log, which tell it from other services; no verdict looks at
    them. An older log has none.
    """

    format: int
    partitions: int
    hash: str
    idempotency_count: int
    idempotency_time_ms: int
    actors: tuple[str, ...] = ()


class Upgrade(Struct, frozen=True, tag_field="kind", tag="upgrade"):
    """From the next record on this format's rules hold for the partition. Void where they hold already."""

    format: int


class Commit(Struct, frozen=True, tag_field="kind", tag="commit", omit_defaults=True):
    """A transaction of one scope. The first write is the command's target, if need be without events.

    ``seen``: its writer had read everything below this offset when it appended the record. ``refusal`` is the problem
    document of a refused command, which writes no events; ``headers`` are those of its answer. ``trace`` and
    ``tracestate`` are the trace context of the command, which its events carry on in their headers. No verdict looks
    at these four.
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


class Barrier(Struct, frozen=True, tag_field="kind", tag="barrier", omit_defaults=True):
    """Moves the heads of its aggregates, and closes a command that has not been executed. ``seen`` as in Commit."""

    aggregates: tuple[str, ...]
    command: CommandId | None = None
    keyed: bool = False
    seen: int = 0


class Foreign(Struct, frozen=True):
    """Bytes that no version of this package wrote: no JSON object with a ``kind``. Void for every reader."""


Record = Format | Upgrade | Commit | Barrier | Foreign
Transactional = Commit | Barrier  # they move heads, execute or close a command, and count among those of their writer


class _Kind(Struct):
    kind: Raw | msgspec.UnsetType = msgspec.UNSET


encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Format | Upgrade | Commit | Barrier)
_kind_decoder = msgspec.json.Decoder(_Kind)
_FOREIGN = Foreign()


def decode(value: bytes) -> Record:
    """The record that these bytes are; Foreign where they are none. Raises Corrupt for an object with a ``kind`` that
    this version cannot read: a newer one gives it a meaning, and two versions must not judge one record differently.
    """
    try:
        record = _decoder.decode(value)
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
    if isinstance(record, (Format, Upgrade)) and record.format > FORMAT:
        raise Corrupt(
            f"the log has format {record.format} from here on, and this version knows format {FORMAT}: run a newer one"
        )
    return record


def named(record: Record) -> tuple[str, ...]:
    """The aggregates that a record names: those that it writes or moves, and those whose reading it validates."""
    if isinstance(record, Commit):
        names = [write.aggregate for write in record.writes]
        if record.reads:
            names += [read.aggregate for read in record.reads]
        return tuple(names)
    return record.aggregates if isinstance(record, Barrier) else ()
