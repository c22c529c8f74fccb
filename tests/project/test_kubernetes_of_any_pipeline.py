"""`tidemill k8s`: the manifests of any pipeline are as valid as the shipped ones, and its files are where pods look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from test_deployment import KUBERNETES, accepts, accepts_variables, addresses_wrong, dangling, not_restricted, pod_of

from tidemill import load
from tidemill.cli.k8s import k8s
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.offline import scaffold
from tidemill.offline.scaffold import kubernetes
from tidemill.offline.scaffold.plan import Options

pytestmark = pytest.mark.slow


def project(folder: Path) -> str:
    """Return a pipeline of somebody's own, with a table, a helper and a file that is none of it."""
    scaffold.make(folder, [], Options())
    (folder / "helper.py").write_text("TEN = 10\n")
    (folder / "tables").mkdir()
    (folder / "data" / "not.avsc").write_text("{}")
    return str(folder / "pipeline.py")


def written(tmp_path: Path, target: str) -> tuple[Path, list[dict[str, Any]], Pipeline]:
    out = tmp_path / "out"
    done = CliRunner().invoke(k8s, [target, str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"kubectl apply -k {out}" in done.output
    documents = [d for path in sorted(out.glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())]
    return out, [d for d in documents if d["kind"] != "Kustomization"], load(target)


@pytest.mark.parametrize("target", ["flights", "delays", "own"])
def test_manifests_are_valid_and_run_what_there_is(tmp_path: Path, target: str) -> None:
    target = project(tmp_path / "own") if target == "own" else target
    out, documents, pipeline = written(tmp_path, target)
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert dangling(documents) == []
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
    ("spoil", "said"),
    [
        (lambda folder: (folder / "big.py").write_text("#" * 1_000_000), "a ConfigMap takes 900,000"),
        (lambda folder: (folder / "größe.py").write_text(""), "rename it"),
        (lambda folder: (folder.parent / "out").mkdir(), "nothing is overwritten"),
    ],
)
def test_what_can_t_be_is_said_and_nothing_is_written(tmp_path: Path, spoil: Any, said: str) -> None:
    target = project(tmp_path / "own")
    spoil(tmp_path / "own")
    with pytest.raises(SettingsError, match=said):
        kubernetes.write(tmp_path / "out", load(target), target)
    assert not (tmp_path / "out" / "kustomization.yaml").exists()
