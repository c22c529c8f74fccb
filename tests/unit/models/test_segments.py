"""What a manifest says beyond the model: its metrics by segment as River would tell them, where it began, what it went on from."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import small
from river import compose, linear_model, metrics, preprocessing
from signing_keys import KEY

from tidemill import Monitor, Pipeline, category, load, number
from tidemill.cli.text.models import version_text
from tidemill.declare.tasks import Judged
from tidemill.errors import ArtifactError
from tidemill.models.evidence import MAX_VALUES
from tidemill.models.fold import Fold
from tidemill.models.segments import Segments
from tidemill.offline.lookup import public_manifest
from tidemill.registry import snapshots
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore
from tidemill.registry.versions import Versions
from tidemill.stages.learner.service import Learner
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire.records import Records

SLOT = TopicPartition("small.examples", 0)
MODEL = compose.SelectType(float) | preprocessing.StandardScaler() | linear_model.LogisticRegression()
CARRIERS = ("UA", "B6", None, "AA")


def binary(**changes: Any) -> Pipeline:
    return small.make(
        task="binary", labels=dataclasses.replace(small.LABELS, value=lambda arrival: arrival["arr_delay"] > 0),
        models={"logreg": MODEL}, champion="logreg", views=[], monitor=Monitor(segments=["carrier"]),
        request={"distance": number("distance"), "carrier": category("carrier")}, **changes,
    )  # fmt: skip


PIPELINE = binary()


def examples(many: int, carriers: tuple[str | None, ...] = CARRIERS) -> list[dict[str, Any]]:
    rng, found = random.Random(1), []
    for index in range(many):
        made = small.example(
            PIPELINE, f"e{index}", rng.random() < 0.4, index, distance=index % 7.0, carrier=rng.choice(carriers)
        )
        made["prediction"]["champion"] = small.score("logreg", rng.choice([rng.random(), 0.0, 1.0, 1 / 9]))
        found.append(made)
    return found


def records(made: list[dict[str, Any]]) -> list[MemoryRecord]:
    codec = Records(PIPELINE).example
    return [MemoryRecord(SLOT.topic, codec.encode(one), b"k", offset=3 * i) for i, one in enumerate(made)]


def folded(made: list[dict[str, Any]], pipeline: Pipeline = PIPELINE) -> Fold:
    fold = Fold(pipeline, "logreg")
    for offset, one in enumerate(made):
        fold.learn(one, offset)
    return fold


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(PIPELINE, ArtifactStore(str(tmp_path / "store")), KEY)


def test_each_segments_metrics_are_what_river_says_of_its_examples_alone() -> None:
    made = examples(600)
    told = folded(made).segments.as_dicts()
    assert [(line["feature"], line["value"], line["others"]) for line in told[-1:]] == [("carrier", None, False)]
    assert sum(line["examples"] for line in told) == len(made)
    for line in told:
        own = [one for one in made if one["prediction"]["features"]["vector"]["carrier"] == line["value"]]
        assert line["examples"] == len(own) > 100
        for metric in (metrics.Accuracy(), metrics.ROCAUC(), metrics.LogLoss()):
            for one in own:
                score = one["prediction"]["champion"]["score"]
                metric.update(one["label"], score > 0.5 if metric.requires_labels else {False: 1 - score, True: score})
            assert line["metrics"].pop(type(metric).__name__) == metric.get()
        assert line["metrics"] == {}


def test_a_segment_of_one_label_has_no_roc_auc() -> None:
    made = examples(200, ("UA",))
    for one in made:
        one["label"] = True
    (line,) = folded(made).segments.as_dicts()
    assert line["metrics"].keys() == {"Accuracy", "LogLoss"}


def test_values_beyond_the_most_are_told_together() -> None:
    made = examples(1_000, tuple(f"c{n}" for n in range(MAX_VALUES + 30)))
    fold = folded(made)
    told = fold.segments.as_dicts()
    assert len(told) == MAX_VALUES + 1
    assert (told[-1]["value"], told[-1]["others"]) == (None, True)
    assert told[-1]["examples"] == len(made) - sum(line["examples"] for line in told[:-1]) > 100
    first = list(dict.fromkeys(one["prediction"]["features"]["vector"]["carrier"] for one in made))[:MAX_VALUES]
    assert {line["value"] for line in told[:-1]} == set(first)
    again = Segments(PIPELINE)
    again.resume(fold.segments.state())
    again.add({"carrier": "new"}, True, PIPELINE.kind.judged(0.5, {}))  # type: ignore[arg-type]
    assert again.as_dicts()[-1]["examples"] == told[-1]["examples"] + 1, "how many values there are is remembered"


@pytest.mark.slow
def test_segments_survive_a_snapshot_and_go_on_as_if_nothing_had_been() -> None:
    made = examples(500, tuple(f"c{n}" for n in range(MAX_VALUES + 5)))
    whole, first = folded(made), folded(made[:260])
    again = Fold(PIPELINE, "logreg")
    again.resume(type(first.snapshot())(**snapshots.load(snapshots.dump(first.snapshot().__dict__))))
    for offset, one in enumerate(made[260:], 260):
        again.learn(one, offset)
    assert again.segments.as_dicts() == whole.segments.as_dicts()


def test_other_segments_in_a_new_declaration_begin_with_it() -> None:
    first = folded(examples(100))
    flagged = binary(partitions=3)
    object.__setattr__(flagged, "monitor", Monitor(segments=[]))
    again = Fold(flagged, "logreg")
    again.resume(first.snapshot())
    assert again.segments.as_dicts() == []


class TestManifest:
    def learner(self, registry: Registry, history: list[Manifest]) -> Learner:
        step = Learner(PIPELINE, "logreg", registry, lambda _: history[::-1], every_examples=50, every_seconds=1e9)
        step.assign(SLOT, Position(0))
        return step

    def feed(self, step: Learner, made: list[MemoryRecord], into: list[Manifest], registry: Registry) -> None:
        for record in made:
            step.process([record], lambda topic, value, *_: into.append(registry.decode(value)))

    def test_it_says_what_it_went_on_from_and_what_that_took(self, registry: Registry) -> None:
        made, manifests = records(examples(200)), []
        self.feed(self.learner(registry, manifests), made[:120], manifests, registry)
        begun = self.learner(registry, manifests)
        self.feed(begun, [r for r in made if r.offset() >= manifests[-1].version], manifests, registry)
        assert [m.parent for m in manifests] == [0, *[m.version for m in manifests[:-1]]]
        assert [m.examples for m in manifests] == [50, 100, 150, 200]
        seconds = [m.seconds for m in manifests]
        assert seconds[0] > 0.0
        assert seconds == sorted(set(seconds)), "each has taken longer than the one that it went on from"

    def test_it_says_under_which_schemas_it_was_made(self, registry: Registry) -> None:
        manifest = registry.publish("logreg", folded(examples(20)).snapshot(), ())
        own = Records(PIPELINE)
        assert manifest.schemas == {
            "event": own.event.id, "label": own.label.id, "vector": own.vector.id, "example": own.example.id,
        }  # fmt: skip
        changed = binary(name="other")
        assert Records(changed).vector.id != manifest.schemas["vector"]

    def test_all_of_it_comes_back_and_is_told(self, registry: Registry) -> None:
        fold = folded(examples(80))
        manifest = registry.publish("logreg", fold.snapshot(), (), parent=7, seconds=1.5)
        again = registry.decode(registry.encode(manifest))
        assert (again.begin, again.parent, again.seconds) == (0, 7, 1.5)
        assert again.segments == fold.segments.as_dicts()
        told = json.loads(json.dumps(public_manifest(dataclasses.asdict(again))))
        assert {"begin", "parent", "seconds", "schemas", "segments"} <= told.keys()
        assert told["segments"][0]["examples"] == fold.segments.as_dicts()[0]["examples"]

    def test_a_fold_that_begins_later_says_so_and_goes_on_there(self, registry: Registry) -> None:
        fold = Fold(PIPELINE, "logreg", 40)
        assert fold.version == 40
        for offset, one in enumerate(examples(10), 40):
            fold.learn(one, offset)
        manifest = registry.publish("logreg", fold.snapshot(), ())
        assert (manifest.begin, manifest.version, manifest.examples) == (40, 50, 10)
        step = self.learner(registry, [manifest])
        assert (step.fold.begin, step.fold.version) == (40, 50)

    @pytest.mark.parametrize("name", ["begin", "parent", "seconds", "schemas", "segments"])
    def test_nothing_of_it_can_be_changed(self, registry: Registry, name: str) -> None:
        manifest = registry.publish("logreg", folded(examples(20)).snapshot(), ())
        other = {"begin": 1, "parent": 1, "seconds": 1e3, "schemas": {}, "segments": ()}[name]
        forged = dataclasses.replace(manifest, **{name: other})
        assert forged != manifest
        with pytest.raises(ArtifactError, match="wrong signature"):
            registry.decode(registry.encode(forged))


def test_people_are_shown_all_of_it(registry: Registry) -> None:
    manifest = registry.publish("logreg", folded(examples(80)).snapshot(), (), parent=7, seconds=1.5)
    broker = MemoryBroker({"small.models": 1})
    broker.append("small.models", registry.encode(manifest), b"logreg")
    there = Versions(PIPELINE, broker, registry)
    found, _ = there.find("logreg")
    text = version_text(there, registry.store, found, 0)
    for words in ("small.examples[0..80)", "version 7", "1.5 s of CPU", f"vector {registry.records.vector.id}", "carrier UA",
                  "carrier (missing)", "ROCAUC"):  # fmt: skip
        assert words in text
    told = there.as_dict(found, registry.store)
    assert told["segments"] == list(manifest.segments)
    assert (told["begin"], told["parent"], told["schemas"]) == (0, 7, manifest.schemas)


def test_each_of_two_areas_has_its_figure_in_every_segment() -> None:
    """One ROCAUC is counted, as that is faster; of two with other thresholds none may be left out."""
    pair = [metrics.ROCAUC(n_thresholds=10), metrics.ROCAUC(n_thresholds=50)]
    pipeline = dataclasses.replace(load("flights"), metrics=pair)
    segments = Segments(pipeline)
    vector = dict.fromkeys(pipeline.vector) | {"carrier": "UA", "origin": "JFK"}
    for count in range(40):
        p = count / 40
        segments.add(vector, count % 3 == 0, Judged({True: p, False: 1 - p}, p > 0.5))
    for line in segments.as_dicts():
        assert line["metrics"].keys() == {"ROCAUC(n_thresholds=10)", "ROCAUC(n_thresholds=50)"}
