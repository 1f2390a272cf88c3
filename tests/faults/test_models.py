"""The models of the protocol (spec/), checked with TLC: the short scenarios, each with the verdict that it names."""

import pytest

from spec.check import Result, run, tlc
from spec.scenarios import SCENARIOS
from tests.ahead import WITHIN_S, Ahead
from tests.conftest import required

SHORT = {scenario.name: scenario for scenario in SCENARIOS if scenario.short}


def checked(name: str) -> Result:
    return run(SHORT[name])


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.ahead(checked, name)) for name in SHORT])
@pytest.mark.timeout(WITHIN_S + 60, func_only=True)
def test_a_short_scenario_ends_as_it_says(name: str, ahead: Ahead) -> None:
    with required("kafka"):
        tlc()
    result = ahead.result(checked, name)
    assert result.found == SHORT[name].expect, result.text
