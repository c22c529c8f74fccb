"""A real API server takes what `tidemill k8s` writes: two pipelines beside each other, and changes of them.

It runs where KUBEBUILDER_ASSETS names a folder with `etcd`, `kube-apiserver` and `kubectl`, as setup-envtest makes it. No
controller runs, so what is shown is that each object is valid, complete and may be changed, and that its pods are let in.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from test_kubernetes_of_any_pipeline import CRDS, EVERYTHING, project

from tidemill import load
from tidemill.offline.scaffold import kubernetes

ASSETS = os.environ.get("KUBEBUILDER_ASSETS")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(ASSETS is None, reason="KUBEBUILDER_ASSETS names no folder of etcd, kube-apiserver and kubectl"),
]
WAIT_SECONDS = 120
#: Kinds of operators, and the group of each.
GROUPS = {
    "KafkaTopic": "kafka.strimzi.io",
    "KafkaUser": "kafka.strimzi.io",
    "ScaledObject": "keda.sh",
    "TriggerAuthentication": "keda.sh",
    "PodMonitor": "monitoring.coreos.com",
    "PrometheusRule": "monitoring.coreos.com",
}


class Cluster:
    """An API server, asked by kubectl."""

    def __init__(self, folder: Path, port: int) -> None:
        self.config = folder / "kubeconfig"
        cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
        self.config.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": "test", "user": {"token": "test"}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "current-context": "test",
                }
            )
        )

    def try_kubectl(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [f"{ASSETS}/kubectl", "--kubeconfig", str(self.config), *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)

    def kubectl(self, *arguments: str, text: str = "") -> str:
        done = self.try_kubectl(*arguments, text=text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, folder: Path) -> list[str]:
        """Apply a folder, strictly; returns a line an object."""
        return self.kubectl("apply", "--validate=strict", "-k", str(folder)).splitlines()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def crd(singular: str, version: str) -> dict[str, object]:
    """Return the definition of an operator's kind; that its fields are right is shown by its schema, elsewhere."""
    kind = next(kind for kind in GROUPS if kind.lower() == singular)
    plural, group = f"{singular}s", GROUPS[kind]
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": plural, "singular": singular, "kind": kind, "listKind": f"{kind}List"}
    spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [served]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    client, peer, port = free_port(), free_port(), free_port()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem, traditional = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    (folder / "sa.key").write_bytes(key.private_bytes(pem, traditional, serialization.NoEncryption()))
    (folder / "tokens.csv").write_text("test,test,test,system:masters\n")
    etcd = [
        f"{ASSETS}/etcd", "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync",
        "--listen-client-urls", f"http://127.0.0.1:{client}", "--advertise-client-urls", f"http://127.0.0.1:{client}",
        "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
        "--initial-cluster", f"default=http://127.0.0.1:{peer}",
    ]  # fmt: skip
    server = [
        f"{ASSETS}/kube-apiserver", f"--etcd-servers=http://127.0.0.1:{client}", f"--secure-port={port}",
        "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--cert-dir={folder / 'certificates'}",
        "--service-account-issuer=https://test", f"--service-account-key-file={folder / 'sa.key'}",
        f"--service-account-signing-key-file={folder / 'sa.key'}", f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=AlwaysAllow", "--disable-admission-plugins=ServiceAccount",
    ]  # fmt: skip
    with (folder / "etcd.log").open("wb") as log, (folder / "server.log").open("wb") as server_log:
        processes = [subprocess.Popen(etcd, stdout=log, stderr=log)]
        try:
            processes.append(subprocess.Popen(server, stdout=server_log, stderr=server_log))
            made, deadline = Cluster(folder, port), time.monotonic() + WAIT_SECONDS
            while made.try_kubectl("get", "--raw", "/readyz").returncode:
                assert time.monotonic() < deadline, (folder / "server.log").read_text()[-2000:]
                time.sleep(0.5)
            made.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(crd(*key) for key in CRDS))
            made.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
            yield made
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)


def written(folder: Path, target: str, *options: str) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    kubernetes.write(folder, load(target), target, options)
    return folder


def test_two_pipelines_are_taken_and_stay_as_they_are_when_they_are_applied_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    folders = [written(tmp_path / "flights", "flights"), written(tmp_path / "own-out", project(tmp_path / "own"))]
    for folder in folders:
        lines = cluster.apply(folder)
        assert {line.rpartition(" ")[2] for line in lines} == {"created"}, lines
    for folder in folders:
        changed = [line for line in cluster.apply(folder) if not line.endswith(" unchanged")]
        # kubectl sends the selector of these each time, whatever it is.
        assert [line for line in changed if not line.startswith("poddisruptionbudget")] == []
    for name in ("flights", "own"):
        sets = json.loads(cluster.kubectl("get", "statefulsets", "-n", f"tidemill-{name}", "-o", "json"))["items"]
        assert {one["metadata"]["name"] for one in sets} >= {"validator", "scorer"}


def test_pods_are_let_in_by_the_restricted_standard_and_others_are_not(cluster: Cluster, tmp_path: Path) -> None:
    folder = written(tmp_path / "delays", "delays", *EVERYTHING[0])
    cluster.apply(folder)
    documents = [d for path in folder.glob("*.yaml") for d in yaml.safe_load_all(path.read_text())]
    owners = [d for d in documents if "template" in d.get("spec", {})]
    assert owners
    for owner in owners:
        metadata = owner["spec"]["template"]["metadata"] | {"name": "pod", "namespace": "tidemill-delays"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": owner["spec"]["template"]["spec"]}
        if owner["kind"] == "StatefulSet":
            claims = [one["metadata"]["name"] for one in owner["spec"].get("volumeClaimTemplates", [])]
            pod["spec"]["volumes"] = [
                *pod["spec"].get("volumes", []), *({"name": name, "emptyDir": {}} for name in claims)
            ]  # fmt: skip
        cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", text=json.dumps(pod))
    for container in pod["spec"]["containers"]:
        container["securityContext"]["allowPrivilegeEscalation"] = True
    refused = cluster.try_kubectl("create", "--dry-run=server", "-f", "-", text=json.dumps(pod))
    assert 'violates PodSecurity "restricted' in refused.stderr


@pytest.mark.parametrize("options", [(), EVERYTHING[0], EVERYTHING[1]], ids=["plain", "scram", "mtls"])
def test_a_changed_declaration_is_applied_over_the_one_before(
    cluster: Cluster, tmp_path: Path, options: tuple[str, ...]
) -> None:
    target = project(tmp_path / "own")
    path = Path(target)
    name = f"own-{len(options)}-{'kafka-mtls' in options:d}"
    text = path.read_text().replace('name="own"', f'name="{name}"')
    assert name in text
    path.write_text(text)
    cluster.apply(written(tmp_path / "out", target, *options))
    cluster.kubectl("apply", "-f", str(tmp_path / "out" / "secret.example.yaml"))
    path.write_text(text.replace('"tree": ', '"forest": ').replace('    task="', '    partitions=3,\n    task="', 1))
    lines = cluster.apply(written(tmp_path / "out", target, *options))
    assert any(line.startswith("statefulset.apps/learner-forest created") for line in lines)
    assert any(line.startswith("statefulset.apps/validator configured") for line in lines)
    cluster.apply(written(tmp_path / "out", target, "prometheus"))  # and options that come and go
