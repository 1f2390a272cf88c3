"""The exception tree. The class of an error decides what an edge does with it.

- ``Stop``: the process cannot do its work. It ends at once with one clear line and the exit code of the error.
- ``Problem``: the answer to one request, a problem document of RFC 9457. Below it
  ``Refused`` (the client's fault: sending it again gives the same), ``Unavailable`` (nothing happened, try later) and
  ``Unknown`` (it may have happened: ask).

Anything else that leaves an actor or the runtime is a fault of that code, and the only thing answered with a 500.
"""

from typing import Any


class HiveError(Exception):
    """What this package raises on purpose."""


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


class Unsafe(Stop):
    """A backend is set up in a way that would lose data or let readers disagree (eviction, another partition count)."""

    exit_code = 20


class Corrupt(Stop):
    """The log holds what cannot be read or folded. The text names topic, partition and offset. Nothing goes past it."""

    exit_code = 21


# -- the answer to one request


class Problem(HiveError):
    """An answer other than success: RFC 9457. ``members`` are extension members, ``headers`` go out with the answer."""

    status = 500
    title = "Internal Server Error"
    urn = ""  # its type, where that is not told by the class: an answer that is repeated from a record

    def __init__(self, detail: str = "", *, headers: dict[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.headers = headers or {}
        self.members = members


class Refused(Problem):
    """The client's fault: the same request gives the same answer."""

    status = 400
    title = "Bad Request"


class Malformed(Refused):
    title = "Not JSON"


class NotFound(Refused):
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


class UnsupportedMediaType(Refused):
    status = 415
    title = "Unsupported Media Type"


class Invalid(Refused):
    """The message does not fit its schema; ``pointer`` is the JSON pointer (RFC 6901) to the field."""

    status = 422
    title = "Invalid Message"


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
    """Nothing happened, and nothing will happen under this command: others were faster until all retries were used."""

    status = 409
    title = "Conflict"


class Unavailable(Problem):
    """Nothing happened: overload, draining, a backend away. ``retry_after`` in seconds."""

    status = 503
    title = "Service Unavailable"

    def __init__(self, detail: str = "", *, retry_after: int = 1, **members: Any) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)}, **members)


class Unknown(Problem):
    """The deadline passed and the outcome is not known: it may have happened, or may happen still. Ask with the id."""

    status = 504
    title = "Outcome Unknown"
