"""The scenarios, module by module. ``expect`` is the invariant that the variant must break; else all must hold.

h: holes that simpler variants of one scope have. p: publishing. x: several scopes. c: the cache. r: reads. w: the log's
clock. s: process managers. f: commands that are forwarded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from spec.check import Scenario

SCENARIOS: list[Scenario] = []
# In CI: of each hole the variant that has it and the one that is built, where a run takes seconds.
SHORT = {
    "ask-closes",
    "c1-compare-offset",
    "c1-compare-whole-one-record",
    "c2-healed-by-another-record",
    "c2-unfolded-dropped",
    "f1-executed-and-forgotten",
    "f1-forwarded",
    "f1-looked-up-once",
    "f1-state-newer-than-the-look-up",
    "f2-refusal-unrecorded",
    "f3-late-decline",
    "f4-taken-twice",
    "h1-chain-by-head-one-try",
    "h1-chain-by-version",
    "h10-all-taken-for-fresh",
    "h10-fresh-by-its-making",
    "h10-given-up-without-a-lock",
    "h10-stale-view-chained",
    "h3-refusal-recorded",
    "h3-refusal-unrecorded",
    "h4-conflict-unclosed",
    "h7-cut-chained-validated",
    "h8-void-by-a-later-barrier",
    "h8-void-by-any-barrier",
    "h9-copy-of-a-barrier",
    "h9-writer-forgotten",
    "h9-writer-forgotten-floor",
    "p1-pipelined-with-gaps",
    "p1-refused-is-skipped",
    "p1-stop-and-wait",
    "p3-overtaken-ends",
    "p3-overtaken-goes-on",
    "s1-id-by-position-alone",
    "s1-offset-before-verdict",
    "s1-older-taken-for-repeat",
    "s1-sources-in-a-window",
    "s1-sources-kept",
    "s2-commands-in-order",
    "s2-commands-out-of-order",
    "s2-outbox-with-gaps",
    "s3-fire-of-a-cancelled-one",
    "s3-fired-by-the-log",
    "s3-fired-by-the-wall-clock",
    "s5-ended",
    "s5-ended-with-a-deadline",
    "s5-ended-without-a-mark",
    "x2-commit-one",
}
Request = tuple[str, str, str, str, int]  # command id, target, style, instance, events

# -- Scope.tla: one scope

SCOPE = ("TruePredecessor", "TrueReads", "Once", "AckTrue", "RefusedNever", "ConflictNever", "CopiesVoid")
# Format 1: a chained record that lands before its base would be good in a second copy.
NO_COPY = tuple(name for name in SCOPE if name != "CopiesVoid")
# What an early draft had: versions instead of heads, and none of what the other scenarios add.
DRAFT: dict[str, Any] = {
    "ByHead": False,
    "TargetAlways": False,
    "RefusalRecorded": False,
    "CheckReads": False,
    "BarrierCloses": False,
    "VoidLooks": False,
    "Numbered": False,
}
BUILT: dict[str, Any] = {
    "MaxTry": 1,
    "IdsKept": 9,
    "ByHead": True,
    "Chain": False,
    "TargetAlways": True,
    "RefusalRecorded": True,
    "VerdictFrom": "log",
    "Looks": "all",
    "Apart": False,
    "CheckReads": True,
    "BarrierCloses": True,
    "VoidLooks": True,
    "OneCall": True,
    "Copies": 0,
    "Numbered": True,
    "Writers": 9,
    "Floor": True,
    "GiveUp": "never",
}


def scope(
    name: str,
    requests: Mapping[str, Request],
    *,
    aggregates: str = "x",
    expect: str | None = None,
    invariants: Sequence[str] = SCOPE,
    **flags: Any,
) -> None:
    constants = {
        "Reqs": set(requests),
        "Aggs": set(aggregates),
        "CmdOf": {name: request[0] for name, request in requests.items()},
        "TargetOf": {request[0]: request[1] for request in requests.values()},
        "StyleOf": {name: request[2] for name, request in requests.items()},
        "InstOf": {name: request[3] for name, request in requests.items()},
        "EventsOf": {name: request[4] for name, request in requests.items()},
    }
    SCENARIOS.append(
        Scenario(name, "Scope", constants | BUILT | flags, tuple(invariants), expect=expect, short=name in SHORT)
    )


CHAIN: dict[str, Request] = {
    "q1": ("K1", "x", "own", "A", 1),
    "q2": ("K2", "x", "own", "A", 1),
    "q3": ("K3", "x", "own", "B", 1),
}
# h1: chaining, and a version that matches by number only
scope("h1-chain-by-version", CHAIN, Chain=True, expect="TruePredecessor", invariants=["TruePredecessor"], **DRAFT)
scope("h1-chain-by-version-copies", CHAIN, Chain=True, expect="CopiesVoid", invariants=["CopiesVoid"], **DRAFT)
scope("h1-chain-by-head", CHAIN, Chain=True, MaxTry=2, invariants=NO_COPY)
scope("h1-chain-by-head-one-try", CHAIN, Chain=True, invariants=NO_COPY)
READ: dict[str, Request] = {
    "q1": ("K1", "y", "both", "A", 1),
    "q2": ("K2", "x", "reads", "A", 1),
    "q3": ("K3", "y", "both", "B", 1),
}
scope(
    "h1-reads-by-version",
    READ,
    aggregates="xy",
    Chain=True,
    expect="TrueReads",
    invariants=["TrueReads"],
    **(DRAFT | {"CheckReads": True, "TargetAlways": True}),
)
scope("h1-reads-by-head", READ, aggregates="xy", Chain=True, MaxTry=2, invariants=NO_COPY)
scope("h1-reads-by-head-one-try", READ, aggregates="xy", Chain=True, invariants=NO_COPY)
# h2: the same command id in two attempts that write different aggregates
PICK: dict[str, Request] = {
    "q1": ("K", "x", "pick", "A", 1),
    "q2": ("K", "x", "pick", "B", 1),
    "q3": ("L", "y", "own", "B", 1),
}
scope("h2-pick-target-always", PICK, aggregates="xy", invariants=["Once"], **(DRAFT | {"TargetAlways": True}))
# h3: a refusal while an earlier attempt of the same command is in flight
GUARD: dict[str, Request] = {
    "q1": ("K", "x", "guard", "A", 1),
    "q2": ("K", "x", "guard", "B", 1),
    "q3": ("L", "y", "own", "B", 1),
}
scope(
    "h3-refusal-unrecorded",
    GUARD,
    aggregates="xy",
    expect="RefusedNever",
    invariants=["RefusedNever"],
    **(DRAFT | {"TargetAlways": True, "ByHead": True}),
)
scope("h3-refusal-recorded", GUARD, aggregates="xy")
# Without a key a command id is nobody else's: its refusal needs no record.
UNKEYED: dict[str, Request] = GUARD | {"q2": ("M", "x", "guard", "B", 1)}
scope("h3-refusal-unkeyed", UNKEYED, aggregates="xy", RefusalRecorded=False)
# h4: a conflict answered while an earlier attempt of the same command is in flight
RACE: dict[str, Request] = {
    "q1": ("K", "x", "own", "A", 1),
    "q2": ("K", "x", "own", "B", 1),
    "q3": ("L", "x", "own", "B", 1),
}
FORGETFUL: dict[str, Any] = {"BarrierCloses": False, "VoidLooks": False}
scope("h4-conflict-does-not-look", RACE, MaxTry=2, expect="ConflictNever", invariants=["ConflictNever"], **FORGETFUL)
scope("h4-conflict-unclosed", RACE, MaxTry=2, BarrierCloses=False, expect="ConflictNever", invariants=["ConflictNever"])
scope("h4-conflict-closed", RACE, MaxTry=2)
# h5: the verdict is taken from the bounded ids, which have moved on
LATE: dict[str, Request] = {"q1": ("K", "x", "own", "A", 1), "q2": ("L", "x", "own", "B", 1)}
scope(
    "h5-verdict-from-ids", LATE, MaxTry=2, IdsKept=1, VerdictFrom="ids", VoidLooks=False, expect="Once",
    invariants=["Once"],
)  # fmt: skip
scope(
    "h5-verdict-from-log", LATE, MaxTry=2, IdsKept=1, BarrierCloses=False,
    invariants=["TruePredecessor", "Once", "AckTrue"],
)  # fmt: skip
# h6: the window of command ids, counted in records: a retry after it is a new command; one within it is not
WINDOW: dict[str, Request] = {
    "q1": ("K", "x", "own", "A", 1),
    "q2": ("K", "x", "own", "B", 1),
    "q3": ("L", "x", "own", "B", 1),
}
scope("h6-retry-after-window", WINDOW, IdsKept=1, expect="Once", invariants=["Once"])
scope("h6-retry-within-window", WINDOW, IdsKept=6, MaxTry=1)
# h7: snapshot isolation without validated reads: chaining breaks the one cut
SKEW: dict[str, Request] = {
    "q1": ("K1", "x", "own", "A", 1),
    "q2": ("K2", "x", "reads", "A", 1),
    "q3": ("K3", "y", "own", "B", 1),
}
scope(
    "h7-cut-chained-unvalidated", SKEW, aggregates="xy", Chain=True, CheckReads=False, expect="OneCut",
    invariants=["OneCut"],
)  # fmt: skip
scope("h7-cut-chained-validated", SKEW, aggregates="xy", Chain=True, invariants=["OneCut", *NO_COPY])
TWO_CALLS: dict[str, Request] = {
    "q1": ("K1", "x", "reads", "A", 1),
    "q2": ("K2", "y", "own", "B", 1),
    "q3": ("K3", "x", "own", "B", 1),
}
scope("h7-cut-one-call-unvalidated", TWO_CALLS, aggregates="xy", CheckReads=False, invariants=["OneCut"])
# h8: an instance takes its record for void because it has met a barrier, without having read it back
OVERTAKEN: dict[str, Request] = {"q1": ("K1", "x", "own", "A", 1), "q2": ("K2", "x", "ask", "B", 1)}
scope(
    "h8-void-by-any-barrier", OVERTAKEN, MaxTry=2, GiveUp="any", expect="GivenUpNever",
    invariants=[*SCOPE, "GivenUpNever"],
)  # fmt: skip
scope("h8-void-by-a-later-barrier", OVERTAKEN, MaxTry=2, GiveUp="later", invariants=[*SCOPE, "GivenUpNever"])
# h9: a record lands twice, in one of two formats; and its writer may be forgotten in between
COPIED: dict[str, Request] = {
    "q1": ("K1", "x", "own", "A", 1),
    "q2": ("K2", "x", "ask", "B", 1),
    "q3": ("K3", "x", "own", "B", 1),
}
FIRST: dict[str, Any] = {"Copies": 1, "Numbered": False}
scope("h9-copy-of-a-barrier", COPIED, expect="TruePredecessor", invariants=["TruePredecessor"], **FIRST)
scope("h9-copy-of-a-chained-commit", CHAIN, Chain=True, expect="CopiesVoid", **FIRST)
scope("h9-copies-numbered", COPIED, Copies=1)
scope("h9-copies-numbered-chained", CHAIN, Chain=True, Copies=1)
FORGOTTEN: dict[str, Any] = {"Copies": 1, "Writers": 1}
scope("h9-writer-forgotten", COPIED, Floor=False, expect="CopiesVoid", invariants=["CopiesVoid"], **FORGOTTEN)
scope("h9-writer-forgotten-floor", COPIED, **FORGOTTEN)
scope(
    "h9-writer-forgotten-floor-two-tries",
    OVERTAKEN,
    MaxTry=2,
    GiveUp="later",
    invariants=[*SCOPE, "GivenUpNever"],
    **(FORGOTTEN | {"Copies": 2}),
)
# h10: the first attempt takes no lock and reads nothing: a command is performed on what its instance has judged so far,
# whatever is missing there, and an id that was made here is not looked up. The verdict looks for the id only from where
# it was known to be absent, so that no id of somebody else may be taken for fresh.
FIRST_ATTEMPT: dict[str, Any] = {"VerdictFrom": "rest", "Apart": True}
scope(
    "h10-all-taken-for-fresh", GUARD, aggregates="xy", expect="RefusedNever", invariants=["RefusedNever"],
    Looks="none", **FIRST_ATTEMPT,
)  # fmt: skip
scope("h10-fresh-by-its-making", GUARD, aggregates="xy", Looks="shared", **FIRST_ATTEMPT)
scope("h10-stale-view-chained", CHAIN, Chain=True, Looks="shared", invariants=NO_COPY, **FIRST_ATTEMPT)
scope(
    "h10-given-up-without-a-lock", OVERTAKEN, MaxTry=2, GiveUp="later", Looks="shared",
    invariants=[*SCOPE, "GivenUpNever"], **FIRST_ATTEMPT,
)  # fmt: skip
# asking for the outcome; everything together
ASK: dict[str, Request] = {
    "q1": ("K", "x", "own", "A", 1),
    "q2": ("K", "x", "ask", "B", 1),
    "q3": ("K", "x", "own", "B", 1),
}
scope("ask-open", ASK, BarrierCloses=False, expect="RefusedNever", invariants=["RefusedNever"])
scope("ask-closes", ASK)
scope("ask-closes-two-tries", ASK, MaxTry=2)
ALL: dict[str, Request] = {
    "q1": ("K1", "x", "both", "A", 2),
    "q2": ("K2", "x", "guard", "A", 1),
    "q3": ("K2", "x", "guard", "B", 1),
    "q4": ("K3", "y", "own", "B", 1),
}
scope("all-one-try", ALL, aggregates="xy", Chain=True, invariants=NO_COPY)

# -- Publisher.tla


def publisher(
    name: str,
    *,
    expect: str | None = None,
    invariants: Sequence[str] = ("InOrderOnce", "NoGap"),
    **flags: Any,
) -> None:
    constants = {
        "N": 3,
        "Sessions": {"P1", "P2", "P3"},
        "MaxTopic": 6,
        "Ordered": True,
        "Waits": True,
        "Skips": False,
        "Most": 9,
        "Looks": True,
        "OldEnd": False,
        "Consumers": {"C"},
        "Remembers": True,
    } | flags
    SCENARIOS.append(Scenario(name, "Publisher", constants, tuple(invariants), expect=expect, short=name in SHORT))


PIPELINED = {"Ordered": False, "Waits": False}
publisher("p1-pipelined-with-gaps", expect="InOrderOnce", invariants=["InOrderOnce"], **PIPELINED)
publisher("p1-stop-and-wait", Ordered=False, Sessions={"P1", "P2"})
publisher("p1-pipelined-ordered", Waits=False, Sessions={"P1", "P2"})
publisher("p1-refused-is-skipped", Waits=False, Skips=True, Sessions={"P1"}, expect="NoGap", invariants=["NoGap"])
publisher("p1-three-sessions-topic-only", Waits=False, Consumers=set(), N=4, MaxTopic=7)
SHORT_REPEATS: dict[str, Any] = {"Consumers": set(), "Most": 1, "invariants": ["ShortRepeats", "NoGap"]}
publisher("p3-overtaken-goes-on", Looks=False, Sessions={"P1", "P2"}, expect="ShortRepeats", **SHORT_REPEATS)
publisher("p3-overtaken-ends", Sessions={"P1", "P2"}, OldEnd=True, **SHORT_REPEATS)
publisher("p3-three-overtaken", OldEnd=True, N=4, MaxTopic=8, **SHORT_REPEATS)
publisher("p3-two-at-once", OldEnd=True, N=4, MaxTopic=8, Sessions={"P1", "P2"}, **(SHORT_REPEATS | {"Most": 2}))
publisher("p2-consumer-forgets", Remembers=False, expect="InOrderOnce", invariants=["InOrderOnce"])

# -- Scopes.tla: transactions over several scopes

SEVERAL = ("Atomic", "Acked", "Whole", "AbortTrue", "Once", "TruePredecessor", "Serial")
Tx = tuple[str, Sequence[str], Sequence[str]]  # home, scopes written, scopes read


def scopes(
    name: str,
    txs: Mapping[str, Tx],
    *,
    module: str = "Scopes",
    expect: str | None = None,
    invariants: Sequence[str] = SEVERAL,
    properties: Sequence[str] = (),
    spec: str = "Spec",
    **flags: Any,
) -> None:
    constants = {
        "Txs": set(txs),
        "HomeOf": {name: tx[0] for name, tx in txs.items()},
        "WritesOf": {name: set(tx[1]) for name, tx in txs.items()},
        "ReadsOf": {name: set(tx[2]) for name, tx in txs.items()},
        "Singles": {name for name, tx in txs.items() if len({*tx[1], *tx[2]}) == 1},
        "Scopes": {"s1", "s2"},
        "Resolvers": {"R"},
        "Design": "commit",
        "Memory": 9,
        "ReadLocks": True,
        "AbortMoves": True,
        "EndEarly": False,
    } | flags
    SCENARIOS.append(
        Scenario(name, module, constants, tuple(invariants), tuple(properties), expect, 240, spec, short=name in SHORT)
    )


OVER: dict[str, Tx] = {"T": ("s1", ["s1", "s2"], [])}
AND: dict[str, Tx] = OVER | {"U": ("s2", ["s2", "s1"], [])}
SAME: dict[str, Tx] = OVER | {"U": ("s1", ["s1", "s2"], [])}
scopes("x1-decision-memory-short", SAME, Design="decision", Memory=1, expect="Acked", invariants=["Acked"])
scopes("x2-commit-one", OVER, Resolvers={"R", "Q"})
SINGLES: dict[str, Tx] = OVER | {"S": ("s2", ["s2"], []), "V": ("s1", ["s1"], [])}
scopes("x2-commit-and-single", SINGLES)
scopes("x2-commit-two-crossing", AND)
scopes("x2-control-end-early", OVER, EndEarly=True, expect="Acked", invariants=["Acked"])
SKEWED: dict[str, Tx] = {"T": ("s1", ["s1"], ["s2"]), "U": ("s2", ["s2"], ["s1"])}
scopes("x3-write-skew-reads-not-reserved", SKEWED, ReadLocks=False, expect="Serial", invariants=["Serial"])
scopes("x3-write-skew-reads-reserved", SKEWED)
THREE: dict[str, Tx] = {"T": ("s1", ["s1", "s2", "s3"], [])}
scopes("x2-commit-three-scopes", THREE, Scopes={"s1", "s2", "s3"}, Resolvers={"R", "Q"})
LIVE: dict[str, Any] = {"spec": "FairSpec", "properties": ["NoBlocking"], "invariants": []}
scopes("x4-no-blocking", OVER, Resolvers={"R", "Q"}, **LIVE)
scopes("x4-no-blocking-crossing", AND, **LIVE)
scopes("x4-control-no-resolver", OVER, expect="liveness", **(LIVE | {"spec": "Spec"}))
for mode, expect in (("once", "NoHalf"), ("twice", "NoHalf"), ("index", None)):
    scopes(f"x5-read-{mode}", OVER, module="ScopesRead", expect=expect, invariants=["NoHalf"], spec="SpecR", Mode=mode)

# -- Cache.tla

CACHE = ("CacheTrue", "HeadTrue", "EntryTrue", "AbleReads")


def cache(
    name: str,
    *,
    expect: str | None = None,
    invariants: Sequence[str] = CACHE,
    can: Mapping[str, set[int]],
    **flags: Any,
) -> None:
    """``can``: the records that each applier folds."""
    constants = {
        "Masters": {"m1", "m2"},
        "Appliers": set(can),
        "MaxLen": 2,
        "MaxTopic": 2,
        "Compare": "whole",
        "Touch": {1, 2},
        "Can": dict(can),
        "Unfolded": "keep",
    } | flags
    SCENARIOS.append(Scenario(name, "Cache", constants, tuple(invariants), expect=expect, short=name in SHORT))


BOTH: dict[str, set[int]] = {"A": {1, 2}, "B": {1, 2}}
cache("c1-compare-none", can=BOTH, Compare="none", expect="CacheTrue", invariants=["CacheTrue"])
cache("c1-compare-offset", can=BOTH, Compare="offset", expect="CacheTrue", invariants=["CacheTrue"])
cache("c1-compare-whole", can={"A": {1, 2}})
cache("c1-compare-whole-one-record", can={"A": {1}}, MaxLen=1)
# c2: two versions share a cache, and one of them cannot fold a record. What it does with its events
TWO: dict[str, set[int]] = {"Old": {1, 3}, "New": {1, 2, 3}}
cache("c2-unfolded-dropped", can=TWO, MaxTopic=1, Unfolded="drop", expect="AbleReads", invariants=["AbleReads"])
cache("c2-unfolded-kept", can=TWO)
cache("c2-unfolded-kept-one-master", can=TWO, Masters={"m1"}, MaxLen=3, MaxTopic=1, Touch={1, 2, 3})
cache("c2-healed-by-another-record", can=TWO, Masters={"m1"}, MaxLen=3, MaxTopic=1)

# -- Reads.tla: the levels of consistency

for name, mode, deposed, found in (
    ("r1-current", "index", False, None),
    ("r1-current-deposed-leader", "index", True, "Fresh"),
    ("r1-linearizable", "proof", True, None),
    ("r1-linearizable-joins-a-proof-under-way", "joined", False, "Fresh"),
):
    parts = {"Readers": {"r", "q"}, "MaxLen": 4, "Deposed": deposed, "Mode": mode}
    SCENARIOS.append(Scenario(name, "Reads", parts, ("Fresh",), expect=found, short=True))

# -- Rest.tla: leaving a scope that nobody uses

for name, mode, waits, found in (
    ("l1-notes-what-is-sent", "sent", True, "NothingLeft"),
    ("l1-notes-the-end-that-kafka-names", "end", True, "NothingLeft"),
    ("l1-notes-what-is-stored", "stored", True, None),
    ("l1-leaves-a-deadline", "stored", False, "NothingPending"),
):
    parts = {"Instances": {"A", "B"}, "MaxLog": 2, "MaxTopic": 4, "Schedules": {1}, "Fires": {2}}
    parts |= {"Waits": waits, "Mode": mode}
    left = (found,) if found else ("NothingLeft", "NothingPending")
    SCENARIOS.append(Scenario(name, "Rest", parts, left, expect=found, short=True))

# -- Window.tla: the log's clock

for name, clock, invariant, found in (
    ("w1-latest-forgets-at-once", "latest", "KeptLong", "KeptLong"),
    ("w1-latest-never-forgets", "latest", "LetGo", "LetGo"),
    ("w1-steps", "steps", "", None),
):
    parts = {"MaxLen": 5, "Stamps": set(range(7)), "Steps": 2, "Step": 1, "Clock": clock}
    invariants = (invariant,) if invariant else ("KeptLong", "LetGo", "InOrder")
    SCENARIOS.append(Scenario(name, "Window", parts, invariants, expect=found, short=True))

# -- Saga.tla: process managers

SAGA = ("EffectOnce", "NoInputLost", "NothingAfterItsEnd", "ExecutedOnce", "NoCommandLost", "InTime", "OnlyPending")


def saga(name: str, *, expect: str | None = None, invariants: Sequence[str] = SAGA, **flags: Any) -> None:
    constants = {
        "Inputs": {1, 2},
        "PosOf": {1: 1, 2: 2},
        "Sends": set[int](),
        "Schedules": set[int](),
        "Cancels": set[int](),
        "Ends": set[int](),
        "Mark": True,
        "After": 1,
        "MaxTry": 2,
        "MaxTime": 1,
        "Skew": 1,
        "MaxOut": 0,
        "MaxReset": 0,
        "Inbox": "source",
        "Commits": "after",
        "Clock": "log",
        "FireByHead": True,
        "Gapless": True,
        "Receiver": "highest",
        "InOrder": True,
        "IdsKept": 1,
    } | flags
    invariants = [expect] if expect else invariants
    SCENARIOS.append(Scenario(name, "Saga", constants, tuple(invariants), expect=expect, short=name in SHORT))


# s1: the inbox. Inputs come late, again, and in another order
saga("s1-offset-before-verdict", Commits="before", expect="NoInputLost")
saga("s1-id-by-position-alone", PosOf={1: 1, 2: 1}, Inbox="position", expect="NoInputLost")
saga("s1-older-taken-for-repeat", Inbox="highest", expect="NoInputLost")
saga("s1-sources-in-a-window", Inbox="window", expect="EffectOnce")
saga("s1-sources-kept", PosOf={1: 1, 2: 1})
# s2: the outbox and its receiver
OUTBOX: dict[str, Any] = {"Sends": {1, 2}, "MaxTry": 1, "MaxOut": 3, "MaxReset": 1}
saga("s2-outbox-with-gaps", **OUTBOX, Gapless=False, expect="NoCommandLost")
RETRIED: dict[str, Any] = OUTBOX | {"MaxTry": 2}
saga("s2-commands-in-a-window", **RETRIED, Receiver="window", expect="ExecutedOnce")
saga("s2-commands-out-of-order", **OUTBOX, InOrder=False, expect="NoCommandLost")
saga("s2-commands-in-order", **OUTBOX)
saga("s2-commands-in-order-two-tries", **RETRIED)
# s3: deadlines. The first input schedules one, and the second cancels it
DEADLINE: dict[str, Any] = {"Schedules": {1}, "Cancels": {2}, "MaxTime": 3}
saga("s3-fired-by-the-wall-clock", **DEADLINE, Clock="wall", expect="InTime")
saga("s3-fire-of-a-cancelled-one", **DEADLINE, FireByHead=False, expect="OnlyPending")
saga("s3-fired-by-the-log", **DEADLINE, MaxTry=1)
saga("s3-fired-by-the-log-two-tries", **DEADLINE)
# s5: an ended process. The second input ends it; the first one may come after that, or come again
saga("s5-ended-without-a-mark", Ends={2}, Mark=False, expect="EffectOnce")
saga("s5-ended", Ends={2})
saga("s5-ended-with-a-deadline", Schedules={1}, Ends={2}, MaxTime=3, MaxTry=1)
# All of it at once
saga("s4-all", Sends={1}, Schedules={1}, Cancels={2}, MaxTime=3, MaxOut=2, MaxReset=1, MaxTry=1)

# -- Forward.tla: a command that two instances may execute

FORWARD = ("Once", "AcceptedTrue", "RefusedTrue", "RefusedNever", "NothingNever")


def forward(name: str, *, expect: str | None = None, invariants: Sequence[str] = FORWARD, **flags: Any) -> None:
    constants = {
        "Takes": {"A1"},
        "MaxTry": 1,
        "MaxOther": 2,
        "Rival": "",
        "MaxAsk": 0 if expect else 1,
        "IdsKept": 1,
        "LooksUp": "each",
        "Covered": True,
        "Ahead": False,
        "Own": True,
        "Recorded": True,
        "Actor": "any",
        "Late": False,
        "Declined": "own",
    } | flags
    invariants = [expect] if expect else invariants
    SCENARIOS.append(Scenario(name, "Forward", constants, tuple(invariants), expect=expect, short=name in SHORT))


DECLINES = (*FORWARD, "DeclinedNever")
# f1: the id of a command has left the window while the other instance had not begun, or not sent its record
forward("f1-executed-and-forgotten", Covered=False, expect="Once")
forward("f1-looked-up-once", LooksUp="enter", expect="Once")
forward("f1-state-newer-than-the-look-up", Ahead=True, expect="Once")
forward("f1-forwarded", invariants=DECLINES)
forward("f1-forwarded-with-a-rival", Rival="A", MaxTry=2, invariants=DECLINES)
forward("f1-forwarded-with-a-rival-here", Rival="B", MaxTry=2, invariants=DECLINES)
forward("f1-forwarded-longer-window", Rival="A", IdsKept=2, invariants=DECLINES)
# f2: a refusal while the record of the other instance is in flight
forward("f2-refusal-unrecorded", Recorded=False, Actor="guard", expect="RefusedNever")
# f3: an answer of A after B has begun to execute the command: one that is on record does no harm, a decline does
forward("f3-late-decline", Late=True, Declined="end", expect="NothingNever")
forward("f3-late-answer-on-record", Late=True, Rival="A", invariants=DECLINES)
forward("f3-decline-in-time", Declined="end", invariants=DECLINES)
# f4: A takes the command out twice. One run knows nothing of the other, so its decline is no more than silence
TWICE: dict[str, Any] = {"Takes": {"A1", "A2"}}
forward("f4-taken-twice", **TWICE, expect="NothingNever")
forward("f4-taken-twice-own-record-under-way", **TWICE, Declined="silence", Own=False, expect="Once")
forward("f4-taken-twice-decline-is-silence", **TWICE, Declined="silence")
