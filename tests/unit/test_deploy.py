"""deploy/: the manifests fit the schemas of Kubernetes, and what they promise fits the runtime.

The schemas come with the package kubernetes-validate; KEDA's is not among them, so its example is checked by hand.
"""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from hiveio.config import Settings

ROOT = Path(__file__).parents[2]
OF_THE_BANK = {"STATEMENTS_DATABASE", "POD_NAME"}


def load(pattern: str) -> list[dict[str, Any]]:
    return [part for path in sorted((ROOT / "deploy").glob(pattern)) for part in yaml.safe_load_all(path.read_text())]


OBJECTS = load("*.yaml")
WORKLOADS = [part for part in OBJECTS if part["kind"] in ("Deployment", "StatefulSet")]
CONFIG: dict[str, str] = next(part["data"] for part in OBJECTS if part["kind"] == "ConfigMap")


def named(part: dict[str, Any]) -> str:
    return f"{part['kind']} {part['metadata']['name']}"


def environ(workload: dict[str, Any]) -> dict[str, str]:
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    shared = CONFIG if "envFrom" in container else {}
    return {**shared, **{entry["name"]: entry.get("value", "pod-0") for entry in container.get("env", ())}}


def replicas(workload: dict[str, Any]) -> int:
    """The fewest."""
    scalers = [part for part in OBJECTS if part["kind"] == "HorizontalPodAutoscaler"]
    least = [s["spec"]["minReplicas"] for s in scalers if s["metadata"]["name"] == workload["metadata"]["name"]]
    return int(least[0] if least else workload["spec"]["replicas"])


@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
@pytest.mark.parametrize("part", OBJECTS, ids=named)
def test_it_fits_the_schema(part: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(part, version, strict=True)


def test_the_schema_would_find_a_mistake() -> None:
    part = {**OBJECTS[0], "dat": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(part, "1.34", strict=True)


def test_each_service_of_the_bank_is_there() -> None:
    names = {workload["metadata"]["name"] for workload in WORKLOADS}
    assert names == {path.stem for path in (ROOT / "examples/bank").glob("*.Dockerfile")}
    for kind in ("Service", "PodDisruptionBudget"):
        assert names <= {part["metadata"]["name"] for part in OBJECTS if part["kind"] == kind}
    assert len({named(part) for part in OBJECTS}) == len(OBJECTS)


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_a_pod(workload: dict[str, Any]) -> None:
    name = workload["metadata"]["name"]
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = environ(workload)

    # Its settings are settings, with values that the runtime takes.
    settings = Settings.read(given)
    settings_names = {f.metadata["name"] for f in Settings.__dataclass_fields__.values() if f.metadata}
    assert set(given) <= settings_names | OF_THE_BANK
    assert settings.cluster_size == 1
    assert container["image"].startswith(f"bank/{name}:")

    # It drains before it is killed.
    grace_s = pod["terminationGracePeriodSeconds"]
    assert grace_s >= container["lifecycle"]["preStop"]["sleep"]["seconds"] + settings.drain_timeout_ms / 1000 + 5

    # It is asked what it answers.
    assert container["ports"] == [{"name": "http", "containerPort": settings.port}]
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    assert container["readinessProbe"]["timeoutSeconds"] > 1.5  # service.READY_TIMEOUT

    # It runs as the images are made: the uid is in the Dockerfile.
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "images/base/Dockerfile").read_text(), re.MULTILINE)
    assert user
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert security["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}

    # What selects it finds it.
    labels = workload["spec"]["template"]["metadata"]["labels"].items()
    assert workload["spec"]["selector"]["matchLabels"].items() <= labels
    for part in OBJECTS:
        if part["metadata"]["name"].startswith(name) and part["kind"] in ("Service", "PodDisruptionBudget"):
            selector = part["spec"]["selector"]
            assert selector.get("matchLabels", selector).items() <= labels
            assert part["kind"] == "Service" or part["spec"]["maxUnavailable"] < replicas(workload)


def test_a_projection_in_the_pod_has_all_events() -> None:
    statements = next(workload for workload in WORKLOADS if workload["kind"] == "StatefulSet")
    given = environ(statements)
    assert given["EVENT_STORE_GROUP_ID"] == "$(POD_NAME)"
    assert given["EVENT_STORE_FROM_START"] == "true"
    (container,) = statements["spec"]["template"]["spec"]["containers"]
    assert Path(given["STATEMENTS_DATABASE"]).parent == Path(container["volumeMounts"][0]["mountPath"])


def test_autoscalers_scale_what_is_there() -> None:
    for scaler in (part for part in OBJECTS if part["kind"] == "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        (workload,) = (w for w in WORKLOADS if (w["kind"], w["metadata"]["name"]) == (target["kind"], target["name"]))
        assert "replicas" not in workload["spec"], "each `kubectl apply` would undo the scaling"


def test_the_example_by_lag() -> None:
    (scaler,) = load("examples/lag.yaml")
    assert (scaler["apiVersion"], scaler["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = scaler["spec"]
    (trigger,) = spec["triggers"]
    about = trigger["metadata"]
    assert trigger["type"] == "kafka"
    assert all(isinstance(value, str) for value in about.values())  # KEDA takes nothing else
    assert spec["maxReplicaCount"] <= int(CONFIG["EVENT_STORE_PARTITIONS"])
    assert (about["bootstrapServers"], about["topic"]) == (CONFIG["EVENT_STORE_BROKERS"], CONFIG["EVENT_STORE_TOPIC"])
