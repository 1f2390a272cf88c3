"""The rule has the properties that everything else rests on."""

import ast
import inspect
from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from hiveio.transaction import anchor, applier, cache, loading, placement, review, rule, view
from hiveio.transaction.process import Due, Process
from hiveio.transaction.record import (
    Barrier,
    CommandId,
    Commit,
    Format,
    ProcessStep,
    Read,
    Record,
    Schedule,
    Upgrade,
    Write,
    named,
)
from hiveio.transaction.rule import AggregateHead, IdRecord, IdWindow, LogState, ReferenceFold, scope_of

AGGREGATES = ("Account/a", "Account/b", "Tally/c")
Log = list[tuple[str, Record, int]]


def pairs(record: Commit) -> list[Write | Read]:
    return [*record.writes, *record.reads]


def written(record: Record) -> tuple[str, ...]:
    """The aggregates whose heads the record moves when it is accepted."""
    return tuple(write.aggregate for write in record.writes) if isinstance(record, Commit) else named(record)


@st.composite
def logs(draw: st.DrawFn, most: int = 15) -> Log:
    """A log as rude clients would write it: heads right, stale, invented and chained; command ids used again."""
    window, format = draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 3]))
    log: Log = [("format", Format(format, 1, "crc32", window, draw(st.integers(0, 30))), 0)]
    right, time = replayed(log), 0
    for number in range(draw(st.integers(1, most))):
        time += draw(st.integers(-3, 10))
        heads = ["", "nobody", *(tx for tx, _, _ in log[1:])]
        names = draw(st.lists(st.sampled_from(AGGREGATES), min_size=1, max_size=3, unique=True))
        keyed = draw(st.booleans())
        key = draw(st.sampled_from(["k1", "k2", f"fresh-{number}"]))
        command = CommandId(names[0], key)
        seen, tx = draw(st.integers(0, len(log))), f"{draw(st.sampled_from('ab'))}-{number:x}"
        record: Record
        if draw(st.integers(0, 9)) == 0:
            record = Upgrade(draw(st.sampled_from([2, 3])))
        elif draw(st.integers(0, 5)) == 0:
            record = Barrier(tuple(names), draw(st.sampled_from([None, command])), keyed, seen)
        else:
            # Mostly the present head, so that something is accepted.
            stale = draw(st.sampled_from([None, None, None, *heads]))
            named = [(name, right.head(name) if stale is None else stale) for name in names]
            writes = tuple(Write(name, head, 0) for name, head in named[:2])
            reads = tuple(Read(name, head) for name, head in named[2:])
            step = ProcessStep(fires="late", due=time + draw(st.integers(-9, 9))) if draw(st.booleans()) else None
            record = Commit(command, writes, reads, keyed, seen=seen, process=step)
        log.append((tx, record, max(time, 0)))
        right.append(*log[-1])
    return log


def replayed(log: Sequence[tuple[str, Record, int]]) -> ReferenceFold:
    fold = ReferenceFold()
    for tx, record, time in log:
        fold.append(tx, record, time)
    return fold


@given(logs(), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_a_verdict_depends_only_on_the_prefix(log: Log, data: st.DataObject) -> None:
    verdicts = replayed(log).verdicts
    cut = data.draw(st.integers(1, len(log)))
    other = data.draw(logs())[1:]
    mixed = [*log[:cut], *[(f"other-{tx}", record, time) for tx, record, time in other]]
    assert replayed(log[:cut]).verdicts == verdicts[:cut]
    assert replayed(mixed).verdicts[:cut] == verdicts[:cut]
    assert replayed(log).verdicts == verdicts


@given(logs())
@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_accepted_records_of_an_aggregate_form_one_chain(log: Log) -> None:
    verdicts = replayed(log).verdicts
    last: dict[str, str] = {}
    for (tx, record, _), verdict in zip(log, verdicts, strict=True):
        if verdict and isinstance(record, Commit):
            for pair in pairs(record):
                assert pair.head == last.get(pair.aggregate, "")
        if verdict:
            last.update(dict.fromkeys(written(record), tx))


@given(logs())
@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_a_command_is_executed_at_most_once_in_its_window(log: Log) -> None:
    fold = replayed(log)
    again, on_record = ReferenceFold(), dict[str, IdRecord]()
    for offset, ((tx, record, time), verdict) in enumerate(zip(log, fold.verdicts, strict=True)):
        again.append(tx, record, time)
        window, now = again.window, again.time
        if not isinstance(record, (Commit, Barrier)) or record.command is None or not verdict:
            continue
        earlier = on_record.get(record.command.text)
        known = earlier is not None and window.holds(earlier, offset, now)
        assert not (known and isinstance(record, Commit))
        if not known:
            on_record[record.command.text] = IdRecord(offset, now, record.keyed)


@given(logs(), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_a_void_record_is_void_for_ever(log: Log, data: st.DataObject) -> None:
    """Its heads have passed and never come back: it stays void, sent again at whatever later place, under its own id
    or another one. Unless it was void for its command id alone, which ends with the window."""
    overtaken, fold = [], ReferenceFold()
    had: dict[str, set[str]] = {name: {""} for name in AGGREGATES}
    for tx, record, time in log:
        stale = isinstance(record, Commit) and any(
            pair.head in had[pair.aggregate] and pair.head != fold.head(pair.aggregate) for pair in pairs(record)
        )
        if fold.append(tx, record, time):
            assert not stale
            for name in written(record):
                had[name].add(tx)
        elif stale:
            overtaken.append(record)
    for tx, record, time in data.draw(logs())[1:]:
        fold.append(f"more-{tx}", record, time)
    for number, record in enumerate(overtaken):
        assert not fold.append(f"again-{number}", record, fold.time)


@given(logs(), st.integers(2, 6))
@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_what_is_chained_behind_a_void_record_is_void(log: Log, length: int) -> None:
    fold = replayed(log)
    stale = Commit(CommandId("Account/a", "first"), (Write("Account/a", "never-was", 0),))
    assert not fold.append("chain-0", stale, fold.time)
    for number in range(1, length):
        chained = Commit(CommandId("Account/a", f"next-{number}"), (Write("Account/a", f"chain-{number - 1}", number),))
        assert not fold.append(f"chain-{number}", chained, fold.time)


@given(logs())
@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_whoever_takes_the_verdicts_of_others_finds_the_same_effects(log: Log) -> None:
    judging, following = ReferenceFold(), LogState(IdWindow(0, 0))
    for offset, (tx, record, time) in enumerate(log):
        found = rule.step(judging.state, offset, tx, time, record, judging)
        again = rule.adopt(following, offset, tx, time, record, found.verdict)
        assert (again.verdict, again.heads, again.writers) == (found.verdict, found.heads, found.writers)
        assert again.process == found.process
        closing = isinstance(record, Barrier) and record.command is not None and found.verdict
        assert again.id_unknown == bool(closing)
        assert again.id == (None if again.id_unknown else found.id)
        for name, events in found.heads.items():
            judging.aggregates[name] = AggregateHead(tx, len(events))
        judging.ids |= dict([found.id] if found.id else [])
    assert following.writers == judging.state.writers


def test_a_verdict_that_is_not_known_any_more_says_what_may_have_moved() -> None:
    state = LogState(IdWindow(10, 0))
    commit = Commit(CommandId("A/a", "k"), (Write("A/a", "", 0, (Raw(b"{}"),)), Write("A/b", "", 0)))
    effects = rule.adopt(state, 0, "w-1", 1, commit, None)
    assert (effects.verdict, effects.id, effects.id_unknown) == (None, None, True)
    assert effects.heads == {"A/a": (Raw(b"{}"),), "A/b": ()}
    assert not rule.adopt(state, 1, "w-2", 2, Barrier(("A/a",)), True).id_unknown, "it closes no command"


def test_events_count_where_a_record_writes_one_aggregate_twice() -> None:
    fold = ReferenceFold(IdWindow(10, 0))
    one, two = Raw(b'{"type":"One"}'), Raw(b'{"type":"Two"}')
    commit = Commit(CommandId("A/a", "k"), (Write("A/a", "", 0, (one,)), Write("A/a", "", 1, (one, two))))
    assert rule.step(LogState(fold.window), 0, "w-1", 1, commit, fold).heads == {"A/a": (one, one, two)}
    assert fold.append("w-1", commit)
    assert fold.aggregates["A/a"] == AggregateHead("w-1", 3)


def test_only_the_rule_knows_which_kinds_of_record_have_which_effects() -> None:
    """What follows a log asks it: another kind of record then needs no change of these."""
    kinds = {kind.__name__ for kind in get_args(Record)}
    for module in (anchor, applier, cache, loading, placement, review, view):
        source = ast.parse(inspect.getsource(module))
        assert not kinds & {node.id for node in ast.walk(source) if isinstance(node, ast.Name)}, module.__name__


def test_versions_that_agree_do_not_make_up_for_a_head() -> None:
    """Another transaction of the same version is another state: the hole that comparing versions leaves open."""
    fold = ReferenceFold(IdWindow(10, 0))
    first = Commit(CommandId("Account/a", "1"), (Write("Account/a", "", 0, ()),))
    assert fold.append("won", first)
    assert not fold.append("lost", Commit(CommandId("Account/a", "2"), first.writes))
    assert not fold.append("chained", Commit(CommandId("Account/a", "3"), (Write("Account/a", "lost", 0),)))
    assert fold.append("right", Commit(CommandId("Account/a", "4"), (Write("Account/a", "won", 0),)))


def test_a_barrier_closes_a_command_and_voids_what_comes_late() -> None:
    fold = ReferenceFold(IdWindow(10, 0))
    command = CommandId("Account/a", "k")
    assert fold.append("barrier", Barrier(("Account/a",), command, True))
    assert not fold.append("late", Commit(command, (Write("Account/a", "", 0),), keyed=True))
    assert not fold.append("retry", Commit(command, (Write("Account/a", "barrier", 0),), keyed=True))
    assert fold.append("other", Commit(CommandId("Account/a", "l"), (Write("Account/a", "barrier", 0),)))


def test_only_the_first_format_record_counts() -> None:
    fold = ReferenceFold()
    assert fold.append("one", Format(1, 1, "crc32", 5, 50))
    assert fold.append("two", Format(1, 1, "crc32", 9, 90))
    assert fold.window == IdWindow(5, 50)


HOUR_MS = 3_600_000


def fold_of(format: int) -> ReferenceFold:
    fold = ReferenceFold()
    assert fold.append("format-x", Format(format, 1, "crc32", 0, HOUR_MS), 1)
    return fold


def moving(*names: str, seen: int = 0) -> Barrier:
    return Barrier(names, seen=seen)


def writing(name: str, head: str, key: str = "k", seen: int = 0) -> Commit:
    return Commit(CommandId(name, key), (Write(name, head, 0),), seen=seen, keyed=True)


def test_a_copy_of_a_barrier_brings_no_head_back() -> None:
    """Kafka's client may write a record twice. What was performed on the barrier's head is then good a second time."""
    for format, accepted in ((1, True), (2, False)):
        fold = fold_of(format)
        assert fold.append("w-1", moving("A/a"))
        assert fold.append("v-1", writing("A/a", "w-1", "one"))
        assert fold.append("w-1", moving("A/a")) is accepted
        assert fold.append("v-2", writing("A/a", "w-1", "two")) is accepted


def test_a_record_that_later_ones_of_its_writer_have_overtaken_is_void() -> None:
    fold = fold_of(2)
    assert fold.append("w-f", moving("A/a"))
    assert not fold.append("w-e", moving("A/b"))
    assert not fold.append("w-9", writing("A/b", ""))
    assert fold.append("w-10", writing("A/b", ""))
    assert fold.append("v-1", moving("A/b"))  # another writer has its own count
    assert fold.append("who knows", moving("A/a"))  # and this one appends just once
    assert not fold.append("who knows", moving("A/a"))


@given(logs(), st.integers(1, 3), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_no_copy_of_a_record_is_accepted(log: Log, kept: int, data: st.DataObject) -> None:
    """However late it comes, and whether its writer is remembered or forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule, "WRITERS", kept)
        fold = ReferenceFold()
        log[0] = ("format", Format(2, 1, "crc32", 5, 30), 0)
        for number, (_, record, time) in enumerate(log):
            fold.append(f"{'abcde'[number % 5]}-{number:x}", record, time)
            assert len(fold.state.writers) <= kept
            copied = data.draw(st.integers(0, number))
            _, copy, _ = log[copied]
            if isinstance(copy, (Commit, Barrier)):
                # A copy moves the offsets on, and what its writers have seen by then is not less.
                assert not fold.append(f"{'abcde'[copied % 5]}-{copied:x}", copy, time)


def test_a_writer_that_is_forgotten_goes_on_with_what_it_has_seen_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "WRITERS", 1)
    fold = fold_of(2)
    assert fold.append("w-1", moving("A/a", seen=1))
    assert fold.append("v-1", moving("A/a", seen=1))  # and w is forgotten
    assert fold.state.floor == 2
    assert not fold.append("w-1", moving("A/a", seen=1))  # the copy; now v is forgotten
    assert fold.append("w-2", moving("A/a", seen=3))


def kept_for(format: int, stamps: Sequence[int]) -> int:
    """For how many of the records with these timestamps the key of the first of them is remembered."""
    fold = fold_of(format)
    for number, stamp in enumerate(stamps):
        accepted = fold.append(f"w-{number + 1:x}", writing("A/a", fold.head("A/a")), stamp)
        if accepted and number:
            return number
    return len(stamps)


def test_a_jump_of_a_brokers_clock_costs_a_step_of_the_window() -> None:
    minute, year = 60_000, 365 * 24 * HOUR_MS
    regular = [number * minute for number in range(1, 80)]
    assert kept_for(1, regular) == kept_for(2, regular) == 61
    ahead = [time + year * (number > 5) for number, time in enumerate(regular)]
    assert kept_for(1, ahead) == 6  # forgotten at once
    assert kept_for(2, ahead) == 61  # the step of the jump is a minute, as the others are
    # A jump ahead and back: no key of the time before the jump is ever forgotten in format 1, till the year is over.
    back = [time + year * (number == 0) for number, time in enumerate(regular)]
    assert kept_for(1, back) == len(back)
    assert kept_for(2, back) == 62
    # Faster ones: the jump takes a sixtieth.
    seconds = [number * 1000 for number in range(1, 3700)]
    jumping = [time + year * (number > 5) for number, time in enumerate(seconds)]
    assert kept_for(2, seconds) - kept_for(2, jumping) == 59
    # Rare records make it longer: each of them is a step.
    assert kept_for(2, [number * HOUR_MS for number in range(1, 80)]) == 61


def test_an_upgrade_counts_from_the_next_record_on_and_once() -> None:
    fold = fold_of(1)
    assert fold.append("w-1", moving("A/a"), 10 * HOUR_MS)
    assert fold.append("w-1", moving("A/a"), 20 * HOUR_MS)
    assert fold.state.format == 1
    assert fold.append("upgrade-x", Upgrade(2), 30 * HOUR_MS)
    assert (fold.state.format, fold.time) == (2, 30 * HOUR_MS)
    assert not fold.append("w-1", moving("A/a"), 40 * HOUR_MS)  # what was written before it is known, too
    assert fold.time == 30 * HOUR_MS + HOUR_MS // 60
    assert not fold.append("upgrade-y", Upgrade(2), 40 * HOUR_MS)
    assert fold.append("w-2", moving("A/a"), 40 * HOUR_MS)


@given(st.text(), st.integers(1, 64))
@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_a_scope_is_one_of_the_partitions_and_always_the_same(text: str, partitions: int) -> None:
    assert 0 <= scope_of(text, partitions) < partitions
    assert scope_of(text, partitions) == scope_of(text, partitions)


def stepping(fold: ReferenceFold, step: ProcessStep) -> Commit:
    return Commit(CommandId("P/p", "k"), (Write("P/p", fold.head("P/p"), 0),), process=step, keyed=False)


EVENT = Raw(b'{"type":"Late","payload":{}}')


def test_a_step_of_a_process_is_folded_with_its_record() -> None:
    fold = fold_of(3)
    late = Schedule("Late", 60_000, EVENT)
    assert fold.append("w-1", stepping(fold, ProcessStep(source="t/id/0/7", schedules=(late,))), 1_000)
    void = stepping(ReferenceFold(), ProcessStep(source="t/id/0/8", cancels=("Late",)))
    assert not fold.append("w-2", void, 2_000)
    process = Process.of(fold.aggregates["P/p"].process)
    assert process.sources == ("t/id/0/7",)
    assert process.deadlines == {"Late": Due(fold.time - 1_000 + 60_000, EVENT)}  # from the log's time at its record
    assert fold.append("w-3", stepping(fold, ProcessStep(source="t/id/0/8", cancels=("Late",))), 3_000)
    assert Process.of(fold.aggregates["P/p"].process) == Process(("t/id/0/7", "t/id/0/8"))


def test_a_deadline_fires_when_the_log_has_come_to_it_and_while_it_is_pending() -> None:
    fold = fold_of(3)
    late = ProcessStep(schedules=(Schedule("Late", 5_000, EVENT),))
    assert fold.append("w-1", stepping(fold, late), 10_000)
    due = fold.time + 5_000
    fire = stepping(fold, ProcessStep(fires="Late", due=due))
    assert not fold.append("w-2", fire, 14_999)
    assert fold.append("w-3", fire, 15_000)  # the record's own timestamp has moved the log's time there
    assert not fold.append("w-4", fire, 16_000)  # it has fired
    assert Process.of(fold.aggregates["P/p"].process) == Process()
    assert fold.append("w-5", stepping(fold, late), 20_000)
    fire = stepping(fold, ProcessStep(fires="Late", due=fold.time + 5_000))
    assert fold.append("w-6", stepping(fold, ProcessStep(cancels=("Late",))), 21_000)
    assert not fold.append("w-7", fire, 30_000)  # it was cancelled


def test_a_step_is_nothing_in_a_log_whose_format_has_none() -> None:
    """A version that knows format 2 does not see it, and must reach the same verdict."""
    for format in (1, 2):
        fold = fold_of(format)
        assert fold.append("w-1", stepping(fold, ProcessStep(source="s", fires="Late", due=HOUR_MS)), 1_000)
        assert fold.aggregates["P/p"] == AggregateHead("w-1", 0)
        assert fold.append("upgrade-x", Upgrade(3), 2_000)
        assert fold.append("w-2", stepping(fold, ProcessStep(source="s")), 2_000)
        assert Process.of(fold.aggregates["P/p"].process).sources == ("s",)
