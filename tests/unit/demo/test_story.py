"""What the demo shows: its models learn, and the gate promotes the better one by its evidence; it waits where the pipeline is slow."""

from __future__ import annotations

from collections import Counter

import pytest

from tidemill import load
from tidemill.demo import data
from tidemill.demo.observer import Observer
from tidemill.demo.show import PIPELINE
from tidemill.offline.backtest import Backtest


@pytest.mark.slow
def test_in_two_days_the_gate_promotes_the_challenger_and_it_is_better_than_doing_nothing() -> None:
    flights = data.flights((1,), "departure", 2)
    report = Backtest(load(PIPELINE), model_delay_ms=3_600_000).run([f.event for f in flights], data.labels(flights))
    promoted = report.decisions[0]
    assert (promoted.kind, str(promoted.champion)) == ("promoted", "departed")
    champion, baseline = report.metrics["departed"], report.metrics["baseline"]
    assert champion["Accuracy"] > baseline["Accuracy"] + 0.05
    assert champion["ROCAUC"] > baseline["ROCAUC"] + 0.1
    assert champion["LogLoss"] < baseline["LogLoss"] - 0.1


def test_what_was_sent_waits_until_it_is_predicted_refused_or_with_the_joiner() -> None:
    observer = object.__new__(Observer)
    observer.counts = Counter({"events.valid": 60, "labels.valid": 30, "dlq": 2, "features": 55, "predictions": 50})
    assert observer.waiting(100) == 8 + 10  # the validator has 8 more to read; 10 valid events have no answer yet
    assert observer.waiting(92) == 10


def test_an_example_is_unlearned_until_every_model_has_a_version_with_it() -> None:
    observer = object.__new__(Observer)
    observer.pipeline, observer.counts = load(PIPELINE), Counter({"examples": 40})
    observer.latest = {"scheduled": {"examples": 30}, "departed": {"examples": 20}}
    assert observer.unlearned == 40
    observer.latest["baseline"] = {"examples": 35}
    assert observer.unlearned == 20
