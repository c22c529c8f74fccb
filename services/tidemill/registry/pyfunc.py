"""A mirrored version as MLflow loads it: vectors in, scores out, after the checks that need no pipeline.

MLflow holds a folder for each: `manifest` (as on the models topic), `artifact` (the snapshot), `declared.json` (task
and vector). MLflow calls `_load_pyfunc`, by this module's name in its MLmodel file. No pickle of MLflow's own is made
or read.

checked  the manifest's signature, with TIDEMILL_VERIFY_KEYS: without them nothing is opened, since who can write to
         MLflow's store could put another model there; then the artifact's SHA-256 against the manifest, River's
         version, what the artifact consists of (any of River's models: there is no declaration), the golden scores
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import river

from tidemill.declare.tasks import TASKS
from tidemill.encoding import schema_files
from tidemill.encoding.codec import Codec
from tidemill.errors import ArtifactError
from tidemill.files import read_limited
from tidemill.keys import Keyring, RefusedError
from tidemill.limits import ARTIFACT_BYTES, REPLACEMENT_BYTES
from tidemill.registry import snapshots
from tidemill.registry.signing import SignedCodec
from tidemill.registry.store import sha256
from tidemill.wire.records import vector_to_x

MANIFEST, ARTIFACT, DECLARED = "manifest", "artifact", "declared.json"
KINDS = ("manifest", "replacement")
_TYPES: Mapping[str, Any] = {"double": float, "string": str, "boolean": bool}


class ScoringModel:
    """What `mlflow.pyfunc.load_model` wraps.

    Parameters
    ----------
    manifest
        As it was decoded, verified.
    task
        The pipeline's.
    vector
        Avro type of each feature, in the vector's order.
    """

    def __init__(self, manifest: Mapping[str, Any], model: Any, task: str, vector: Mapping[str, str]) -> None:
        self.manifest, self.model, self.vector = manifest, model, vector
        self._predict = TASKS[task].predict
        self._by_class = task == "multiclass"

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return a score for each row, a vector; a feature that is no column, or has no value, is missing.

        A classifier of several classes has `probabilities` beside it, by class.
        """
        del params  # it has none
        rows = [self._predict(self.model, self._x(row)) for row in model_input.to_dict(orient="records")]
        columns: dict[str, list[Any]] = {"score": [score for score, *_ in rows]}
        if self._by_class:
            columns["probabilities"] = [dict(probabilities) for _, probabilities, _ in rows]
        return pd.DataFrame(columns, index=model_input.index)

    def _x(self, row: Mapping[Any, Any]) -> dict[str, Any]:
        given = {name: row.get(name) for name in self.vector}
        return {
            name: _TYPES[self.vector[name]](value)
            for name, value in vector_to_x(given).items()
            if not pd.isna(value)  # how a table marks a missing value
        }


def _read(folder: Path) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    try:
        data, artifact = (
            read_limited(folder / MANIFEST, REPLACEMENT_BYTES),
            read_limited(folder / ARTIFACT, ARTIFACT_BYTES),
        )
        declared = json.loads(read_limited(folder / DECLARED, REPLACEMENT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder} holds no mirrored version: {error}") from error
    codec = Codec(schema_files.own("manifest.v1"))
    if not data.startswith(codec.header):
        raise ArtifactError(f"{folder / MANIFEST} is no manifest of this Tidemill, or another version wrote it")
    return _verified(codec, data), artifact, declared


def _verified(codec: Codec, data: bytes) -> dict[str, Any]:
    """Return a manifest. Raises ArtifactError where it is damaged or not signed with our keys, or without keys."""
    if not (verify_keys := os.environ.get("TIDEMILL_VERIFY_KEYS", "")):
        raise ArtifactError(
            "TIDEMILL_VERIFY_KEYS is not set: without them nobody knows whose model this is, so it is not opened; give "
            "this process the public keys of who signs versions"
        )
    signed: SignedCodec[dict[str, Any]] = SignedCodec("", "", KINDS, codec, Keyring(verify_keys), dict)
    manifest = signed.parse(data)
    try:
        signed.verify(manifest)
    except RefusedError as error:
        raise ArtifactError(f"the manifest of {manifest['model']!r} version {manifest['version']}: {error}") from error
    return manifest


def _load_pyfunc(path: str) -> ScoringModel:
    """Return the model in a folder, for MLflow. Raises ArtifactError where one of the checks fails."""
    manifest, artifact, declared = _read(Path(path))
    name = f"model {manifest['model']!r} version {manifest['version']}"
    if sha256(artifact) != manifest["sha256"]:
        raise ArtifactError(f"the artifact of {name} is damaged: its bytes have another hash than its manifest says")
    if manifest["river"] != river.__version__:
        raise ArtifactError(
            f"{name} was made by River {manifest['river']}, this is {river.__version__}: scores may differ"
        )
    vector = Codec(declared["vector"])
    if manifest["schemas"].get("vector", vector.id) != vector.id:
        raise ArtifactError(f"{name} was learned on another vector than {DECLARED} says")
    model = snapshots.load(artifact)["model"]
    kinds = {field["name"]: schema_files.primitive(field["type"]) for field in declared["vector"]["fields"]}
    scoring = ScoringModel(manifest, model, declared["task"], kinds)
    for index, golden in enumerate(manifest["golden"]):
        score, *_ = TASKS[declared["task"]].predict(model, vector_to_x(vector.record(golden["vector"])))
        if score != golden["score"]:
            raise ArtifactError(f"{name} gives golden vector {index} the score {score}; it was {golden['score']}")
    return scoring
