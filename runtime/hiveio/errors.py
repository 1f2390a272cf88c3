"""The exception tree. The class of an error decides what an edge does with it.

- ``Stop``: the process cannot do its work. It ends at once with one clear line and the exit code of the error.
- ``Problem``: the answer to one request, a problem document of RFC 9457. Below it
  ``Refused`` (the client's fault: sending it again gives the same), ``Unavailable`` (nothing happened, try later) and
  ``Unknown`` (it may have happened: ask).

Anything else that leaves an actor or the runtime is a fault of that code, and the only thing answered with a 500.
"""

import asyncio
import re
from typing import Any, TypeVar

import msgspec

AWAY = "A backend of this service is not available at the moment. Try again."
# The members of a problem document (RFC 9457) that come from the class, the text and the request.
OUR_MEMBERS = frozenset(("type", "title", "status", "detail", "instance"))


class HiveError(Exception):
    """The base of all errors that this package raises on purpose."""


# -- the process stops


class Stop(HiveError):
    """The process cannot do its work and ends with ``exit_code`` and this one line."""

    exit_code = 1


class ConfigError(Stop):
    """A setting is missing or wrong. The text names the setting, the value and what is allowed."""

    exit_code = 2


class LoadError(Stop):
    """The actor cannot be loaded. Each way to fail is a class of its own, with an exit code of its own."""

    exit_code = 10


class ModuleUnset(LoadError):
    exit_code = 11


class ModuleMissing(LoadError):
    """The module does not exist, cannot be read, or another module of its name comes first."""

    exit_code = 12


class ModuleRaises(LoadError):
    """The actor's module raised while it was imported; the text ends with its traceback, without our frames."""

    exit_code = 13


class NoActor(LoadError):
    exit_code = 14


class BadAnnotation(LoadError):
    exit_code = 15


class PathTaken(LoadError):
    exit_code = 16


class PathReserved(LoadError):
    exit_code = 17


class NameTaken(LoadError):
    """Two messages, or two actors, of one name in one container."""

    exit_code = 18


class StartRaises(Stop):
    """The ``start`` of an actor raised. Its traceback is in the log."""


class Unsafe(Stop):
    """A backend is set up in a way that would lose data or let readers disagree (eviction, another partition count)."""

    exit_code = 20


class Corrupt(Stop):
    """The log holds what cannot be read or folded. The text names topic, partition and offset. Nothing goes past it."""

    exit_code = 21


# -- the answer to one request


class Problem(HiveError):
    """An answer other than success: RFC 9457. ``members`` are extension members, ``headers`` go out with the answer.

    Raises TypeError for what cannot be answered: a detail that is not a text, a member that is one of OUR_MEMBERS or
    cannot be written as JSON, a header that is not valid.
    """

    status = 500
    title = "Internal Server Error"
    urn = ""  # its type, where the class does not give it: an answer that is repeated from a record
    # An actor's own class may have an __init__ that does not call this one.
    detail: str = ""
    headers: dict[str, str] = {}  # noqa: RUF012
    members: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, detail: str = "", *, headers: dict[str, str] | None = None, **members: Any) -> None:
        if not isinstance(detail, str):
            raise TypeError(f"{type(self).__name__}({detail!r}): the detail must be a text; write str(…)")
        if members:
            _check_members(type(self).__name__, members)
        if headers:
            _check_headers(type(self).__name__, headers)
        super().__init__(detail or self.title)
        self.detail = detail
        self.headers = headers or {}
        self.members = members


def _check(problem: Problem) -> None:
    """Raises TypeError for one that cannot be answered. Its class may be an actor's, with an ``__init__`` that does not
    call ours, and what was right when it was made may have been changed."""
    name, refused = type(problem).__name__, isinstance(problem, Refused)
    if not isinstance(problem.status, int) or not 400 <= problem.status <= (499 if refused else 599):
        raise TypeError(f"{name}.status is {problem.status!r}; it must be from 400 to {499 if refused else 599}")
    for attribute in ("title", "detail", "urn", "members", "headers"):
        kind = dict if attribute in ("members", "headers") else str
        if not isinstance(value := getattr(problem, attribute), kind):
            raise TypeError(f"{name}.{attribute} is {value!r}; it must be a {kind.__name__}")
    _check_members(name, problem.members)
    _check_headers(name, problem.headers)


def _check_members(name: str, members: dict[str, Any]) -> None:
    if ours := sorted(OUR_MEMBERS & members.keys()):
        raise TypeError(
            f"{name}({ours[0]}=…): {', '.join(sorted(OUR_MEMBERS))} are set by the class and the text of the problem; "
            f"derive a class with its own status and title, or take another name than {ours[0]}"
        )
    for member, value in members.items():
        if isinstance(value, str):
            continue  # it may hold a lone surrogate, which came from the client and is escaped in the answer
        try:
            msgspec.json.encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"{name}({member}={value!r}) cannot be written as JSON: {error}") from None


def _check_headers(name: str, headers: dict[str, str]) -> None:
    for header, value in headers.items():
        texts = isinstance(header, str) and isinstance(value, str)
        if not (texts and _TOKEN.fullmatch(header) and _FIELD.fullmatch(value)):
            text = "is not a valid HTTP header: name and value are printable ASCII on one line"
            raise TypeError(f"{name}(headers={{{header!r}: {value!r}}}) {text}")


_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_FIELD = re.compile(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?")


class Refused(Problem):
    """The client's fault: the same request gives the same answer. A class derived from it has a status of 400 to 499;
    any other raises TypeError."""

    status = 400
    title = "Bad Request"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not (isinstance(cls.status, int) and 400 <= cls.status <= 499):
            raise TypeError(f"{cls.__name__}.status is {cls.status!r}; a refusal is the client's fault: 400 to 499")
        if not isinstance(cls.title, str):
            raise TypeError(f"{cls.__name__}.title is {cls.title!r}; it must be a text")


class Malformed(Refused):
    title = "Not JSON"


class Unauthorized(Refused):
    """The request has no credentials, or they are not valid. An actor may raise it: 401.

    ``challenge`` is the WWW-Authenticate of the answer, which RFC 9110 (15.5.2) demands:
    ``Unauthorized("the token has expired", challenge='Bearer error="invalid_token"')``.
    """

    status = 401
    title = "Unauthorized"

    def __init__(
        self, detail: str = "", *, challenge: str = "Bearer", headers: dict[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail, headers={**(headers or {}), "WWW-Authenticate": challenge}, **members)


class Forbidden(Refused):
    """The client is not allowed to do that. An actor may raise it: 403."""

    status = 403
    title = "Forbidden"


class NotFound(Refused):
    """What the request names does not exist. An actor may raise it: 404."""

    status = 404
    title = "Not Found"


class MethodNotAllowed(Refused):
    status = 405
    title = "Method Not Allowed"


class RequestTimeout(Refused):
    """The request did not arrive in full in time."""

    status = 408
    title = "Request Timeout"


class VersionMismatch(Refused):
    status = 412
    title = "Precondition Failed"


class TooLarge(Refused):
    status = 413
    title = "Content Too Large"


class HeadersTooLarge(Refused):
    status = 431
    title = "Request Header Fields Too Large"


class UnsupportedMediaType(Refused):
    status = 415
    title = "Unsupported Media Type"


class ExpectationFailed(Refused):
    status = 417
    title = "Expectation Failed"


class Invalid(Refused):
    """The message does not fit its schema; ``pointer`` is the JSON pointer (RFC 6901) to the field."""

    status = 422
    title = "Invalid Message"
    unknown_type: str | None = None  # the type of the message, where no actor takes it


class Rejected(Refused):
    """Raised by an actor: its domain refuses the message. The text is the answer's ``detail``.

    Further keyword arguments become members of the problem document: ``Rejected("overdrawn", balance=5)``.
    """

    status = 422
    title = "Rejected"


class KeyReused(Refused):
    """An Idempotency-Key came again with another body."""

    status = 422
    title = "Idempotency-Key Reused"


class SeveralScopes(Refused):
    status = 422
    title = "Several Scopes"


class Conflict(Problem):
    """Nothing happened, and nothing will happen under this command: others were faster in all of its retries."""

    status = 409
    title = "Conflict"


class Unavailable(Problem):
    """Nothing happened: overload, draining, a backend away. ``retry_after`` in seconds.

    ``inside`` says why to those who operate the service: it is the text of the error, in log lines and readiness.
    Clients get the ``detail``.
    """

    status = 503
    title = "Service Unavailable"

    def __init__(self, detail: str = "", *, inside: str = "", retry_after: int = 1, **members: Any) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)}, **members)
        if inside:
            self.args = (inside,)


def backend_away(inside: str) -> Unavailable:
    """A backend does not answer, or refuses. Clients do not learn where it is, nor what it said: that is ``inside``."""
    return Unavailable(AWAY, inside=inside)


class Quarantined(Unavailable):
    """What the request needs has events that this version of the service cannot fold. Nothing happened."""

    title = "Aggregate Unavailable"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, retry_after=10)


class Unknown(Problem):
    """The deadline passed and the outcome is not known: the request may have been carried out, or may still be."""

    status = 504
    title = "Outcome Unknown"


class Stuck(HiveError):
    """Raised by a process manager that cannot go on: its inputs wait until ``hiveio saga retry`` or ``skip``. The text
    says why. Any other error of its ``perform`` at an event has the same effect."""


# -- errors as values


E = TypeVar("E", bound=BaseException)


def detached(error: E) -> E:
    """The error without its traceback and what it was raised from, for who keeps it or has answered it. The frames that
    it has passed may have it too, and then only Python's collector could free them."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


# -- what an actor raises that is none of these


def contained(error: BaseException) -> Exception:
    """What an actor raised, as a fault that concerns its message and nothing else.

    ``SystemExit`` and the like would end the worker, and with it the work of everybody else; a cancellation that nobody
    asked for would silently end the task that awaits it; no future takes a ``StopIteration``; code that logs an error
    whose text raises would fail itself; a problem that is not valid would be an answer, or a record, that nobody can
    read.
    """
    if isinstance(error, Problem):
        try:
            _check(error)
        except Exception as wrong:
            wrong.__cause__ = error
            return wrong
    text, has_text = _text(error)
    if has_text and isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    fault = RuntimeError(f"the actor raised {type(error).__name__}{f': {text}' if text else ''}")
    fault.__cause__ = error
    return fault


def text_of(error: BaseException) -> str:
    """The text of an error, also where its class is an actor's."""
    return _text(error)[0]


def _text(error: BaseException) -> tuple[str, bool]:
    """The text, and whether it is the error's own: ``__str__`` may be an actor's, and may raise."""
    try:
        return str(error), True
    except BaseException as failure:
        return f"its text cannot be shown ({type(failure).__name__})", False


def is_cancelled(error: BaseException) -> bool:
    """Whether the task that runs is cancelled, and the error is not one that an actor raised or awaited."""
    task = asyncio.current_task() if isinstance(error, asyncio.CancelledError) else None
    return task is not None and task.cancelling() > 0
