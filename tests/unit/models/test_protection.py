"""One source's share of what is learned is limited: a flood of wrong labels is judged, and hardly learned."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from river import compose, metrics
from river_in_memory import River, flights
from signing_keys import KEY

from tidemill import Pipeline, Protect, load
from tidemill.cli.text.declaration import pipeline_text
from tidemill.cli.text.reports import backtest_text
from tidemill.errors import DeclarationError
from tidemill.metrics import COUNTS
from tidemill.models.fold import Fold
from tidemill.models.source_shares import MAX_SOURCE_CHARACTERS, Shares
from tidemill.offline.backtest import Backtest
from tidemill.offline.check import CheckReport
from tidemill.offline.replay import Replay
from tidemill.registry import snapshots
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore
from tidemill.stages.learner.service import Learner
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.wire.records import Records, vector_to_x

pytestmark = pytest.mark.slow

PLAIN = load("plain")
SLOT = TopicPartition("small.examples", 0)
SOURCES = ["UA", "AA", None, "DL", "UA", "UA", "UA", "B6"]


def numbers() -> Any:
    return compose.SelectType(float) | small.linear()


def capped(share: float = 0.3, of: int = 20, source: str = "carrier", **changes: Any) -> Pipeline:
    return small.with_category(protect=Protect(source, share, of), models={"linear": numbers()}, **changes)


def examples(pipeline: Pipeline, many: int) -> list[MemoryRecord]:
    """Return examples most of which are of one carrier."""
    codec = Records(pipeline).example
    return [
        MemoryRecord(
            SLOT.topic,
            codec.encode(
                small.example(
                    pipeline,
                    f"e{n}",
                    n * 7 % 13 - 6.0,
                    n,
                    distance=n % 11 * 50.0,
                    carrier=SOURCES[(n * 5 + n // 7) % 8],
                )
            ),
            offset=n,
        )
        for n in range(many)
    ]


def scores(pipeline: Pipeline, model: Any) -> list[float]:
    return [pipeline.kind.predict(model, vector_to_x({"distance": distance}))[0] for distance in (0.0, 100.0, 450.0)]


# The flood.


def flooded(times: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two days of flights; on the second one carrier sends each flight again, so many times, with the opposite label."""
    events, outcomes = [], []
    found = [flight for flight in flights(days=2) if flight.event["carrier"] != "YV"]
    begins = found[len(found) // 2].event["asked_at"]
    for flight in found:
        events.append(flight.event)
        outcomes += [flight.label] if flight.label else []
        for number in range(times if flight.event["asked_at"] >= begins else 0):
            name = f"{flight.event['flight_id']}+{number}"
            events.append({**flight.event, "flight_id": name, "carrier": "YV"})
            if flight.label:
                late = flight.label["arr_delay"] > 15
                outcomes.append({**flight.label, "flight_id": name, "arr_delay": 0.0 if late else 60.0})
    return events, sorted(outcomes, key=lambda label: label["landed_at"])


def accuracy_on_others(pipeline: Pipeline, times: int) -> tuple[float, Backtest]:
    """Return how the champion does on the flights of all other carriers of the second half, as it was asked."""
    backtest, accuracy, codec = Backtest(pipeline), metrics.Accuracy(), Records(pipeline).example
    found = flights(days=2)
    begins = found[len(found) // 2].event["asked_at"]

    def judge(record: Any) -> None:
        example = codec.decode(record.value())
        features = example["prediction"]["features"]
        if features["vector"]["carrier"] != "YV" and features["event_time"] >= begins:
            pipeline.kind.update(accuracy, example["label"], example["prediction"]["champion"]["score"], {})

    backtest.examples = judge
    backtest.run(*flooded(times))
    return accuracy.get(), backtest


@pytest.mark.slow
def test_a_flood_of_opposite_labels_does_not_turn_a_protected_model() -> None:
    protected = replace(PLAIN, protect=Protect("carrier", 0.25, 500))
    calm, _ = accuracy_on_others(PLAIN, 0)
    calm_and_protected, quiet = accuracy_on_others(protected, 0)
    assert (calm_and_protected, quiet.report.over_share) == (calm, 0), "no carrier has such a share by itself"
    turned, flood = accuracy_on_others(PLAIN, 9)
    kept, held = accuracy_on_others(protected, 9)
    assert turned < calm - 0.15, "the flood turns an unprotected one"
    assert kept > calm - 0.08
    assert flood.report.joined == held.report.joined, "all are examples, and judged"
    assert flood.folds["logreg"].metrics[0].cm.n_samples == held.folds["logreg"].metrics[0].cm.n_samples
    assert 0.5 * held.report.joined < held.report.over_share < held.report.joined
    assert f"not learned, for their source had its share: {held.report.over_share:,}" in backtest_text(held.report)
    assert "not learned" not in backtest_text(flood.report)


# What is counted.


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), max_size=120),
    st.sampled_from([0.05, 0.07, 0.3, 0.5, 0.9]),
    st.integers(1, 30),
    st.integers(0, 120),
)
def test_it_learns_what_the_definition_says_also_when_it_is_saved_in_between(
    sources: list[str | None], share: float, of: int, saved: int
) -> None:
    shares, learned = Shares(Protect("x", share, of)), deque[str | None](maxlen=of)
    for at, source in enumerate(sources):
        if at == saved:
            again = Shares(Protect("x", share, of))
            again.restore(snapshots.load(snapshots.dump(shares.saved())))
            shares = again
        expected = learned.count(source) < round(share * of, 6)
        assert shares.take(source) is expected
        if expected:
            learned.append(source)
    assert shares.saved() == list(learned)


def test_names_of_sources_are_bounded_and_kept_once() -> None:
    shares = Shares(Protect("x", 0.9, 100))
    assert shares.take("a" * 10**6)
    assert shares.saved() == ["a" * MAX_SOURCE_CHARACTERS]
    for number in range(80):
        shares.take(f"source {number % 2}")
    assert len({id(name) for name in shares.saved()}) == 3


def test_the_entity_is_a_source_too() -> None:
    pipeline = capped(0.5, 4, source="origin")
    fold, found = Fold(pipeline, "linear"), []
    for offset, entity in enumerate(["JFK", "JFK", "JFK", "EWR", "JFK", "EWR", "LGA", "JFK"]):
        example: Any = small.example(pipeline, f"e{offset}", 1.0, offset, distance=1.0, carrier="UA")
        example["prediction"]["features"]["entity_id"] = entity
        found.append(fold.learn(example, offset))
    assert found == [True, True, False, True, False, True, True, True]
    assert fold.examples == fold.version == 8, "all are judged"


# A version is still a fold of the examples before it.


def learner(pipeline: Pipeline, registry: Registry, manifests: list[Manifest]) -> Learner:
    return Learner(pipeline, "linear", registry, lambda _: manifests[::-1], every_examples=25, every_seconds=1e9)


def test_resumed_anywhere_it_ends_like_one_never_stopped(tmp_path: Path) -> None:
    pipeline = capped()
    records, codec = examples(pipeline, 300), Records(pipeline).example
    whole = Fold(pipeline, "linear")
    learned = [whole.learn(codec.decode(r.value() or b""), r.offset()) for r in records]
    assert 60 < sum(learned) < 240
    plain = Fold(small.with_category(models={"linear": numbers()}), "linear")
    for record in records:
        plain.learn(codec.decode(record.value() or b""), record.offset())
    assert scores(pipeline, plain.model) != scores(pipeline, whole.model), "the cap makes a difference"
    for stop in (0, 25, 60, 133, 299):
        registry, manifests = Registry(pipeline, ArtifactStore(str(tmp_path / str(stop))), KEY), list[Manifest]()

        def keep(_: str, value: bytes, *__: Any, registry: Registry = registry, into: list = manifests) -> None:
            into.append(registry.decode(value))

        first = learner(pipeline, registry, manifests)
        first.assign(SLOT, Position(0))
        for record in records[:stop]:
            first.process([record], keep)
        second = learner(pipeline, registry, manifests)
        begin = second.assign(SLOT, Position(0)).live_from
        assert begin == stop // 25 * 25
        second.process(records[begin:], keep)
        assert second.counts["skipped", "over_share"] == learned[begin:].count(False)
        assert (second.fold.version, second.fold.examples) == (whole.version, whole.examples)
        assert scores(pipeline, second.fold.model) == scores(pipeline, whole.model)
        assert second.fold.snapshot().shares == whole.snapshot().shares
        assert registry.open(manifests[-1]).shares == second.fold.snapshot().shares
    assert "skipped" in COUNTS


@pytest.mark.slow
@pytest.mark.parametrize("rebuild", [False, True])
def test_predictions_done_again_come_out_as_they_were(rebuild: bool, tmp_path: Path) -> None:
    (tmp_path / "capped.py").write_text(
        "import small\nfrom river import compose\nfrom tidemill import Protect\n"
        "model = compose.SelectType(float) | small.linear()\n"
        "pipeline = small.with_category(protect=Protect('carrier', 0.3, 20), models={'linear': model})\n"
    )
    river = River(load(str(tmp_path / "capped.py")), tmp_path / "artifacts")
    for begin in range(0, 120, 30):
        for number in range(begin, begin + 30):
            river.event(
                small.event(
                    f"e{number}", number * 1000, distance=number % 11 * 50.0, carrier=SOURCES[number % 8] or "WN"
                )
            )
        for number in range(begin, begin + 30):
            river.label(small.label(f"e{number}", number * 1000 + 5, number * 7 % 13 - 6.0))
        river.run()
    assert river.registry
    there = Replay(river.pipeline, river.broker, river.registry)
    done = there.run(there.log.draw(1000, 1), rebuild=rebuild)
    found = [again for one in done for again in one.scores if again.then["model"] == "linear"]
    assert {again.state for again in found} == {"equal"}
    assert {again.then["version"] for again in found} == {0, 30, 60, 90}
    without = Replay(replace(river.pipeline, protect=None), river.broker, river.registry)
    said = [again for one in without.run(without.log.draw(1000, 1), rebuild=rebuild) for again in one.scores]
    learned = [again for again in said if again.then["model"] == "linear" and again.then["version"]]
    assert {again.state for again in learned} == {"gone"}, "another cap is another declaration"


def test_without_a_cap_versions_are_as_they_were(tmp_path: Path) -> None:
    pipeline = small.with_category(models={"linear": numbers()})
    snapshot = Fold(pipeline, "linear").snapshot()
    assert snapshot.saved()["shares"] is None
    registry = Registry(pipeline, ArtifactStore(str(tmp_path)), KEY)
    assert registry.open(registry.publish("linear", snapshot, ())).shares is None


def test_a_cap_is_part_of_what_a_version_is_and_none_is_not() -> None:
    plain = small.with_category()
    assert plain.declaration_hash("linear") == replace(plain, protect=None).declaration_hash("linear")
    several = [Protect("carrier"), Protect("origin"), Protect("carrier", 0.4), Protect("carrier", of=999)]
    hashes = {replace(plain, protect=protect).declaration_hash("linear") for protect in several}
    assert len(hashes | {plain.declaration_hash("linear")}) == 5


# The declaration.


@pytest.mark.parametrize(
    ("protect", "says"),
    [
        (Protect("distance"), "'distance' is neither a category of the vector nor the events' key: there are carrier, origin"),
        (Protect("dest"), "protect.source: 'dest'"),
        (Protect("carrier", 0), "protect.share: 0 where a number above 0 and below 1 was expected"),
        (Protect("carrier", 1.0), "protect.share: 1.0"),
        (Protect("carrier", True), "protect.share: True"),
        (Protect("carrier", float("nan")), "protect.share: nan"),
        (Protect("carrier", of=0), "protect.of: 0 where a whole number from 1 to 100,000 was expected"),
        (Protect("carrier", of=10**6), "protect.of"),
        (Protect("carrier", of=10.0), "protect.of"),
        ("carrier", "protect: 'carrier' where a Protect"),
    ],
)  # fmt: skip
def test_a_senseless_cap_is_refused(protect: Any, says: str) -> None:
    with pytest.raises(DeclarationError, match=says.replace("(", r"\(")):
        small.with_category(protect=protect)


@pytest.mark.slow
def test_it_is_shown() -> None:
    pipeline = capped(0.3, 2000)
    assert "of the last 2,000 examples learned, at most 0.3 of one carrier" in pipeline_text(pipeline)
    assert json.loads(json.dumps(CheckReport(pipeline).as_dict()))["protect"] == dataclasses.asdict(
        Protect("carrier", 0.3, 2000)
    )
    assert "examples learned" not in pipeline_text(PLAIN)
    assert CheckReport(PLAIN).as_dict()["protect"] is None
