"""The checker of docs/faults.md: the log, the cache and the event topic against what the clients were answered.

All of its points; the sixth is in stored.py, those that have a bound in bounds.py. It reads with fresh clients
(evidence.py), and judges by its own fold (fold.py).
"""

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.faults.bounds import Watched, check_growth, check_published
from tests.faults.fold import Accepted, Finding, Fold, Record, Timeline, Written, plain
from tests.faults.stored import CacheDump, OnTopic, check_cache, check_events


class Result(StrEnum):
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
    result: Result
    status: int = 200
    command: dict[str, Any] | None = None
    key: str | None = None
    if_match: int | None = None
    version: int | None = None
    position: int | None = None  # offset in the log
    answer: Any = None
    instance: int = 0
    level: str = "current"  # what a read, or a refusal without a key, rests on (docs/transactions.md)


@dataclass
class Evidence:
    """All that is left after a run, and what was seen during it."""

    log: list[Record]
    events: list[OnTopic]
    cache: CacheDump
    topic_id: str = ""
    watched: Watched = field(default_factory=Watched)


def check(evidence: Evidence, history: Sequence[Call]) -> list[Finding]:
    """Everything that may not be; nothing, if all is well."""
    fold, found = Fold(), list[Finding]()
    parts = evidence.cache.watermark.split("|", 7)
    end = int(parts[0]) if len(parts) == 8 else 0
    if len(parts) != 8 or end > len(evidence.log):
        found.append(Finding(6, "watermark", f"{evidence.cache.watermark!r}, the log ends at {len(evidence.log)}"))
    for record in evidence.log:
        if record.offset == end:
            found += check_cache(fold, evidence.cache, evidence.topic_id)
        fold.take(record)
    if end == len(evidence.log):
        found += check_cache(fold, evidence.cache, evidence.topic_id)
    found += fold.findings
    found += _check_answers(fold, history)
    found += _check_wholeness(fold)
    found += _check_time(fold, history, evidence.watched)
    found += _check_reads(fold)
    found += check_events(fold, evidence.events)
    found += _check_money(fold)
    found += check_published(fold, _acknowledged(history), evidence.watched)
    found += check_growth(evidence.watched)
    return sorted(found)


def _acknowledged(history: Iterable[Call]) -> dict[int, float]:
    """For the offset of each record that was answered as accepted: when that was first answered."""
    first: dict[int, float] = {}
    for call in history:
        if call.result is Result.ACCEPTED and call.position is not None:
            first[call.position] = min(call.answered, first.get(call.position, call.answered))
    return first


# -- 1


def _check_answers(fold: Fold, history: Sequence[Call]) -> Iterator[Finding]:
    by_marker: dict[str, list[Call]] = defaultdict(list)
    for call in history:
        if call.result is Result.WRONG:
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
    results = {call.result for call in calls}
    no = sorted(results & {Result.REFUSED, Result.CONFLICT})
    if Result.ACCEPTED in results and no:
        yield Finding(1, where, f"answered accepted and {', '.join(no)}; {_story(calls)}")
    if accepted and no:
        yield Finding(1, where, f"answered {', '.join(no)}, accepted at {accepted[0].offset}; {_story(calls)}")
    elif accepted and results == {Result.NOT_EXECUTED}:
        yield Finding(1, where, f"answered 503, accepted at {accepted[0].offset}; {_story(calls)}")
    statuses = {call.status for call in calls if call.result is Result.REFUSED}
    if len(statuses) > 1:
        yield Finding(1, where, f"one key, refused as {sorted(statuses)}")
    for call in calls:
        if call.result is not Result.ACCEPTED:
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
    """The newest version of each aggregate that any client had been answered with at a time."""

    def __init__(self, answered: Mapping[str, list[tuple[float, int]]]) -> None:
        self._times: dict[str, list[float]] = {}
        self._versions: dict[str, list[int]] = {}
        for name, pairs in answered.items():
            newest, versions = 0, []
            for _, version in sorted(pairs):
                newest = max(newest, version)
                versions.append(newest)
            self._times[name], self._versions[name] = [time for time, _ in sorted(pairs)], versions

    def before(self, name: str, time: float) -> int:
        index = bisect.bisect_left(self._times.get(name, []), time)
        return self._versions[name][index - 1] if index else 0


def _check_time(fold: Fold, history: Sequence[Call], watched: Watched) -> Iterator[Finding]:
    """By real time: the clock of the clients, which is one."""
    versions: dict[str, list[tuple[float, int]]] = defaultdict(list)
    first: dict[str, float] = {}
    for call in history:
        if call.command is not None:
            first[call.marker] = min(call.called, first.get(call.marker, call.called))
        if call.result is Result.ACCEPTED and call.position in fold.commits:
            for write in fold.commits[call.position].writes:
                versions[write.aggregate].append((call.answered, write.after))
        elif call.result is Result.READ:
            versions[call.target].append((call.answered, call.version or 0))
    acknowledged = _Acknowledged(versions)
    for call in history:
        if call.result is Result.READ:
            horizon = watched.horizon(call.level, call.called)
            yield from _check_read(call, fold, acknowledged.before(call.target, horizon))
        elif call.result is Result.REFUSED:
            horizon = watched.horizon("linearizable" if call.key else call.level, first[call.marker])
            yield from _check_refusal(call, fold, acknowledged.before(call.target, horizon))
        elif call.result is Result.ACCEPTED and call.position in fold.commits:
            for write in fold.commits[call.position].writes:
                newest = acknowledged.before(write.aggregate, first[call.marker])
                if write.before < newest:
                    text = f"sent after version {newest} was acknowledged, it became version {write.after}"
                    yield Finding(4, f"{write.aggregate} {call.marker}", text)


def _check_read(call: Call, fold: Fold, newest: int) -> Iterator[Finding]:
    timeline, version = fold.aggregates.get(call.target), call.version or 0
    where = f"{call.target} by instance {call.instance}"
    if version < newest:
        text = f"{call.level} read of version {version} after version {newest} had been acknowledged"
        yield Finding(4, where, text)
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
    own = fold.aggregates[write.aggregate].current_between(write.before)
    first, last = own[0] if own else 0, commit.offset
    if actor == "Pair":
        first = last
    for id, (balance, version, trace) in seen.items():
        timeline = fold.aggregates.get(f"{actor}/{id}") or Timeline()
        between = timeline.current_between(version)
        state: Any = timeline.states[version] if between else None
        if between is None or (version and (state.balance, state.trace) != (balance, trace)):
            yield Finding(5, where, f"read {id} at version {version} as {balance} ({trace}), which it never was")
            continue
        first, last = max(first, between[0]), min(last, between[1])
    if first > last:
        what = "another state than its own position has" if actor == "Pair" else "no one state of the scope"
        yield Finding(5, where, f"read {seen} on version {write.before}: {what}")
