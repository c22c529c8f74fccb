"""`tidemill k8s`: manifests of a pipeline for Kubernetes."""

from __future__ import annotations

from pathlib import Path

import click

import tidemill
from tidemill.cli.shared import PIPELINE

OPTIONS = (
    "kafka-scram", "kafka-mtls", "redis-acl", "http-tls", "strimzi", "autoscaling", "prometheus", "object-store",
    "priority",
)  # fmt: skip


@click.command()
@PIPELINE
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--with",
    "options",
    multiple=True,
    type=click.Choice(OPTIONS),
    help="What the cluster has besides; may be repeated. See the list above.",
)
@click.option("--namespace", default="", help="Where it runs, and nothing else does. Default: tidemill-NAME.")
def k8s(pipeline: str, folder: Path, options: tuple[str, ...], namespace: str) -> None:
    """Write a pipeline's manifests for Kubernetes into a new folder.

    It has a StatefulSet for each service and for each model's learner, the gateway, policies, and the pipeline's own
    files as a ConfigMap. `kubectl apply -k FOLDER` applies it; before, make the secret that secret.example.yaml shows,
    and change base.yaml where Kafka and Redis have other addresses.

    \b
    --with kafka-scram   Kafka by TLS, with a user and password for each service
    --with kafka-mtls    Kafka by TLS, with a certificate for each service
    --with redis-acl     Redis by TLS, with a user and password for each service
    --with http-tls      a certificate for each service's HTTP port
    --with strimzi       KafkaTopics and KafkaUsers of Strimzi; no job makes topics then
    --with autoscaling   KEDA's ScaledObjects on lag, and an HPA for the gateway
    --with prometheus    a PodMonitor and a PrometheusRule of Prometheus' operator
    --with object-store  artifacts in an object store, and no volume that many nodes mount
    --with priority      a PriorityClass for what a prediction waits for
    """
    from tidemill.offline.scaffold import kubernetes

    written = kubernetes.write(folder, tidemill.load(pipeline), pipeline, options, namespace)
    click.echo(f"{folder}: {len(written)} manifests. Next:")
    click.echo(f"  cp {folder}/secret.example.yaml secret.yaml, put your own values into it, and kubectl apply -f it")
    click.echo(f"  kubectl apply -k {folder}")
