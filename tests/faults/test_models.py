"""The models of the protocol (spec/), checked with TLC: the short scenarios, each with the verdict that it names."""

import pytest

from spec.check import Scenario, run, tlc
from spec.scenarios import SCENARIOS
from tests.ahead import WITHIN_S, Ahead
from tests.conftest import required


@pytest.mark.parametrize(
    "scenario", [pytest.param(s, marks=pytest.mark.ahead(run, s), id=s.name) for s in SCENARIOS if s.short]
)
@pytest.mark.timeout(WITHIN_S + 60, func_only=True)
def test_a_short_scenario_ends_as_it_says(scenario: Scenario, ahead: Ahead) -> None:
    with required("kafka"):
        tlc()
    result = ahead.result(run, scenario)
    assert result.found == scenario.expect, result.text
