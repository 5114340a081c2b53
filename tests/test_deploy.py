"""What is deployed: manifests as the published schemas have them; dashboards and alerts about metrics there are."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support import ROOT
from test_clients import KSERVE

from app import __version__
from app.settings import PREFIX, Settings
from app.telemetry.metrics import Metrics

DEPLOY = ROOT / "deploy"
YAML = sorted([ROOT / "docker-compose.yml", *DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml")])
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = ("1.30", kubernetes_validate.latest_version())  # 1.30 is the first with a `sleep` of its own in preStop
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE))


def deployed(kind: str) -> dict[str, Any]:
    [found] = [manifest for manifest in map(read, MANIFESTS) if manifest["kind"] == kind]
    return dict(found)


def pod() -> dict[str, Any]:
    return dict(deployed("Deployment")["spec"]["template"]["spec"])


def queries() -> list[str]:
    board = json.loads((DEPLOY / "grafana/dashboards/graft.json").read_text())
    shown = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = [rule["expr"] for group in read(DEPLOY / "prometheus/rules.yml")["groups"] for rule in group["rules"]]
    assert len(shown) > 10
    assert len(rules) > 5
    return shown + rules


def exposed() -> set[str]:
    families = Metrics("1").collect()
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]} | {"up"}


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert read(path)


@pytest.mark.parametrize("query", queries())
def test_queries_name_metrics_that_are_exposed(query: str) -> None:
    named = set(re.findall(r"\b(?:graft|process)_\w+|\bup\b", query))
    assert named
    assert named <= exposed() | {"process_resident_memory_bytes"}


def test_the_dashboard_asks_the_data_source_that_is_provisioned() -> None:
    [source] = read(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    board = json.loads((DEPLOY / "grafana/dashboards/graft.json").read_text())
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    [provider] = read(DEPLOY / "grafana/provisioning/dashboards/graft.yml")["providers"]
    mounts = compose()["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_every_alert_is_tested() -> None:
    rules = {rule["alert"] for group in read(DEPLOY / "prometheus/rules.yml")["groups"] for rule in group["rules"]}
    tests = read(DEPLOY / "prometheus/rules_test.yml")["tests"]
    raised = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    silent = {case["alertname"] for test in tests for case in test["alert_rule_test"] if not case.get("exp_alerts")}
    assert raised == silent == rules


def test_alerts_are_raised_as_their_tests_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here; `make container-test` runs it")
    subprocess.run([promtool, "test", "rules", "rules_test.yml"], cwd=DEPLOY / "prometheus", check=True)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_are_as_kubernetes_schemas_have_them(path: Path, version: str) -> None:
    kubernetes_validate.validate(read(path), version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    manifest = deployed("Deployment")
    manifest["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES[-1], strict=True)


def test_kserves_manifests_are_as_its_models_have_them() -> None:
    if not KSERVE.exists():
        pytest.skip("kserve's versions clash with ours; `make clients` gives it an environment of its own")
    script = Path(__file__).with_name("kserve_models.py")
    command = [KSERVE, "-W", "ignore", script, *sorted((DEPLOY / "kserve").glob("*.yaml"))]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["InferenceService", "fashion-mnist", "ClusterServingRuntime", "graft"]


def test_kserves_service_finds_its_runtime_and_its_model() -> None:
    runtime, service = (read(DEPLOY / f"kserve/{name}.yaml") for name in ("runtime", "inferenceservice"))
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {each["name"] for each in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert (ROOT / "models" / service["metadata"]["name"]).is_dir()


def test_the_pod_may_run_where_only_restricted_ones_may() -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    [container] = pod()["containers"]
    runtime = read(DEPLOY / "kserve/runtime.yaml")["spec"]["containers"][0]
    of_pod = pod()["securityContext"]
    for context in ({**of_pod, **container["securityContext"]}, runtime["securityContext"]):
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert f"USER {context['runAsUser']}" in DOCKERFILE


def test_what_stands_in_the_environment_of_a_container_is_a_setting() -> None:
    """And a Service's variables, which Kubernetes adds, hide none: GRAFT_PORT would be tcp://…"""
    [container] = pod()["containers"]
    runtime = read(DEPLOY / "kserve/runtime.yaml")["spec"]["containers"][0]
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for each in (container, runtime):
        given = {variable["name"]: variable["value"] for variable in each["env"]}
        assert set(given) <= known
        Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in given.items()})
    assert pod()["enableServiceLinks"] is False
    assert {"name": "GRAFT_PORT", "value": "8080"} in runtime["env"]
    assert set(compose()["x-service"]["environment"]) <= known


def test_a_stop_leaves_time_for_what_is_in_flight() -> None:
    [container] = pod()["containers"]
    drain = Settings.model_fields["drain_s"].default
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["terminationGracePeriodSeconds"] > sleep + drain
    assert int(compose()["x-service"]["stop_grace_period"].removesuffix("s")) > drain


def test_probes_ask_for_what_is_served() -> None:
    requested = set()
    for each in (pod()["containers"][0], read(DEPLOY / "kserve/runtime.yaml")["spec"]["containers"][0]):
        requested |= {each[name]["httpGet"]["path"] for name in each if name.endswith("Probe")}
    assert requested == {"/readyz", "/healthz", "/v2/health/ready", "/v2/health/live"}


def test_labels_select_what_the_deployment_makes() -> None:
    labels = deployed("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert deployed("Service")["spec"]["selector"] == labels
    assert deployed("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    target = deployed("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == deployed("Deployment")["metadata"]["name"]


def test_every_variable_of_the_compose_file_is_in_the_example_with_its_default() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE))
    assert used == dict(re.findall(r"^# (\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))


def test_every_service_is_unprivileged_and_pinned() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "build" in service or re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), name
    for image in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        assert image in ("${PYTHON_IMAGE}", "scratch", *re.findall(r" AS (\w+)", DOCKERFILE)), image
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)


def test_the_image_says_which_version_it_is() -> None:
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE


def test_what_the_dockerfile_copies_is_let_in() -> None:
    let_in = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for names in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in names.split():
            assert (ROOT / name).exists(), name
            assert any(Path(name).match(pattern) for pattern in let_in), name
