"""`tidemill k8s`: manifests of a pipeline for Kubernetes."""

from __future__ import annotations

from pathlib import Path

import click

import tidemill
from tidemill.cli.shared import PIPELINE


@click.command()
@PIPELINE
@click.argument("folder", type=click.Path(path_type=Path))
def k8s(pipeline: str, folder: Path) -> None:
    """Write a pipeline's manifests for Kubernetes into a new folder.

    It has a StatefulSet for each service and for each model's learner, the gateway, policies, and the pipeline's own
    files as a ConfigMap. `kubectl apply -k FOLDER` applies it; before, make the secret that secret.example.yaml shows,
    and change base.yaml where Kafka and Redis have other addresses.
    """
    from tidemill.offline.scaffold import kubernetes

    written = kubernetes.write(folder, tidemill.load(pipeline), pipeline)
    click.echo(f"{folder}: {len(written)} manifests. Next:")
    click.echo(f"  cp {folder}/secret.example.yaml secret.yaml, put your own values into it, and kubectl apply -f it")
    click.echo(f"  kubectl apply -k {folder}")
