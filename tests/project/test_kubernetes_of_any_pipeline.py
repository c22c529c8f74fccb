"""`tidemill k8s`: the manifests of any pipeline are as valid as the shipped ones, and its files are where pods look."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import manifest_schemas
import pytest
import yaml
from certificates import Authority
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from small import declaration, linear
from test_deployment import KUBERNETES, accepts, accepts_variables, addresses_wrong, dangling, not_restricted, pod_of

from tidemill import load, settings
from tidemill.cli.acl import acl
from tidemill.cli.k8s import OPTIONS, k8s
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.offline import scaffold
from tidemill.offline.scaffold import kubernetes, kubernetes_options
from tidemill.offline.scaffold.plan import Options
from tidemill.wire import rights, topics

pytestmark = pytest.mark.slow


def project(folder: Path) -> str:
    """Return a pipeline of somebody's own, with a table, a helper and a file that is none of it."""
    scaffold.make(folder, [], Options())
    (folder / "helper.py").write_text("TEN = 10\n")
    (folder / "tables").mkdir()
    (folder / "data" / "not.avsc").write_text("{}")
    return str(folder / "pipeline.py")


def written(tmp_path: Path, target: str, *options: str) -> tuple[Path, list[dict[str, Any]], Pipeline]:
    out = tmp_path / "out"
    words = [word for option in options for word in ("--with", option)]
    done = CliRunner().invoke(k8s, [target, str(out), *words], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"kubectl apply -k {out}" in done.output
    documents = [d for path in sorted(out.glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())]
    return out, [d for d in documents if d["kind"] != "Kustomization"], load(target)


@pytest.mark.parametrize("target", ["flights", "delays", "own"])
def test_manifests_are_valid_and_run_what_there_is(tmp_path: Path, target: str) -> None:
    target = project(tmp_path / "own") if target == "own" else target
    out, documents, pipeline = written(tmp_path, target)
    for document in documents:
        manifest_schemas.validate(document, KUBERNETES, strict=True)
    assert dangling(documents, f"tidemill-{pipeline.name}") == []
    owners = {d["metadata"]["name"]: d for d in documents if "template" in d.get("spec", {})}
    learners = {f"learner-{model}".replace("_", "-") for model in pipeline.model_names}
    assert {name for name in owners if name.startswith("learner")} == learners
    for owner in owners.values():
        pod = pod_of(owner)
        assert not_restricted(pod) == []
        (container,) = pod["containers"]
        accepts(container["args"])
        accepts_variables({one["name"]: one.get("value") for one in container.get("env", [])})
        assert owner["spec"].get("replicas", 1) <= pipeline.partitions
        place = target if not target.endswith(".py") else "/pipeline/pipeline.py"
        assert place in container["args"]
    (status,) = pod_of(owners["status"])["containers"]
    ports = {d["metadata"]["name"]: d["spec"]["ports"][0]["port"] for d in documents if d["kind"] == "Service"}
    assert addresses_wrong({one["name"]: one.get("value", "") for one in status["env"]}, ports) == []
    listed = yaml.safe_load((out / "kustomization.yaml").read_text())
    assert {*listed["resources"]} == {p.name for p in out.glob("*.yaml")} - {
        "secret.example.yaml",
        "kustomization.yaml",
    }
    assert ("configMapGenerator" in listed) == target.endswith(".py")


def test_a_pod_has_the_pipelines_files_where_it_looks_for_them(tmp_path: Path) -> None:
    out, documents, _ = written(tmp_path, project(tmp_path / "own"))
    kustomization = yaml.safe_load((out / "kustomization.yaml").read_text())
    (generated,) = kustomization["configMapGenerator"]
    by_key = dict(entry.split("=") for entry in generated["files"])
    owners = [d for d in documents if "template" in d.get("spec", {})]
    for owner in owners:
        pod = pod_of(owner)
        (volume,) = [one for one in pod["volumes"] if one["name"] == generated["name"]]
        items = {one["key"]: one["path"] for one in volume["configMap"]["items"]}
        assert items.keys() == by_key.keys()
        (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "pipeline"]
        assert (mount["mountPath"], mount["readOnly"]) == ("/pipeline", True)
    # As a pod sees it: the pipeline loads from these files alone.
    pod_folder = tmp_path / "pod"
    for key, path in items.items():
        (pod_folder / path).parent.mkdir(parents=True, exist_ok=True)
        (pod_folder / path).write_bytes((out / by_key[key]).read_bytes())
    assert sorted(items.values()) == ["helper.py", "pipeline.py", "schemas/event.avsc", "schemas/label.avsc"]
    assert load(str(pod_folder / "pipeline.py")).name == "own"


def test_a_pipeline_of_one_partition_has_one_instance_of_each(tmp_path: Path) -> None:
    target = project(tmp_path / "own")
    path = Path(target)
    path.write_text(path.read_text().replace('    task="', '    partitions=1,\n    task="', 1))
    _, documents, pipeline = written(tmp_path, target)
    assert pipeline.partitions == 1
    assert {d["spec"]["replicas"] for d in documents if d["kind"] in ("StatefulSet", "Deployment")} == {1}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "big.py").write_text("#" * 1_000_000), "a ConfigMap takes 900,000"),
        (lambda folder: (folder / "größe.py").write_text(""), "rename it"),
        (lambda folder: (folder.parent / "out").mkdir(), "nothing is overwritten"),
    ],
)
def test_what_can_t_be_is_said_and_nothing_is_written(tmp_path: Path, damage: Any, said: str) -> None:
    target = project(tmp_path / "own")
    damage(tmp_path / "own")
    with pytest.raises(SettingsError, match=said):
        kubernetes.write(tmp_path / "out", load(target), target)
    assert not (tmp_path / "out" / "kustomization.yaml").exists()


#: What Kubernetes takes as names: of most objects, and of those that are a host's or a label's.
SUBDOMAIN, LABEL = (
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?",
)
LONGEST = {"StatefulSet": 52, "Service": 63, "Namespace": 63}
"""Pods of a StatefulSet have a label with its name, a hash of 10 letters behind it."""


def misnamed(documents: list[dict[str, Any]]) -> list[str]:
    """Return the objects whose names Kubernetes refuses, or of whose names it can't make those of their pods."""
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    names += [("Namespace", d["metadata"]["namespace"]) for d in documents if "namespace" in d["metadata"]]
    return [
        f"{kind} {name}"
        for kind, name in names
        if len(name) > LONGEST.get(kind, 253) or not re.fullmatch(LABEL if kind in LONGEST else SUBDOMAIN, name)
    ]


NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,99}", fullmatch=True)


@given(NAMES, NAMES)
def test_any_name_of_a_pipeline_or_model_is_one_in_kubernetes(name: str, model: str) -> None:
    assert re.fullmatch(SUBDOMAIN, rights.kubernetes_name(f"{name}.validator"))
    assert re.fullmatch(LABEL, kubernetes.namespace_of(small(name)))
    learner = f"learner-{kubernetes_options.model_name(model)}"
    assert re.fullmatch(LABEL, learner)
    assert len(learner) <= LONGEST["StatefulSet"]


def small(name: str, *models: str) -> Pipeline:
    return Pipeline(
        **declaration(name=name, models={m: linear() for m in models or ("m",)}, champion=(models or "m")[0])
    )


@pytest.mark.parametrize(
    ("name", "models"),
    [("null", ("on", "no", "y")), ("a_" * 50, ("m" * 100, "m_" * 50)), ("a--_", ("a_", "b-", "null"))],
)
def test_manifests_of_a_pipeline_with_odd_names_are_valid(tmp_path: Path, name: str, models: tuple[str, ...]) -> None:
    pipeline, out = small(name, *models), tmp_path / "out"
    kubernetes.write(out, pipeline, "package.null:on", EVERYTHING[0])
    documents = [d for path in sorted(out.glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())]
    documents = [d for d in documents if d["kind"] != "Kustomization"]
    assert misnamed(documents) == []
    namespace = kubernetes.namespace_of(pipeline)
    assert {d["metadata"].get("namespace") for d in documents} == {namespace, None}
    assert dangling(documents, namespace) == []
    commands = [pod_of(d)["containers"][0]["args"] for d in documents if "template" in d.get("spec", {})]
    assert {command[-1] for command in commands if "--model" in command} == {*pipeline.model_names}
    for command in commands:
        accepts(command)
    for document in documents:
        validate(document)


def test_a_name_that_kubernetes_refuses_is_noticed() -> None:
    named = [("Job", "a_b"), ("Secret", "a-.b"), ("StatefulSet", "m" * 53), ("Namespace", "a.b"), ("Secret", "a.b")]
    documents = [{"kind": kind, "metadata": {"name": name}} for kind, name in named]
    assert misnamed(documents) == [f"{kind} {name}" for kind, name in named[:-1]]


def test_two_pipelines_of_one_cluster_have_no_object_in_common(tmp_path: Path) -> None:
    objects = []
    for name in ("flights", "delays"):
        _, documents, _ = written(tmp_path / name, name, *EVERYTHING[0])
        objects.append({(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in documents})
    assert objects[0] & objects[1] == set()


@pytest.mark.parametrize("name", ["Orders", "a.b", "-a", "a" * 64, "a b"])
def test_a_namespace_that_can_t_be_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="--namespace"):
        kubernetes.write(tmp_path / "out", load("flights"), "flights", namespace=name)
    assert not (tmp_path / "out").exists()


def test_a_namespace_may_be_chosen(tmp_path: Path) -> None:
    kubernetes.write(tmp_path / "out", load("flights"), "flights", OPTIONS[4:], namespace="orders")
    documents = [d for path in (tmp_path / "out").glob("*.yaml") for d in yaml.safe_load_all(path.read_text())]
    assert dangling([d for d in documents if d["kind"] != "Kustomization"], "orders") == []


# With more: security on the wire, and operators.

ROOT = Path(__file__).parents[2]
#: What the API references of Strimzi, KEDA and Prometheus' operator say of the fields that we write, by kind and version.
CRDS = {
    tuple(name.split("/")): schema
    for name, schema in json.loads((ROOT / "tests/support/operators.json").read_text()).items()
}
SECURED = [("kafka-scram", "redis-acl", "http-tls"), ("kafka-mtls", "redis-acl"), ("kafka-scram",), ("http-tls",)]
EVERYTHING = [("kafka-scram", *OPTIONS[2:]), ("kafka-mtls", *OPTIONS[2:]), OPTIONS[4:]]
REDIS_PORT = 6379


def validate(document: dict[str, Any]) -> None:
    """Raise where a manifest does not fit Kubernetes' schema of its kind, or that of the operator whose it is."""
    schema = CRDS.get((document["kind"].lower(), document["apiVersion"].partition("/")[2]))
    if schema is None:
        manifest_schemas.validate(document, KUBERNETES, strict=True)
    else:
        jsonschema.validate(document, schema)


@pytest.mark.parametrize(
    ("target", "options"), [("own", EVERYTHING[0]), *(("flights", options) for options in (*SECURED[2:], *EVERYTHING))]
)
def test_manifests_with_more_are_valid_and_restricted(tmp_path: Path, target: str, options: tuple[str, ...]) -> None:
    out, documents, pipeline = written(tmp_path, project(tmp_path / "own") if target == "own" else target, *options)
    for document in documents:
        validate(document)
    assert dangling(documents, f"tidemill-{pipeline.name}") == []
    for owner in documents:
        if "template" in owner.get("spec", {}):
            pod = pod_of(owner)
            assert not_restricted(pod) == []
            paths = [mount["mountPath"] for mount in pod["containers"][0].get("volumeMounts", [])]
            assert len({*paths}) == len(paths)
    if kubectl := shutil.which("kubectl"):
        built = subprocess.run([kubectl, "kustomize", str(out)], capture_output=True, text=True, check=True, timeout=60)
        examples = yaml.safe_load_all((out / "secret.example.yaml").read_text())
        files = [path for path in out.glob("*.yaml") if path.name != "kustomization.yaml"]
        expected = sum(len(list(yaml.safe_load_all(path.read_text()))) for path in files) - len(list(examples))
        assert len(list(yaml.safe_load_all(built.stdout))) == expected + (pipeline.name == "own")


@pytest.mark.parametrize("kind", CRDS)
def test_the_schemas_of_operators_refuse_what_is_misspelt(tmp_path: Path, kind: tuple[str, str]) -> None:
    _, documents, _ = written(tmp_path, "flights", *EVERYTHING[0])
    one = next(d for d in documents if d["kind"].lower() == kind[0])
    with pytest.raises(jsonschema.ValidationError):
        validate(one | {"spec": one["spec"] | {"replica": 1}})
    assert {d["kind"].lower() for d in documents} >= {name for name, _ in CRDS}


def mounted(folder: Path, name: str, keys: list[str], authority: Authority) -> None:
    """Write a Secret's files as they are in real life: certificates of an authority, and passwords."""
    pair = authority.pair(name)
    texts = {"ca.crt": authority.ca, "user.crt": pair.certificate, "tls.crt": pair.certificate}
    texts |= {"user.key": pair.key, "tls.key": pair.key}
    for key in keys:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(texts[key].read_bytes() if key in texts else f"password of {name}".encode())


def read_settings(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> settings.Settings:
    with monkeypatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        return settings.load()


@pytest.mark.parametrize("options", [*SECURED, EVERYTHING[0], EVERYTHING[1]], ids="+".join)
def test_every_pod_reads_its_own_users_secrets_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    _, documents, _ = written(tmp_path, "flights", *options)
    (given,) = [d["data"] for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] == "tidemill"]
    examples = {d["metadata"]["name"]: d["stringData"] for d in documents if d["kind"] == "Secret"}
    secrets = {name: [*keys] for name, keys in examples.items()}
    for user in (d for d in documents if d["kind"] == "KafkaUser"):  # what Strimzi's operator puts into their secrets
        is_scram = user["spec"]["authentication"]["type"] == "scram-sha-512"
        secrets[user["metadata"]["name"]] = ["password"] if is_scram else ["ca.crt", "user.crt", "user.key"]
    authority, users = Authority(tmp_path), {}
    for owner in (d for d in documents if "template" in d.get("spec", {})):
        name, pod = owner["metadata"]["name"], pod_of(owner)
        container, root = pod["containers"][0], tmp_path / "pods" / name
        places = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
        for volume in pod.get("volumes", []):
            if "secret" in volume:
                secret = volume["secret"]["secretName"]
                mounted(Path(f"{root}{places[volume['name']]}"), secret, secrets[secret], authority)
        variables = {**given, **{v["name"]: v["value"] for v in container.get("env", []) if "value" in v}}
        for variable in container.get("env", []):
            if variable.get("valueFrom", {}).get("secretKeyRef", {}).get("key") == "redis-url":
                variables["TIDEMILL_REDIS_URL"] = examples["tidemill"]["redis-url"]
        variables = {name: text.replace("/secrets/", f"{root}/secrets/") for name, text in variables.items()}
        chosen = read_settings(monkeypatch, variables)
        role = kubernetes_options.role_of(f"{name}.yaml")
        properties = chosen.kafka_properties()
        if "kafka-scram" in options:
            users[name] = properties["sasl.username"]
            assert properties["security.protocol"] == "SASL_SSL"
            assert properties["sasl.password"] == f"password of {users[name]}"
        elif "kafka-mtls" in options:
            (users[name],) = (v["secret"]["secretName"] for v in pod["volumes"] if v["name"] == "kafka")
            shown = Path(properties["ssl.certificate.location"])
            assert shown.read_text() == (tmp_path / f"{users[name]}.crt").read_text()
        else:
            assert properties == {}
        assert (chosen.redis_user == f"flights.{role}") == ("redis-acl" in options and role in rights.IN_REDIS)
        assert ("rediss://flights" in chosen.redis_address()) == ("redis-acl" in options and role in rights.IN_REDIS)
        assert (chosen.server_context() is not None) == ("http-tls" in options and role != rights.OPERATOR)
        probes = [probe["httpGet"] for key, probe in container.items() if key.endswith("Probe")]
        assert {probe.get("scheme", "HTTP") for probe in probes} <= {"HTTPS" if "http-tls" in options else "HTTP"}
        assert all(url.startswith("https:" if "http-tls" in options else "http:") for url in chosen.services.values())
    if users:
        learners = [name for name in users if name.startswith("learner-")]
        assert len({*users.values()}) == len(users) - len(learners) + 1, "a user a service"


def test_who_needs_no_redis_and_no_registry_reaches_none(tmp_path: Path) -> None:
    _, documents, _ = written(tmp_path, "flights")
    policies = [d["spec"] for d in documents if d["kind"] == "NetworkPolicy"]
    for name in (d["metadata"]["name"] for d in documents if d["kind"] in ("StatefulSet", "Deployment")):
        labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "tidemill"}
        ports = {
            port["port"]
            for policy in policies
            if policy["podSelector"].get("matchLabels", {}).items() <= labels.items()
            for rule in policy.get("egress", [])
            for port in rule["ports"]
        }
        role = kubernetes_options.role_of(f"{name}.yaml")
        assert (REDIS_PORT in ports) == (role in rights.IN_REDIS), name
        assert (8081 in ports) == (role == "validator"), name
        assert {53, 9092} <= ports


def test_with_an_object_store_nobody_mounts_artifacts_and_those_who_have_them_reach_it(tmp_path: Path) -> None:
    _, documents, _ = written(tmp_path, "flights", "object-store")
    assert "artifacts" not in {d["metadata"]["name"] for d in documents}
    (base,) = [d["data"] for d in documents if d["kind"] == "ConfigMap"]
    assert base["TIDEMILL_STORE_URL"].startswith("s3://")
    policies = [d["spec"] for d in documents if d["kind"] == "NetworkPolicy"]
    for owner in (d for d in documents if "template" in d.get("spec", {})):
        pod, name = pod_of(owner), owner["metadata"]["name"]
        assert "artifacts" not in json.dumps(pod)
        opened = [p for p in policies if p["podSelector"].get("matchLabels") == {"app.kubernetes.io/name": name}]
        reaches = 443 in {
            port["port"] for p in opened for rule in p.get("egress", []) for port in rule.get("ports", [])
        }
        has = name in ("gate", "gateway", "scorer") or name.startswith("learner-")
        assert reaches == (has or name == "notifier"), name
        given = {variable["name"] for variable in pod["containers"][0].get("env", [])}
        assert (given >= {*kubernetes_options.OBJECT_STORE_KEYS}) == has


def test_what_a_prediction_waits_for_has_a_priority_that_exists_and_nothing_else_has(tmp_path: Path) -> None:
    _, documents, _ = written(tmp_path, "flights", "priority")
    (made,) = [d for d in documents if d["kind"] == "PriorityClass"]
    assert made["value"] > 0
    assert "namespace" not in made["metadata"]
    given = {
        owner["metadata"]["name"]: pod_of(owner)["priorityClassName"]
        for owner in documents
        if "template" in owner.get("spec", {}) and "priorityClassName" in pod_of(owner)
    }
    assert given == dict.fromkeys(("validator", "featurizer", "scorer", "gateway"), made["metadata"]["name"])


def test_topics_and_users_of_strimzi_are_those_of_the_table(tmp_path: Path) -> None:
    _, documents, pipeline = written(tmp_path, "flights", "strimzi")
    made = {d["spec"]["topicName"]: d["spec"] for d in documents if d["kind"] == "KafkaTopic"}
    assert made == {
        topic.name(pipeline): {
            "topicName": topic.name(pipeline),
            "partitions": topic.partitions or pipeline.partitions,
            "config": topic.config(0),
        }
        for topic in topics.TOPICS
    }
    assert {d["metadata"]["name"] for d in documents if d["kind"] == "KafkaUser"} == {
        f"flights.{role}" for role in rights.ROLES
    }
    assert "topics" not in {d["metadata"]["name"] for d in documents if d["kind"] == "Job"}


def test_what_scales_has_no_more_instances_than_partitions_and_reads_what_it_scales_by(tmp_path: Path) -> None:
    _, documents, pipeline = written(tmp_path, "flights", "kafka-scram", "strimzi", "autoscaling")
    sets = {d["metadata"]["name"]: d for d in documents if d["kind"] == "StatefulSet"}
    (base,) = [d["data"] for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] == "tidemill"]
    scaled = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "ScaledObject"}
    assert {name for name, one in sets.items() if one["spec"]["replicas"] > 1} == scaled.keys()
    for name, spec in scaled.items():
        assert spec["maxReplicaCount"] == pipeline.partitions
        assert spec["scaleTargetRef"] == {"kind": "StatefulSet", "name": name}
        assert [one["metadata"]["topic"] for one in spec["triggers"]] == [
            topic.name(pipeline) for topic in topics.consumes(name)
        ]
        assert {one["metadata"]["bootstrapServers"] for one in spec["triggers"]} == {base["TIDEMILL_BROKERS"]}
        assert {one["authenticationRef"]["name"] for one in spec["triggers"]} == {name}
        spread = pod_of(sets[name])["topologySpreadConstraints"]
        assert {one["labelSelector"]["matchLabels"]["app.kubernetes.io/name"] for one in spread} == {name}
        may = {right.name for right in rights.rights(pipeline, name) if "Read" in right.operations}
        assert may >= {one["metadata"][key] for one in spec["triggers"] for key in ("topic", "consumerGroup")}


def test_the_rules_of_prometheus_are_those_of_compose(tmp_path: Path) -> None:
    _, documents, _ = written(tmp_path, "flights", "prometheus")
    (rule,) = [d for d in documents if d["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((ROOT / "ops/prometheus/rules.yml").read_text())


def test_two_ways_to_be_known_to_kafka_are_refused_and_the_help_has_each_option(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected one of them"):
        CliRunner().invoke(
            k8s, ["flights", str(tmp_path / "x"), "--with", "kafka-scram", "--with", "kafka-mtls"],
            catch_exceptions=False,
        )  # fmt: skip
    assert not (tmp_path / "x").exists()
    assert tuple(kubernetes_options.OPTIONS) == OPTIONS
    shown = CliRunner().invoke(k8s, ["--help"]).output
    for name, doc in kubernetes_options.OPTIONS.items():
        assert re.search(rf"--with {name} +{re.escape(doc)}", shown)


# Compose.


class _Compose(yaml.SafeLoader):
    """Reads Compose's own tags: what a second file takes away, and what it puts in place of the first's."""


_Compose.add_constructor("!reset", lambda loader, node: None)
_Compose.add_constructor("!override", lambda loader, node: loader.construct_mapping(node, deep=True))


@pytest.mark.parametrize("target", ["flights", "own"])
def test_with_a_second_file_each_service_of_compose_is_its_user_by_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    target = project(tmp_path / "own") if target == "own" else target
    base = yaml.safe_load(
        (tmp_path / "own/docker-compose.yml" if target != "flights" else ROOT / "docker-compose.yml").read_text()
    )
    done = CliRunner().invoke(acl, [target, "--format", "compose"], catch_exceptions=False)
    more, name, authority = yaml.load(done.output, _Compose), load(target).name, Authority(tmp_path)
    ours = {name for name, service in base["services"].items() if service["image"].startswith("tidemill")} - {"keys"}
    assert {service for service, given in more["services"].items() if given} == ours
    assert {service for service, given in more["services"].items() if given is None} == {"kafka", "redis"}
    users = {}
    for service in ours:
        given = more["services"][service]
        assert given["depends_on"].keys() <= base["services"].keys() - {"kafka", "redis"}
        place = tmp_path / "run" / service
        place.mkdir(parents=True)
        for secret in given["secrets"]:
            file = more["secrets"][secret]["file"].removeprefix("${TIDEMILL_SECRETS:-./secrets}/")
            (place / secret).write_bytes(authority.ca.read_bytes() if file.endswith("-ca.pem") else file.encode())
        variables = base["services"][service]["environment"] | given["environment"]
        asked = {
            "TIDEMILL_BROKERS": "kafka.example.org:9093",
            "TIDEMILL_REDIS_URL": "rediss://redis.example.org:6380/0",
        }
        filled = {
            name: asked.get(name) or re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("/run/secrets", str(place))
            for name, text in variables.items()
            if name in given["environment"]
        }
        assert not [text for text in filled.values() if "$" in text]
        properties = read_settings(monkeypatch, filled).kafka_properties()
        role = {"topics": "operator"}.get(service, "learner" if service.startswith("learner-") else service)
        assert properties["sasl.username"] == f"{name}.{role}"
        assert properties["sasl.password"] == f"{role}.kafka"
        assert properties["security.protocol"] == "SASL_SSL"
        users[service] = "TIDEMILL_REDIS_PASSWORD_FILE" in filled
    assert {service for service, is_in in users.items() if is_in} == set(rights.IN_REDIS) & ours


def test_in_compose_redis_is_reached_by_those_who_have_features_there_alone() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    store = {name for name, service in services.items() if "store" in service.get("networks", [])}
    assert store == {"redis", *(set(rights.IN_REDIS) & services.keys())}
    assert services["redis"]["networks"] == ["store"]
