"""Candidates are asked and taught as production would have, the better ones win, and the winners are challengers."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import small
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from monitored import logs_of
from river import compose, evaluate, linear_model, metrics, optim, preprocessing
from river_in_memory import River, drive, flights
from test_deployment import accepts

from tidemill import Pipeline, Search, load, ranges, tuned
from tidemill.cli.main import cli
from tidemill.cli.text.tuning import tuning_text
from tidemill.declare.search import name_of
from tidemill.demo import data
from tidemill.errors import DeclarationError, SettingsError
from tidemill.files import Files
from tidemill.offline.backtest import Backtest
from tidemill.offline.history import write
from tidemill.offline.model_trial import check_models
from tidemill.offline.source import ArchiveSource, KafkaSource
from tidemill.offline.tuning.questions import LabelledVector, Questions, from_rows, read
from tidemill.offline.tuning.successive_halving import (
    BRACKET_CANDIDATES,
    PrequentialRun,
    SearchOptions,
    SuccessiveHalving,
    TuningReport,
    file_of,
)
from tidemill.stages.learner import service as learner
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.memory import MemoryBroker
from tidemill.watch.archiver.service import Archiver
from tidemill.wire import topics

ROOT = Path(__file__).parents[3]
HOUR = small.HOUR
FLIGHTS, PLAIN, DELAYS = load("flights"), load("plain"), load("delays")


def linear(rate: float, l2: float = 0.0) -> Any:
    numbers = compose.SelectType(float) | preprocessing.StandardScaler()
    return numbers | linear_model.LinearRegression(optim.SGD(rate), l2=l2)


SEARCH = {"linear": Search(linear, {"rate": ranges.log_uniform(1e-5, 0.01), "l2": ranges.choice(0.0, 1e-4)})}
POOR = replace(DELAYS, models={"linear": linear(1e-5)}, search=SEARCH)
"""The demo's regression with a rate at which it hardly learns, and better ones to be found."""


@cache
def rows(question: data.Question) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    found = flights(question, days=2)
    return [f.event for f in found], data.labels(found)


@cache
def questions(question: data.Question = "departure") -> Questions:
    return from_rows(POOR if question == "departure" else FLIGHTS, *rows(question))


@cache
def raced(seed: int = 0, trials: int = 12) -> TuningReport:
    return SuccessiveHalving(POOR, questions(), SearchOptions(trials, math.inf, 3, seed, "MAE")).run()


def answers(pipeline: Pipeline, found: Questions, model: str) -> dict[str, float]:
    runner = PrequentialRun(pipeline, found, pipeline.model(model))
    runner.run(len(found))
    return runner.values


class TestQuestions:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("pipeline", "question"), [(FLIGHTS, "scheduled"), (PLAIN, "scheduled"), (DELAYS, "departure")]
    )
    @pytest.mark.parametrize("delay", [0, 2 * HOUR])
    def test_a_declared_model_does_as_in_a_backtest_to_the_last_digit(self, pipeline, question, delay: int) -> None:
        report = Backtest(pipeline, model_delay_ms=delay).run(*rows(question))
        found = from_rows(pipeline, *rows(question), delay=delay)
        assert len(found) == report.joined > 1000
        for name in pipeline.model_names:
            assert answers(pipeline, found, name) == report.metrics[name]

    @pytest.mark.slow
    def test_to_ask_right_before_learning_would_flatter(self) -> None:
        """What successive halving by River's own classifier would see is what its evaluation sees without a delay."""
        found = questions("scheduled")
        pairs = [(found.x(index), example.label) for index, example in enumerate(found.examples)]
        metric = metrics.ROCAUC()
        evaluate.progressive_val_score(pairs, FLIGHTS.model("logreg"), metric)
        assert metric.get() > answers(FLIGHTS, found, "logreg")["ROCAUC"] + 0.01

    @pytest.mark.slow
    def test_from_kafka_and_from_an_archive_they_are_the_same(self, tmp_path: Path) -> None:
        records = logs_of(FLIGHTS, flights("scheduled", days=2))
        examples = [record for record in records if record.topic() == topics.EXAMPLES.name("flights")]
        broker = MemoryBroker({examples[0].topic(): 1})
        for record in examples:
            broker.append(record.topic(), record.value(), record.key(), record.timestamp()[1])
        step = Archiver(FLIGHTS, Files(str(tmp_path), "archive_url", "archive"), every_seconds=0.0, chunk=500)
        for topic in topics.consumes("archiver"):
            step.assign(TopicPartition(topic.name("flights"), 0), Position(0))
        step.process(records, discard)
        step.finish(discard)
        for most in (10**6, 700):
            expected = from_rows(FLIGHTS, *rows("scheduled"), most)
            for found in (read(FLIGHTS, KafkaSource(broker), most), read(FLIGHTS, ArchiveSource(str(tmp_path)), most)):
                assert found.examples == expected.examples
                assert found.steps == expected.steps
        assert len(expected) == 700
        assert expected.examples == questions("scheduled").examples[-700:]

    def test_examples_of_an_earlier_declaration_are_passed_over(self) -> None:
        examples = small.example_records(small.make(), 5)
        broker = MemoryBroker({"small.examples": 1})
        for record in examples:
            broker.append(record.topic(), record.value(), record.key(), 0)
        changed = small.make(request={"distance": "distance"})
        found = read(changed, KafkaSource(broker))
        assert (len(found), found.skipped) == (0, 5)
        with pytest.raises(SettingsError, match="no example of 'small' to tune on; 5 are of an earlier declaration"):
            SuccessiveHalving(replace(changed, search=searching(linear)), found, SearchOptions(1, math.inf, 1, 0))

    @pytest.mark.slow
    @given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=30), st.integers(0, 5))
    def test_each_is_asked_with_what_was_known_and_then_learned_in_order(self, times, delay: int) -> None:
        examples = [LabelledVector(at, (0, i), known, (), 0.0) for i, (at, known) in enumerate(times)]
        found = Questions(replace(DELAYS), examples, delay=delay)
        assert [~step for step in found.steps if step < 0] == list(range(len(examples)))
        asked = [step for step in found.steps if step >= 0]
        assert asked == sorted(range(len(examples)), key=lambda i: (times[i][0], i))
        for number in range(len(examples) + 1):
            assert sum(step < 0 for step in found.steps[: found.until[number]]) == number
        for index in asked:
            before = found.steps[: found.steps.index(index)]
            learned = [~step for step in before if step < 0]
            now = times[index][0]
            # All that was known by then, up to the first that was not: a model is a fold over examples in one order.
            known = 0
            for at, label in times:
                if max(at, label) + delay > now or known not in before:
                    break
                known += 1
            assert learned == list(range(known))


def searching(make: Callable[..., Any], **over: Any) -> dict[str, Search]:
    return {"one": Search(make, over or {"rate": ranges.log_uniform(1e-5, 0.01)})}


@pytest.mark.slow
class TestSearch:
    def test_a_better_candidate_wins_by_what_a_backtest_finds_as_well(self) -> None:
        report = raced()
        assert report.winners
        best = report.winners[0]
        assert best.parameters["rate"] > 10 * 1e-5
        declared = replace(POOR, models={**POOR.models, best.name: linear(**best.parameters)}, search={})
        found = Backtest(declared).run(*rows("departure")).metrics
        assert found[best.name] == best.metrics
        assert found["linear"] == report.champion.metrics
        assert found[best.name]["MAE"] < 0.8 * found["linear"]["MAE"]

    def test_winners_are_the_best_of_those_that_saw_all_and_beat_the_champion(self) -> None:
        report = raced()
        whole = [one for one in report.candidates if one.is_complete]
        better = [one for one in whole if one.metrics["MAE"] < report.champion.metrics["MAE"]]
        assert report.winners == sorted(better, key=lambda one: one.metrics["MAE"])[:3]
        assert all(one.examples == len(questions()) for one in whole)
        out = [one for one in report.candidates if one.ended == "out"]
        assert len(whole) + len(out) == len(report.candidates) == 12
        assert 0 < max(one.examples for one in out) < len(questions())
        total = SuccessiveHalving.total_examples(len(questions()), 12, 3)
        assert sum(one.examples for one in report.candidates) + len(questions()) == total

    def test_those_that_go_on_were_better_on_the_same_examples(self) -> None:
        at: dict[str, dict[int, float]] = {}
        report = raced()
        for one in report.candidates:
            runner = PrequentialRun(POOR, questions(), linear(**one.parameters))
            for rung in SuccessiveHalving.rungs(len(questions())):
                if rung <= one.examples:
                    runner.run(rung)
                    at.setdefault(one.name, {})[rung] = runner.values["MAE"]
        for rung in SuccessiveHalving.rungs(len(questions()))[:-1]:
            there = [one for one in report.candidates if one.examples >= rung]
            worst = max(at[one.name][rung] for one in there if one.examples > rung)
            assert all(at[one.name][rung] >= worst for one in there if one.examples == rung)

    def test_the_same_seed_is_the_same_search_and_another_is_another(self) -> None:
        again = SuccessiveHalving(POOR, questions(), SearchOptions(12, math.inf, 3, 0, "MAE")).run()
        told = [(one.name, one.parameters, one.metrics, one.examples, one.ended) for one in raced().candidates]
        assert [(one.name, one.parameters, one.metrics, one.examples, one.ended) for one in again.candidates] == told
        assert {one.name for one in raced(1).candidates}.isdisjoint(one.name for one in again.candidates)

    def test_more_trials_begin_with_the_same_candidates(self) -> None:
        more = {one.name for one in raced(0, 20).candidates}
        assert {one.name for one in raced().candidates[:BRACKET_CANDIDATES]} - more == set()
        assert len(more) == 20

    def test_later_brackets_are_mostly_near_the_best_of_those_before(self) -> None:
        search = SuccessiveHalving(POOR, questions(), SearchOptions(10 * BRACKET_CANDIDATES, math.inf, 3, 0, "MAE"))
        brackets = search._brackets()
        first = [one for one, _ in next(brackets)]
        search.report.candidates = first
        for one in first[1:]:
            one.ended = "out"
        first[0].metrics = {"MAE": 1.0}
        then = [one for bracket in itertools.islice(brackets, 5) for one, _ in bracket]
        best = first[0].parameters
        near = [
            one
            for one in then
            if one.parameters["l2"] == best["l2"] and 0.1 < one.parameters["rate"] / best["rate"] < 10
        ]
        assert 0.4 < len(near) / len(then) < 0.9
        assert len({one.name for one in [*first, *then]}) == 6 * BRACKET_CANDIDATES

    def test_more_is_better_where_the_metric_says_so(self) -> None:
        by_r2 = SuccessiveHalving(POOR, questions(), SearchOptions(6, math.inf, 1, 0, "R2")).run()
        assert by_r2.winners[0].metrics["R2"] == max(o.metrics["R2"] for o in by_r2.candidates if o.is_complete)
        assert by_r2.winners[0].metrics["R2"] > by_r2.champion.metrics["R2"]

    def test_none_wins_that_is_not_better_than_the_champion(self) -> None:
        worse = replace(DELAYS, search=searching(linear, rate=ranges.log_uniform(1e-8, 1e-7)))
        report = SuccessiveHalving(worse, questions(), SearchOptions(4, math.inf, 3, 0, "MAE")).run()
        assert report.winners == []
        assert "none was better than the champion, linear" in tuning_text(report)

    def test_what_is_searched_in_several_ways_has_its_share_in_each(self) -> None:
        two = {"plain": SEARCH["linear"], "other": Search(linear, {"rate": ranges.choice(1e-3, 1e-4)})}
        report = SuccessiveHalving(
            replace(POOR, search=two), questions(), SearchOptions(10, math.inf, 1, 0, "MAE")
        ).run()
        of = [one.search for one in report.candidates]
        assert (of.count("plain"), of.count("other")) == (8, 2), (
            "one has two candidates in all, the rest are of the other"
        )

    def test_a_space_without_more_candidates_ends_the_search(self) -> None:
        few = replace(POOR, search=searching(linear, rate=ranges.choice(1e-3, 1e-4, 1e-5)))
        report = SuccessiveHalving(few, questions(), SearchOptions(50, math.inf, 1, 0, "MAE")).run()
        assert len(report.candidates) == 3

    def test_one_that_fails_is_out_and_the_others_go_on(self) -> None:
        def sometimes(rate: float, way: str) -> Any:
            if way == "unmade":
                raise ValueError("no such thing")
            return linear(rate) if way == "fine" else Failing(way)

        over = {"rate": ranges.log_uniform(1e-4, 1e-3), "way": ranges.choice("fine", "unmade", "raises", "nan")}
        search = SuccessiveHalving(replace(POOR, search=SEARCH), questions(), SearchOptions(30, math.inf, 3, 3, "MAE"))
        object.__setattr__(search.pipeline, "search", searching(sometimes, **over))  # the check would have found it
        report = search.run()
        ends = {one.parameters["way"]: one.ended for one in report.candidates}
        assert ends["unmade"] == "ValueError: no such thing"
        assert ends["raises"] == "ZeroDivisionError: learn_one"
        assert ends["nan"] == "ValueError: a score was nan"
        assert {one.parameters["way"] for one in report.winners} == {"fine"}
        assert "failed: ValueError: no such thing" in tuning_text(report)

    def test_a_champion_that_fails_is_named(self) -> None:
        broken = replace(POOR, models={"linear": Failing("raises")})
        with pytest.raises(SettingsError, match="champion 'linear' can't be compared with: ZeroDivisionError"):
            SuccessiveHalving(broken, questions(), SearchOptions(1, math.inf, 1, 0)).run()

    def test_when_the_time_is_up_what_saw_all_counts(self) -> None:
        ticks: list[float] = [0.0]

        def clock() -> float:
            ticks[0] += 1
            return ticks[0]

        whole = SuccessiveHalving(
            POOR, questions(), SearchOptions(2 * BRACKET_CANDIDATES, math.inf, 3, 0, "MAE"), clock=clock
        ).run()
        needed = ticks[0]
        ticks[0] = 0.0
        report = SuccessiveHalving(
            POOR, questions(), SearchOptions(2 * BRACKET_CANDIDATES, 0.9 * needed, 3, 0, "MAE"), clock=clock
        ).run()
        assert report.stopped
        assert not whole.stopped
        first = {
            one.name
            for one, _ in next(
                SuccessiveHalving(POOR, questions(), SearchOptions(BRACKET_CANDIDATES, 1, 3, 0))._brackets()
            )
        }
        known = {one.name: one for one in whole.candidates}
        done = [one for one in report.candidates if one.is_complete]
        assert {one.name for one in done} >= {
            one.name for one in whole.candidates if one.is_complete and one.name in first
        }
        assert all(one.metrics == known[one.name].metrics for one in done)
        assert {one.ended for one in report.candidates} == {"", "out", "time"}
        better = [one for one in done if one.metrics["MAE"] < report.champion.metrics["MAE"]]
        assert report.winners == sorted(better, key=lambda one: one.metrics["MAE"])[:3]
        assert "the time was up before all trials were done" in tuning_text(report)

    def test_without_time_for_the_champion_nothing_wins(self) -> None:
        ticks: Iterator[float] = iter(range(10**9))
        report = SuccessiveHalving(POOR, questions(), SearchOptions(5, 3, 3, 0), clock=lambda: next(ticks)).run()
        assert (report.winners, report.stopped, report.candidates) == ([], True, [])
        assert "before the champion itself had seen all" in tuning_text(report)

    @pytest.mark.parametrize(
        ("pipeline", "metric", "words"),
        [
            (DELAYS, "", "'delays' declares nothing to search"),
            (POOR, "ROCAUC", "--metric 'ROCAUC' is none of the pipeline's: it has MAE, RMSE, R2"),
        ],
    )
    def test_what_can_not_be_asked_is_named(self, pipeline: Pipeline, metric: str, words: str) -> None:
        with pytest.raises(SettingsError, match=words):
            SuccessiveHalving(pipeline, questions(), SearchOptions(1, math.inf, 1, 0, metric))


class Failing:
    """A model whose own code fails after a while."""

    def __init__(self, way: str) -> None:
        self.way, self.learned = way, 0

    def learn_one(self, x: Any, y: Any) -> None:
        self.learned += 1
        if self.way == "raises" and self.learned > 5:
            raise ZeroDivisionError("learn_one")

    def predict_one(self, x: Any) -> float:
        return math.nan if self.way == "nan" and self.learned > 5 else 0.0


class TestDeclaration:
    @pytest.mark.parametrize(
        ("search", "words"),
        [
            ([], ["search", "mapping"]),
            ({"One": SEARCH["linear"]}, ["search", "'One' is no name"]),
            ({"one": linear}, ["search['one']", "Search(function"]),
            ({"one": Search(linear, {"rate": (1, 2)})}, ["search['one'].over['rate']", "ranges.uniform(0, 1)"]),  # type: ignore[dict-item]
            (searching(linear, speed=ranges.uniform(0, 1)), ["search['one']", "TypeError", "speed"]),
            (searching(lambda rate: preprocessing.StandardScaler()), ["search['one']", "no predict_one"]),
        ],
        ids=lambda value: None if isinstance(value, list) else "",
    )  # fmt: skip
    def test_what_is_wrong_is_named(self, search: Any, words: list[str]) -> None:
        with pytest.raises(DeclarationError) as caught:
            small.make(search=search)
        for word in words:
            assert word in str(caught.value)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: ranges.choice(), "nothing"),
            (lambda: ranges.choice(optim.SGD(0.1)), "SGD"),  # type: ignore[arg-type]
            (lambda: ranges.choice(math.nan), "nan"),
            (lambda: ranges.uniform(1, 1), "no number is between"),
            (lambda: ranges.uniform(0, math.inf), "finite"),
            (lambda: ranges.uniform("0", 1), "finite"),  # type: ignore[arg-type]
            (lambda: ranges.log_uniform(0, 1), "above 0"),
            (lambda: ranges.whole(0.5, 2), "whole numbers"),  # type: ignore[arg-type]
        ],
    )
    def test_a_range_that_is_none_is_named(self, make: Callable[[], Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            make()

    def test_what_is_drawn_is_in_the_range_and_all_over_it(self) -> None:
        rng = random.Random(1)
        rates = sorted(ranges.log_uniform(1e-4, 1.0).draw(rng) for _ in range(1000))
        assert 1e-4 <= rates[0] < 2e-4
        assert 0.5 < rates[-1] <= 1
        assert 0.005 < rates[500] < 0.02, "the middle of four orders of magnitude is 0.01"
        assert {ranges.whole(3, 5).draw(rng) for _ in range(100)} == {3, 4, 5}
        assert {ranges.choice("a", None, True).draw(rng) for _ in range(100)} == {"a", None, True}
        numbers = [ranges.uniform(-1, 1).draw(rng) for _ in range(1000)]
        assert -1 <= min(numbers) < -0.9 < 0.9 < max(numbers) <= 1

    def test_what_is_searched_changes_no_version(self) -> None:
        assert POOR.declaration_hash("linear") == replace(POOR, search={}).declaration_hash("linear")


DECLARATION = """
from dataclasses import replace
from typing import Any

from river import compose, linear_model, optim, preprocessing

from tidemill import Search, load, ranges, tuned

_DELAYS = load("delays")


def linear(rate: float, l2: float = 0.0) -> Any:
    numbers = compose.SelectType(float) | preprocessing.StandardScaler()
    return numbers | linear_model.LinearRegression(optim.SGD(rate), l2=l2)


SEARCH = {"linear": Search(linear, {"rate": ranges.log_uniform(1e-5, 0.01), "l2": ranges.choice(0.0, 1e-4)})}
delays = replace(_DELAYS, models={"linear": linear(1e-5), **WINNERS}, search=SEARCH)
"""


def declared(folder: Path, winners: str = 'tuned("winners.json", SEARCH)', text: str = DECLARATION) -> Path:
    path = folder / "delays.py"
    path.write_text(text.replace("**WINNERS", f"**{winners}"))
    return path


@pytest.fixture
def won(tmp_path: Path) -> Path:
    (tmp_path / "winners.json").write_text(json.dumps(file_of(raced())))
    return tmp_path


@pytest.mark.slow
class TestWinners:
    @pytest.mark.slow
    def test_they_are_challengers_by_one_line_of_the_declaration(self, won: Path) -> None:
        pipeline = load(str(declared(won)))
        check_models(pipeline)
        names = [one.name for one in raced().winners]
        assert pipeline.model_names == ("linear", *names, "baseline")
        for one in raced().winners:
            assert one.name == name_of("linear", one.parameters, pipeline.model(one.name))
            assert answers(pipeline, questions(), one.name) == one.metrics

    @pytest.mark.slow
    def test_a_learner_folds_a_winner_over_history_and_it_shadows(self, won: Path, tmp_path: Path) -> None:
        """The champion was alone at first; with the new declaration, a learner of the winner begins at the first example."""
        before = River(load(str(declared(won, "{}"))), tmp_path / "artifacts")
        events, labels = rows("departure")
        for event in events[:300]:
            before.event(event)
        before.run()
        for label in labels[:200]:
            before.label(label)
        before.run()
        after = River(load(str(declared(won))), tmp_path / "artifacts")
        after.broker, after._now = before.broker, before._now
        examples = len(after.of(topics.EXAMPLES))
        assert examples > 100
        name = raced().winners[0].name
        assert after.registry
        made = learner.build(
            after.pipeline, name, after.registry, after.broker, every_examples=10**6, every_seconds=1e-9
        )
        fold = drive(made, after.broker).processor.fold  # type: ignore[attr-defined]
        assert (fold.version, fold.examples) == (examples, examples)
        for event in events[300:400]:
            after.event(event)
        after.run()
        shadows = [
            score
            for log in after.decoded(topics.PREDICTION_LOG)[-50:]
            for score in log["challengers"]
            if score["model"] == name
        ]
        assert {score["version"] for score in shadows} == {examples}
        assert len({score["score"] for score in shadows}) > 20
        assert {log["champion"]["model"] for log in after.decoded(topics.PREDICTION_LOG)} == {"linear"}

    @pytest.mark.slow
    def test_its_name_is_the_same_in_every_process_and_another_for_another_model(self) -> None:
        one = raced().winners[0]
        code = (
            "import test_tuning as t; from tidemill.declare.search import name_of; "
            f"print(name_of('linear', {dict(one.parameters)!r}, t.linear(**{dict(one.parameters)!r})))"
        )
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
            )
            assert done.stdout.strip() == one.name
        assert name_of("linear", {"rate": 0.1}, linear(0.1)) != name_of("linear", {"rate": 0.1}, linear(0.2))
        assert name_of("linear", {"a": 1, "b": 2}, linear(0.1)) == name_of("linear", {"b": 2, "a": 1}, linear(0.1))
        assert name_of("linear", {"a": 1}, linear(0.1)) != name_of("other", {"a": 1}, linear(0.1))

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda f: (f / "winners.json").unlink(), ["no such file in", "tidemill tune --out"]),
            (lambda f: (f / "winners.json").write_text("{"), ["no file of `tidemill tune --out`"]),
            (lambda f: (f / "winners.json").write_text('{"winners": [{"name": "x"}]}'), ["no file", "KeyError"]),
            (lambda f: (f / "winners.json").write_text("[]"), ["no file", "TypeError"]),
        ],
    )  # fmt: skip
    def test_a_file_that_is_none_is_named(self, won: Path, spoil: Callable[[Path], Any], words: list[str]) -> None:
        spoil(won)
        with pytest.raises(DeclarationError) as caught:
            load(str(declared(won)))
        for word in ["winners.json", *words]:
            assert word in str(caught.value)

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("optim.SGD(rate)", "optim.Adam(rate)", "would be another model now"),
            ("def linear(rate: float, l2", "def linear(rate: float, l1", "can't be made any more"),
            ('SEARCH = {"linear":', 'SEARCH = {"other":', "search 'linear', which is not declared: there are other"),
        ],
    )
    def test_what_is_made_in_another_way_now_is_not_taken_for_the_winner(
        self, won: Path, old: str, new: str, words: str
    ) -> None:
        text = DECLARATION.replace(old, new).replace("l2=l2", "l2=l1" if "l1" in new else "l2=l2")
        text = text.replace('"l2": ranges', '"l1": ranges') if "l1" in new else text
        with pytest.raises(DeclarationError, match=words):
            load(str(declared(won, text=text)))

    def test_a_file_may_lie_in_the_working_directory(self, won: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(won)
        assert list(tuned("winners.json", SEARCH)) == [one.name for one in raced().winners]


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path: Path) -> list[str]:
        for name, found in zip(("events", "labels"), rows("departure"), strict=True):
            write(tmp_path / f"{name}.csv", found)
        return ["--events", str(tmp_path / "events.csv"), "--labels", str(tmp_path / "labels.csv"), "--metric", "MAE"]

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(cli, ["tune", *arguments], catch_exceptions=False)

    @pytest.mark.slow
    def test_it_writes_what_the_declaration_takes(self, files: list[str], tmp_path: Path) -> None:
        out = tmp_path / "winners.json"
        command = [str(declared(tmp_path, "{}")), *files, "--trials", "12", "--out", str(out)]
        done = self.run(*command)
        assert done.exit_code == 0
        names = [one.name for one in raced().winners]
        for word in [*names, "12 candidates (--seed 0)", f"won: {', '.join(names)}", 'tuned("winners.json", SEARCH)']:
            assert word in done.stdout
        assert [w["name"] for w in json.loads(out.read_text())["winners"]] == names
        assert load(str(declared(tmp_path))).model_names == ("linear", *names, "baseline")
        with pytest.raises(SettingsError, match="--force overwrites it"):
            self.run(*command)
        said = json.loads(self.run(*command, "--force", "--json").stdout)
        assert [one["name"] for one in said["winners"]] == names
        assert len(said["candidates"]) == 12

    @pytest.mark.slow
    def test_by_default_the_examples_are_those_in_kafka(self, tmp_path: Path) -> None:
        declaration = declared(tmp_path, "{}")
        name = topics.EXAMPLES.name("delays")
        examples = [r for r in logs_of(load(str(declaration)), flights("departure", days=1)) if r.topic() == name]
        broker = EmbeddedBroker()
        broker.create([topic.name("delays") for topic in topics.TOPICS])
        producer = KafkaBroker(broker.servers, exactly_once=False).producer("test")
        for record in examples:
            producer.emit(name, record.value() or b"", record.key(), record.timestamp()[1], None, 0)
        producer.commit({}, None)
        producer.close()
        done = self.run(str(declaration), "--brokers", broker.servers, "--trials", "4", "--json")
        said = json.loads(done.stdout)
        assert said["examples"] == len(examples) > 500
        assert (
            said["champion"]["metrics"]
            == Backtest(POOR)
            .run([f.event for f in flights("departure", days=1)], data.labels(flights("departure", days=1)))
            .metrics["linear"]
        )

    @pytest.mark.slow
    def test_nothing_is_written_where_nothing_wins(self, files: list[str], tmp_path: Path) -> None:
        text = DECLARATION.replace("ranges.log_uniform(1e-5, 0.01)", "ranges.log_uniform(1e-9, 1e-8)")
        done = self.run(str(declared(tmp_path, "{}", text)), *files, "--trials", "2", "--out", str(tmp_path / "w.json"))
        assert done.exit_code == 1
        assert "w.json: not written" in done.stdout
        assert not (tmp_path / "w.json").exists()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--events", "a.csv"], "name both, or neither"),
            (["--archive", "x", "--events", "a.csv", "--labels", "b.csv"], "name the one, or the two"),
            (["--model-delay", "soon"], "--model-delay: 'soon'"),
            (["--out", "winners.txt"], r"expected \.json"),
            (["--out", "no/such/winners.json"], "folder no/such does not exist"),
            ([], "'delays' declares nothing to search"),
        ],
    )
    def test_a_mistake_is_named(self, arguments: list[str], words: str) -> None:
        with pytest.raises(SettingsError, match=words):
            self.run("delays", *arguments)


TEXTS = {name: (ROOT / "docs" / "how-to" / f"{name}.md").read_text() for name in ("tuning", "tasks")}


class TestDocs:
    @pytest.mark.parametrize("name", TEXTS)
    def test_commands_parse_and_links_lead_to_files(self, name: str) -> None:
        lines = [
            line for _, block in re.findall(r"```(\w*)\n(.*?)```", TEXTS[name], re.S) for line in block.splitlines()
        ]
        commands = [line.partition("  #")[0].strip() for line in lines if line.startswith("tidemill ")]
        assert len(commands) >= 2
        for command in commands:
            accepts(shlex.split(command)[1:])
        for link in re.findall(r"\]\(((?!http)[^)#]+)\)", TEXTS[name]):
            # `make docs` makes the pages of the reference, and checks the links to them.
            assert "reference/" in link or (ROOT / "docs" / "how-to" / link).exists()

    def test_what_is_declared_there_is_what_the_demo_searches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "winners.json").write_text('{"winners": []}')
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        for block in re.findall(r"```python\n(.*?)```", TEXTS["tuning"], re.S):
            exec(block, names)
        assert list(names["models"]) == ["logreg"]
        told = {
            name: {of: values.description for of, values in one.over.items()} for name, one in names["SEARCH"].items()
        }
        assert told == {
            name: {of: values.description for of, values in one.over.items()} for name, one in FLIGHTS.search.items()
        }
        small.make(task="binary", labels=replace(small.LABELS, value=lambda label: label["arr_delay"] > 0),
                   models=names["models"], champion="logreg", search=names["SEARCH"])  # fmt: skip

    @pytest.mark.parametrize(
        ("option", "default"), [("trials", 40), ("seconds", 600.0), ("best", 3), ("examples", 200_000)]
    )
    def test_defaults_are_those_of_the_docs(self, option: str, default: float) -> None:
        found = next(p for p in cli.get_command(None, "tune").params if p.name == option)
        assert found.default == default
        assert f"{default:,.0f}" in TEXTS["tuning"]
