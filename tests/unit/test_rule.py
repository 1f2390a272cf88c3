"""The rule has the properties that everything else rests on."""

from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hiveio.transaction.record import Barrier, CommandId, Commit, Format, Read, Record, Write, touched
from hiveio.transaction.rule import Known, Prefix, Window, scope_of

AGGREGATES = ("Account/a", "Account/b", "Tally/c")
Log = list[tuple[str, Record, int]]


def pairs(record: Commit) -> list[Write | Read]:
    return [*record.writes, *record.reads]


@st.composite
def logs(draw: st.DrawFn, most: int = 15) -> Log:
    """A log as rude clients would write it: heads right, stale, invented and chained; command ids used again."""
    window = draw(st.integers(1, 8))
    log: Log = [("format", Format(1, 1, "crc32", window, draw(st.integers(0, 30))), 0)]
    right, time = replayed(log), 0
    for number in range(draw(st.integers(1, most))):
        time += draw(st.integers(-3, 10))
        heads = ["", "nobody", *(tx for tx, _, _ in log[1:])]
        names = draw(st.lists(st.sampled_from(AGGREGATES), min_size=1, max_size=3, unique=True))
        keyed = draw(st.booleans())
        key = draw(st.sampled_from(["k1", "k2", f"fresh-{number}"]))
        command = CommandId(names[0], key)
        record: Record
        if draw(st.integers(0, 5)) == 0:
            record = Barrier(tuple(names), draw(st.sampled_from([None, command])), keyed)
        else:
            # Mostly the head that stands, so that something is accepted.
            stale = draw(st.sampled_from([None, None, None, *heads]))
            named = [(name, right.head(name) if stale is None else stale) for name in names]
            writes = tuple(Write(name, head, 0) for name, head in named[:2])
            record = Commit(command, writes, tuple(Read(name, head) for name, head in named[2:]), keyed)
        log.append((f"t{number}", record, max(time, 0)))
        right.append(*log[-1])
    return log


def replayed(log: Sequence[tuple[str, Record, int]]) -> Prefix:
    prefix = Prefix()
    for tx, record, time in log:
        prefix.append(tx, record, time)
    return prefix


@given(logs(), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_a_verdict_depends_only_on_the_prefix(log: Log, data: st.DataObject) -> None:
    verdicts = replayed(log).verdicts
    cut = data.draw(st.integers(1, len(log)))
    other = data.draw(logs())[1:]
    mixed = [*log[:cut], *[(f"other-{tx}", record, time) for tx, record, time in other]]
    assert replayed(log[:cut]).verdicts == verdicts[:cut]
    assert replayed(mixed).verdicts[:cut] == verdicts[:cut]
    assert replayed(log).verdicts == verdicts


@given(logs())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_accepted_records_of_an_aggregate_form_one_chain(log: Log) -> None:
    verdicts = replayed(log).verdicts
    last: dict[str, str] = {}
    for (tx, record, _), verdict in zip(log, verdicts, strict=True):
        if verdict and isinstance(record, Commit):
            for pair in pairs(record):
                assert pair.head == last.get(pair.aggregate, "")
        if verdict:
            last.update(dict.fromkeys(touched(record), tx))


@given(logs())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_a_command_is_executed_at_most_once_in_its_window(log: Log) -> None:
    prefix = replayed(log)
    window, now = prefix.window, 0
    on_record: dict[str, Known] = {}
    for offset, ((_, record, time), verdict) in enumerate(zip(log, prefix.verdicts, strict=True)):
        now = max(now, time)
        if isinstance(record, Format) or record.command is None or not verdict:
            continue
        earlier = on_record.get(record.command.text)
        known = earlier is not None and window.holds(earlier, offset, now)
        assert not (known and isinstance(record, Commit))
        if not known:
            on_record[record.command.text] = Known(offset, now, record.keyed)


@given(logs(), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_a_void_record_is_void_for_ever(log: Log, data: st.DataObject) -> None:
    """Its heads have passed and never come back: it stays void, sent again at whatever later place, under its own id
    or another one. Unless it was void for its command id alone, which ends with the window."""
    overtaken, prefix = [], Prefix()
    had: dict[str, set[str]] = {name: {""} for name in AGGREGATES}
    for tx, record, time in log:
        stale = isinstance(record, Commit) and any(
            pair.head in had[pair.aggregate] and pair.head != prefix.head(pair.aggregate) for pair in pairs(record)
        )
        if prefix.append(tx, record, time):
            assert not stale
            for name in touched(record):
                had[name].add(tx)
        elif stale:
            overtaken.append(record)
    for tx, record, time in data.draw(logs())[1:]:
        prefix.append(f"more-{tx}", record, time)
    for number, record in enumerate(overtaken):
        assert not prefix.append(f"again-{number}", record, prefix.time)


@given(logs(), st.integers(2, 6))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_what_is_chained_behind_a_void_record_is_void(log: Log, length: int) -> None:
    prefix = replayed(log)
    stale = Commit(CommandId("Account/a", "first"), (Write("Account/a", "never-was", 0),))
    assert not prefix.append("chain-0", stale, prefix.time)
    for number in range(1, length):
        chained = Commit(CommandId("Account/a", f"next-{number}"), (Write("Account/a", f"chain-{number - 1}", number),))
        assert not prefix.append(f"chain-{number}", chained, prefix.time)


def test_versions_that_agree_do_not_make_up_for_a_head() -> None:
    """Another transaction of the same version is another state: the hole that comparing versions leaves open."""
    prefix = Prefix(Window(10, 0))
    first = Commit(CommandId("Account/a", "1"), (Write("Account/a", "", 0, ()),))
    assert prefix.append("won", first)
    assert not prefix.append("lost", Commit(CommandId("Account/a", "2"), first.writes))
    assert not prefix.append("chained", Commit(CommandId("Account/a", "3"), (Write("Account/a", "lost", 0),)))
    assert prefix.append("right", Commit(CommandId("Account/a", "4"), (Write("Account/a", "won", 0),)))


def test_a_barrier_closes_a_command_and_voids_what_comes_late() -> None:
    prefix = Prefix(Window(10, 0))
    command = CommandId("Account/a", "k")
    assert prefix.append("barrier", Barrier(("Account/a",), command, True))
    assert not prefix.append("late", Commit(command, (Write("Account/a", "", 0),), keyed=True))
    assert not prefix.append("retry", Commit(command, (Write("Account/a", "barrier", 0),), keyed=True))
    assert prefix.append("other", Commit(CommandId("Account/a", "l"), (Write("Account/a", "barrier", 0),)))


def test_only_the_first_format_record_counts() -> None:
    prefix = Prefix()
    assert prefix.append("one", Format(1, 1, "crc32", 5, 50))
    assert prefix.append("two", Format(1, 1, "crc32", 9, 90))
    assert prefix.window == Window(5, 50)


@given(st.text(), st.integers(1, 64))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
def test_a_scope_is_one_of_the_partitions_and_always_the_same(text: str, partitions: int) -> None:
    assert 0 <= scope_of(text, partitions) < partitions
    assert scope_of(text, partitions) == scope_of(text, partitions)
