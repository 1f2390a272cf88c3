"""The checker of docs/faults.md: the log, the cache and the event topic against what the clients were told.

All of its seven points. It reads with fresh clients (evidence.py) and judges by its own fold (fold.py).
"""

import bisect
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from tests.faults.fold import Accepted, Finding, Fold, Record, Timeline, Written, plain

BITS = 65536  # verdicts in one bitmap of the cache


class Told(StrEnum):
    """What an answer says about a command."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    CONFLICT = "conflict"  # also a key that is closed: it has not happened and will not
    NOT_EXECUTED = "not executed"  # 503: this request did nothing
    UNKNOWN = "unknown"
    IN_WORK = "in work"  # the key's first request is not answered yet
    READ = "read"
    WRONG = "wrong"  # an answer that may not be


@dataclass(slots=True)
class Call:
    """A request and its answer. ``marker`` names the command; requests that repeat a key repeat the marker."""

    marker: str
    target: str
    called: float
    answered: float
    told: Told
    status: int = 200
    command: dict[str, Any] | None = None
    key: str | None = None
    if_match: int | None = None
    version: int | None = None
    position: int | None = None  # offset in the log
    answer: Any = None
    instance: int = 0


class OnTopic(NamedTuple):
    """A message of the event topic."""

    offset: int
    key: str
    value: bytes
    headers: dict[str, str]


@dataclass
class CacheDump:
    """One generation of the cache: what stands under its watermark."""

    watermark: str = ""
    entries: dict[str, bytes] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    bits: dict[int, bytes] = field(default_factory=dict)
    floor: int = 0


@dataclass
class Evidence:
    """All that is left after a run."""

    log: list[Record]
    events: list[OnTopic]
    cache: CacheDump
    topic_id: str = ""


def check(evidence: Evidence, history: Sequence[Call]) -> list[Finding]:
    """Everything that may not be; nothing, if all is well."""
    fold = Fold()
    parts = evidence.cache.watermark.split("|", 4)
    end = int(parts[0]) if len(parts) == 5 else 0
    found: list[Finding] = []
    if len(parts) != 5 or end > len(evidence.log):
        found.append(Finding(6, "watermark", f"{evidence.cache.watermark!r}, the log ends at {len(evidence.log)}"))
    for record in evidence.log:
        if record.offset == end:
            found += _check_cache(fold, evidence)
        fold.take(record)
    if end == len(evidence.log):
        found += _check_cache(fold, evidence)
    found += fold.findings
    found += _check_answers(fold, history)
    found += _check_wholeness(fold)
    found += _check_time(fold, history)
    found += _check_reads(fold)
    found += _check_events(fold, evidence.events)
    found += _check_money(fold)
    return sorted(found)


# -- 1


def _check_answers(fold: Fold, history: Sequence[Call]) -> Iterator[Finding]:
    by_marker: dict[str, list[Call]] = defaultdict(list)
    for call in history:
        if call.told is Told.WRONG:
            yield Finding(1, call.target, f"answered {call.status}: {call.answer}")
        elif call.command is not None:
            by_marker[call.marker].append(call)
    commits: dict[str, list[Accepted]] = defaultdict(list)
    for commit in fold.commits.values():
        for marker in commit.markers:
            commits[marker].append(commit)
    for marker in sorted(commits.keys() - by_marker.keys()):
        yield Finding(1, marker, f"accepted at {commits[marker][0].offset}, and nobody sent it")
    for marker, calls in by_marker.items():
        accepted = commits.get(marker, [])
        if len(accepted) > 1:
            yield Finding(1, marker, f"executed at {[commit.offset for commit in accepted]}: once is what may be")
        yield from _check_command(marker, calls, accepted, fold)


def _check_command(marker: str, calls: list[Call], accepted: list[Accepted], fold: Fold) -> Iterator[Finding]:
    where = f"{calls[0].target} {marker}"
    told = {call.told for call in calls}
    no = sorted(told & {Told.REFUSED, Told.CONFLICT})
    if Told.ACCEPTED in told and no:
        yield Finding(1, where, f"answered accepted and {', '.join(no)}; {_story(calls)}")
    if accepted and no:
        yield Finding(1, where, f"answered {', '.join(no)}, accepted at {accepted[0].offset}; {_story(calls)}")
    elif accepted and told == {Told.NOT_EXECUTED}:
        yield Finding(1, where, f"answered 503, accepted at {accepted[0].offset}; {_story(calls)}")
    statuses = {call.status for call in calls if call.told is Told.REFUSED}
    if len(statuses) > 1:
        yield Finding(1, where, f"one key, refused as {sorted(statuses)}")
    for call in calls:
        if call.told is not Told.ACCEPTED:
            continue
        commit = fold.commits.get(-1 if call.position is None else call.position)
        if commit is None or marker not in commit.markers:
            at = [other.offset for other in accepted]
            text = f"acknowledged at {call.position}, where it is not accepted (accepted at {at}); {_story(calls)}"
            yield Finding(1, where, text)
            continue
        if (commit.target, commit.keyed, call.key or commit.key) != (call.target, call.key is not None, commit.key):
            yield Finding(1, where, f"the record at {call.position} is of {commit.target}, key {commit.key}")
        written = next(write for write in commit.writes if write.aggregate == commit.target)
        if call.version != written.after:
            yield Finding(1, where, f"answered version {call.version}, it made version {written.after}")
        answer = written.events[0] if len(written.events) == 1 else written.events
        if call.answer != answer:
            yield Finding(1, where, f"answered {call.answer}, the log has {answer}")


def _story(calls: Iterable[Call]) -> str:
    """The requests of one command, in their order."""
    return "; ".join(
        f"{call.called:.3f} to {call.answered:.3f} instance {call.instance} key {call.key} if-match {call.if_match}: "
        f"{call.status} {str(call.answer)[:300]}"
        for call in sorted(calls, key=lambda call: call.called)
    )


# -- 3 and 7


def _check_wholeness(fold: Fold) -> Iterator[Finding]:
    for commit in fold.commits.values():
        events = [(write.aggregate, event) for write in commit.writes for event in write.events]
        if len(commit.markers) > 1:
            yield Finding(3, f"{commit.offset}", f"of several commands: {sorted(commit.markers)}")
        sent = [(f"Account/{e['payload']['to']}", e["payload"]["amount"]) for _, e in events if e["type"] == "Sent"]
        received = [(name, e["payload"]["amount"]) for name, e in events if e["type"] == "Received"]
        if sent != received:
            yield Finding(3, f"{commit.offset} {commit.target}", f"sent {sent}, received {received}")


def _check_money(fold: Fold) -> Iterator[Finding]:
    signs = {"Deposited": 1, "Withdrawn": -1}
    put = sum(
        signs.get(event.value["type"], 0) * event.value["payload"].get("amount", 0)
        for event in fold.events
        if event.headers["hive-actor"] == "Account"
    )
    held = 0
    for name, timeline in fold.aggregates.items():
        amounts = [getattr(state, "balance", getattr(state, "sum", 0)) for state in timeline.states]
        held += amounts[-1] if name.startswith("Account/") else 0
        below = [version for version, amount in enumerate(amounts) if amount < 0 and version in timeline.ends]
        if below and not name.startswith("Pair/"):
            yield Finding(7, name, f"{amounts[below[0]]} at version {below[0]}: accepted on a state that never was")
    if put != held:
        yield Finding(7, "all accounts", f"{put} was put in, {held} is there")
    yield from _check_pairs(fold)


def _check_pairs(fold: Fold) -> Iterator[Finding]:
    """Two of a pair (``x-a`` and ``x-b``) are never below zero together: that would be a write skew."""
    balances: dict[str, int] = {}
    for event in fold.events:
        if event.headers["hive-actor"] != "Pair":
            continue
        amount = event.value["payload"]["amount"]
        balances[event.key] = balances.get(event.key, 0) + (amount if event.value["type"] == "Given" else -amount)
        together = sum(balances.get(f"{event.key[:-1]}{half}", 0) for half in "ab")
        if together < 0:
            yield Finding(7, f"Pair/{event.key}", f"{event.position}: the pair is at {together}: write skew")


# -- 4


class _Acknowledged:
    """The newest version of each aggregate that anybody had been told of at a time."""

    def __init__(self, told: Mapping[str, list[tuple[float, int]]]) -> None:
        self._times: dict[str, list[float]] = {}
        self._versions: dict[str, list[int]] = {}
        for name, pairs in told.items():
            newest, versions = 0, []
            for _, version in sorted(pairs):
                newest = max(newest, version)
                versions.append(newest)
            self._times[name], self._versions[name] = [time for time, _ in sorted(pairs)], versions

    def before(self, name: str, time: float) -> int:
        index = bisect.bisect_left(self._times.get(name, []), time)
        return self._versions[name][index - 1] if index else 0


def _check_time(fold: Fold, history: Sequence[Call]) -> Iterator[Finding]:
    told: dict[str, list[tuple[float, int]]] = defaultdict(list)
    first: dict[str, float] = {}
    for call in history:
        if call.command is not None:
            first[call.marker] = min(call.called, first.get(call.marker, call.called))
        if call.told is Told.ACCEPTED and call.position in fold.commits:
            for write in fold.commits[call.position].writes:
                told[write.aggregate].append((call.answered, write.after))
        elif call.told is Told.READ:
            told[call.target].append((call.answered, call.version or 0))
    acknowledged = _Acknowledged(told)
    for call in history:
        if call.told is Told.READ:
            yield from _check_read(call, fold, acknowledged.before(call.target, call.called))
        elif call.told is Told.REFUSED:
            yield from _check_refusal(call, fold, acknowledged.before(call.target, first[call.marker]))
        elif call.told is Told.ACCEPTED and call.position in fold.commits:
            for write in fold.commits[call.position].writes:
                newest = acknowledged.before(write.aggregate, first[call.marker])
                if write.before < newest:
                    text = f"sent after version {newest} was acknowledged, it became version {write.after}"
                    yield Finding(4, f"{write.aggregate} {call.marker}", text)


def _check_read(call: Call, fold: Fold, newest: int) -> Iterator[Finding]:
    timeline, version = fold.aggregates.get(call.target), call.version or 0
    where = f"{call.target} by instance {call.instance}"
    if version < newest:
        yield Finding(4, where, f"read version {version} after version {newest} had been acknowledged")
    if timeline is None or version not in timeline.ends:
        if version:
            yield Finding(4, where, f"read version {version}, which never was")
    elif plain(timeline.states[version]) != call.answer:
        yield Finding(4, where, f"read {call.answer} at version {version}, it was {plain(timeline.states[version])}")


def _check_refusal(call: Call, fold: Fold, newest: int) -> Iterator[Finding]:
    """A refusal is right if some state that the command may have met refuses it."""
    timeline = fold.aggregates.get(call.target)
    met = range(newest, (timeline.version if timeline else 0) + 1)
    where = f"{call.target} {call.marker}"
    if call.status == 412:
        if call.if_match is None or all(version == call.if_match for version in met):
            yield Finding(4, where, f"412 for version {call.if_match}, and versions {list(met)[:5]} are all it met")
        return
    assert call.command is not None
    payload = call.command["payload"]
    needed = -payload["amount"] * payload.get("parts", 1) if call.command["type"] == "Add" else payload["amount"]
    if call.command["type"] == "Take":
        return  # depends on two aggregates: the record of its reads, if it has one, is validated
    states = (timeline.states[version] if timeline else None for version in met)
    if all(getattr(state, "balance", getattr(state, "sum", 0)) >= needed for state in states):
        yield Finding(4, where, f"refused {call.command['type']} of {needed} at versions {met}, which have it")


# -- 5


def _check_reads(fold: Fold) -> Iterator[Finding]:
    """What a transaction read is the fold at one position, at which its target was as it wrote it (that there is no
    write in between is point 2). Where reads are validated that position is its own, so that the order of the log is
    a serial order: every edge of the graph (ww, wr, rw) goes forward in the log, and there is no cycle."""
    for commit in fold.commits.values():
        for write in commit.writes:
            for event in write.events:
                if (seen := event["payload"].get("seen")) is not None:
                    yield from _check_cut(fold, commit, write, seen)


def _check_cut(
    fold: Fold, commit: Accepted, write: Written, seen: dict[str, tuple[int, int, int]]
) -> Iterator[Finding]:
    actor = write.aggregate.partition("/")[0]
    where = f"{commit.offset} {write.aggregate}"
    own = fold.aggregates[write.aggregate].stood(write.before)
    first, last = own[0] if own else 0, commit.offset
    if actor == "Pair":
        first = last
    for id, (balance, version, trace) in seen.items():
        timeline = fold.aggregates.get(f"{actor}/{id}") or Timeline()
        stood = timeline.stood(version)
        state: Any = timeline.states[version] if stood else None
        if stood is None or (version and (state.balance, state.trace) != (balance, trace)):
            yield Finding(5, where, f"read {id} at version {version} as {balance} ({trace}), which it never was")
            continue
        first, last = max(first, stood[0]), min(last, stood[1])
    if first > last:
        what = "another state than its own position has" if actor == "Pair" else "no one state of the scope"
        yield Finding(5, where, f"read {seen} on version {write.before}: {what}")


# -- 6


def _check_cache(fold: Fold, evidence: Evidence) -> Iterator[Finding]:
    """``fold`` has taken everything below the watermark."""
    cache = evidence.cache
    offset, time, topic, _, transaction = cache.watermark.split("|", 4)
    expected = (str(fold.next), str(fold.time), evidence.topic_id, fold.last)
    if (offset, time, topic, transaction) != expected:
        yield Finding(6, "watermark", f"{cache.watermark}, it should say {expected}")
    for name in sorted(cache.entries.keys() - fold.aggregates.keys()):
        yield Finding(6, name, f"in the cache as {cache.entries[name]!r}, and never written below {offset}")
    for name, timeline in fold.aggregates.items():
        text = cache.entries.get(name)
        if text is None:
            yield Finding(6, name, f"at version {timeline.version} and not in the cache (watermark {offset})")
            continue
        wanted = (timeline.version, timeline.head, plain(timeline.states[-1]))
        if _stored(fold, name, text) != wanted:
            yield Finding(6, name, f"the cache has {text!r} at {offset}, the fold {wanted}")
    for at in range(cache.floor * BITS, fold.next):
        bits = cache.bits.get(at // BITS, b"")
        byte, bit = divmod(at % BITS, 8)
        if (byte < len(bits) and bool(bits[byte] >> (7 - bit) & 1)) != fold.verdicts[at]:
            yield Finding(6, f"verdict {at}", f"by the fold it is {'accepted' if fold.verdicts[at] else 'void'}")
    yield from _check_ids(fold, cache.ids)


def _stored(fold: Fold, name: str, text: bytes) -> tuple[int, str, Any]:
    """Version, head and state by an entry of the cache, with the events folded that an older version could not."""
    version, head, snapshot = text.split(b" ", 2)
    events: list[dict[str, Any]] = []
    if snapshot.startswith(b"~"):
        _, size, rest = snapshot[1:].split(b" ", 2)
        snapshot, events = rest[: int(size)], json.loads(b"[%s]" % rest[int(size) :])
    state = fold.replayed(name, snapshot, events) if events else json.loads(snapshot) if snapshot else None
    return int(version), head.decode(), state


def _check_ids(fold: Fold, ids: Mapping[str, str]) -> Iterator[Finding]:
    for command, (offset, time, keyed) in fold.ids.items():
        text = ids.get(command)
        if text is None and not fold.known(command, fold.next):
            continue
        if text != f"{offset}:{time}:{int(keyed)}":
            yield Finding(6, command, f"on record at {offset}:{time}:{int(keyed)}, the cache has {text}")
    for command in sorted(ids.keys() - fold.ids.keys()):
        yield Finding(6, command, f"the cache has it at {ids[command]}, and it is not on record")


def _check_events(fold: Fold, topic: Iterable[OnTopic]) -> Iterator[Finding]:
    places = {event.position: place for place, event in enumerate(fold.events)}
    last = -1
    for message in topic:
        position = message.headers.get("hive-position", "")
        where = f"event topic {message.offset}"
        place = places.get(position)
        if place is None:
            yield Finding(6, where, f"position {position!r} is no accepted event")
            continue
        expected = fold.events[place]
        headers = {name: text for name, text in message.headers.items() if name.startswith("hive-")}
        if (message.key, headers, json.loads(message.value)) != (expected.key, expected.headers, expected.value):
            text = f"{message.key} {headers} {message.value!r}"
            yield Finding(6, where, f"{text}, it should be {expected.key} {expected.headers} {expected.value}")
        if place > last + 1:
            yield Finding(6, where, f"a gap: {position} comes where {fold.events[last + 1].position} is missing")
        last = max(last, place)
    if last < len(fold.events) - 1:
        missing = fold.events[last + 1]
        yield Finding(
            6, "event topic", f"ends before {missing.position} of {missing.headers['hive-actor']}/{missing.key}"
        )
