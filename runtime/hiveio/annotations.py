"""Reads the annotations of a user's class. What is wrong with them is an error of one line."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec import inspect as inspected

from hiveio.errors import BadAnnotation, NameTaken

_ALIAS = getattr(typing, "TypeAliasType", ())  # `type Messages = Open | Deposit`, from Python 3.12 on
_UNRESOLVED = "import or define the name when the module is loaded, not only under `if TYPE_CHECKING:`"


def hints_of(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The annotations of a function, by parameter and "return". Raises BadAnnotation if one cannot be resolved."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise BadAnnotation(f"{name}: an annotation cannot be resolved: {error}; {_UNRESOLVED}") from None
    except Exception as error:
        raise BadAnnotation(f"{name}: an annotation cannot be resolved: {error}") from None


def members_of(annotation: Any, *, into_lists: bool = False) -> list[Any]:
    """The members of a union; with ``into_lists`` also the items of ``list[...]``."""
    origin = get_origin(annotation)
    if isinstance(annotation, _ALIAS):
        return members_of(annotation.__value__, into_lists=into_lists)
    if origin is typing.Annotated:
        return members_of(get_args(annotation)[0], into_lists=into_lists)
    if origin in (Union, types.UnionType):
        return [m for arg in get_args(annotation) for m in members_of(arg, into_lists=into_lists)]
    if into_lists and origin in (list, tuple, Sequence, Iterable):
        return [m for arg in get_args(annotation) if arg is not Ellipsis for m in members_of(arg)]
    return [annotation]


def called(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def by_name(kinds: Iterable[Any]) -> dict[str, Any]:
    """Raises NameTaken."""
    found: dict[str, Any] = {}
    for kind in kinds:
        if found.setdefault(kind.__name__, kind) is not kind:
            raise NameTaken(f"Two messages are named {kind.__name__}; rename one, because JSON has only the name")
    return found


def check_fields(kind: type[Struct]) -> None:
    """Check that each field of a message or a model can be written as JSON and read again. Raises BadAnnotation."""
    try:
        fields = msgspec.structs.fields(kind)
    except NameError as error:
        text = f"the annotation of a field cannot be resolved: {error}"
        raise BadAnnotation(f"{kind.__name__}: {text}; {_UNRESOLVED}") from None
    for field in fields:
        wrong = f"{kind.__name__}.{field.name} is of type {called(field.type)}, which"
        try:
            msgspec.json.schema(field.type)
            for node in _nodes(msgspec.inspect.type_info(field.type), set()):
                if isinstance(node, inspected.DictType) and isinstance(node.key_type, _NO_KEYS):
                    raise TypeError("the keys of a JSON object are texts")
        except NameError as error:
            raise BadAnnotation(f"{wrong} cannot be resolved: {error}; {_UNRESOLVED}") from None
        except Exception as error:
            # It can write what it can describe, and nothing else; only the last line of its text is about that.
            reason = str(error).splitlines()[-1]
            raise BadAnnotation(
                f"{wrong} cannot be written as JSON ({reason}): use a type that msgspec knows (str, int, Decimal, "
                "datetime, list, dict with texts as keys, a Struct, …)"
            ) from None


_NO_KEYS = (
    inspected.TupleType,
    inspected.VarTupleType,
    inspected.FrozenSetType,
    inspected.StructType,
    inspected.NamedTupleType,
    inspected.DataclassType,
    inspected.NoneType,
)


def _nodes(node: Any, seen: set[int]) -> Iterator[Any]:
    """A type and all types inside it, as msgspec sees them."""
    if id(node) in seen or not isinstance(node, Struct | tuple):
        return
    seen.add(id(node))
    yield node
    for part in node if isinstance(node, tuple) else map(node.__getattribute__, node.__struct_fields__):
        yield from _nodes(part, seen)


_ATTRIBUTES = {
    "path": str,
    "name": str,
    "topic": str,
    "key": str,
    "requires": str,
    "schema_version": int,
    "single_process": bool,
}
_SCOPES = re.compile(r"([!#-\[\]-~]+( +|$))*")  # RFC 6749, section 3.3
_CHOICES = {
    "isolation": ("snapshot", "serializable"),
    "reads": ("current", "linearizable"),
    "undecodable": ("dead", "skip"),
    "unknown": ("dead", "skip"),
    "parked": ("answer", "unavailable"),
}


def check_class(kind: type) -> None:
    """Check the types of the attributes of a class, and that its methods are methods. Raises BadAnnotation."""
    for attribute, expected in _ATTRIBUTES.items():
        if not isinstance(found := getattr(kind, attribute), expected):
            raise BadAnnotation(f"{kind.__name__}.{attribute} is {found!r}; it must be of type {expected.__name__}")
    if not _SCOPES.fullmatch(requires := kind.requires):  # type: ignore[attr-defined]
        text = "it must be a scope, or several with spaces between them: printable ASCII without quotes and backslashes"
        raise BadAnnotation(f"{kind.__name__}.requires is {requires!r}; {text}")
    for attribute, allowed in _CHOICES.items():
        if (chosen := getattr(kind, attribute)) not in allowed:
            listed = f"{', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"
            raise BadAnnotation(f"{kind.__name__}.{attribute} is {chosen!r}; it must be {listed}")
    for method in ("start", "stop", "ready"):
        check_plain(kind, method)
    check_plain(kind, "scope", ["id"], may_wait=False)
    if not callable(getattr(kind, "perform", None)):
        raise BadAnnotation(f"{kind.__name__} has no method perform(self, state, message)")
    for method in ("perform", "replay", "upcast"):
        function = getattr(kind, method, None)
        if isinstance(inspect.getattr_static(kind, method, None), staticmethod | classmethod):
            raise BadAnnotation(
                f"{kind.__name__}.{method} is static; it must be a method whose first parameter is self"
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise BadAnnotation(f"{kind.__name__}.{method} yields; it must return its result, several events as a list")


def check_plain(kind: type, method: str, parameters: Sequence[str] = (), *, may_wait: bool = True) -> None:
    """Check that a method can be called as the runtime calls it. Raises BadAnnotation."""
    name, function = f"{kind.__name__}.{method}", getattr(kind, method)
    expected = f"{method}({', '.join(['self', *parameters])})"
    if not callable(function):
        raise BadAnnotation(f"{name} is {function!r}; it must be a method {expected}")
    if not may_wait and inspect.iscoroutinefunction(function):
        raise BadAnnotation(f"{name} is async; it must be a plain method {expected}")
    static = isinstance(inspect.getattr_static(kind, method), staticmethod | classmethod)
    try:
        inspect.signature(function).bind(*parameters, *([] if static else [None]))
    except TypeError:
        raise BadAnnotation(f"{name} takes other parameters; it is called as {expected}") from None


def check_takes_nothing(kind: type) -> None:
    """Check that an object of the class can be made without arguments. Raises BadAnnotation."""
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise BadAnnotation(
            f"{kind.__name__} is abstract, {', '.join(missing)} is missing; write it, or begin its name with _ if it "
            "is there for others to derive from"
        )
    needed = [
        p.name
        for p in inspect.signature(kind).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise BadAnnotation(
            f"{kind.__name__}.__init__ takes {', '.join(needed)}, and an actor is made without arguments: read what is "
            "configured from os.environ, and open what it needs in start(self)"
        )


def check_output(kind: Any, events: Iterable[type[Struct]]) -> None:
    """Raises BadAnnotation if ``topic`` of an actor is no name of a topic, or ``key`` no field of one of its events."""
    if kind.topic and not re.fullmatch(r"[a-zA-Z0-9._-]{1,220}", kind.topic):
        raise BadAnnotation(f"{kind.__name__}.topic is {kind.topic!r}; a topic has 1 to 220 of a-z A-Z 0-9 . _ -")
    for event in events if kind.key else ():
        if kind.key not in event.__struct_fields__:
            raise BadAnnotation(f"{kind.__name__}.key is {kind.key!r}, and {event.__name__} has no such field")
