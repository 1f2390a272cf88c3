"""The checker's own fold of the transaction log, written from docs/transactions.md: it imports nothing of the engine.

Point 2 of docs/faults.md is found here; the other points are found by comparing with what is folded.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from tests.faults import actors

WRITERS = 1_000  # that are remembered
HEX = "0123456789abcdef"
Replay = Callable[[Any, dict[str, Any]], Any]


def _replayed(actor: Any, events: tuple[type, ...]) -> Replay:
    kinds = {kind.__name__: kind for kind in events}

    def replay(state: Any, envelope: dict[str, Any]) -> Any:
        return actor.replay(state, msgspec.convert(envelope["payload"], kinds[envelope["type"]]))

    return replay


REPLAYS: Mapping[str, Replay] = {
    "Account": _replayed(
        actors.AccountActor(),
        (actors.Deposited, actors.Withdrawn, actors.Sent, actors.Received, actors.Witnessed, actors.Noted),
    ),
    "Tally": _replayed(actors.TallyActor(), (actors.Added,)),
    "Pair": _replayed(actors.PairActor(), (actors.Given, actors.Taken)),
}


class Finding(NamedTuple):
    """Something that may not be. ``point`` is that of docs/faults.md, ``where`` an aggregate, offset or command."""

    point: int
    where: str
    text: str

    def __str__(self) -> str:
        return f"[{self.point}] {self.where}: {self.text}"


class Record(NamedTuple):
    """A message of the transaction log, as it was read."""

    offset: int
    tx: str
    value: bytes
    time: int = 0


class Written(NamedTuple):
    """What an accepted transaction wrote to one aggregate. ``before`` and ``after`` are its versions by the fold."""

    aggregate: str
    before: int
    after: int
    events: list[dict[str, Any]]


@dataclass
class Accepted:
    """An accepted commit."""

    offset: int
    tx: str
    target: str
    key: str
    keyed: bool
    refusal: dict[str, Any] | None
    writes: list[Written]

    @property
    def markers(self) -> set[str]:
        return {event["payload"]["marker"] for write in self.writes for event in write.events}


@dataclass
class Published:
    """An event as it has to be on the event topic."""

    position: str
    key: str
    value: Any
    headers: dict[str, str]


@dataclass
class Timeline:
    """One aggregate: its head, and its state after each of its events. ``ends`` are the versions between commits,
    each with the offset from which on it was the current one."""

    head: str = ""
    states: list[Any] = field(default_factory=lambda: [None])
    ends: dict[int, int] = field(default_factory=lambda: {0: 0})

    @property
    def version(self) -> int:
        return len(self.states) - 1

    def current_between(self, version: int) -> tuple[int, int] | None:
        """The offsets below which the log had to end for this version: from, and up to, both included."""
        if version not in self.ends:
            return None
        later = [offset for other, offset in self.ends.items() if other > version]
        return self.ends[version], min(later) - 1 if later else sys.maxsize


def _body(value: bytes) -> dict[str, Any] | None:
    """A record's object; None for bytes that are no object with a ``kind``."""
    try:
        body = json.loads(value)
    except ValueError:
        return None
    return body if isinstance(body, dict) and "kind" in body else None


class Fold:
    """Takes the records of one partition in order."""

    def __init__(self, partition: int = 0, replays: Mapping[str, Replay] = REPLAYS) -> None:
        self.partition, self._replays = partition, replays
        self.count_window, self.time_window = 0, 0
        self.next, self.time = 0, 0
        self.format, self.stamp = 1, 0
        self.writers: dict[str, tuple[int, int]] = {}  # writer → highest number, offset of that; latest ones last
        self.floor = 0
        self.last = ""  # transaction id of the last record
        self.verdicts: list[bool] = []
        self.aggregates: dict[str, Timeline] = {}
        self.ids: dict[str, tuple[int, int, bool]] = {}  # command id → offset, time, keyed
        self.commits: dict[int, Accepted] = {}
        self.events: list[Published] = []
        self.findings: list[Finding] = []
        self._transactions: dict[str, Record] = {}

    def replayed(self, name: str, snapshot: bytes, events: list[dict[str, Any]]) -> Any:
        """The JSON of a state after these events, from the JSON of the one before."""
        kind = type(self.aggregates[name].states[-1])
        state = msgspec.json.decode(snapshot, type=kind) if snapshot else None
        for event in events:
            state = self._replays[name.partition("/")[0]](state, event)
        return plain(state)

    def take(self, record: Record) -> bool:
        """The verdict on the next record."""
        if record.offset != self.next:
            self._found(2, record.offset, f"the log goes on at {record.offset}, not at {self.next}")
        body = _body(record.value)
        self._go_on(record)
        if body is None:  # void for every reader, whatever its key is
            self.verdicts.append(False)
            return False
        first = self._transactions.setdefault(record.tx, record)
        if first.value != record.value:
            self._found(2, record.offset, f"the transaction id {record.tx} was used at {first.offset} already")
        verdict = self._judge(record, body)
        self.verdicts.append(verdict)
        void = ("commit", "barrier") if self.format > 1 else ("commit",)
        copied = first is not record and body["kind"] in void
        if verdict and copied:  # Kafka's client may write a record twice
            self._found(2, record.offset, f"a copy of {record.tx}, which is at {first.offset}, is accepted")
        return verdict

    def _go_on(self, record: Record) -> None:
        """The log's clock: the latest stamp in format 1, the sum of bounded steps since."""
        self.next, self.last = record.offset + 1, record.tx
        if record.time > 0:
            step = min(max(0, record.time - self.stamp), max(1, self.time_window // 60))
            self.time = max(self.time, record.time) if self.format == 1 else self.time + step
            self.stamp = record.time

    def _is_new(self, record: Record, seen: int) -> bool:
        """Whether it is the first of its writer with so high a number, as far as that is known."""
        name, dash, digits = record.tx.rpartition("-")
        if not dash or not 0 < len(digits) < 16 or set(digits) - set(HEX):
            name, digits = record.tx, "0"
        number, before = int(digits, 16), self.writers.get(name, (-1, 0))[0]
        if number <= before:
            return False
        known = seen >= self.floor
        self.writers.pop(name, None)
        self.writers[name] = (number, record.offset)
        if len(self.writers) > WRITERS:
            oldest = min(self.writers, key=lambda each: self.writers[each][1])
            self.floor = self.writers.pop(oldest)[1] + 1
        return known

    def watermark(self, topic_id: str, generation: str) -> str:
        """As it should be in the cache."""
        numbers = (self.format, self.stamp, self.floor, 3)  # the last one is the newest format that is known
        parts = (self.next, self.time, topic_id, generation, *numbers, self.last)
        return "|".join(map(str, parts))

    def writers_text(self) -> dict[str, str]:
        """As they should be in the cache."""
        return {name: f"{number}:{offset}" for name, (number, offset) in self.writers.items()}

    def known(self, command: str, at: int) -> bool:
        """Whether the command id is in the window of a record at this offset, and of the log time that is reached."""
        if command not in self.ids:
            return False
        offset, time, keyed = self.ids[command]
        return at - offset <= self.count_window or (keyed and self.time - time <= self.time_window)

    def _judge(self, record: Record, body: dict[str, Any]) -> bool:
        kind = body["kind"]
        if kind in ("commit", "barrier") and not self._is_new(record, body.get("seen", 0)) and self.format > 1:
            return False
        if kind == "upgrade":
            before, self.format = self.format, max(self.format, body["format"])
            return bool(self.format > before)
        if kind == "format":
            if record.offset == 0:
                self.format = body.get("format", 1)
                self.count_window = body["idempotency_count"]
                self.time_window = body["idempotency_time_ms"]
            return True
        command = _command(body["command"]) if body.get("command") else None
        known = command is not None and self.known(command, record.offset)
        if kind == "commit":
            reads: list[list[str]] = body.get("reads", [])
            needed = [(w[0], w[1]) for w in body["writes"]] + [(r[0], r[1]) for r in reads]
            if known or any(self._head(name) != head for name, head in needed):
                return False
            step = body.get("process") or {}
            if self.format > 2 and self.time < step.get("due", 0):
                return False
            self._commit(record, body)
        elif kind == "barrier":
            for name in body["aggregates"]:
                self.aggregates.setdefault(name, Timeline()).head = record.tx
        else:
            self._found(2, record.offset, f"a record of the kind {kind!r}")
        if command is not None and not known:
            self.ids[command] = (record.offset, self.time, body.get("keyed", False))
        return True

    def _head(self, name: str) -> str:
        timeline = self.aggregates.get(name)
        return timeline.head if timeline else ""

    def _commit(self, record: Record, body: dict[str, Any]) -> None:
        target, key = body["command"]
        writes = []
        names = [write[0] for write in body["writes"]]
        if len(set(names)) < len(names) or target not in names:
            self._found(3, record.offset, f"target {target}, and it writes {names}")
        for name, _, version, events in body["writes"]:
            timeline = self.aggregates.setdefault(name, Timeline())
            if version != timeline.version:
                self._found(2, f"{record.offset} {name}", f"written on version {version}, it has {timeline.version}")
            timeline.head = record.tx
            before = timeline.version
            for event in events:
                timeline.states.append(self._replays[name.partition("/")[0]](timeline.states[-1], event))
                self._publish(record, name, timeline.version, event)
            timeline.ends.setdefault(timeline.version, record.offset + 1)
            writes.append(Written(name, before, timeline.version, events))
        self.commits[record.offset] = Accepted(
            record.offset, record.tx, target, key, body.get("keyed", False), body.get("refusal"), writes
        )

    def _publish(self, record: Record, name: str, version: int, event: dict[str, Any]) -> None:
        last = self.events[-1].position.split(":") if self.events else ["", "-1", ""]
        index = int(last[2]) + 1 if int(last[1]) == record.offset else 0
        actor, _, id = name.partition("/")
        position = f"{self.partition}:{record.offset}:{index}"
        headers = {
            "hive-actor": actor,
            "hive-id": f"{record.tx}.{index}",
            "hive-position": position,
            "hive-version": str(version),
        }
        if self.events:
            headers["hive-previous"] = self.events[-1].position
        self.events.append(Published(position, id, event, headers))

    def _found(self, point: int, where: object, text: str) -> None:
        self.findings.append(Finding(point, str(where), text))


def _command(pair: list[str]) -> str:
    target, key = pair
    return f"{len(target)}:{target}/{key}"


def plain(state: Any) -> Any:
    """A state as its JSON."""
    return json.loads(msgspec.json.encode(state))
