"""Two models are compared on the same questions, as each answered then; what is said of them is the textbook's."""

from __future__ import annotations

import itertools
import json
import math
import random
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from river import dummy, metrics
from signing_keys import KEY

from tidemill import Gate, Monitor, category, load, number
from tidemill.cli.main import cli
from tidemill.cli.text.models import comparison_text
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import NotAllowed, SettingsError
from tidemill.models.evidence import (
    MAX_RUNS,
    MAX_VALUES,
    MIN_QUESTIONS,
    MIN_RUNS,
    RATE,
    Differences,
    Interval,
    Terms,
)
from tidemill.offline.compare import Comparison, ComparisonReport, ComparisonRequest, Segment, SegmentRow, compare
from tidemill.registry.decisions import ModelRef
from tidemill.runtime.run import topic_table
from tidemill.stages.gate.service import PromotionGate
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

REQUEST = {"distance": number("distance"), "carrier": category("carrier"), "tailnum": category("tailnum")}
LATE = small.make(
    task="binary", request=REQUEST, views=[], monitor=Monitor(segments=["carrier", "tailnum"]),
    labels=replace(small.LABELS, value=lambda label: label["arr_delay"] > 15),
    models={"linear": dummy.PriorClassifier(), "slow": dummy.PriorClassifier()},
)  # fmt: skip
MINUTES = small.make(request=REQUEST, views=[], monitor=Monitor(segments=["carrier"]))
PLAIN = load("plain")
CARRIERS = ("UA", "DL", "B6", None)
LOOK_EVERY = 50


def question(pipeline: Pipeline, at: int, label: Any, champion: str = "linear", **answers: Any) -> dict[str, Any]:
    """Return an example with these models' answers; `carrier` and others among them are of the vector."""
    vector = {name: answers.pop(name) for name in list(answers) if name in pipeline.vector}
    found = small.example(pipeline, f"e{at}", label, at, **vector)
    scores = [small.score(name, value, at) for name, value in answers.items()]
    found["prediction"]["champion"] = next(score for score in scores if score["model"] == champion)
    found["prediction"]["challengers"] = [score for score in scores if score["model"] != champion]
    return found


def late(many: int = 1_000, seed: int = 0) -> list[dict[str, Any]]:
    """Return questions of which `linear` knows something where the carrier is UA, and `slow` where it is DL."""
    rng, found = random.Random(seed), []
    for at in range(many):
        carrier, label = rng.choice(CARRIERS), rng.random() < 0.4
        good, bad = (0.7 if label else 0.3) + rng.uniform(-0.25, 0.25), rng.uniform(0.2, 0.8)
        linear, slow = (good, bad) if carrier == "UA" else (bad, good) if carrier == "DL" else (bad, bad)
        found.append(question(LATE, at, label, carrier=carrier, linear=linear, slow=slow))
    return found


def broker_of(pipeline: Pipeline, examples: list[dict[str, Any]]) -> MemoryBroker:
    broker = MemoryBroker({topics.EXAMPLES.name(pipeline.name): 1})
    for example in examples:
        broker.append(topics.EXAMPLES.name(pipeline.name), Records(pipeline).example.encode(example), b"k")
    return broker


def found(pipeline: Pipeline, examples: list[dict[str, Any]], *of: Any, **asked: Any) -> ComparisonReport:
    wanted = ComparisonRequest(*(of or ("linear", "slow")), **{"segments": tuple(pipeline.monitor.segments), **asked})
    return compare(pipeline, broker_of(pipeline, examples), wanted)


def frame_of(examples: list[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for example in examples:
        log = example["prediction"]
        said = {score["model"]: score["score"] for score in (log["champion"], *log["challengers"])}
        rows.append(
            {"label": example["label"], "at": log["features"]["event_time"], **log["features"]["vector"], **said}
        )
    return pd.DataFrame(rows)


TERMS = Terms(RATE, MIN_QUESTIONS)


def sequence(differences: np.ndarray, terms: Terms = TERMS) -> tuple[float, float]:
    """The definition: the mean, and theorem 2.2's margin by the largest spread of runs of any length.

    Runs begin at the least power of two that leaves fewer than MAX_RUNS, and double while MIN_RUNS are left.
    """
    count, alpha, spreads = len(differences), terms.rate, [0.0]
    size = next(2**k for k in itertools.count() if count // 2**k < MAX_RUNS)
    while count // size >= MIN_RUNS:
        means = differences[: count // size * size].reshape(-1, size).mean(axis=1)
        spreads.append(float(means.std(ddof=1)) * math.sqrt(size))
        size *= 2
    rho = math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / (4 * terms.first))
    v = count * rho**2 + 1
    margin = max(spreads) * math.sqrt(2 * v / (count**2 * rho**2) * math.log(math.sqrt(v) / alpha))
    return float(differences.mean()), margin


class TestByDefinition:
    @pytest.mark.slow
    def test_every_line_is_what_pandas_computes_of_its_rows(self) -> None:
        examples = late()
        frame, report = frame_of(examples), found(LATE, examples)
        assert str(report.lines[0].segment) == "all"
        assert {line.segment.value for line in report.lines if line.segment.field == "carrier"} == set(CARRIERS)
        for line in report.lines:
            name, value, _ = line.segment
            rows = frame if not name else frame[frame[name].isna() if value is None else frame[name] == value]
            assert line.questions == len(rows)
            truth, losses = rows["label"].to_numpy(dtype=bool), {}
            for side, model in ((line.a, "linear"), (line.b, "slow")):
                score = rows[model].to_numpy(dtype=float)
                losses[model] = (score - truth) ** 2
                assert side["LogLoss"] == pytest.approx(-np.log(np.where(truth, score, 1 - score)).mean())
                assert side["Accuracy"] == pytest.approx(((score > 0.5) == truth).mean())
                rocauc = metrics.ROCAUC()
                for label, p in zip(truth.tolist(), score.tolist(), strict=True):
                    rocauc.update(label, {True: p, False: 1 - p})
                assert side["ROCAUC"] == rocauc.get()
            mean, margin = sequence(losses["linear"] - losses["slow"])
            assert line.difference == pytest.approx((mean, mean - margin, mean + margin))

    @pytest.mark.slow
    def test_the_verdict_is_told_by_segment(self) -> None:
        verdicts = {str(line.segment): line.verdict for line in found(LATE, late()).lines}
        assert verdicts["carrier UA"] == "A better"
        assert verdicts["carrier DL"] == "B better"
        assert verdicts["carrier B6"] == verdicts["carrier (missing)"] == "no difference shown"
        turned = {str(line.segment): line.verdict for line in found(LATE, late(), "slow", "linear").lines}
        assert (turned["carrier UA"], turned["carrier DL"]) == ("B better", "A better")

    @pytest.mark.parametrize(
        ("low", "high", "verdict"),
        [
            (-2.0, -1.0, "A better"), (1.0, 2.0, "B better"), (-2.0, 1.0, "no difference shown"), (-1.0, 2.0, "no difference shown"),
            (-1.0, 0.0, "no difference shown"), (0.0, 1.0, "no difference shown"),
        ],
    )  # fmt: skip
    def test_the_verdict_is_what_all_of_the_interval_speaks_for(self, low: float, high: float, verdict: str) -> None:
        assert SegmentRow(Segment(), 50, {}, {}, Interval((low + high) / 2, low, high)).verdict == verdict
        assert SegmentRow(Segment(), 5, {}, {}, None).verdict == "no difference shown"

    @pytest.mark.slow
    def test_numbers_are_held_to_their_absolute_error(self) -> None:
        rng = random.Random(1)
        examples = [
            question(MINUTES, at, rng.gauss(0, 20), carrier="UA", linear=rng.gauss(0, 5), slow=rng.gauss(9, 5)) for at in range(200)
        ]  # fmt: skip
        frame, report = frame_of(examples), found(MINUTES, examples)
        squares = {model: (frame[model] - frame["label"]) ** 2 for model in ("linear", "slow")}
        line = report.lines[0]
        assert line.a["RMSE"] == pytest.approx(math.sqrt(squares["linear"].mean()))
        assert line.b["MAE"] == pytest.approx((frame["slow"] - frame["label"]).abs().mean())
        assert line.difference.mean == pytest.approx((squares["linear"] ** 0.5 - squares["slow"] ** 0.5).mean())
        assert (report.loss, line.verdict) == ("absolute error", "A better")

    @pytest.mark.slow
    def test_classes_are_held_to_the_probability_of_the_one_that_came_true(self) -> None:
        stream = replace(small.LABELS, value=lambda label: "late" if label["arr_delay"] > 0 else "early")
        models = {"linear": dummy.PriorClassifier(), "slow": dummy.PriorClassifier()}
        pipeline = small.make(task="multiclass", labels=stream, models=models, views=[])
        examples = []
        for at in range(250):
            example = question(pipeline, at, ("late", "early")[at % 2], linear=0.9, slow=0.6)
            for score in (example["prediction"]["champion"], *example["prediction"]["challengers"]):
                other = ("late", "early")[at % 2 == 0]
                score["probabilities"] = {example["label"]: score["score"], other: 1 - score["score"]} if at else {}
                score["answered"] = bool(at)
            examples.append(example)
        report = found(pipeline, examples)
        assert (report.questions, report.neither) == (249, 1), "who knows no class has not answered"
        came_true = np.array([1.0, 0.0])
        brier = {p: float(((np.array([p, 1 - p]) - came_true) ** 2).sum()) for p in (0.9, 0.6)}
        assert report.lines[0].difference.mean == pytest.approx(brier[0.9] - brier[0.6])
        assert report.lines[0].a["CrossEntropy"] == pytest.approx(-math.log(0.9))

    def test_an_anomaly_score_has_metrics_and_no_verdict(self) -> None:
        from river import anomaly

        stream = replace(small.LABELS, value=lambda label: label["arr_delay"] > 15)
        models = {"linear": anomaly.HalfSpaceTrees(seed=1), "slow": anomaly.HalfSpaceTrees(seed=2)}
        pipeline = small.make(task="anomaly", labels=stream, models=models, views=[])
        examples = [question(pipeline, at, at % 9 == 0, linear=0.9 - at % 9 / 10, slow=0.5) for at in range(90)]
        report = found(pipeline, examples)
        assert report.lines[0].difference is None
        assert report.lines[0].a["ROCAUC"] > 0.9
        text = comparison_text(report)
        assert "no verdict" in text
        assert "no difference shown" not in text

    def test_a_metric_that_means_nothing_is_left_out(self) -> None:
        report = found(LATE, [question(LATE, at, False, linear=0.2, slow=0.3, carrier="UA") for at in range(40)])
        assert set(report.lines[0].a) == {"Accuracy", "LogLoss"}


class TestInterval:
    @pytest.mark.slow
    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.floats(-1e6, 1e6), min_size=MIN_QUESTIONS, max_size=1200))
    def test_it_is_its_formula(self, values: list[float]) -> None:
        running = Differences()
        for value in values:
            running.add(value)
        mean, margin = sequence(np.array(values))
        found = running.interval(TERMS)
        assert found.mean == pytest.approx(mean, abs=1e-6)
        assert found.high - found.mean == pytest.approx(margin, abs=1e-6)
        assert found.mean - found.low == pytest.approx(margin, abs=1e-6)
        assert len(running.sums) < MAX_RUNS

    @pytest.mark.parametrize("many", [MIN_QUESTIONS, MAX_RUNS * 2 - 1, 1000])
    def test_it_is_wider_than_the_paired_normal_one_which_is_for_one_look(self, many: int) -> None:
        values = np.random.default_rng(many).normal(size=many)
        running = Differences()
        for value in values:
            running.add(value)
        normal = 1.96 * values.std(ddof=1) / math.sqrt(many)
        found = running.interval(TERMS)
        assert found.mean == pytest.approx(values.mean())
        assert normal < found.high - found.mean == pytest.approx(found.mean - found.low)

    @staticmethod
    def covered(seeds: int, many: int, alike: float) -> float:
        """Return how often the interval has 0 in it at every look, where each difference is `alike` to the one before."""
        inside = 0
        for seed in range(seeds):
            noise, running, last = np.random.default_rng(seed).normal(size=many).tolist(), Differences(), 0.0
            is_inside = True
            for at, value in enumerate(noise, 1):
                last = alike * last + value
                running.add(last)
                if at % LOOK_EVERY == 0:
                    found = running.interval(TERMS)
                    is_inside &= found is None or found.low <= 0 <= found.high
            inside += is_inside
        return inside / seeds

    @pytest.mark.slow
    @pytest.mark.parametrize("many", [400, 1000])
    def test_of_equal_models_it_covers_0_at_its_rate(self, many: int) -> None:
        assert self.covered(500, many, 0.0) > 1 - RATE

    @pytest.mark.slow
    def test_also_where_neighbours_are_alike(self) -> None:
        """Were they taken for independent ones, at 0.8 the interval would be a third of what it must be."""
        assert self.covered(300, 4000, 0.8) > 0.9

    def test_too_few_or_endless_ones_have_none(self) -> None:
        running = Differences()
        for _ in range(MIN_QUESTIONS - 1):
            running.add(1.0)
        assert running.interval(TERMS) is None
        running.add(1.0)
        assert running.interval(TERMS) == (1.0, 1.0, 1.0)
        running.add(math.inf)
        assert running.interval(TERMS) is None
        running = Differences()
        for value in (1e308, -1e308, 0.0) * MIN_QUESTIONS:
            running.add(value)
        assert running.interval(TERMS) is None

    @pytest.mark.slow
    def test_an_answer_beyond_all_bounds_ends_nothing(self) -> None:
        examples = [question(MINUTES, at, 1.0, linear=1e307, slow=0.0) for at in range(400)]
        line = found(MINUTES, examples).lines[0]
        assert (line.verdict, line.difference) == ("no difference shown", None)
        assert ("RMSE" in line.a, line.b["RMSE"]) == (False, 1.0)
        assert "too few" in comparison_text(found(MINUTES, examples[:5]))


GATED = replace(LATE, gate=Gate(examples=200, watch=1_000, round=1_000, segments=["carrier"]))


@pytest.mark.slow
class TestAgreement:
    """`compare` and the gate judge one pair by one loss and one interval: neither says "better" where the other is unsure."""

    @settings(deadline=None, max_examples=15)
    @given(
        seed=st.integers(0, 2**32), better=st.floats(-0.3, 0.3), noise=st.floats(0.01, 0.5), alike=st.floats(0.0, 0.95),
        worst=st.sampled_from([0.0, 1.0]), missing=st.floats(0.0, 0.3),
    )  # fmt: skip
    def test_at_every_look_at_the_same_questions_the_verdicts_agree(
        self, seed: int, better: float, noise: float, alike: float, worst: float, missing: float
    ) -> None:
        rng, luck = random.Random(seed), 0.0
        comparison = Comparison(GATED, ComparisonRequest("linear", "slow"))
        gate: Any = PromotionGate(GATED, KEY, list, lambda _: "")
        gate.assign(TopicPartition(topics.EXAMPLES.name("small"), 0), Position(0))
        encode, emitted = Records(GATED).example.encode, small.Emitted()
        for at in range(800):
            label, luck = rng.random() < 0.4, alike * luck + rng.gauss(0, noise)
            answers = {"linear": abs(label - 0.4), "slow": abs(label - 0.4 + better + luck)}
            answers = {name: min(1.0, max(0.0, abs(label - value))) for name, value in answers.items()}
            if rng.random() < 0.01:
                answers["slow"] = worst
            if rng.random() < missing:
                del answers["slow"]
            example = question(GATED, at, label, carrier="UA", **answers)
            comparison.take(example)
            gate.process([MemoryRecord("small.examples", encode(example), b"k", at, offset=at)], emitted)
            if at % LOOK_EVERY or not comparison.report.questions or gate.standing.since:
                continue
            line, trial = comparison.finish().lines[0], gate.rounds.trials[ModelRef("slow")]
            interval = trial.interval()
            assert comparison.report.loss == trial.loss
            assert line.questions == trial.questions
            assert comparison.report.rate <= trial.terms.rate
            if line.difference is None:
                assert interval is None
            else:
                assert line.difference.mean == interval.mean
                assert line.difference.low <= interval.low <= interval.high <= line.difference.high
            if line.verdict == "B better":
                assert interval.low > 0
            if line.verdict == "A better":
                assert interval.high < 0

    def test_what_the_gate_promotes_or_refuses_compare_never_contradicts(self) -> None:
        """The gate's decisions on streams whose models differ, and compare's verdict on the questions of each decision."""
        seen = set()
        for seed, better in enumerate((-0.2, -0.05, 0.0, 0.05, 0.2)):
            rng, comparison = random.Random(seed), Comparison(GATED, ComparisonRequest("linear", "slow"))
            gate: Any = PromotionGate(GATED, KEY, list, lambda _: "")
            gate.assign(TopicPartition(topics.EXAMPLES.name("small"), 0), Position(0))
            encode, emitted = Records(GATED).example.encode, small.Emitted()
            for at in range(900):
                label = rng.random() < 0.4
                linear = min(1.0, max(0.0, 0.4 + 0.4 * (label - 0.4) + rng.uniform(-0.1, 0.1)))
                slow = min(1.0, max(0.0, 0.4 + (0.4 + better) * (label - 0.4) + rng.uniform(-0.1, 0.1)))
                example = question(GATED, at, label, carrier="UA", linear=linear, slow=slow)
                comparison.take(example)
                gate.process([MemoryRecord("small.examples", encode(example), b"k", at, offset=at)], emitted)
                if gate.standing.decisions:
                    break
            verdict = comparison.finish().lines[0].verdict
            if gate.standing.decisions:
                seen.add(gate.standing.decisions[0].kind)
                assert verdict != {"promoted": "A better", "refused": "B better"}[gate.standing.decisions[0].kind]
            else:
                assert verdict == "no difference shown"
        assert seen == {"promoted", "refused"}


class TestQuestions:
    def test_only_those_of_the_asked_times_which_both_answered_count(self) -> None:
        examples = late(100)
        for example in examples[20:30]:
            example["prediction"]["challengers"] = []
        report = found(LATE, examples, begin=10, end=90)
        assert (report.questions, report.only_a, report.only_b, report.neither) == (70, 10, 0, 0)
        assert (report.first_event, report.last_event) == (10, 89)
        assert report.versions == {"a": (10, 89), "b": (10, 89)}
        frame = frame_of(examples)
        both = frame[frame["at"].between(10, 89) & frame["slow"].notna()]
        assert report.lines[0].a["Accuracy"] == pytest.approx(((both["linear"] > 0.5) == both["label"]).mean())
        assert "left out: 10 that only linear answered" in comparison_text(report)

    @pytest.mark.parametrize("untaught", ["linear", "slow"])
    def test_a_model_that_has_learned_nothing_is_no_opponent(self, untaught: str) -> None:
        examples = late(300)
        for example in examples:
            for answer in (example["prediction"]["champion"], *example["prediction"]["challengers"]):
                answer["version"] *= answer["model"] != untaught
        with pytest.raises(SettingsError, match=f"'{untaught}' has learned nothing.*run its learner") as refused:
            found(LATE, examples)
        assert f"--model {untaught}`" in str(refused.value)

    @pytest.mark.parametrize("untaught", ["linear", "slow"])
    def test_questions_before_a_model_had_learned_anything_are_named(self, untaught: str) -> None:
        for many, warns in ((20, False), (100, True)):
            examples = late(300)
            for example in examples[:many]:
                for answer in (example["prediction"]["champion"], *example["prediction"]["challengers"]):
                    answer["version"] = int(answer["model"] != untaught)
            report = found(LATE, examples)
            words = f"{untaught} had learned nothing when it answered"
            assert any(words in text for text in report.warnings) == warns
            assert (words in comparison_text(report)) == warns

    @pytest.mark.slow
    def test_the_champion_is_who_served_then(self) -> None:
        examples = late(100)
        for example in examples[50:]:  # promoted in between
            log = example["prediction"]
            log["champion"], log["challengers"] = log["challengers"][0], [log["champion"]]
        report = found(LATE, examples, "champion", "linear")
        assert (report.questions, report.same) == (100, 50)
        frame = frame_of(examples)
        served = frame["linear"].where(frame["at"] < 50, frame["slow"])
        assert report.lines[0].a["Accuracy"] == pytest.approx(((served > 0.5) == frame["label"]).mean())
        with pytest.raises(SettingsError, match=r"'linear' was the champion in all 50 questions: A and B are the same"):
            found(LATE, examples[:50], "linear", "champion")

    @pytest.mark.slow
    def test_while_a_version_is_held_its_model_is_compared_as_it_has_learned_by_now(self) -> None:
        examples = late(100)
        for example in examples:
            held = small.score("linear", 0.4, 7)
            example["prediction"] |= {
                "champion": held,
                "challengers": [small.score("linear", 0.9, 50), small.score("slow", 0.3, 50)],
            }
        report = found(LATE, examples, "champion", "linear")
        assert report.versions == {"a": (7, 7), "b": (50, 50)}
        assert (report.questions, report.same) == (100, 0)
        assert found(LATE, examples).versions["a"] == (50, 50)

    def test_those_of_an_earlier_declaration_are_counted(self) -> None:
        examples, broker = late(60), broker_of(LATE, late(60))
        old = replace(LATE, request={"distance": number("distance")}, monitor=Monitor())
        for at in range(60, 70):
            broker.append(
                "small.examples", Records(old).example.encode(question(old, at, True, linear=0.5, slow=0.5)), b"k"
            )
        report = compare(LATE, broker, ComparisonRequest("linear", "slow", end=65))
        assert (report.questions, report.skipped) == (len(examples), 5)
        assert "left out: 5 that are of an earlier declaration" in comparison_text(report)
        with pytest.raises(SettingsError, match=r"no example in these event times; 10 are of an earlier declaration"):
            compare(LATE, broker, ComparisonRequest("linear", "slow", begin=60))

    def test_who_may_not_read_the_log_may_compare_and_is_told_what_is_not_counted(self) -> None:
        class Guarded(MemoryBroker):
            def partitions(self, topic: str) -> int:
                if topic == "small.prediction-log":
                    raise NotAllowed("asking for the partitions of small.prediction-log: TOPIC_AUTHORIZATION_FAILED")
                return super().partitions(topic)

        broker = Guarded({"small.examples": 1})
        for example in late(30):
            broker.append("small.examples", Records(LATE).example.encode(example), b"k")
        report = compare(LATE, broker, ComparisonRequest("linear", "slow"))
        assert (report.questions, report.warnings) == (30, [])
        assert "not counted: predictions that have no label (asking for the part" in comparison_text(report)

    def test_predictions_without_a_label_are_counted_and_warned_of(self) -> None:
        examples, records = late(60), Records(LATE)
        broker = MemoryBroker({topics.EXAMPLES.name("small"): 1, topics.PREDICTION_LOG.name("small"): 2})
        old = replace(LATE, request={"distance": number("distance")}, monitor=Monitor())
        for example in examples:
            broker.append("small.examples", records.example.encode(example), b"k")
        for at in range(100):  # 40 have no label: 20 of this declaration, 10 of another, 10 of other times
            one, codec = (LATE, records) if at < 80 else (old, Records(old))
            log = {**examples[0]["prediction"], "features": small.features(one, f"e{at}", at if at < 90 else 500, at)}
            broker.append("small.prediction-log", codec.prediction_log.encode(log), f"e{at}".encode())
        broker.append("small.prediction-log", b"of somebody else", b"k")
        report = compare(LATE, broker, ComparisonRequest("linear", "slow", end=200))
        assert (report.questions, report.predictions, report.unlabelled) == (60, 90, 30)
        text = comparison_text(report)
        assert text.startswith("WARNING: the figures leave out 33% of the predictions, which got no label within label")
        assert "left out: 30 that have no label, of 90 predictions in the log" in text
        assert report.as_dict()["warnings"] == report.warnings
        with pytest.raises(SettingsError, match="no example in these event times; 10 predictions have no label: label"):
            compare(LATE, broker, ComparisonRequest("linear", "slow", begin=300))
        few = compare(LATE, broker, ComparisonRequest("linear", "slow", end=62))
        assert (few.predictions, few.unlabelled, few.warnings) == (62, 2, [])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            (ComparisonRequest("linear", "linear"), "A and B are both 'linear': name two models, of linear, slow, baseline"),
            (ComparisonRequest("linear", "fast"), "model 'fast' answered no question in these event times; those that did: .*slow 60"),
            (ComparisonRequest("fast", "slow"), "model 'fast' answered no question"),
            (ComparisonRequest("slow", "linear@60"), "'linear@60' names a version: expected a model, .*: champion, linear, slow"),
            (ComparisonRequest("linear", "slow", begin=5, end=5), "--from is not before --to"),
            (ComparisonRequest("linear", "slow", begin=1000), "small.examples has no example in these event times$"),
            (ComparisonRequest("linear", "slow", segments=["distance"]), "--segment 'distance' is no category .* it has carrier, tailnum"),
            (ComparisonRequest("linear", "slow", segments=["color"]), "--segment 'color' is no category"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_compared_is_said(self, asked: ComparisonRequest, words: str) -> None:
        with pytest.raises(SettingsError, match=words):
            compare(LATE, broker_of(LATE, late(60)), asked)

    @pytest.mark.slow
    def test_however_many_values_and_questions_it_stays_small(self) -> None:
        comparison = Comparison(LATE, ComparisonRequest("linear", "slow", segments=("tailnum",)))
        template = late(2)[1]

        def feed(begin: int, end: int) -> int:
            for at in range(begin, end):
                template["prediction"]["features"]["vector"]["tailnum"] = f"N{at}"
                comparison.take(template)
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            first = feed(0, 500)
            assert feed(500, 4000) - first < 50_000
        finally:
            tracemalloc.stop()
        lines = comparison.finish().lines
        assert len(lines) == MAX_VALUES + 2
        assert lines[-1].segment == Segment("tailnum", None, True)
        assert (lines[-1].questions, str(lines[-1].segment)) == (4000 - MAX_VALUES, "tailnum (others)")


@pytest.fixture(scope="module")
def embedded() -> EmbeddedBroker:
    broker, plain = EmbeddedBroker(), Records(PLAIN)
    broker.create([name for _, name, _ in topic_table(PLAIN)])
    producer, rng = KafkaBroker(broker.servers).producer("test"), random.Random(3)
    for at in range(1000):
        label = rng.random() < 0.3
        example = question(PLAIN, at * small.HOUR // 10, label, "logreg", logreg=0.8 if label else 0.2, baseline=0.4,
                           carrier="UA" if at % 2 else "[red]\x1b")  # fmt: skip
        producer.emit("plain.examples", plain.example.encode(example), b"k", partition=0)
    producer.commit({}, None)
    producer.close()
    return broker  # it lives as long as it is held


class TestCommand:
    def run(self, embedded: EmbeddedBroker, *arguments: str) -> str:
        command = ["models", "compare", "plain", "logreg", "baseline", "--brokers", embedded.servers, *arguments]
        return CliRunner().invoke(cli, command, catch_exceptions=False).stdout

    @pytest.mark.slow
    def test_text_and_json_say_the_same(self, embedded: EmbeddedBroker) -> None:
        text = self.run(embedded, "--segment", "carrier")
        for words in (
            "1,000 questions that both answered",
            "carrier UA",
            "A better",
            "however often you look",
            r"carrier [red]\x1b",
        ):
            assert words in text
        assert "\x1b" not in text
        report = json.loads(
            self.run(embedded, "--segment", "carrier", "--json", "--from", "1970-01-01T10:00Z", "--to", "1970-01-03")
        )
        assert report["questions"] == 380
        assert [line["verdict"] for line in report["lines"]] == [
            "A better",
            "no difference shown",
            "no difference shown",
        ]
        assert set(report["lines"][0]) == {"field", "value", "others", "questions", "a", "b", "difference", "verdict"}
        assert set(report["lines"][0]["difference"]) == {"mean", "low", "high"}
        assert report["lines"][1]["difference"] is None, "190 questions are too few"

    @pytest.mark.slow
    def test_declared_segments_are_the_default(self, embedded: EmbeddedBroker) -> None:
        lines = json.loads(self.run(embedded, "--json"))["lines"]
        assert {line["field"] for line in lines} == {"", *PLAIN.monitor.segments}

    @pytest.mark.slow
    def test_a_wrong_time_is_named(self, embedded: EmbeddedBroker) -> None:
        with pytest.raises(SettingsError, match="--from 'yesterday' is no time"):
            self.run(embedded, "--from", "yesterday")


@pytest.mark.slow
def test_a_report_is_json() -> None:
    report = found(LATE, late(100))
    assert json.loads(json.dumps(report.as_dict()))["lines"][0]["questions"] == 100
