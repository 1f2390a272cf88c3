"""The checker itself: it finds nothing in what a right system leaves, and finds each thing that may not be."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.checker import Call, Evidence, Result, check
from tests.faults.fold import Fold, Record, plain
from tests.faults.stored import CacheDump, OnTopic

ACCOUNTS = ("a", "b", "c")
KINDS = ("Deposit", "Withdraw", "Transfer", "Witness", "Add", "Give", "Take", "void", "barrier", "read", "repeat")
# One of each, so that each mutation finds what it changes.
BASIS = [("Deposit", "a", 60), ("Deposit", "b", 30), ("Transfer", "a", 20), ("Withdraw", "a", 10), ("Withdraw", "c", 9)]
BASIS += [
    ("Give", "x", 10),
    ("Take", "x", 5),
    ("Add", "t", 3),
    ("void", "a", 1),
    ("barrier", "b", 0),
    ("repeat", "a", 7),
]
BASIS += [("Witness", "c", 0), ("Deposit", "a", 1), ("read", "a", 0), ("read", "b", 0), ("Deposit", "b", 2)]
Step = tuple[str, str, int]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(ACCOUNTS), st.integers(1, 50)), max_size=12)


class Right:
    """A right system in a few lines: one command after the other, on a log of its own."""

    def __init__(self, steps: list[Step]) -> None:
        self.log: list[Record] = []
        self.history: list[Call] = []
        self.fold = Fold()
        self.clock = 0.0
        window = {"kind": "format", "idempotency_count": 1000, "idempotency_time_ms": 1000}
        self.append(window | {"format": 2, "partitions": 1, "hash": "crc32"})
        for step in steps:
            self.play(*step)

    def append(self, body: dict[str, Any]) -> bool:
        record = Record(len(self.log), f"w-{len(self.log):x}", json.dumps(body).encode(), len(self.log))
        self.log.append(record)
        return self.fold.take(record)

    def state(self, name: str) -> Any:
        timeline = self.fold.aggregates.get(name)
        return timeline.states[-1] if timeline else None

    def write(self, name: str, *events: dict[str, Any]) -> list[Any]:
        timeline = self.fold.aggregates.get(name)
        return [name, timeline.head if timeline else "", timeline.version if timeline else 0, list(events)]

    def seen(self, name: str) -> list[int]:
        state = self.state(name)
        return [state.balance, state.events, state.trace] if state else [0, 0, 0]

    def call(self, name: str, result: Result, status: int, command: Any = None, **more: Any) -> Call:
        self.clock += 2
        marker = command["payload"]["marker"] if command else ""
        call = Call(marker, name, self.clock, self.clock + 1, result, status, command, **more)
        self.history.append(call)
        return call

    def play(self, kind: str, id: str, amount: int) -> None:
        if kind == "read":
            name = f"Account/{id}"
            timeline = self.fold.aggregates.get(name)
            answer = plain(timeline.states[-1]) if timeline and timeline.version else None
            self.call(name, Result.READ, 200, version=timeline.version if timeline else 0, answer=answer)
        elif kind == "barrier":
            self.append({"kind": "barrier", "aggregates": [f"Account/{id}"]})
        elif kind == "void":
            self.execute("Deposit", f"Account/{id}", amount, head="nobody's")
        elif kind == "repeat":
            self.execute("Deposit", f"Account/{id}", amount, key=f"k{len(self.log)}")
            first = self.history[-1]
            self.clock += 2
            self.history.append(replace(first, called=self.clock, answered=self.clock + 1))
        elif kind == "Add":
            self.execute(kind, f"Tally/{id}", amount)
        elif kind in ("Give", "Take"):
            self.execute(kind, "Pair/p-a", amount)
        else:
            self.execute(kind, f"Account/{id}", amount)

    def execute(self, kind: str, name: str, amount: int, key: str | None = None, head: str | None = None) -> None:
        marker, id = f"m{len(self.log)}-{len(self.history)}", name.partition("/")[2]
        others = [other for other in ACCOUNTS if other != id]
        payload: dict[str, Any] = {"amount": amount, "marker": marker}
        writes: list[Any] = []

        def event(type: str, **fields: Any) -> dict[str, Any]:
            return {"type": type, "payload": {"amount": amount, "marker": marker} | fields}

        if kind == "Transfer":
            payload["to"] = others[0]
            received = event("Received", sender=id)
            writes = [self.write(name, event("Sent", to=others[0])), self.write(f"Account/{others[0]}", received)]
        elif kind == "Witness":
            payload = {"of": others, "marker": marker}
            witnessed = {"marker": marker, "seen": {other: self.seen(f"Account/{other}") for other in others}}
            writes = [self.write(name, {"type": "Witnessed", "payload": witnessed})]
        elif kind == "Take":
            payload["other"] = "p-b"
            writes = [self.write(name, event("Taken", seen={"p-b": self.seen("Pair/p-b")}))]
        else:
            type = {"Deposit": "Deposited", "Withdraw": "Withdrawn", "Add": "Added", "Give": "Given"}[kind]
            writes = [self.write(name, event(type))]
        command = {"type": kind, "payload": payload}
        enough = kind not in ("Transfer", "Withdraw", "Take") or self.seen(name)[0] >= amount
        if not enough:
            self.call(name, Result.REFUSED, 422, command)
            return
        if head is not None:
            writes[0][1] = head
        body = {"kind": "commit", "command": [name, key or marker], "writes": writes, "keyed": key is not None}
        if not self.append(body):
            self.call(name, Result.UNKNOWN, 504, command)
            return
        version = self.fold.aggregates[name].version
        position = len(self.log) - 1
        answer = writes[0][3][0]
        self.call(name, Result.ACCEPTED, 200, command, version=version, position=position, answer=answer, key=key)

    def entry(self, name: str, *, whole: bool) -> bytes:
        """As the cache has it; else with the last event behind the snapshot, as stored by one who cannot fold it."""
        found = self.fold.aggregates[name]
        states = [msgspec.json.encode(state) if state is not None else b"" for state in found.states]
        if whole or not found.version:
            return b"%d %s %s" % (found.version, found.head.encode(), states[-1])
        *_, event = (e.value for e in self.fold.events if f"{e.headers['hive-actor']}/{e.key}" == name)
        unfolded = json.dumps(event).encode()
        return b"%d %s ~1 %d %s%s" % (found.version, found.head.encode(), len(states[-2]), states[-2], unfolded)

    def evidence(self) -> Evidence:
        fold = self.fold
        entries = {name: self.entry(name, whole=name.endswith("a")) for name in fold.aggregates}
        ids = {command: f"{offset}:{time}:{int(keyed)}" for command, (offset, time, keyed) in fold.ids.items()}
        bits = bytearray(len(fold.verdicts) // 8 + 1)
        for at, verdict in enumerate(fold.verdicts):
            bits[at // 8] |= verdict << (7 - at % 8)
        watermark, writers = fold.watermark("topic", "generation"), fold.writers_text()
        events = [(e.key, json.dumps(e.value).encode(), dict(e.headers)) for e in fold.events]
        repeated = [*events[:5], *events[2:]]  # a publisher that began again
        topic = [OnTopic(at, key, value, headers) for at, (key, value, headers) in enumerate(repeated)]
        return Evidence(
            list(self.log), topic, CacheDump(watermark, entries, ids, {0: bytes(bits)}, 0, writers), "topic"
        )


def points(evidence: Evidence, history: list[Call]) -> set[int]:
    return {finding.point for finding in check(evidence, history)}


@given(STEPS)
@settings(max_examples=50, suppress_health_check=list(HealthCheck))
def test_nothing_is_found_where_all_is_right(steps: list[Step]) -> None:
    right = Right([*BASIS, *steps])
    assert check(right.evidence(), right.history) == []


Change = Callable[[Evidence, list[Call], Callable[[int], int]], None]
CHANGES: dict[str, tuple[int, Change]] = {}


def found_as(point: int) -> Callable[[Change], Change]:
    def note(change: Change) -> Change:
        CHANGES[change.__name__] = (point, change)
        return change

    return note


def answered(history: list[Call], result: Result, kind: str = "") -> list[int]:
    found = [(n, call) for n, call in enumerate(history) if call.result is result]
    return [n for n, call in found if not kind or (call.command or {}).get("type") == kind]


def rewritten(evidence: Evidence, offset: int, change: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads(evidence.log[offset].value)
    change(body)
    evidence.log[offset] = evidence.log[offset]._replace(value=json.dumps(body).encode())


def offset_of(evidence: Evidence, text: str) -> int:
    return next(record.offset for record in evidence.log if text.encode() in record.value)


@found_as(1)
def a_void_one_is_acknowledged(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    call = h[answered(h, Result.UNKNOWN)[0]]
    position = offset_of(e, f'"{call.marker}"')
    call.result, call.status, call.position, call.version = Result.ACCEPTED, 200, position, 1


@found_as(1)
def an_accepted_one_is_answered_otherwise(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    accepted = answered(h, Result.ACCEPTED)
    call = h[accepted[pick(len(accepted))]]
    call.result = [Result.REFUSED, Result.CONFLICT, Result.NOT_EXECUTED, Result.WRONG][pick(4)]
    call.status = 412 if call.result is Result.REFUSED else 409
    for other in h:  # of all its requests, or a later one that was right would show it alone
        if other.marker == call.marker:
            other.result, other.status = call.result, call.status


@found_as(1)
def an_answer_says_something_else(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    accepted = answered(h, Result.ACCEPTED)
    call = h[accepted[pick(len(accepted))]]
    match pick(3):
        case 0:
            call.version = (call.version or 0) + 1
        case 1:
            call.answer = {"type": "Else"}
        case _:
            call.position = 0


@found_as(1)
def a_command_is_executed_twice(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    at = offset_of(e, '"Deposited"')
    body = json.loads(e.log[at].value)
    name = "Account/new"
    body["command"] = [name, "other"]
    body["writes"] = [[name, "", 0, body["writes"][0][3]]]
    e.log.append(Record(len(e.log), "twice", json.dumps(body).encode(), len(e.log)))


@found_as(1)
def something_nobody_sent_is_accepted(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    marker = h[answered(h, Result.ACCEPTED)[0]].marker
    h[:] = [call for call in h if call.marker != marker]


@found_as(2)
def a_version_is_left_out(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    def skip(body: dict[str, Any]) -> None:
        body["writes"][0][2] += 1

    rewritten(e, offset_of(e, '"Withdrawn"'), skip)


@found_as(2)
def a_transaction_id_is_used_twice(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    at = 2 + pick(len(e.log) - 2)
    e.log[at] = e.log[at]._replace(tx=e.log[at - 1].tx)


@found_as(3)
def half_of_a_transfer_is_there(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    rewritten(e, offset_of(e, '"Sent"'), lambda body: body["writes"].pop())


@found_as(4)
def a_read_is_older_than_what_was_acknowledged(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    h[-1:] = [*h[-1:], replace(h[answered(h, Result.READ)[0]], version=0, answer=None, called=1e6, answered=1e6)]


@found_as(4)
def a_read_is_of_a_state_that_never_was(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    reads = [n for n in answered(h, Result.READ) if h[n].version]
    call = h[reads[pick(len(reads))]]
    match pick(2):
        case 0:
            call.answer = {"balance": -1}
        case _:
            call.version = 1_000


@found_as(4)
def a_refusal_has_no_reason(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    call = h[answered(h, Result.REFUSED)[0]]
    assert call.command is not None
    call.command["payload"]["amount"] = 0


@found_as(4)
def a_later_command_has_the_lower_version(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    first = h[answered(h, Result.ACCEPTED, "Deposit")[0]]
    first.called, first.answered = 1e6, 1e6 + 1


@found_as(5)
def a_witness_read_what_never_was(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    def lie(body: dict[str, Any]) -> None:
        body["writes"][0][3][0]["payload"]["seen"]["a"][0] += 1

    rewritten(e, offset_of(e, '"Witnessed"'), lie)


@found_as(5)
def a_witness_read_two_positions(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    def old(body: dict[str, Any]) -> None:  # of before the transfer, and of after it
        state = Fold()
        for record in e.log[: offset_of(e, '"Sent"')]:
            state.take(record)
        before = state.aggregates["Account/a"].states[-1]
        body["writes"][0][3][0]["payload"]["seen"]["a"] = [before.balance, before.events, before.trace]

    rewritten(e, offset_of(e, '"Witnessed"'), old)


@found_as(5)
def a_validated_read_is_old(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    give = {"type": "Given", "payload": {"amount": 1, "marker": "given"}}
    body = {"kind": "commit", "command": ["Pair/p-b", "given"], "writes": [["Pair/p-b", "", 0, [give]]]}
    at = offset_of(e, '"Taken"')
    e.log.insert(at, Record(at, "given", json.dumps(body).encode(), at))
    e.log[at + 1 :] = [record._replace(offset=record.offset + 1) for record in e.log[at + 1 :]]


@found_as(6)
def the_cache_is_another(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    cache = e.cache
    names = sorted(cache.entries)
    name = names[pick(len(names))]
    match pick(9):
        case 0:
            del cache.entries[name]
        case 7:  # an unfolded event behind a snapshot is lost
            name = next(name for name in names if b" ~" in cache.entries[name])
            version, head, rest = cache.entries[name].split(b" ", 2)
            _, size, rest = rest.split(b" ", 2)
            cache.entries[name] = b" ".join([version, head, rest[: int(size)]])
        case 1:
            cache.entries[name] = b"1%s" % cache.entries[name]
        case 2:
            cache.entries[f"{name}-more"] = cache.entries[name]
        case 3:
            at = pick(len(e.log))
            bits = bytearray(cache.bits[0])
            bits[at // 8] ^= 1 << (7 - at % 8)
            cache.bits[0] = bytes(bits)
        case 4:
            del cache.ids[sorted(cache.ids)[pick(len(cache.ids))]]
        case 5:
            cache.ids["7:Account/nobody"] = "1:1:0"
        case 8:
            cache.writers["w"] = "1:1"
        case _:
            cache.watermark = cache.watermark.replace("|topic|", "|another|")


@found_as(6)
def the_event_topic_is_another(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    at = 5 + pick(len(e.events) - 5)
    match pick(5):
        case 0:
            position = e.events[at].headers["hive-position"]
            e.events[:] = [m for m in e.events if m.headers["hive-position"] != position]
        case 1:
            e.events[at] = e.events[at]._replace(value=b'{"type": "Else"}')
        case 2:
            e.events[at] = e.events[at]._replace(headers=e.events[at].headers | {"hive-version": "0"})
        case 3:
            e.events[at] = e.events[at]._replace(headers=e.events[at].headers | {"hive-position": "0:0:0"})
        case _:
            del e.events[-1]


@found_as(7)
def money_is_made(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    def more(body: dict[str, Any]) -> None:
        body["writes"][1][3][0]["payload"]["amount"] += 1

    rewritten(e, offset_of(e, '"Received"'), more)


@found_as(7)
def more_is_taken_than_there_is(e: Evidence, h: list[Call], pick: Callable[[int], int]) -> None:
    def more(body: dict[str, Any]) -> None:
        body["writes"][0][3][0]["payload"]["amount"] += 1000

    rewritten(e, offset_of(e, '"Withdrawn"' if pick(2) else '"Taken"'), more)


@pytest.mark.parametrize("name", CHANGES)
@given(data=st.data(), steps=STEPS)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_what_may_not_be_is_found(name: str, data: st.DataObject, steps: list[Step]) -> None:
    point, change = CHANGES[name]
    right = Right([*BASIS, *steps])
    evidence, history = right.evidence(), copy.deepcopy(right.history)
    change(evidence, history, lambda count: data.draw(st.integers(0, count - 1)))
    assert point in points(evidence, history)
