"""What a pipeline's Kubernetes manifests may have besides: security on the wire, and objects of operators.

Each option is off unless it is asked for, for it needs something of the cluster: certificates, users, or an operator.
Secrets come as files, and each service has users of its own, so a pod can do no more than its service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.offline.scaffold.files import shipped
from tidemill.wire import rights, topics
from tidemill.wire.services import group

#: Each option of `tidemill k8s --with`, and what it adds.
OPTIONS = {
    "kafka-scram": "Kafka by TLS, with a user and password for each service",
    "kafka-mtls": "Kafka by TLS, with a certificate for each service",
    "redis-acl": "Redis by TLS, with a user and password for each service",
    "http-tls": "a certificate for each service's HTTP port",
    "strimzi": "KafkaTopics and KafkaUsers of Strimzi; no job makes topics then",
    "autoscaling": "KEDA's ScaledObjects on lag, and an HPA for the gateway",
    "prometheus": "a PodMonitor and a PrometheusRule of Prometheus' operator",
    "object-store": "artifacts in an object store, and no volume that many nodes mount",
    "priority": "a PriorityClass for what a prediction waits for",
}
#: The services that scale with the lag of their group; the others have one instance a model or a pipeline.
SCALED = ("validator", "featurizer", "materializer", "scorer", "joiner")
#: Another instance for each so many records of lag. Of a partition that is read to its end, a few may be left.
LAG_PER_INSTANCE = 1000
#: What a prediction waits for: where a node is too small for all, learners and watchers wait, or make room.
SERVING, SERVING_PRIORITY = ("validator", "featurizer", "scorer", "gateway"), 1000
MAX_GATEWAYS = 4
MOUNTED = "/secrets"
KAFKA_CLUSTER = "kafka"
OBJECT_STORE, OBJECT_STORE_KEYS = "object-store", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


_REDIS_RULE = re.compile(
    r"(    - to:\n        - namespaceSelector:\n.*kubernetes.io/metadata.name: redis}\n"
    r"      ports:\n        - {protocol: TCP, port: 6379}\n)"
)


#: A claim, and where a pod has it: the manifests' own words.
_CLAIM = re.compile(
    r"---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  name: artifacts\n(?:.+\n)*?(?=---)"
)
_CLAIMED = re.compile(
    r" +- {name: artifacts, .*}\n| +- name: artifacts\n +persistentVolumeClaim: {claimName: artifacts}\n"
)


class Extra(NamedTuple):
    """What a container and its pod are given besides, each a line of YAML without its indentation."""

    env: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()


def check(options: Collection[str]) -> None:
    """Raise SettingsError where options exclude each other."""
    if {"kafka-scram", "kafka-mtls"} <= set(options):
        raise SettingsError("--with kafka-scram and --with kafka-mtls: expected one of them, a service has one user")


def added(text: str, extra: Extra) -> str:
    """Return a manifest of one container with variables, mounts and volumes more."""
    for lines, head, before, indent in (
        (extra.env, "          env:\n", "          securityContext:\n", 12),
        (extra.mounts, "          volumeMounts:\n", "      volumes:\n", 12),
        (extra.volumes, "      volumes:\n", "", 8),
    ):
        if not lines:
            continue
        block = "".join(f"{' ' * indent}{line}\n" for one in lines for line in one.split("\n"))
        if head in text:
            text = text.replace(head, head + block)
        elif before and before in text:
            text = text.replace(before, head + block + before)
        else:  # a Job, whose manifest ends with its container
            text = f"{text.rstrip()}\n{head}{block}"
    return text


def changed(text: str, file: str, pipeline: Pipeline, options: Collection[str]) -> str:
    """Return a shipped manifest with what these options add to it."""
    kafka = {"kafka-scram", "kafka-mtls"} & set(options)
    if file == "base.yaml":
        return _base(text, pipeline, options)
    if file == "secret.example.yaml":
        return text.replace("redis://", "rediss://" if "redis-acl" in options else "redis://") + "".join(
            _secrets(pipeline, options)
        )
    if "image: tidemill" not in text:
        return text
    role = role_of(file)
    if "object-store" in options and (left := _CLAIMED.sub("", text)) != text:
        text = added(left, Extra(tuple(_of_secret(name) for name in OBJECT_STORE_KEYS)))
    if "priority" in options and role in SERVING:
        text = text.replace(
            "      containers:\n", f"      priorityClassName: {_serving(pipeline)}\n      containers:\n"
        )
    if kafka:
        text = added(text, _kafka(pipeline, role, *kafka))
    if "redis-acl" in options and role in rights.IN_REDIS:
        text = added(text, _redis(pipeline, role))
    if "http-tls" in options and role != rights.OPERATOR:
        text = added(text, _http(role, file.removesuffix(".yaml")))
        text = text.replace("port: http}", "port: http, scheme: HTTPS}").replace(': "http://', ': "https://')
        text = text.replace('prometheus.io/scrape: "true"', 'prometheus.io/scrape: "true", prometheus.io/scheme: https')
    return text


def role_of(file: str) -> str:
    """Return whose pods a manifest has."""
    name = file.removesuffix(".yaml")
    return "learner" if name.startswith("learner-") else rights.OPERATOR if name.startswith("topics") else name


def model_name(model: str) -> str:
    """Return what of a model's name its learner's has: that, and a hash behind it, is a label of pods of 63 letters."""
    return rights.kubernetes_name(model, 44)


def _files(name: str, secret: str, *variables: str) -> Extra:
    """Return a Secret as files in a folder, and the variables that name them."""
    return Extra(
        variables,
        (f"- {{name: {name}, mountPath: {MOUNTED}/{name}, readOnly: true}}",),
        (f"- name: {name}\n  secret: {{secretName: {secret}}}",),
    )


def _joined(*extras: Extra) -> Extra:
    return Extra(*(tuple(line for extra in extras for line in getattr(extra, name)) for name in Extra._fields))


def _variable(name: str, value: str) -> str:
    return f"- {{name: TIDEMILL_{name}, value: {value}}}"


def _of_secret(name: str) -> str:
    return f"- {{name: {name}, valueFrom: {{secretKeyRef: {{name: {OBJECT_STORE}, key: {name}}}}}}}"


def _kafka(pipeline: Pipeline, role: str, way: str) -> Extra:
    user, folder = rights.user_name(pipeline, role), f"{MOUNTED}/kafka"
    if way == "kafka-scram":
        variables = (_variable("KAFKA_USER", user), _variable("KAFKA_PASSWORD_FILE", f"{folder}/password"))
    else:
        variables = (
            _variable("KAFKA_CERTIFICATE", f"{folder}/user.crt"),
            _variable("KAFKA_KEY", f"{folder}/user.key"),
        )
    return _joined(_files("kafka", user, *variables), _files("kafka-ca", f"{KAFKA_CLUSTER}-cluster-ca-cert"))


def _redis(pipeline: Pipeline, role: str) -> Extra:
    user = rights.user_name(pipeline, role)
    return _joined(
        _files(
            "redis", f"{user}.redis", _variable("REDIS_USER", rights.principal(pipeline, role)),
            _variable("REDIS_PASSWORD_FILE", f"{MOUNTED}/redis/password"),
        ),
        _files("redis-ca", "redis-ca", _variable("REDIS_CA", f"{MOUNTED}/redis-ca/ca.crt")),
    )  # fmt: skip


def _http(role: str, service: str) -> Extra:
    folder = f"{MOUNTED}/http"
    variables = [_variable("HTTP_CERTIFICATE", f"{folder}/tls.crt"), _variable("HTTP_KEY", f"{folder}/tls.key")]
    if role == "status":
        variables.append(_variable("HTTP_CA", f"{folder}/ca.crt"))
    return _files("http", f"{service}-tls", *variables)


def _base(text: str, pipeline: Pipeline, options: Collection[str]) -> str:
    """Return the settings that all have, and who may reach what: Redis is for those who have features there."""
    if "object-store" in options:
        text = _CLAIM.sub("", text).replace("STORE_URL: /artifacts", "STORE_URL: s3://YOUR-BUCKET/artifacts")
        https = {"ports": [{"protocol": "TCP", "port": 443}]}
        for name in _deployed(pipeline):
            if name in ("gate", "gateway", "scorer") or name.startswith("learner-"):
                labels = {"matchLabels": {"app.kubernetes.io/name": name}}
                spec = {"podSelector": labels, "policyTypes": ["Egress"], "egress": [https]}
                policy = _object("networking.k8s.io/v1", "NetworkPolicy", f"{name}-to-{OBJECT_STORE}", spec)
                text += f"---\n{_documents([policy])}"
    if {"kafka-scram", "kafka-mtls"} & set(options):
        tls = f'  TIDEMILL_KAFKA_TLS: "true"\n  TIDEMILL_KAFKA_CA: {MOUNTED}/kafka-ca/ca.crt\n'
        text = text.replace("kafka.kafka:9092\n", f"kafka.kafka:9093\n{tls}")
        text = text.replace("port: 9092}", "port: 9093}")
    if "strimzi" in options:
        text = text.replace("kafka.kafka:", f"{KAFKA_CLUSTER}-kafka-bootstrap.kafka:")
    before, redis, after = re.split(_REDIS_RULE, text)
    text = before + after
    for role in (*(name for name in rights.IN_REDIS if name in topics.ALL), "validator"):
        rule = redis
        if role == "validator":
            rule = rule.replace("name: redis}", "name: registry}").replace("6379", "8081")
        what = "registry" if role == "validator" else "redis"
        text += (
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
            f"metadata:\n  name: {role}-to-{what}\n  namespace: tidemill\n"
            f"spec:\n  podSelector:\n    matchLabels: {{app.kubernetes.io/name: {role}}}\n"
            f"  policyTypes: [Egress]\n  egress:\n{rule}"
        )
    return text


def _secrets(pipeline: Pipeline, options: Collection[str]) -> Iterator[str]:
    """Give an example of each Secret that pods mount as files, and that nothing in the cluster makes."""
    roles = [role for role in rights.ROLES if role in topics.ALL or role == rights.OPERATOR]
    if {"kafka-scram", "kafka-mtls"} & set(options):
        yield _secret(f"{KAFKA_CLUSTER}-cluster-ca-cert", ["ca.crt"], "whom Kafka's certificate is signed by")
        if "strimzi" not in options:  # whose operator makes them
            keys = ["password"] if "kafka-scram" in options else ["user.crt", "user.key"]
            for role in roles:
                yield _secret(
                    rights.user_name(pipeline, role), keys, f"the user {rights.user_name(pipeline, role)} of Kafka"
                )
    if "redis-acl" in options:
        yield _secret("redis-ca", ["ca.crt"], "whom Redis' certificate is signed by")
        for role in rights.IN_REDIS:
            if role in topics.ALL:
                what = f"the user {rights.principal(pipeline, role)} of Redis"
                yield _secret(f"{rights.user_name(pipeline, role)}.redis", ["password"], what)
    if "object-store" in options:
        yield _secret(OBJECT_STORE, [*OBJECT_STORE_KEYS], "who may use the object store")
    if "http-tls" in options:
        for name in _deployed(pipeline):
            keys = ["tls.crt", "tls.key", *(["ca.crt"] if name == "status" else [])]
            yield _secret(f"{name}-tls", keys, f"of {name} and {name}.tidemill.svc, as cert-manager makes them")


def _deployed(pipeline: Pipeline) -> list[str]:
    """Return what each service is called in Kubernetes: of the learner, each model's."""
    learners = [f"learner-{model_name(model)}" for model in pipeline.model_names]
    return [name for name in topics.ALL if name != "learner"] + learners


def _secret(name: str, keys: list[str], doc: str) -> str:
    data = "".join(f'  {key}: ""\n' for key in keys)
    return (
        f"---\n# {doc}\napiVersion: v1\nkind: Secret\nmetadata:\n  name: {name}\n  namespace: tidemill\n"
        f"stringData:\n{data}"
    )


def objects(pipeline: Pipeline, options: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield further manifests as (file, text)."""
    if "strimzi" in options:
        way: rights.Authentication = "tls" if "kafka-mtls" in options else "scram-sha-512"
        users = rights.strimzi_text(pipeline, rights.ROLES, cluster=KAFKA_CLUSTER, authentication=way)
        yield "kafka-users.yaml", users.replace("\nmetadata:\n", "\nmetadata:\n  namespace: tidemill\n")
        yield "kafka-topics.yaml", _documents(_topics(pipeline))
    if "autoscaling" in options:
        yield "autoscaling.yaml", _documents(_scaled(pipeline, options))
    if "prometheus" in options:
        yield "prometheus.yaml", _prometheus(options)
    if "priority" in options:  # in no namespace; with a name of its own, it goes with its pipeline
        made = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": _serving(pipeline)}}
        yield "priority.yaml", _documents([{**made, "value": SERVING_PRIORITY}])


def _serving(pipeline: Pipeline) -> str:
    return rights.kubernetes_name(f"tidemill-{pipeline.name}-serving")


def _documents(documents: Iterable[dict[str, object]]) -> str:
    return "---\n".join(
        "".join(f"{key}: {json.dumps(value, indent=2)}\n" for key, value in one.items()) for one in documents
    )


def _object(version: str, kind: str, name: str, spec: object = None, **labels: str) -> dict[str, object]:
    metadata = {"name": name, "namespace": "tidemill"} | ({"labels": labels} if labels else {})
    made: dict[str, object] = {"apiVersion": version, "kind": kind, "metadata": metadata}
    return made if spec is None else made | {"spec": spec}


def _topics(pipeline: Pipeline) -> Iterator[dict[str, object]]:
    for topic in topics.TOPICS:
        if pipeline.raw_topics.get(topic.suffix):  # it was there before the pipeline, and is its producers'
            continue
        name = topic.name(pipeline)
        # How many replicas there are, the cluster says; with three, a write is acknowledged by two.
        spec = {
            "topicName": name,
            "partitions": topic.partitions or pipeline.partitions,
            "config": topic.of(pipeline).config(0),
        }
        labels = {"strimzi.io/cluster": KAFKA_CLUSTER}
        yield _object("kafka.strimzi.io/v1beta2", "KafkaTopic", rights.kubernetes_name(name), spec, **labels)


def _scaled(pipeline: Pipeline, options: Collection[str]) -> Iterator[dict[str, object]]:
    secured = {"kafka-scram", "kafka-mtls"} & set(options)
    port = 9093 if secured else 9092
    host = f"{KAFKA_CLUSTER}-kafka-bootstrap" if "strimzi" in options else "kafka"
    for name in SCALED:
        if secured:
            yield _object("keda.sh/v1alpha1", "TriggerAuthentication", name, _login(pipeline, name, *secured))
        triggers = [
            {
                "type": "kafka",
                "metadata": {
                    "bootstrapServers": f"{host}.kafka:{port}",
                    "consumerGroup": group(name, pipeline.name),
                    "topic": topic.name(pipeline),
                    "lagThreshold": str(LAG_PER_INSTANCE),
                    **({"tls": "enable"} if secured else {}),
                    **({"sasl": "scram_sha512"} if "kafka-scram" in secured else {}),
                },
                **({"authenticationRef": {"name": name}} if secured else {}),
            }
            for topic in topics.consumes(name)
        ]
        yield _object(
            "keda.sh/v1alpha1", "ScaledObject", name,
            {
                "scaleTargetRef": {"kind": "StatefulSet", "name": name},
                "minReplicaCount": min(2, pipeline.partitions),
                "maxReplicaCount": pipeline.partitions,
                "triggers": triggers,
                "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": _WAITS}}},
            },
        )  # fmt: skip
    yield _object(
        "autoscaling/v2", "HorizontalPodAutoscaler", "gateway",
        {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gateway"},
            "minReplicas": 1,
            "maxReplicas": MAX_GATEWAYS,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
                }
            ],
            "behavior": {"scaleDown": _WAITS},
        },
    )  # fmt: skip


#: An instance that goes leaves its partitions unread until its session has ended, and what takes them over restores
#: their state: so one at a time, and none for a lull.
_WAITS = {"stabilizationWindowSeconds": 600, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}]}


def _login(pipeline: Pipeline, role: str, way: str) -> dict[str, object]:
    """Return how KEDA reads a group's lag: as the user of the service itself."""
    user = rights.user_name(pipeline, role)
    keys = {"password": "password"} if way == "kafka-scram" else {"cert": "user.crt", "key": "user.key"}
    secrets = [{"parameter": parameter, "name": user, "key": key} for parameter, key in keys.items()]
    secrets.append({"parameter": "ca", "name": f"{KAFKA_CLUSTER}-cluster-ca-cert", "key": "ca.crt"})
    login: dict[str, object] = {"secretTargetRef": secrets}
    if way == "kafka-scram":
        login["env"] = [{"parameter": "username", "name": "TIDEMILL_KAFKA_USER", "containerName": role}]
    return login


def _prometheus(options: Collection[str]) -> str:
    endpoint: dict[str, object] = {
        "port": "http",
        "interval": "10s",
        "relabelings": [{"targetLabel": "job", "replacement": "tidemill"}],  # what the rules call it
    }
    if "http-tls" in options:  # certificates are for the services' names, pods are scraped by their addresses
        endpoint |= {"scheme": "https", "tlsConfig": {"insecureSkipVerify": True}}
    selector = {"matchLabels": {"app.kubernetes.io/part-of": "tidemill"}}
    spec = {"selector": selector, "podMetricsEndpoints": [endpoint]}
    version = "monitoring.coreos.com/v1"
    groups = shipped("ops/prometheus/rules.yml").read_text(encoding="utf-8").partition("\ngroups:\n")[2]
    rules = "".join(f"  {line}".rstrip() + "\n" for line in f"groups:\n{groups}".splitlines())
    head = _documents([_object(version, "PrometheusRule", "tidemill")])
    return f"{_documents([_object(version, 'PodMonitor', 'tidemill', spec)])}---\n{head}spec:\n{rules}"
