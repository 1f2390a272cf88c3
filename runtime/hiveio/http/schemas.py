"""JSON schemas of types as the decoders take them and the encoders write them, for OpenAPI and AsyncAPI."""

import functools
import operator
import types
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, time
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from hiveio.envelope import Codec

REF = "#/components/schemas/{name}"

# What msgspec takes and gives, where its own schema says less, or says it in words that readers do not know.
_BASE64 = {"pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"}
_DECIMAL = {"type": ["string", "number"], "pattern": r"^[+-]?\d{1,100}(\.\d{1,100})?([eE][+-]?\d{1,3})?$"}
_DURATION = {
    "pattern": r"^[+-]?P(?=\d|T\d)(\d{1,6}D)?(T(?=\d)(\d{1,6}H)?(\d{1,6}M)?(\d{1,6}(\.\d{1,6})?S)?)?$",
    "description": "ISO 8601, in days, hours, minutes and seconds",
}
_TIMES: dict[Any, Any] = {
    datetime: Annotated[datetime, Meta(extra_json_schema={"format": "date-time"})],
    time: Annotated[time, Meta(extra_json_schema={"format": "time"})],
}
_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", types.NoneType: "null"}


class Schemas:
    """The schema of each type, and the components that they refer to.

    ``kinds`` may be on the wire; ``inner`` are never there by themselves (queries). ``envelopes`` are those of the
    messages of the routes; others are made here. A type that has no JSON schema is described as "anything".
    """

    def __init__(self, kinds: Iterable[Any], envelopes: dict[type, type], inner: Iterable[type] = ()) -> None:
        self._envelopes = envelopes
        sent = [(kind, *_parts(self.sent(kind))) for kind in kinds]
        named = dict.fromkeys(each for group in (*sent, inner) for each in group if _has_schema(each))
        structs = list(dict.fromkeys(struct for kind in named for struct in structs_in(kind)))
        known = list(dict.fromkeys([*named, *structs]))
        # All at once: only then types of one name in two modules get two names.
        found, self.components = msgspec.json.schema_components(known, ref_template=REF)
        self._found: dict[Any, dict[str, Any]] = dict(zip(known, map(_exact, found), strict=True))
        self.components = {name: _exact(component) for name, component in self.components.items()}
        self._date(structs)
        for kind, envelope in self._envelopes.items():
            if described := self.fields(envelope):
                described["properties"]["meta"] = {"type": ["object", "null"], "additionalProperties": True}
                if self.fields(kind).get("required"):  # without one, a missing payload is an empty one
                    described["required"] = [*described["required"], "payload"]

    def sent(self, kind: Any) -> Any:
        """What is on the wire for a type: a message in its envelope, a list of messages as a list of envelopes."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self.sent(arguments[0])
        if origin in (Union, types.UnionType):
            return union(map(self.sent, arguments))
        if origin in (list, tuple, Sequence) and arguments:
            item = union(each for each in arguments if each is not Ellipsis)
            messages = [_is_struct(member) for member in _members(item)]
            # Only a list of nothing but messages is one of envelopes.
            return list[self.sent(item)] if all(messages) else list[Any] if any(messages) else kind  # type: ignore[misc]
        if _is_struct(kind):
            if kind not in self._envelopes:
                self._envelopes[kind] = Codec([kind], strict=False).envelopes[kind.__name__]
            return self._envelopes[kind]
        return kind

    def of(self, kind: Any) -> dict[str, Any]:
        try:
            return self._found.get(kind, {})
        except TypeError:  # an annotation that has no hash
            return {}

    def of_sent(self, kind: Any) -> dict[str, Any]:
        """The schema of what is on the wire for a type, or for a union of types that no single decoder takes."""
        return self._of_parts(self.sent(kind))

    def _of_parts(self, kind: Any) -> dict[str, Any]:
        if get_origin(kind) is list:
            (item,) = get_args(kind)
            return {"type": "array", "items": self._of_parts(item)}
        members = _alternatives(kind)
        return self.of(kind) if len(members) == 1 else any_of(map(self._of_parts, members))

    def fields(self, kind: Any) -> dict[str, Any]:
        """The properties of a Struct, with ``required``."""
        reference = self.of(kind).get("$ref", "")
        found: dict[str, Any] = self.components.get(reference.rpartition("/")[2], {})
        return found

    def _date(self, structs: Iterable[type[Struct]]) -> None:
        """A date without a rule for its time zone is any text for msgspec's schema, and not for its decoder."""
        for kind in structs:
            properties = self.fields(kind).get("properties", {})
            for field, schema in dated_fields(kind):
                described = properties[field.encode_name]
                described |= _exact(schema)
                if getattr(field.default, "tzinfo", field) is None:  # it would not fit the format
                    described.pop("default")


def dated_fields(kind: type[Struct]) -> Iterator[tuple[msgspec.structs.FieldInfo, dict[str, Any]]]:
    """The fields of a Struct that hold dates, with their schemas: msgspec's own say "any text" of most of them."""
    for field in msgspec.structs.fields(kind):
        if (dated := _dated(field.type)) != field.type and not any(structs_in(dated)):
            (schema,), _ = msgspec.json.schema_components([dated], ref_template=REF)
            yield field, schema


def any_of(schemas: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The schema of what fits one of these; a choice among them that is nothing else is part of it."""
    choices = [choice for schema in schemas for choice in (schema["anyOf"] if [*schema] == ["anyOf"] else [schema])]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def union(kinds: Iterable[Any]) -> Any:
    """The annotation ``A | B | …``, made at run time."""
    return functools.reduce(operator.or_, kinds)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _alternatives(kind: Any) -> list[Any]:
    """The members of a union, its messages as one, because their types distinguish them."""
    messages = [member for member in _members(kind) if _is_struct(member)]
    others = [member for member in _members(kind) if not _is_struct(member)]
    return [union(messages), *others] if messages else others


def _parts(kind: Any) -> Iterator[Any]:
    """The types of which each has a schema of its own: see Schemas.of_sent."""
    for member in _alternatives(kind):
        if get_origin(member) is list:
            yield from _parts(get_args(member)[0])
        else:
            yield member


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def structs_in(kind: Any, seen: set[Any] | None = None) -> Iterator[type[Struct]]:
    """The Structs in an annotation, and in their fields."""
    seen = set() if seen is None else seen
    if not _is_struct(kind):
        for argument in get_args(kind):
            yield from structs_in(argument, seen)
    elif kind not in seen:
        seen.add(kind)
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from structs_in(field.type, seen)


def _has_schema(kind: Any) -> bool:
    try:
        hash(kind)
        msgspec.json.schema_components([kind], ref_template=REF)
    except Exception:  # it raises any error for a type that it cannot describe
        return False
    return True


def _dated(annotation: Any) -> Any:
    if isinstance(annotation, type) and annotation in _TIMES:
        return _TIMES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (None, Annotated, Literal) or not arguments:
        return annotation
    changed = tuple(map(_dated, arguments))
    if changed == arguments:
        return annotation
    return union(changed) if origin in (Union, types.UnionType) else origin[changed]


def _exact(schema: Any) -> Any:
    """The schema, corrected so that it says what the decoder does."""
    if isinstance(schema, list):
        return [_exact(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    exact = {name: value if name in ("default", "enum") else _exact(value) for name, value in schema.items()}
    if exact.get("contentEncoding") == "base64":
        exact |= _BASE64
    if exact.get("format") == "decimal":
        exact |= _DECIMAL
    if exact.get("format") == "duration":
        exact |= _DURATION
        del exact["format"]
    if isinstance(exact.get("enum"), list) and "type" not in exact:
        kinds = sorted({_JSON_TYPES[type(value)] for value in exact["enum"]})
        exact["type"] = kinds[0] if len(kinds) == 1 else kinds
    if "discriminator" in exact and "anyOf" in exact:
        exact["oneOf"] = exact.pop("anyOf")
    if isinstance(exact.get("uniqueItems"), bool):  # of a repeated item the decoder keeps one
        del exact["uniqueItems"]
    return exact
