"""The types of problem documents: each that the service can answer is in docs/http.md."""

import importlib
import pkgutil
import re
from collections.abc import Iterator

import hiveio
from hiveio.errors import Problem
from hiveio.http.problem import urn_of
from tests.process import ROOT


def derived(kind: type[Problem]) -> Iterator[type[Problem]]:
    for each in kind.__subclasses__():
        if each.__module__.startswith("hiveio."):
            yield each
        yield from derived(each)


def test_each_type_of_a_problem_is_in_the_table_with_its_status() -> None:
    for module in pkgutil.walk_packages(hiveio.__path__, "hiveio."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    rows = re.findall(r"^\| ([\d, ]+) \| (.*?) \|", (ROOT / "docs" / "http.md").read_text("utf-8"), re.M)
    table = {
        (int(status), name)
        for codes, names in rows
        for status in codes.split(",")
        for name in re.findall(r"`([\w:-]+)`", names)
    }
    answered = {(kind.status, urn_of(kind).removeprefix("urn:hiveio:problem:")) for kind in derived(Problem)}
    assert answered - table == set()
    assert {name for _, name in table} - {name for _, name in answered} - {"Rejected"} == set()
