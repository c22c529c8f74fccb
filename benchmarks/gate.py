"""What the gate does on flights, and how often it is wrong where there is nothing to find.

    python -m benchmarks.gate                  three scenarios over two months, and 200 simulated streams
    python -m benchmarks.gate --only equal     the streams alone

A scenario is a backtest with the gate in it. Its challengers are made for the purpose: one that is really better, one that
is better but for one carrier, and one that is better until it was promoted and then learns every label the wrong way round.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from river import base, compose, linear_model, optim, preprocessing

from tidemill import Gate, Pipeline, load
from tidemill.demo import data
from tidemill.models.evidence import Differences, Terms, round_rate
from tidemill.offline.backtest import Backtest, BacktestReport
from tidemill.stages.gate.service import LOOK_EVERY_EXAMPLES


def classifier(rate: float) -> compose.Pipeline:
    """Return a logistic regression over scaled numbers and one-hot categories."""
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder()
    numbers = compose.SelectType(float) | preprocessing.StandardScaler()
    return (categories + numbers) | linear_model.LogisticRegression(optim.SGD(rate))


class WorseIn(base.Classifier):
    """A model that is as good as another, and turned round in one carrier."""

    def __init__(self, carrier: str, rate: float) -> None:
        self.carrier, self.rate = carrier, rate
        self.model = classifier(rate)

    def learn_one(self, x: Mapping[str, Any], y: bool) -> None:
        self.model.learn_one(x, y)

    def predict_proba_one(self, x: Mapping[str, Any]) -> dict[bool, float]:
        found: dict[bool, float] = self.model.predict_proba_one(x)
        return {True: found[False], False: found[True]} if x.get("carrier") == self.carrier else found


class Turncoat(base.Classifier):
    """A model that learns as another does, until it has learned so many; from then on it answers the opposite."""

    def __init__(self, after: int, rate: float) -> None:
        self.after, self.rate = after, rate
        self.model, self.learned = classifier(rate), 0

    def learn_one(self, x: Mapping[str, Any], y: bool) -> None:
        self.learned += 1
        self.model.learn_one(x, y)

    def predict_proba_one(self, x: Mapping[str, Any]) -> dict[bool, float]:
        found: dict[bool, float] = self.model.predict_proba_one(x)
        return {True: found[False], False: found[True]} if self.learned > self.after else found


def with_challenger(challenger: Any, gate: Gate, champion: Any = None) -> Pipeline:
    """Return the plain pipeline with a champion that learns too fast, and a challenger."""
    models = {"fast": classifier(0.1) if champion is None else champion, "new": challenger}
    return dataclasses.replace(load("plain"), name="gated", models=models, champion="fast", gate=gate)


GATE = Gate(segments=["carrier"], worse=0.1)
SCENARIOS: Mapping[str, Callable[[], Pipeline]] = {
    "better": lambda: with_challenger(classifier(0.003), GATE),
    "worse in one carrier": lambda: with_challenger(WorseIn("AA", 0.003), GATE),
    "turncoat": lambda: with_challenger(Turncoat(5_500, 0.003), GATE),
    "sabotaged": lambda: with_challenger(classifier(0.3), GATE, Turncoat(32_000, 0.003)),
}


def scenario(pipeline: Pipeline, flights: Sequence[data.Flight]) -> BacktestReport:
    """Return the report of a backtest over these flights."""
    return Backtest(pipeline).run([flight.event for flight in flights], data.labels(list(flights)))


def streams(count: int, seed: int) -> Mapping[str, Callable[[], np.ndarray[Any, Any]]]:
    """Return makers of differences between two models that are equal: independent, skewed, and alike for a while."""
    rng = np.random.default_rng(seed)

    def alike(phi: float) -> np.ndarray[Any, Any]:
        noise, found = rng.standard_normal(count), np.empty(count)
        found[0] = noise[0] / np.sqrt(1 - phi * phi)
        for i in range(1, count):
            found[i] = phi * found[i - 1] + noise[i]
        return found

    return {
        "independent": lambda: rng.standard_normal(count),
        "skewed": lambda: rng.exponential(1.0, count) ** 2 * rng.choice([-1, 1], count),
        "alike over 10": lambda: alike(0.9),
        "alike over 50": lambda: alike(0.98),
    }


def decided(differences: np.ndarray[Any, Any], gate: Gate) -> int:
    """Return 1 where the challenger would have been promoted at some look, -1 where it was called worse, else 0."""
    found = Differences()
    for number, difference in enumerate(differences.tolist(), 1):
        found.add(difference)
        if number % LOOK_EVERY_EXAMPLES == 0:
            interval = found.interval(Terms(round_rate(gate.rate, 1, 1), gate.examples))
            if interval and interval.low > gate.margin:
                return 1
            if interval and interval.high < 0:
                return -1
    return 0


def main(arguments: Sequence[str] = sys.argv[1:]) -> None:
    """Print what was decided when, and how often wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["flights", "equal"])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--count", type=int, default=20_000, help="differences of a stream")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    if chosen.only != "equal":
        flights = data.flights((1, 2))
        for name, pipeline in SCENARIOS.items():
            started = time.perf_counter()
            report = scenario(pipeline(), flights)
            print(f"\n{name}: {report.joined:,} examples, {time.perf_counter() - started:.0f} s")
            first = report.first_event
            for one in report.decisions:
                days = (one.event_time - first) / 86_400_000
                print(f"  {one.kind} after {one.examples:,} examples, day {days:.1f}: {one.why}")
    if chosen.only != "flights":
        gate = Gate()
        print(f"\ntwo models that are equal, {chosen.runs} streams of {chosen.count:,}, rate {gate.rate}")
        for name, make in streams(chosen.count, chosen.seed).items():
            found = [decided(make(), gate) for _ in range(chosen.runs)]
            print(f"  {name}: promoted in {found.count(1)}, called worse in {found.count(-1)}")


if __name__ == "__main__":
    main()
