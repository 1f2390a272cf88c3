"""Which process an event belongs to: what ``correlates`` of a process manager says, checked when the service starts."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect as inspected

from hiveio.envelope import ID_LIMIT
from hiveio.errors import BadAnnotation, Invalid
from hiveio.messages import Command, CommandRefused, Deadline, Event

KEY: Final = "the key of the record"  # in ``correlates``: no field is named like that

Correlate = Callable[[Any, str | None], str]


def check_no_process(kind: type, taken: Iterable[type]) -> None:
    """Raises BadAnnotation for an actor that takes what comes to processes."""
    for event in taken:
        if issubclass(event, Deadline | CommandRefused):
            raise BadAnnotation(f"{kind.__name__}.perform takes {event.__name__}, which only a ProcessManager takes")


def check_process(kind: Any, several: str) -> None:
    """Raises BadAnnotation for a process manager that has no state, or takes ``several`` events at once."""
    if several:
        raise BadAnnotation(f"{kind.__name__}.perform takes {several}, and a ProcessManager takes one event at a time")
    if kind.replay is None:
        raise BadAnnotation(f"{kind.__name__} has no replay: the state of a process is folded from its events")


def sends_of(kind: type, sends: Mapping[str, Iterable[type[Command]]]) -> dict[str, tuple[type[Command], ...]]:
    """The commands to each service that a process manager names. Raises BadAnnotation."""
    for service, kinds in sends.items():
        for each in kinds:
            if not (isinstance(each, type) and issubclass(each, Command)):
                raise BadAnnotation(f"{kind.__name__}.sends names {each!r} for {service}, which is not a Command")
    return {service: tuple(kinds) for service, kinds in sends.items()}


def correlations(
    kind: type, correlates: Mapping[type[Event], str], taken: Iterable[type[Event]]
) -> dict[str, Correlate]:
    """By the name of each event that comes from a topic, a function of the event and the key of its record that gives
    the id of the process, or raises Invalid. ``taken`` are the events that ``perform`` takes. Raises BadAnnotation."""
    name, taken = f"{kind.__name__}.correlates", list(taken)
    if not isinstance(correlates, Mapping):
        raise BadAnnotation(
            f"{name} is {correlates!r}; it names for each event the field that has the id of its process"
        )
    for event in correlates:
        if not (isinstance(event, type) and issubclass(event, Event)):
            raise BadAnnotation(f"{name} names {event!r}, which is not an Event")
        if issubclass(event, Deadline | CommandRefused):
            raise BadAnnotation(f"{name} names {event.__name__}, which comes to its own process; leave it out")
        if event not in taken:
            raise BadAnnotation(f"{name} names {event.__name__}, which {kind.__name__}.perform does not take")
    for event in taken:
        if event not in correlates and not issubclass(event, Deadline | CommandRefused):
            raise BadAnnotation(
                f"{kind.__name__}.perform takes {event.__name__}, and {name} does not say to which process it belongs: "
                "name the field that has the id, or KEY where the key of the record is the id. If it is a deadline of "
                "the process, derive it from Deadline"
            )
    return {event.__name__: _correlate(name, event, field) for event, field in correlates.items()}


def _correlate(name: str, event: type[Event], field: str) -> Correlate:
    if field == KEY:
        return lambda message, key: _checked(event, "the key of its record", key)
    types = {f.name: f.type for f in msgspec.structs.fields(event)}
    if field not in types:
        known = ", ".join(types) or "none"
        raise BadAnnotation(f"{name} names the field {field!r} of {event.__name__}, which has the fields {known}")
    if not isinstance(msgspec.inspect.type_info(types[field]), inspected.StrType | inspected.IntType):
        raise BadAnnotation(f"{name}: {event.__name__}.{field} must be a str or an int, as it is the id of a process")
    return lambda message, key: _checked(event, f"its field {field}", str(getattr(message, field)))


def _checked(event: type[Event], what: str, id: str | None) -> str:
    try:
        size = len(id.encode()) if id is not None else 0
    except UnicodeEncodeError:
        raise Invalid(f"{event.__name__} belongs to no process: {what} is not UTF-8.") from None
    if id is None or not 0 < size <= ID_LIMIT:
        raise Invalid(f"{event.__name__} belongs to no process: {what} has {size} bytes; an id has 1 to {ID_LIMIT}.")
    return id
