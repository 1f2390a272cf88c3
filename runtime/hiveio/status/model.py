"""What is known at one moment, as one structure: ``hiveio status --json`` prints it, and the console shows it.

None says that nobody could be asked. Every list is bounded; where something was left out, ``problems`` says so.
"""

from msgspec import Struct, field


class Quarantined(Struct, frozen=True, kw_only=True):
    """Aggregates of a scope whose events a version cannot fold. ``names`` are some of them."""

    fingerprint: str
    count: int
    names: list[str]


class StuckProcess(Struct, frozen=True):
    """A process that cannot go on, and why."""

    name: str
    reason: str


class Processes(Struct, frozen=True, kw_only=True):
    """The processes of a scope, by its cache. ``running`` counts the stuck ones too, and ``named`` are the first few of
    those. ``unanswered`` is how many have sent a command that is not answered, and ``unanswered_s`` how old the oldest
    such command is, by the log's clock."""

    running: int
    stuck: int
    named: list[StuckProcess]
    unanswered: int
    unanswered_s: float | None


class Scope(Struct, kw_only=True):
    """A partition of the transaction log.

    ``end`` is the end offset of the log. ``applied`` is the watermark of the cache: everything below it is judged and
    in the cache. ``published`` is the offset of the last record whose events are on the event topic, and
    ``events_end`` the end of that topic. ``judged`` is how far the leader has judged the log, by its metrics; without a
    leader, how far the slowest instance that folds it. ``leader`` applies its records and publishes its events. A scope
    is at ``rest`` when its last leader has left it, with everything applied and published. ``rate`` are the verdicts a
    second over the last ten seconds, and ``void_share`` is the part of void records among the last thousand.
    ``publisher_lag_s`` is the age of the oldest event that is not published. ``processes`` are there where the service
    has process managers.
    """

    partition: int
    end: int
    judged: int | None = None
    applied: int | None = None
    events_end: int = 0
    published: int | None = None
    leader: str = ""
    rest: bool = False
    rate: float = 0.0
    void_share: float | None = None
    publisher_lag: int | None = None
    publisher_lag_s: float | None = None
    quarantined: list[Quarantined] = field(default_factory=list)
    processes: Processes | None = None

    @property
    def has_work(self) -> bool:
        """Whether something is to be applied or to be published, as far as it is known. A scope that nobody leads has
        work unless its last leader has left it at rest, or it has nothing but its format record."""
        if self.publisher_lag:
            return True
        return (
            self.applied is not None and self.end > 1 and not self.rest and (self.applied < self.end or not self.leader)
        )


class Partition(Struct, kw_only=True):
    """How far a group has come in a partition. ``lag_s`` is the age of the first record that it has not handled."""

    topic: str
    partition: int
    committed: int
    end: int
    lag: int
    lag_s: float | None
    member: str


class DeadLetters(Struct, kw_only=True):
    """The open dead letters of a group. ``reasons`` counts them; ``parked`` are those that wait behind another."""

    count: int
    keys: int
    reasons: dict[str, int]


class Group(Struct, kw_only=True):
    """A consumer group that reads topics of this service. ``lag`` is the sum over its partitions, ``lag_s`` the
    largest."""

    name: str
    state: str
    members: list[str]
    lag: int
    lag_s: float | None
    partitions: list[Partition]
    dead: DeadLetters


class Check(Struct, frozen=True):
    """A part of an instance that is not ready, and why."""

    name: str
    reason: str


class Instance(Struct, kw_only=True):
    """A worker process that has announced itself, or a service that was named.

    ``seen_s`` is how long ago it announced itself. ``ready`` is None where it could not be asked; ``unreachable`` says
    why. ``leads`` are the scopes whose lease it holds, and ``follows`` is how many scopes the worker processes at this
    address follow, all together.
    """

    id: str
    url: str
    service: str = ""
    version: str = ""
    fingerprint: str = ""
    actors: list[str] = field(default_factory=list)
    up_s: float | None = None
    seen_s: float | None = None
    gone: bool = False
    ready: bool | None = None
    not_ready: list[Check] = field(default_factory=list)
    unreachable: str = ""
    leads: list[int] = field(default_factory=list)
    follows: int | None = None
    commands_in_flight: int | None = None
    quarantined: list[dict[str, object]] = field(default_factory=list)


class Status(Struct, kw_only=True):
    """Everything, at ``time`` (seconds since the epoch). ``topic`` is the event topic, ``log`` the transaction log,
    and ``partitions`` the number of its scopes."""

    time: float
    topic: str
    log: str
    partitions: int = 0
    scopes: list[Scope] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What needs somebody's attention, in sentences."""
        found = [
            f"Instance {each.id} has not announced itself for {each.seen_s:.0f} s."
            for each in self.instances
            if each.gone and each.seen_s is not None
        ]
        found += [
            f"Instance {each.id} is not ready: {check.name}: {check.reason}"
            for each in self.instances
            for check in each.not_ready
        ]
        for scope in self.scopes:
            where = f"{self.log}/{scope.partition}"
            if scope.has_work and not scope.leader:
                found.append(
                    f"Scope {where} has no leader, so nobody applies its records and publishes its events. An instance "
                    "that fails at that gives the lease back, and logs why."
                )
            if scope.publisher_lag_s is not None and scope.publisher_lag_s > LATE_S:
                by = f" by {scope.leader}" if scope.leader else ""
                found.append(f"Events of scope {where} have waited {scope.publisher_lag_s:.0f} s to be published{by}.")
            for each in scope.quarantined:
                found.append(
                    f"{_count(each.count, 'aggregate')} of scope {where} cannot be folded by fingerprint "
                    f"{each.fingerprint}: {', '.join(each.names[:3])}."
                )
            if (processes := scope.processes) is not None and processes.stuck:
                named = ", ".join(f"{each.name} ({_short(each.reason)})" for each in processes.named)
                found.append(f"{_count(processes.stuck, 'stuck process', 'es')} in scope {where}: {named}.")
        for group in self.groups:
            if group.dead.count:
                dead, keys = _count(group.dead.count, "open dead letter"), _count(group.dead.keys, "key")
                found.append(f"Group {group.name} has {dead} of {keys}.")
            if group.lag and not group.members:
                found.append(f"Group {group.name} has {_count(group.lag, 'record')} to handle and no members.")
        return found


LATE_S = 10.0  # as long as the alert on the same


SHORT = 100  # characters of a reason


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _short(reason: str) -> str:
    first = reason.strip().partition("\n")[0].rstrip(".")
    return first if len(first) <= SHORT else f"{first[:SHORT]}…"
