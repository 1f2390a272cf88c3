"""The consumer groups that read the topics of a service: members, lag, and open dead letters."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from hiveio.config import Settings
from hiveio.consumer.dead_letters.format import REASON
from hiveio.consumer.dead_letters.opened import OpenDeadLetters
from hiveio.errors import HiveError
from hiveio.kafka.assigned import Partition as At
from hiveio.kafka.end_offsets import EndOffsets, age_s
from hiveio.kafka.groups import Committed, Groups
from hiveio.kafka.groups import Group as Described
from hiveio.kafka.lookup import Expression
from hiveio.kafka.reader import Reader
from hiveio.status.model import DeadLetters, Group, Partition

MOST_GROUPS = 100
MOST_PARTITIONS = 1_000  # of all topics that are read
KEPT = 5_000  # open dead letters of a group that are held, without their values
DEAD = ".dead"
NO_DEAD = DeadLetters(count=0, keys=0, reasons={})


class GroupWatch:
    """Looks at groups, blocking. A later look reads only the dead letters that are new."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ends = EndOffsets(settings)
        self._groups = Groups(settings)
        self._reader = Reader(settings)
        self._dead: dict[str, tuple[tuple[str, ...], Reader, OpenDeadLetters]] = {}

    def close(self) -> None:
        self._groups.close()
        self._reader.close()
        for _, reader, _ in self._dead.values():
            reader.close()
        self._dead = {}

    def look(self, topics: Sequence[str], problem: Callable[[str], None]) -> list[Group]:
        """The groups that have offsets or dead letters of this service's topics. Raises Unavailable."""
        read = sources(self._settings, topics)
        partitions = [at for topic in read for at in self._reader.partitions(topic)]
        if len(partitions) > MOST_PARTITIONS:
            problem(f"Only {MOST_PARTITIONS} of {len(partitions)} partitions of {', '.join(read)} are looked at.")
            partitions = partitions[:MOST_PARTITIONS]
        dead = dead_topics(read, topics)
        try:
            others = self._groups.names()
        except HiveError as error:
            problem(f"Not all consumer groups are known: {error}")
            others = []
        names = list(dict.fromkeys([*dead, self._settings.group_id, *others]))
        names = [name for name in names if name]
        if len(names) > MOST_GROUPS:
            problem(f"Only {MOST_GROUPS} of {len(names)} consumer groups are looked at.")
            names = names[:MOST_GROUPS]
        committed = self._groups.committed(names, partitions)
        relevant = [name for name in names if committed.get(name) or name in dead or name == self._settings.group_id]
        described = self._groups.described(relevant)
        ends = self._ends.known(partitions)
        if missing := len(partitions) - len(ends):
            problem(f"Kafka does not say where {missing} partitions end: they have no leader in Kafka.")
        return [
            self._group(name, described.get(name), committed.get(name, {}), ends, dead.get(name, ()), problem)
            for name in sorted(relevant)
        ]

    def _group(
        self,
        name: str,
        described: Described | None,
        committed: Mapping[At, Committed],
        ends: Mapping[At, int],
        dead: tuple[str, ...],
        problem: Callable[[str], None],
    ) -> Group:
        lagging = {at: found.offset for at, found in committed.items() if found.offset < ends.get(at, 0)}
        try:
            times = self._groups.times(lagging, self._ends)
        except HiveError as error:
            problem(f"How long records wait for group {name} is unknown: {error}")
            times = {}
        members = described.members if described is not None else ()
        having = {at: member for member in members for at in member.partitions}
        partitions = []
        for at, found in sorted(committed.items()):
            if at not in ends:
                continue
            lag = max(0, ends[at] - found.offset)
            lag_s = age_s(times[at]) if at in times else None if lag else 0.0
            member = f"{having[at].client_id} at {having[at].host}" if at in having else ""
            row = Partition(
                topic=at[0], partition=at[1], committed=found.offset, end=ends[at], lag=lag, lag_s=lag_s, member=member
            )
            partitions.append(row)
        known = [each.lag_s for each in partitions if each.lag_s is not None]
        try:
            found_dead = self._dead_letters(name, dead)
        except HiveError as error:
            problem(f"The dead letters of group {name} cannot be read: {error}")
            found_dead = NO_DEAD
        return Group(
            name=name,
            state=described.state if described is not None else "UNKNOWN",
            members=[f"{member.client_id} at {member.host}" for member in members],
            lag=sum(each.lag for each in partitions),
            lag_s=max(known, default=None) if len(known) == len(partitions) else None,
            partitions=partitions,
            dead=found_dead,
        )

    def _watched(self, name: str, dead: tuple[str, ...]) -> OpenDeadLetters:
        if name not in self._dead or self._dead[name][0] != dead:
            if name in self._dead:
                self._dead.pop(name)[1].close()
            reader = Reader(self._settings, name)
            self._dead[name] = dead, reader, OpenDeadLetters(reader, name, most=KEPT)
        return self._dead[name][2]

    def _dead_letters(self, name: str, dead: tuple[str, ...]) -> DeadLetters:
        if not dead:
            return NO_DEAD
        watched = self._watched(name, dead)
        reasons = Counter(each.headers.get(REASON, b"").decode("utf-8", "replace") for each in watched.open())
        if (more := watched.count - reasons.total()) > 0:
            reasons["not counted"] = more
        return DeadLetters(count=watched.count, keys=watched.keys, reasons=dict(sorted(reasons.items())))


def sources(settings: Settings, topics: Sequence[str]) -> list[str]:
    """The event topics of a service that exist: the one that it writes, and those that it reads."""
    read = Expression(settings.read_topics)
    written = [settings.written_topic] if settings.written_topic in topics else []
    return list(dict.fromkeys([*written, *filter(read.matches, topics)]))


def dead_topics(read: Sequence[str], topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """By group, the dead-letter topics ``<topic>.<group>.dead`` of these sources."""
    found: dict[str, list[str]] = {}
    for topic in topics:
        if not topic.endswith(DEAD):
            continue
        of = [each for each in read if topic.startswith(f"{each}.") and len(topic) > len(each) + len(DEAD) + 1]
        if of:  # of two sources the longer one: orders and orders.eu
            source = max(of, key=len)
            found.setdefault(topic[len(source) + 1 : -len(DEAD)], []).append(topic)
    return {group: tuple(names) for group, names in found.items()}
