"""The map of the keys in Redis: the documents have it, and it has what the code has."""

import re

import pytest

from hiveio.transaction.keys import KEYS
from tests.keys import strays
from tests.process import ROOT

TRANSACTION = ROOT / "runtime" / "hiveio" / "transaction"
MARK = "hive:{orders.transactions/0/a_topic/id}:0123abcd"


def test_the_page_on_transactions_has_the_map() -> None:
    rows = [f"| `{key}` | {text.replace('|', '*')} |".replace("*", r"\|") for key, text in KEYS.items()]
    table = "\n".join(["| key | what it holds |", "| --- | --- |", *rows, ""])
    assert table in (ROOT / "docs" / "transactions.md").read_text("utf-8"), f"it should be\n{table}"


def test_the_map_has_every_key_that_is_written_and_no_other() -> None:
    scripts = "".join(path.read_text() for path in (TRANSACTION / "lua").glob("*.lua"))
    calls = (TRANSACTION / "cache.py").read_text()
    written = {*re.findall(r"':([a-z]+):?'", scripts), *re.findall(r'[}e]:([a-z]+)[:"]', calls)}
    assert written == {name for key in KEYS for name in re.findall(r":([a-z]+)", key)}


@pytest.mark.parametrize(
    "key",
    [
        MARK,
        f"{MARK}:0123456789:a:Account/a:b",
        f"{MARK}:0123456789:verdicts:12",
        f"{MARK}:0123456789:floor",
        "hive:{orders.transactions/0/a_topic/id}:lock:Account/ada",
        "hive:logs:{orders.transactions}",
        "hive:instances:{orders.transactions/a/id}",
        "hive:keys:{orders/id}:key",
        "somebody:else",
    ],
)
def test_a_key_of_the_map_is_no_stray(key: str) -> None:
    assert strays([key]) == []


@pytest.mark.parametrize("key", [f"{MARK}:0123456789:index", f"{MARK}:floor", "hive:{orders.transactions/0/id}:lease"])
def test_another_key_is_a_stray(key: str) -> None:
    assert strays([key]) == [key]
