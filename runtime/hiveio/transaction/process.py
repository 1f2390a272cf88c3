"""What the log keeps of an aggregate next to its state: the commands of processes that it has taken; and of a process,
the inputs that it has taken, and its pending deadlines.

It is folded from the records alone, without the actor. A verdict needs none of it: each change of it moves the head of
the process, so a record that was decided on something older is void by its head.
"""

from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from hiveio.errors import Problem
from hiveio.transaction.record import Cause, ProcessStep


class Input(NamedTuple):
    """What comes from elsewhere than a client. A process is given an event with its ``source``; or the deadline
    ``fires``, which is due at ``due`` by the log's clock. Any aggregate is given a command of a process, which is the
    ``cause``; ``refusal`` says why nobody can perform it. ``resumes`` names an input that waits and is tried again, or
    is dropped where ``skips`` is set.

    ``answers`` is the position in the outbox of the command that it answers. Without a source it says only that."""

    source: str = ""
    fires: str = ""
    due: int = 0
    cause: Cause | None = None
    refusal: Problem | None = None
    resumes: str = ""
    skips: bool = False
    answers: str = ""

    @property
    def only_answers(self) -> bool:
        """Whether all that it says is that a command was answered. ``perform`` is not told."""
        return bool(self.answers) and not self.source

    @property
    def of_process(self) -> bool:
        """Whether it drives a process: what fails then waits, and is no refusal."""
        return self.cause is None

    def taken(self, encoded: bytes) -> bool:
        """Whether it has had its effect, by what is kept of the aggregate: its source is on record, or the deadline
        is not pending, was put off, or stays pending because inputs wait; or the command, or a later one of its stream,
        was taken."""
        process = Process.of(encoded)
        if self.cause is not None:
            return process.has_taken(self.cause)
        if process.ended:
            return True
        if self.only_answers:
            return self.answers not in process.sent
        if self.resumes:
            return not process.waiting or process.waiting[0].name != self.resumes
        if self.fires:
            pending = process.deadlines.get(self.fires)
            return pending is None or pending.at != self.due or bool(process.waiting)
        return self.source in process.sources

    def waits(self, encoded: bytes) -> bool:
        """Whether others wait before it."""
        return self.of_process and not (self.resumes or self.only_answers) and bool(Process.of(encoded).waiting)


class Waiting(Struct, frozen=True, array_like=True):
    """An input that waits: its source, or the name of its deadline, and its event as an envelope."""

    name: str
    event: Raw


class Due(Struct, frozen=True, array_like=True):
    """A pending deadline: the log's time (ms) from which on it may fire, and its event as an envelope."""

    at: int
    event: Raw


class Process(Struct, frozen=True, omit_defaults=True):
    """``sources`` are the inputs that the process has taken, all of them: an input that comes again, however late, has
    no second effect. ``deadlines`` are those that are pending, by their names. ``taken`` has for each stream of
    commands the highest position that the aggregate has taken: a receiver gives it its commands in order, each after
    the one before it is settled.

    ``waiting`` are inputs that are on record and not handled, in their order: the process is ``stuck`` with the first
    one for the reason given; or goes on with it, where there is no reason.

    ``sent`` are the commands that are not answered, by their positions in the outbox, with the log's time at which they
    were sent. A process that has ``ended`` keeps nothing else but ``taken``: no input has an effect on it any more."""

    sources: tuple[str, ...] = ()
    deadlines: dict[str, Due] = {}
    taken: dict[str, tuple[int, int]] = {}
    waiting: tuple[Waiting, ...] = ()
    stuck: str = ""
    sent: dict[str, int] = {}
    ended: bool = False

    @classmethod
    def of(cls, encoded: bytes) -> "Process":
        return _decode(encoded) if encoded else _NEW

    @property
    def due(self) -> int | None:
        """When the first of its deadlines is due, by the log's time; at once where an input waits that can be tried.
        While it is stuck none is: what waits may cancel them."""
        if self.waiting:
            return None if self.stuck else 0
        return min((deadline.at for deadline in self.deadlines.values()), default=None)

    def has_taken(self, cause: Cause) -> bool:
        return self.taken.get(cause.stream, (-1, -1)) >= (cause.offset, cause.index)

    @property
    def running(self) -> bool:
        """Whether it is a process that has begun and not ended."""
        return not self.ended and bool(self.sources or self.deadlines or self.waiting or self.sent)

    def after(self, step: ProcessStep | None, cause: Cause | None, time: int, offset: int) -> "Process":
        """The process after the accepted record at ``offset``, where the log has this time."""
        taken = self.taken
        if cause is not None and not self.has_taken(cause):
            taken = {**taken, cause.stream: (cause.offset, cause.index)}
        if self.ended or (step is not None and step.ends):
            return Process(taken=taken, ended=True)
        if step is None:
            return Process(self.sources, self.deadlines, taken, self.waiting, self.stuck, self.sent)
        deadlines = dict(self.deadlines)
        for name in (*step.cancels, *([step.fires] if step.fires else [])):
            deadlines.pop(name, None)
        for each in step.schedules:
            deadlines[each.name] = Due(time + each.after_ms, each.event)
        sources = (*self.sources, step.source) if step.source and step.source not in self.sources else self.sources
        unparked = step.unparks and self.waiting and self.waiting[0].name == step.unparks
        waiting = self.waiting[1:] if unparked else self.waiting
        for event in step.parks:
            waiting = (*waiting, Waiting(step.source or step.fires, event))
        sent = self.sent
        if step.answers in sent or step.sends:
            sent = {position: when for position, when in sent.items() if position != step.answers}
            sent |= {f"{offset}:{index}": time for index in range(len(step.sends))}
        return Process(sources, deadlines, taken, waiting, step.stuck or ("" if unparked else self.stuck), sent)


# In the cache one list has all processes of a scope. It begins with those that have deadlines, by when their first one
# is due. What follows stands beyond all times of a log, under names that begin as no actor's name does.
NEVER = -1  # what is not on the list
WAITS = 1 << 50  # and the time from which on a process waits for the answer to a command
RUNNING = 1 << 51
STUCK = 1 << 52
_WAITS_MARK, _RUNNING_MARK, _STUCK_MARK = "?", "+", "!"


def listed(name: str, encoded: bytes) -> list[tuple[str, int]]:
    """What the list in the cache has of a process."""
    process = Process.of(encoded)
    due = process.due
    return [
        (name, NEVER if due is None else due),
        (_WAITS_MARK + name, WAITS + min(process.sent.values()) if process.sent else NEVER),
        (_RUNNING_MARK + name, RUNNING if process.running else NEVER),
        (_STUCK_MARK + name, STUCK if process.stuck else NEVER),
    ]


def unmarked(name: str) -> str:
    """The process that is listed under this name."""
    return name[1:]


_NEW = Process()
_decode = msgspec.json.Decoder(Process).decode
_encode = msgspec.json.Encoder().encode


def advanced(encoded: bytes, step: ProcessStep | None, cause: Cause | None, time: int, offset: int) -> bytes:
    """As ``Process.after``, encoded. Every reader makes the same bytes."""
    return _encode(Process.of(encoded).after(step, cause, time, offset))
