"""Which aggregates several instances work on: for these one executes all commands, or a lock decides whose turn it is.

A command is first tried without a lock. The order of the log decides anyway, so that costs nothing while one instance
alone works on an aggregate. Where two of them do, each would make the records of the other one void, whole chains of
them at a time. So an instance remembers for a while where others have written, and where its own records were void.
"""

import time
from collections.abc import Callable, Iterable

from hiveio.transaction.record import Commit, Record, written

REMEMBERED_S = 10.0  # after which an aggregate is forgotten, at the earliest; after twice the time it is for sure
MOST = 10_000  # aggregates of one such time; with more, those of the time before are forgotten


class Contention:
    """The aggregates of one scope that more than one instance works on, as far as this instance has seen it lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: set[str] = set()
        self._older: set[str] = set()
        self._until = 0.0  # when the recent ones become older ones
        self._forwarded: tuple[set[str], set[str]] = set(), set()  # ids of commands, the recent ones first

    def forward(self, id: str) -> None:
        """Another instance executes the command of this one that has this id."""
        if len(self._forwarded[0]) >= MOST:
            self._forwarded = set(), self._forwarded[0]
        self._forwarded[0].add(id)

    def met(self, record: Record) -> None:
        """A record of another instance was read, or a void one of this instance. That of a forwarded command does not
        show that others work on its aggregates."""
        if isinstance(record, Commit) and any(self._forwarded):
            text = record.command.text
            for ids in self._forwarded:
                if text in ids:
                    ids.discard(text)
                    return
        self.note(written(record))

    def note(self, names: Iterable[str]) -> None:
        """Another instance has written these, or a record of this instance that writes them is void."""
        self._age()
        self._recent.update(names)
        if len(self._recent) > MOST:
            self._turn()

    def __bool__(self) -> bool:
        """Whether there are any."""
        if self._recent or self._older:
            self._age()
        return bool(self._recent or self._older)

    def __contains__(self, name: str) -> bool:
        if not (self._recent or self._older):
            return False
        self._age()
        return name in self._recent or name in self._older

    def isdisjoint(self, names: Iterable[str]) -> bool:
        """Whether it has none of these."""
        for name in names:  # noqa: SIM110 - there is one name as a rule, and a generator costs more
            if name in self:
                return False
        return True

    def _age(self) -> None:
        if (now := self._clock()) >= self._until:
            if now >= self._until + REMEMBERED_S:
                self._recent.clear()
            self._turn()
            self._until = now + REMEMBERED_S

    def _turn(self) -> None:
        self._older, self._recent = self._recent, set()
        self._forwarded = set(), self._forwarded[0]
