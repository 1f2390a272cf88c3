"""Which types may be given to everybody as they are."""

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest
from msgspec import Meta, Raw, Struct

from hiveio import Model
from hiveio.immutable import is_immutable


class Colour(enum.Enum):
    RED = "red"


class Line(Struct, frozen=True):
    sku: str
    count: Annotated[int, Meta(gt=0)] = 1


class Open(Struct):
    sku: str


class Bag(Struct, frozen=True):
    items: list[str]


class Tree(Model):
    children: tuple["Tree", ...] = ()


class OpenTree(Model):
    children: "tuple[OpenTree, ...]" = ()
    notes: list[str] = msgspec.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Data:
    sku: str


class Pair(NamedTuple):
    one: int
    other: str


class PairOfLists(NamedTuple):
    one: list[int]
    other: str


class Typed(TypedDict):
    sku: str


class Late(Model, frozen=False):  # type: ignore[misc]
    sku: str = ""


def of(annotation: Any) -> type[Struct]:
    return msgspec.defstruct("Made", [("field", annotation)], frozen=True)


@pytest.mark.parametrize(
    "annotation",
    [
        int, str, float, bool, bytes, None, decimal.Decimal, uuid.UUID, datetime.datetime, datetime.date,
        datetime.timedelta, Colour, Literal["a", "b"], Raw, int | str | None, Annotated[str, Meta(min_length=1)],
        tuple[int, ...], tuple[int, str], frozenset[str], Line, Line | None, tuple[Line, ...], Pair, Tree,
    ],
)  # fmt: skip
def test_what_cannot_change(annotation: Any) -> None:
    assert is_immutable(of(annotation))


@pytest.mark.parametrize(
    "annotation",
    [
        list[int], list, dict[str, int], dict, set[str], bytearray, Any, Open, Bag, Open | None, tuple[Open, ...],
        tuple[list[int], ...], tuple[int, list[int]], int | list[int] | None, Data, PairOfLists, Typed, Sequence[int],
        Mapping[str, int], OpenTree, Late, memoryview, Annotated[list[int], Meta(max_length=3)],
    ],
)  # fmt: skip
def test_what_can(annotation: Any) -> None:
    assert not is_immutable(of(annotation))


def test_a_model_that_is_not_frozen_can_change_though_its_fields_cannot() -> None:
    assert is_immutable(Tree)
    assert not is_immutable(Late)
