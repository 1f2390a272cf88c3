"""A transaction from its command to who has handled its events."""

from typing import NamedTuple

from hiveio.config import Settings
from hiveio.console.records import Row, ScopeRecords
from hiveio.kafka.reader import Reader
from hiveio.kafka.session import MAX_GROUP
from hiveio.status.model import Group
from hiveio.transaction.command import Token
from hiveio.transaction.record import Commit, Transactional
from hiveio.transaction.resume import published

AHEAD = 200  # records of the event topic beside its events that are looked through for the events of one record
BACK = 2 * MAX_GROUP  # records before what the search has found: an overtaken session repeats a group, or few of them
STEP = 16  # records that one look of the search reads


class Trace(NamedTuple):
    """All records of a command, and the offsets of the events of the accepted one on the event topic."""

    scope: ScopeRecords
    rows: list[Row]
    events: list[int]

    @property
    def accepted(self) -> Row | None:
        return next((row for row in self.rows if row.accepted), None)


def find(settings: Settings, scopes: list[ScopeRecords], id: str) -> Trace | None:
    """By a transaction id, an event's hive-id, the id of a 504, or a position ``scope:offset``. None if none of the
    judged records is meant. Blocking; raises Unavailable."""
    offsets, scope = _offsets(scopes, id.strip())
    if scope is None:
        return None
    rows = scope.rows_at(offsets)
    for row in rows:
        if row.accepted and isinstance(row.record, Commit):
            count = sum(len(write.events) for write in row.record.writes)
            events = _events(settings, scope.partition, row.message.offset, count) if count else []
            return Trace(scope, rows, events)
    return Trace(scope, rows, [])


def _offsets(scopes: list[ScopeRecords], id: str) -> tuple[list[int], ScopeRecords | None]:
    partition, colon, rest = id.partition(":")
    if colon and partition.isdigit():
        offset = rest.partition(":")[0]
        for scope in scopes:
            if scope.partition == int(partition[:9]) and offset.isdigit() and int(offset[:18]) < scope.judged:
                return _of_same_command(scope, int(offset)), scope
        return [], None
    try:
        text = Token.parse(id).command.text
    except ValueError:
        pass
    else:
        return next(((scope.commands[text], scope) for scope in scopes if text in scope.commands), ([], None))
    transaction = id.partition(".")[0]
    for scope in scopes:
        if (found := scope.transactions.get(transaction)) is not None:
            return _of_same_command(scope, found), scope
    return [], None


def _of_same_command(scope: ScopeRecords, offset: int) -> list[int]:
    (row,) = scope.rows(offset, offset + 1)
    if isinstance(row.record, Transactional) and row.record.command is not None:
        return scope.commands.get(row.record.command.text, [offset])
    return [offset]


def _events(settings: Settings, partition: int, offset: int, count: int) -> list[int]:
    """Where the ``count`` events of the log's record at this offset are on the event topic, which has them in the order
    of the log. A search by halves may come upon repeats, which lie behind what they repeat. Consumers take what comes
    first, so that is looked for before them."""
    topic = settings.written_topic
    with Reader(settings) as reader:
        low, end = reader.bounds(topic, partition)
        first, high = low, end
        while first < high:
            middle = (first + high) // 2
            at = _position(reader, topic, partition, middle, min(high, middle + STEP))
            if at is None or at >= offset:
                high = middle
            else:
                first = middle + 1
        found: dict[int, int] = {}
        for message in reader.read(topic, partition, max(low, first - BACK), min(end, first + count + AHEAD)):
            event = published(message, partition)
            if event is not None and event.offset == offset:
                found.setdefault(event.event_index, event.at)
            if len(found) == count or (event is not None and event.at >= first and event.offset > offset):
                break
        return sorted(found.values())


def _position(reader: Reader, topic: str, partition: int, first: int, end: int) -> int | None:
    """The position of the first event among these records; None if there is none."""
    for message in reader.read(topic, partition, first, end):
        if (event := published(message, partition)) is not None:
            return event.offset
    return None


def handled(group: Group, topic: str, partition: int, events: list[int], dead: set[str]) -> str:
    """What a group has done about these events: in a word for each case."""
    committed = next(
        (each.committed for each in group.partitions if (each.topic, each.partition) == (topic, partition)), None
    )
    if committed is None:
        return "does not read them"
    if lying := [at for at in events if f"{topic}/{partition}/{at}" in dead]:
        return f"{len(lying)} of {len(events)} lie as dead letters"
    if committed > events[-1]:
        return "handled"
    return f"waits: it is at {committed:,}, and the events end at {events[-1]:,}"
