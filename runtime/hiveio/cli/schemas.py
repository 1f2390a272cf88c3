"""JSON schemas of contracts: the description of a service, and whether a reader understands what a writer writes.

``incompatibilities`` answers one question: which values of the schema of the writer does the schema of the reader not
allow? Both are schemas that msgspec makes of a Struct. ``hiveio.cli.check`` decides who is writer and who is reader.
"""

import ast
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from hiveio.actor import Actor, Contract
from hiveio.errors import ConfigError
from hiveio.http.schemas import dated_fields, structs_in

Schema = dict[str, Any]
# For each keyword of JSON Schema: whether the value of the reader excludes what the value of the writer allows.
_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), lambda r, w: r > w),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), lambda r, w: r < w),
    **dict.fromkeys(("pattern", "multipleOf", "contentEncoding"), lambda r, w: r != w),
    "format": lambda r, w: w not in (r, r.removesuffix(_LOCAL)),
}
_LOCAL = " or local"  # of a date, a time: with a time zone, or without
_DICTS = (dict, Mapping)
_ANY_KEY = {"type": "string"}
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


class Description(msgspec.Struct, omit_defaults=True):
    """The description of one actor. ``given`` are the events that its ``perform`` returns, ``heard`` those that it
    takes from a topic, and ``paths`` are those of its queries. ``code`` is a hash of ``replay`` and ``upcast``."""

    path: str = ""
    topic: str = ""
    commands: dict[str, Schema] = {}
    queries: dict[str, Schema] = {}
    paths: dict[str, str] = {}
    events: dict[str, Schema] = {}
    given: list[str] = []
    heard: dict[str, Schema] = {}
    skips: bool = False  # events that it does not know
    model: Schema | None = None
    schema_version: int = 1
    upcasts: bool = False
    code: str = ""
    scope: str = ""  # a hash of its own ``scope``
    requires: list[str] = []  # scopes of tokens


def describe(contract: Contract) -> Description:
    """The description of an actor, by its contract."""

    def schemas(kinds: dict[str, Any]) -> dict[str, Schema]:
        return {name: schema_of(kind) for name, kind in sorted(kinds.items())}

    kind, returned = contract.kind, {getattr(t, "__name__", "") for t in contract.returns}
    return Description(
        path=contract.path,
        topic=contract.topic,
        commands=schemas({n: t for n, t in contract.commands.items() if n not in contract.subscribes}),
        queries=schemas(contract.queries),
        paths={name: query.path or contract.path for name, query in sorted(contract.queries.items())},
        events=schemas(contract.events),
        given=sorted(contract.events.keys() & returned),
        heard=schemas(contract.subscribes),
        skips=kind.unknown == "skip",
        model=schema_of(contract.model) if contract.model else None,
        schema_version=kind.schema_version,
        upcasts=kind.upcast is not None,
        code=_code(function for function in (kind.replay, kind.upcast) if function),
        scope="" if kind.scope is Actor.scope else _code([kind.scope]),
        requires=sorted(contract.requires),
    )


def schema_of(kind: type[msgspec.Struct]) -> Schema:
    """The schema of msgspec, with two additions: the formats of dates and times without a time zone, and the types of
    the keys of a dict."""
    schema = msgspec.json.schema(kind)
    for struct in structs_in(kind):
        named = schema["$defs"].get(struct.__name__, {}).get("properties", {})
        for field, dated in dated_fields(struct):
            if field.encode_name in named:
                named[field.encode_name] |= _local(dated)
        for field in msgspec.structs.fields(struct):
            if field.encode_name in named:
                _name_keys(field.type, named[field.encode_name])
    return schema


def _name_keys(kind: Any, schema: Schema) -> None:
    """Add to ``propertyNames`` the type of the keys of each dict inside a type, because in JSON every key is a
    string."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        _name_keys(arguments[0], schema)
    elif origin in (Union, types.UnionType):
        for member in arguments:
            of_dict = get_origin(member) in _DICTS
            for choice in schema.get("anyOf", [schema]):
                if choice.get("type") == ("object" if of_dict else "array"):
                    _name_keys(member, choice)
    elif origin in _DICTS and isinstance(schema.get("additionalProperties"), dict):
        key = msgspec.json.schema(arguments[0])
        schema["propertyNames"] = _resolved(key, key) | schema.get("propertyNames", {})
        _name_keys(arguments[1], schema["additionalProperties"])
    else:
        items = schema["prefixItems"] if "prefixItems" in schema else [schema.get("items")] * len(arguments)
        for argument, item in zip(arguments, items, strict=False):
            if isinstance(item, dict):
                _name_keys(argument, item)


def _local(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_local(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value + _LOCAL if key == "format" and value in ("date-time", "time") else _local(value)
        for key, value in schema.items()
    }


def _code(functions: Iterable[Callable[..., Any]]) -> str:
    """A hash of functions without their comments, docstrings and layout; "" if their source is not available."""
    try:
        trees = [ast.parse(textwrap.dedent(inspect.getsource(function))) for function in functions]
    except (OSError, TypeError, SyntaxError):
        return ""
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if ast.get_docstring(node) is not None:
            del node.body[0]
    text = "".join(map(ast.dump, trees))
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


def incompatibilities(writer: Schema, reader: Schema) -> Iterator[tuple[str, str]]:
    """What the writer may write and the reader does not take: the path of each field, and the reason in words."""
    yield from _Comparison(writer, reader).differences(writer, reader, "")


def unwritten_fields(writer: Schema, reader: Schema) -> Iterator[str]:
    """Fields of the reader that the writer does not write. If they are not required, the reader gets their defaults."""
    wrote, reads = (_resolved(schema, schema).get("properties", {}) for schema in (writer, reader))
    yield from (name for name in reads if name not in wrote)


class _Comparison:
    def __init__(self, writer: Schema, reader: Schema) -> None:
        self._roots = writer, reader
        self._open: set[tuple[int, int]] = set()  # pairs that are being compared

    def differences(self, writer: Schema, reader: Schema, at: str) -> Iterator[tuple[str, str]]:
        writer, reader = _resolved(writer, self._roots[0]), _resolved(reader, self._roots[1])
        pair = id(writer), id(reader)
        if pair not in self._open:  # else the type contains itself
            self._open.add(pair)
            yield from self._differences(writer, reader, at)
            self._open.remove(pair)

    def _differences(self, writer: Schema, reader: Schema, at: str) -> Iterator[tuple[str, str]]:
        if "anyOf" in writer:
            for each in writer["anyOf"]:
                yield from self.differences(each, reader, at)
        elif "anyOf" in reader:
            tried = [list(self.differences(writer, each, at)) for each in reader["anyOf"]]
            if all(tried):
                # The reason comes from the alternative of the same type, if there is one.
                same = [t for t, each in zip(tried, reader["anyOf"], strict=True) if _type(each) == _type(writer)]
                yield from same[0] if len(same) == 1 else [(at, f"{_name_of(writer)} is not taken any more")]
        elif "enum" in reader or "enum" in writer:
            yield from self._enum(writer, reader, at)
        elif (type_ := reader.get("type")) is None:
            return  # anything
        elif writer.get("type") != type_ and (writer.get("type"), type_) != ("integer", "number"):
            yield at, f"{_name_of(reader)} is taken, and not {_name_of(writer)}"
        else:
            for keyword, narrower in _BOUNDS.items():
                if keyword in reader and (keyword not in writer or narrower(reader[keyword], writer[keyword])):
                    yield at, f"{keyword} is {reader[keyword]}, and was {writer.get(keyword, 'not there')}"
            yield from self._object(writer, reader, at)
            yield from self._array(writer, reader, at)

    def _enum(self, writer: Schema, reader: Schema, at: str) -> Iterator[tuple[str, str]]:
        if "enum" not in writer:
            yield at, f"one of {reader['enum']} is taken, and not any {_name_of(writer)}"
        elif "enum" in reader:
            if gone := [value for value in writer["enum"] if value not in reader["enum"]]:
                yield at, f"{', '.join(map(repr, gone))} is not taken"
        elif reader.get("type") is not None:
            for value in writer["enum"]:
                yield from self.differences({"type": _TYPES[type(value)]}, reader, at)
                return

    def _object(self, writer: Schema, reader: Schema, at: str) -> Iterator[tuple[str, str]]:
        wrote, reads = writer.get("properties", {}), reader.get("properties", {})
        for name in reader.get("required", ()):
            if name not in wrote:
                yield f"{at}.{name}", "it is required, and is not written"
            elif name not in writer.get("required", ()):
                yield f"{at}.{name}", "it is required, and may be left out"
        for name, schema in wrote.items():
            if name in reads:
                yield from self.differences(schema, reads[name], f"{at}.{name}")
            elif reader.get("additionalProperties") is False:
                yield f"{at}.{name}", "it is not known"
            elif isinstance(others := reader.get("additionalProperties"), dict):
                yield from self.differences(schema, others, f"{at}.{name}")
        if isinstance(any_field := writer.get("additionalProperties"), dict):
            for name in reads:
                if name not in wrote:
                    yield from self.differences(any_field, reads[name], f"{at}.{name}")
        yield from self._inside(writer.get("additionalProperties"), reader.get("additionalProperties"), at)
        yield from self._keys(writer.get("propertyNames"), reader.get("propertyNames"), at)

    def _keys(self, writer: Schema | None, reader: Schema | None, at: str) -> Iterator[tuple[str, str]]:
        """Compare the types of keys, which a file of an older version does not have."""
        if writer and reader and reader != _ANY_KEY and _says_type(writer) and _says_type(reader):
            for _, why in self.differences(writer, reader, at):
                yield at, f"of its keys: {why}"

    def _array(self, writer: Schema, reader: Schema, at: str) -> Iterator[tuple[str, str]]:
        yield from self._inside(writer.get("items"), reader.get("items"), at)
        for index, item in enumerate(writer.get("prefixItems", ())):
            if "prefixItems" not in reader and isinstance(reader.get("items"), dict):
                yield from self.differences(item, reader["items"], f"{at}[{index}]")
        for index, pair in enumerate(zip(writer.get("prefixItems", ()), reader.get("prefixItems", ()), strict=False)):
            yield from self.differences(*pair, f"{at}[{index}]")

    def _inside(self, writer: Any, reader: Any, at: str) -> Iterator[tuple[str, str]]:
        if isinstance(writer, dict) and isinstance(reader, dict):
            yield from self.differences(writer, reader, f"{at}[…]")


def _resolved(schema: Schema, root: Schema) -> Schema:
    while reference := schema.get("$ref"):
        try:
            schema = root["$defs"][reference.rpartition("/")[2]]
        except KeyError:
            raise ConfigError(
                f"A file has no {reference}, to which it refers; write it with hiveio check --write"
            ) from None
    return schema


def _says_type(schema: Schema) -> bool:
    return any(keyword in schema for keyword in ("type", "enum", "anyOf"))


def _type(schema: Schema) -> str:
    return str(schema.get("type", ""))


def _name_of(schema: Schema) -> str:
    return str(schema.get("title") or schema.get("type") or "anything")
