"""Kubernetes manifests of any pipeline: those of the shipped `flights`, with its models and its files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator
from hashlib import sha256
from pathlib import Path

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.offline.scaffold import kubernetes_options
from tidemill.offline.scaffold.files import shipped, with_learners
from tidemill.tables import Lookup
from tidemill.wire.rights import kubernetes_name

#: A ConfigMap holds no more than 1 MiB, names included.
MAX_FILES_BYTES = 900_000
#: Folders beside a pipeline's file that have nothing of it.
NOT_OURS = frozenset({"data", "tests", "__pycache__", "build", "dist", "node_modules", "venv"})
MOUNTED = "/pipeline"


def namespace_of(pipeline: Pipeline, chosen: str = "") -> str:
    """Return the namespace that is asked for, or the pipeline's own. Raises SettingsError where its name is none."""
    if chosen and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", chosen):
        raise SettingsError(
            f"--namespace {chosen!r}: expected at most 63 small letters, digits and '-', beginning and ending with a "
            "letter or digit"
        )
    return chosen or f"tidemill-{kubernetes_name(pipeline.name, 54)}"


def write(
    folder: Path, pipeline: Pipeline, target: str, options: Collection[str] = (), namespace: str = ""
) -> list[str]:
    """Write a folder for `kubectl apply -k`; returns the names of the manifests.

    `target` names the pipeline as for `tidemill.load`. Where it is a file, that goes into a ConfigMap, with the Python
    files and the schemas beside it, and the tables it looks up. `options` are some of kubernetes_options.OPTIONS.
    Objects are called as their service, so a pipeline has a namespace to itself: by default `tidemill-NAME`.
    Raises SettingsError where the folder exists, these files are too large, two models have one name in Kubernetes, the
    namespace has a wrong name, or two options exclude each other.
    """
    namespace = namespace_of(pipeline, namespace)
    kubernetes_options.check(options)
    if folder.exists():
        raise SettingsError(f"{folder} exists: nothing is overwritten, so name a folder that does not exist")
    path, colon, name = target.partition(":")
    files = _files(Path(path), pipeline) if path.endswith(".py") else {}
    run = f"{MOUNTED}/{Path(path).name}{colon}{name}" if files else target
    manifests = {
        file: _in_namespace(_mounted(text, files), namespace) for file, text in _manifests(pipeline, run, options)
    }
    if "topics.yaml" in manifests:  # a Job can't be changed, and the one of before may still be there
        mark = sha256(b"".join([manifests["topics.yaml"].encode(), *(one.read_bytes() for one in files.values())]))
        job = manifests["topics.yaml"].replace("\n  name: topics\n", f"\n  name: topics-{mark.hexdigest()[:8]}\n", 1)
        manifests["topics.yaml"] = job
    folder.mkdir(parents=True)
    for file, text in manifests.items():
        (folder / file).write_text(text, encoding="utf-8")
    listed = sorted(file for file in manifests if file != "secret.example.yaml")
    for place, source in files.items():
        (folder / "pipeline" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / "pipeline" / place)
    made = _in_namespace(_kustomization(pipeline, listed, files), namespace)
    (folder / "kustomization.yaml").write_text(made, encoding="utf-8")
    return listed


def _manifests(pipeline: Pipeline, run: str, options: Collection[str]) -> Iterator[tuple[str, str]]:
    for file, text in _shipped(pipeline, run):
        if file != "topics.yaml" or "strimzi" not in options:  # whose operator makes the topics
            yield file, kubernetes_options.changed(text, file, pipeline, options)
    yield from kubernetes_options.objects(pipeline, options)


def _shipped(pipeline: Pipeline, run: str) -> Iterator[tuple[str, str]]:
    names = {model: kubernetes_options.model_name(model) for model in pipeline.model_names}
    if len(set(names.values())) < len(names):
        raise SettingsError(
            f"models {', '.join(names)}: names in Kubernetes have no '_', and end with a letter or digit, so two of "
            "them would be one"
        )
    for path in sorted(shipped("k8s").glob("*.yaml")):
        text = re.sub(
            r"^( +args: \[.*)\bflights\b", rf"\g<1>{json.dumps(run)}", path.read_text(encoding="utf-8"), flags=re.M
        )
        if path.name != "gateway.yaml":  # of the others, an instance without a partition has nothing to do
            text = text.replace("  replicas: 2\n", f"  replicas: {min(2, pipeline.partitions)}\n")
        if path.name == "learner-logreg.yaml":
            for model, name in names.items():
                own = text.replace("--model, logreg]", f"--model, {json.dumps(model)}]")  # `null` is a name, too
                yield f"learner-{name}.yaml", own.replace("learner-logreg", f"learner-{name}")
        elif path.name == "status.yaml":
            yield path.name, with_learners(text, list(names.values())) + "\n"
        elif path.name != "kustomization.yaml" and not path.name.startswith("learner-"):
            yield path.name, text


def _files(path: Path, pipeline: Pipeline) -> dict[str, Path]:
    """Return the files that a pipeline is made of, by where they are beside it."""
    folder = path.resolve().parent
    found = [*(file for file in folder.glob("*.py") if not file.name.startswith("test_")), *folder.rglob("*.avsc")]
    found += [
        feature.source.table.path
        for feature in pipeline.request_features.values()
        if isinstance(feature.source, Lookup)
    ]  # fmt: skip
    files = {}
    for file in found:
        if not file.is_relative_to(folder):
            raise SettingsError(f"{file} is not beside {path}: the pipeline's files go into one ConfigMap")
        parts = file.relative_to(folder).parts
        if not NOT_OURS & {*parts[:-1]} and not any(part.startswith(".") for part in parts):
            files["/".join(parts)] = file
            if not re.fullmatch(r"[-._a-zA-Z0-9]+", _key("/".join(parts))):
                raise SettingsError(f"{file}: a ConfigMap takes names of letters, digits, '.', '_' and '-': rename it")
    if (size := sum(file.stat().st_size for file in files.values())) > MAX_FILES_BYTES:
        raise SettingsError(
            f"the files beside {path} have {size:,} bytes, and a ConfigMap takes {MAX_FILES_BYTES:,}: build an image "
            f"with them, and name the pipeline in it, as package.module"
        )
    return files


def _in_namespace(text: str, namespace: str) -> str:
    place = r'(\bnamespace"?: "?|\.|-n |kind: Namespace\nmetadata:\n  name: )tidemill(?=\.svc| create|["}]?,?$)'
    return re.sub(place, rf"\g<1>{namespace}", text, flags=re.M)


def _mounted(text: str, files: dict[str, Path]) -> str:
    """Return a manifest whose pods have the pipeline's files."""
    if not files or "image: tidemill" not in text:
        return text
    items = "".join(f"\n      - {{key: {_key(place)}, path: {place}}}" for place in files)
    extra = kubernetes_options.Extra(
        mounts=(f"- {{name: pipeline, mountPath: {MOUNTED}, readOnly: true}}",),
        volumes=(f"- name: pipeline\n  configMap:\n    name: pipeline\n    items:{items}",),
    )
    return kubernetes_options.added(text, extra)


def _kustomization(pipeline: Pipeline, listed: list[str], files: dict[str, Path]) -> str:
    made = (
        f"# The pipeline {pipeline.name}. Once: the secret, see secret.example.yaml. Then: kubectl apply -k .\n"
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n"
        + "".join(f"  - {name}\n" for name in listed)
    )  # fmt: skip
    if files:  # its name has their hash, so pods are replaced when the pipeline has changed
        made += "configMapGenerator:\n  - name: pipeline\n    namespace: tidemill\n    files:\n"
        made += "".join(f"      - {_key(place)}=pipeline/{place}\n" for place in files)
    return made


def _key(place: str) -> str:
    """Return the key of a file in a ConfigMap, which has no slash."""
    return place.replace("/", "..")
