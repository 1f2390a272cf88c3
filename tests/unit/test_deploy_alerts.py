"""deploy/prometheus and deploy/grafana: each alert fires on its fault, and they look at metrics that there are."""

import importlib
import json
import pkgutil
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import REGISTRY

import hiveio
from tests.conftest import require
from tests.process import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "hiveio.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# The age of events says more than the number of records, and alerts say the other two.
NOT_DRAWN = {"hiveio_publisher_lag_records", "hiveio_performs_cancelled_total", "hiveio_performs_abandoned"}
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    """The names of the series of all metrics in the code."""
    for module in pkgutil.walk_packages(hiveio.__path__, "hiveio."):
        if not module.name.startswith(("hiveio.telemetry", "hiveio.projection")):
            importlib.import_module(module.name)
    found: set[str] = set()
    for family in REGISTRY.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        found |= {f"{family.name}{suffix}" for suffix in suffixes}
    return found


def named(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:hiveio|process)_\w+", expression))


def test_every_metric_of_an_alert_and_of_a_panel_is_there(metrics: set[str]) -> None:
    expressions = [rule["expr"] for rule in RULES]
    expressions += [target["expr"] for panel in PANELS for target in panel["targets"]]
    expressions += [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["name"] != "datasource"]
    assert set().union(*map(named, expressions)) - metrics == set()


def test_the_dashboard_shows_every_metric(metrics: set[str]) -> None:
    shown = set().union(*[named(target["expr"]) for panel in PANELS for target in panel["targets"]])
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics if name.startswith("hiveio_")}
    assert ours - families == NOT_DRAWN


def test_the_page_on_operations_names_every_metric_and_every_alert(metrics: set[str]) -> None:
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics if name.startswith("hiveio_")}
    documents = OPERATIONS + "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("consumer", "producer"))
    assert {name for name in ours if name not in documents} == set()
    assert {rule["alert"] for rule in RULES if f"`{rule['alert']}`" not in OPERATIONS} == set()


def test_an_alert_says_what_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "warn"), rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
        assert rule["annotations"]["description"].endswith("."), rule["alert"]


def test_the_panels_of_the_dashboard_do_not_lie_on_each_other() -> None:
    cells: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not own & cells, panel["title"]
        cells |= own


def test_each_alert_fires_on_its_fault_and_not_without() -> None:
    promtool = shutil.which("promtool") or require("promtool", "it is in Debian's package prometheus")
    checked = subprocess.run(
        [promtool, "check", "rules", "rules.yaml"],
        cwd=PROMETHEUS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    played = subprocess.run(
        [promtool, "test", "rules", "rules.test.yaml"],
        cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert played.returncode == 0, played.stdout + played.stderr
    cases = {case["name"] for case in yaml.safe_load((PROMETHEUS / "rules.test.yaml").read_text())["tests"]}
    assert cases == {f"{rule['alert']} {what}" for rule in RULES for what in ("fires", "is silent")}
