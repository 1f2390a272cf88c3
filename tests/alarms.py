"""The alerts of deploy/prometheus/rules.yaml, over what a service shows on /metrics at one moment."""

import re
from collections import defaultdict

import httpx
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from tests.process import ROOT

_RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
RULES = {rule["alert"]: rule["expr"] for rule in _RULES["groups"][0]["rules"]}

# What only a service with process managers shows.
OF_PROCESSES = {"hiveio_processes_stuck", "hiveio_command_oldest_unanswered_seconds"}


def shown(url: str) -> dict[str, list[float]]:
    """The values of each metric."""
    values: dict[str, list[float]] = defaultdict(list)
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=10).text):
        for sample in family.samples:
            values[sample.name].append(sample.value)
    return values


def alarms(url: str) -> set[str]:
    """Those whose expression is true now, of the form ``max by (job, scope) (metric) > number``."""
    values, found = shown(url), set[str]()
    for alert, expression in RULES.items():
        if simple := re.fullmatch(r"max by \(job, scope\) \((\w+)\) > ([\d.]+)", expression):
            if simple[1] in OF_PROCESSES and simple[1] not in values:
                continue
            assert simple[1] in values, f"{alert} looks at {simple[1]}, which is not shown"
            if max(values[simple[1]]) > float(simple[2]):
                found.add(alert)
    return found


def publisher_lag(url: str) -> tuple[float, float]:
    """Records and seconds."""
    values = shown(url)
    return max(values["hiveio_publisher_lag_records"]), max(values["hiveio_publisher_lag_seconds"])
