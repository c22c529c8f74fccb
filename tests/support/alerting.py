"""As much of Prometheus as our alert rules need: it scrapes this process's metrics, lets time pass, and says what fires.

The numbers are Prometheus' own: a value is seen for five minutes or until it is gone from a scrape, `increase` and `rate` are
extrapolated to their window as it does, and a rule fires when it has held for as long as it says.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tidemill import metrics

RULES = Path(__file__).parents[2] / "ops/prometheus/rules.yml"
LOOKBACK_SECONDS = 300
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
GONE = None
TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\])*")|(?P<range>\[\d+[smhd]\])|(?P<duration>\d+[smhd]\b)|(?P<number>\d+(?:\.\d+)?)"""
    r"""|(?P<name>[A-Za-z_]\w*)|(?P<sign>=~|!~|!=|==|<=|>=|[-+*/<>=(){},]))"""
)
LEVELS = (("or",), ("and", "unless"), ("==", "!=", "<=", ">=", "<", ">"), ("+", "-"), ("*", "/"))
COMPARES: Mapping[str, Callable[[float, float], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}
COMPUTES: Mapping[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else a * float("inf"),
}

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Window = dict[Labels, list[tuple[float, float]]]
Samples = list[tuple[float, float | None]]


def present(labels: Mapping[str, str]) -> Labels:
    """Return labels as Prometheus has them: one without a text is none."""
    return frozenset((name, text) for name, text in labels.items() if text)


def seconds(text: str) -> int:
    return int(text[:-1]) * SECONDS[text[-1]]


@dataclass
class Series:
    """What was scraped: by name and labels, in order of time; GONE where a series was there before and is no more."""

    samples: dict[str, dict[Labels, Samples]] = field(default_factory=dict)

    def add(self, now: float, scraped: Mapping[tuple[str, Labels], float]) -> None:
        for (name, labels), value in scraped.items():
            self.samples.setdefault(name, {}).setdefault(labels, []).append((now, value))
        for name, by_labels in self.samples.items():
            for labels, samples in by_labels.items():
                if (name, labels) not in scraped and samples[-1][1] is not GONE:
                    samples.append((now, GONE))

    def at(self, name: str, when: float) -> Vector:
        seen: Vector = {}
        for labels, samples in self.samples.get(name, {}).items():
            place = bisect_right(samples, when, key=lambda one: one[0]) - 1
            if place >= 0 and samples[place][0] > when - LOOKBACK_SECONDS and (value := samples[place][1]) is not GONE:
                seen[labels] = value
        return seen

    def over(self, name: str, start: float, end: float) -> Window:
        seen: Window = {}
        for labels, samples in self.samples.get(name, {}).items():
            first, last = (bisect_right(samples, when, key=lambda one: one[0]) for when in (start, end))
            if values := [(when, value) for when, value in samples[first:last] if value is not GONE]:
                seen[labels] = values
        return seen


def increased(samples: list[tuple[float, float]], start: float, end: float) -> float | None:
    """Return by how much a counter grew from `start` to `end`, as Prometheus extrapolates what was scraped between."""
    if len(samples) < 2:
        return None
    grown = samples[-1][1] - samples[0][1]
    grown += sum(before for (_, before), (_, value) in pairwise(samples) if value < before)
    span = samples[-1][0] - samples[0][0]
    step, before, behind = span / (len(samples) - 1), samples[0][0] - start, end - samples[-1][0]
    before = before if before < step * 1.1 else step / 2
    if grown > 0 and samples[0][1] >= 0:  # it would have been 0 then
        before = min(before, span * samples[0][1] / grown)
    return grown * (span + before + (behind if behind < step * 1.1 else step / 2)) / span


def slope(samples: list[tuple[float, float]]) -> float | None:
    if len(samples) < 2:
        return None
    times, values = zip(*((when - samples[0][0], value) for when, value in samples), strict=True)
    mean_time, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((when - mean_time) ** 2 for when in times)
    return sum((when - mean_time) * (value - mean) for when, value in zip(times, values, strict=True)) / spread


class Expression:
    """One expression of PromQL, at one moment."""

    def __init__(self, text: str, series: Series, now: float) -> None:
        self.series, self.now = series, now
        self.tokens: list[tuple[str, str]] = []
        text, at = text.strip(), 0
        while at < len(text):
            token = TOKEN.match(text, at)
            assert token is not None, text[at:]
            self.tokens.append((str(token.lastgroup), token[str(token.lastgroup)]))
            at = token.end()
        self.tokens.append(("end", ""))

    def value(self) -> Any:
        result = self._binary(0)
        assert self.tokens[0][0] == "end", self.tokens
        return result

    def _take(self, *wanted: str) -> str:
        kind, text = self.tokens.pop(0)
        assert not wanted or text in wanted or kind in wanted, f"{text!r} where {wanted} was expected"
        return text

    def _is(self, *texts: str) -> bool:
        return self.tokens[0][1] in texts and self.tokens[0][0] in ("name", "sign")

    def _binary(self, level: int) -> Any:
        if level == len(LEVELS):
            return self._operand()
        left = self._binary(level + 1)
        while self._is(*LEVELS[level]):
            operator = self._take()
            left = self._combined(operator, left, self._binary(level + 1))
        return left

    @staticmethod
    def _combined(operator: str, left: Any, right: Any) -> Any:
        if operator in ("or", "and", "unless"):
            if operator == "or":
                return right | left
            return {labels: value for labels, value in left.items() if (labels in right) == (operator == "and")}
        if not isinstance(left, dict) and not isinstance(right, dict):
            return COMPUTES[operator](left, right)
        pairs = {
            labels: (
                left[labels] if isinstance(left, dict) else left, right[labels] if isinstance(right, dict) else right
            )
            for labels in (left if isinstance(left, dict) else right)
            if not isinstance(left, dict) or not isinstance(right, dict) or labels in right
        }  # fmt: skip
        if operator in COMPARES:
            return {labels: pair[0] for labels, pair in pairs.items() if COMPARES[operator](*pair)}
        return {labels: COMPUTES[operator](*pair) for labels, pair in pairs.items()}

    def _operand(self) -> Any:
        if self.tokens[0][0] == "number":
            return float(self._take())
        if self._is("("):
            self._take()
            result = self._binary(0)
            self._take(")")
            return result
        name = self._take("name")
        if name in ("sum", "max"):
            return self._aggregate(sum if name == "sum" else max)
        if not self._is("("):
            return self._selected(name)
        return self._call(name)

    def _aggregate(self, of: Callable[[Iterable[float]], float]) -> Vector:
        by: list[str] = []
        if self._is("by"):
            self._take()
            self._take("(")
            while not self._is(")"):
                by += [self._take("name")]
                if not self._is(")"):
                    self._take(",")
            self._take(")")
        self._take("(")
        groups: dict[Labels, list[float]] = {}
        for labels, value in self._binary(0).items():
            groups.setdefault(frozenset((name, text) for name, text in labels if name in by), []).append(value)
        self._take(")")
        return {labels: of(values) for labels, values in groups.items()}

    def _call(self, name: str) -> Any:
        self._take("(")
        if name == "time":
            self._take(")")
            return self.now
        given = self._binary(0)
        self._take(")")
        if name == "vector":
            return {frozenset(): given}
        window, start, end = given
        of: Mapping[str, Callable[[list[tuple[float, float]]], float | None]] = {
            "increase": lambda samples: increased(samples, start, end),
            "rate": lambda samples: None if (n := increased(samples, start, end)) is None else n / (end - start),
            "deriv": slope,
            "last_over_time": lambda samples: samples[-1][1],
        }
        return {labels: n for labels, samples in window.items() if (n := of[name](samples)) is not None}

    def _selected(self, name: str) -> Any:
        matchers = []
        if self._is("{"):
            self._take()
            while not self._is("}"):
                label, operator, text = self._take("name"), self._take("sign"), self._take("string")[1:-1]
                matchers.append((label, operator, text))
                if not self._is("}"):
                    self._take(",")
            self._take("}")
        span = seconds(self._take("range")[1:-1]) if self.tokens[0][0] == "range" else None
        when = self.now
        if self._is("offset"):
            self._take()
            when -= seconds(self._take("duration"))
        if span is None:
            return {labels: n for labels, n in self.series.at(name, when).items() if _matches(labels, matchers)}
        window = self.series.over(name, when - span, when)
        return {labels: n for labels, n in window.items() if _matches(labels, matchers)}, when - span, when


def _matches(labels: Labels, matchers: list[tuple[str, str, str]]) -> bool:
    values = dict(labels)
    return all(
        (re.fullmatch(text, values.get(name, "")) is not None) == (operator == "=~")
        if operator in ("=~", "!~")
        else (values.get(name, "") == text) == (operator == "=")
        for name, operator, text in matchers
    )


class Alerting:
    """Prometheus with our rules. It scrapes what `scraped` returns: the text of this process's metrics, or None: no answer."""

    def __init__(
        self,
        scraped: Callable[[], str | None] = lambda: generate_latest(REGISTRY).decode(),
        labels: Mapping[str, str] = {},
    ) -> None:
        self.now, self.scraped, self.series = time.time(), scraped, Series()
        self.labels = {"job": "tidemill", "instance": "here", **labels}
        self.rules = {
            rule["alert"]: rule
            for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
            for rule in group["rules"]
        }
        self.since: dict[tuple[str, Labels], float] = {}
        self.firing: dict[str, list[Labels]] = {}

    def scrape(self, after_seconds: float = 10) -> None:
        """Let some time pass, scrape, and judge each rule."""
        self.now += after_seconds
        text, target = self.scraped(), frozenset(self.labels.items())
        values = {("up", target): 0.0 if text is None else 1.0}
        for family in text_string_to_metric_families(text or ""):
            for sample in family.samples:
                if sample.name.startswith("tidemill_") and not sample.name.endswith(("_bucket", "_created")):
                    values[sample.name, target | present(sample.labels)] = sample.value
        self.series.add(self.now, values)
        self.judge()

    def judge(self) -> None:
        """Judge each rule by what was scraped up to now."""
        self.firing = {}
        for name, rule in self.rules.items():
            holds = Expression(rule["expr"], self.series, self.now).value()
            for key in [key for key in self.since if key[0] == name and key[1] not in holds]:
                del self.since[key]
            for labels in holds:
                since = self.since.setdefault((name, labels), self.now)
                if self.now - since >= seconds(rule.get("for", "0s")):
                    self.firing.setdefault(name, []).append(labels)

    def wait(self, minutes: float, step: Callable[[], object] = lambda: None, every_seconds: float = 30) -> None:
        """Let minutes pass; `step` is done before each scrape."""
        for _ in range(round(minutes * 60 / every_seconds)):
            step()
            self.scrape(every_seconds)


def forget_metrics() -> None:
    """Have no metric of ours a value: those of other tests are of the same process."""
    for value in vars(metrics).values():
        for one in value.values() if isinstance(value, Mapping) else (value,):
            if hasattr(one, "clear") and getattr(one, "_labelnames", ()):
                one.clear()
