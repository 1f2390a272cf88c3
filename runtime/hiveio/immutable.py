"""Which types have values that nobody can change, so that one object may be given to everybody."""

from typing import Any

from msgspec import Struct, inspect

_MUTABLE = (
    inspect.AnyType,
    inspect.ByteArrayType,
    inspect.CustomType,
    inspect.DataclassType,
    inspect.DictType,
    inspect.ListType,
    inspect.MemoryViewType,
    inspect.SetType,
    inspect.TypedDictType,
)


def is_immutable(kind: type[Struct]) -> bool:
    """Whether neither a value of this type nor anything in it can be changed, as its annotations say.

    ``object.__setattr__`` and the like are not considered, because nobody writes them by mistake.
    """
    return _frozen(inspect.type_info(kind), set())


def _frozen(found: inspect.Type, seen: set[type]) -> bool:
    if isinstance(found, _MUTABLE):
        return False
    inner: tuple[Any, ...] = ()
    if isinstance(found, inspect.Metadata):
        inner = (found.type,)
    elif isinstance(found, inspect.UnionType):
        inner = found.types
    elif isinstance(found, inspect.VarTupleType | inspect.FrozenSetType):
        inner = (found.item_type,)
    elif isinstance(found, inspect.TupleType):
        inner = found.item_types
    elif isinstance(found, inspect.FrozenDictType):
        inner = (found.key_type, found.value_type)
    elif isinstance(found, inspect.NamedTupleType):
        inner = tuple(field.type for field in found.fields)
    elif isinstance(found, inspect.StructType):
        if not found.cls.__struct_config__.frozen:
            return False
        if found.cls in seen:  # it holds values of its own type
            return True
        seen.add(found.cls)
        inner = tuple(field.type for field in found.fields)
    return all(_frozen(of, seen) for of in inner)
