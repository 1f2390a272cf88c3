"""If-Match and If-None-Match: what they ask, compared as RFC 9110 says, and what is no list of entity tags."""

import pytest

from hiveio.conditions import conditions
from hiveio.errors import Refused, VersionMismatch


@pytest.mark.parametrize(
    ("name", "value", "version", "met"),
    [
        (b"if-match", b'"5"', 5, True),
        (b"if-match", b'"5"', 6, False),
        (b"if-match", b'"4", "5"', 5, True),
        (b"if-match", b' ,"4" ,, "5",', 5, True),
        (b"if-match", b'W/"5"', 5, False),
        (b"if-match", b'"x"', 5, False),
        (b"if-match", b'"4,5", "6"', 5, False),
        (b"if-match", b"*", 5, True),
        (b"if-match", b"*", 0, False),
        (b"if-match", b'"0"', 0, True),  # as a 412 tells the version of what is not there
        (b"if-match", b'"1"', 0, False),
        (b"if-match", b'"0"', 1, False),
        (b"if-none-match", b"*", 0, True),
        (b"if-none-match", b"*", 5, False),
        (b"if-none-match", b'"5"', 5, False),
        (b"if-none-match", b'W/"5"', 5, False),
        (b"if-none-match", b'"4", W/"6"', 5, True),
        (b"if-none-match", b'"4"', 0, True),
    ],
)
def test_a_command_is_executed_where_its_condition_holds(name: bytes, value: bytes, version: int, met: bool) -> None:
    asked = conditions([(b"host", b"a"), (name, value)])
    if met:
        asked.check(version, "A/1")
        return
    with pytest.raises(VersionMismatch, match=f"A/1 is at version {version}"):
        asked.check(version, "A/1")


def test_a_list_may_stand_in_several_headers_and_both_conditions_have_to_hold() -> None:
    pairs = [(b"if-match", b'"4"'), (b"if-match", b'"5"'), (b"if-none-match", b'"5"')]
    conditions(pairs).check(4, "A/1")
    for version in (5, 6):
        with pytest.raises(VersionMismatch):
            conditions(pairs).check(version, "A/1")


@pytest.mark.parametrize("value", [b"", b"5", b'"5', b'"5" "6"', b'w/"5"', b'*, "5"', b"**", b'"a b"', b",", b'W/ "5"'])
def test_what_is_no_list_of_entity_tags_is_refused(value: bytes) -> None:
    for name in (b"if-match", b"if-none-match"):
        with pytest.raises(Refused) as caught:
            conditions([(name, value)])
        assert caught.value.status == 400


def test_a_hostile_list_costs_little() -> None:
    with pytest.raises(Refused):
        conditions([(b"if-match", b'"x" ,' * 800 + b" \t," * 800 + b"x")])
