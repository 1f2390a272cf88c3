"""The models of the protocol (spec/), checked with TLC: the short scenarios, each with the verdict that it names."""

import pytest

from spec.check import Scenario, run, tlc
from spec.scenarios import SCENARIOS
from tests.conftest import required


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.short], ids=lambda scenario: scenario.name)
@pytest.mark.timeout(func_only=True)
def test_a_short_scenario_ends_as_it_says(scenario: Scenario) -> None:
    with required("kafka"):
        tlc()
    result = run(scenario)
    assert result.found == scenario.expect, result.text
