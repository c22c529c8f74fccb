"""Every rule passes the same checks: what it says of records, alone and among others, refusing and warning."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import Pipeline, rules
from tidemill.errors import DeclarationError
from tidemill.rules import Rule
from tidemill.stages.validator.rule_check import RuleState
from tidemill.stages.validator.service import WARNING, Validator
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.memory import MemoryRecord
from tidemill.testing import check_rule
from tidemill.wire.records import Records

NOW = 1_357_100_000_000
AT = NOW - 7_200_000
HOUR = 3_600_000


@dataclass(frozen=True)
class Case:
    """A rule, and what it says: changes of an event that pass, one record each, and changes that fail after all of those."""

    make: Callable[..., Rule]
    passing: Sequence[Mapping[str, Any]]
    failing: Sequence[Mapping[str, Any]]
    reason: str
    field: str


def named(path: str) -> str:
    """Return a reference file's name; `column` has AA twice, for a file may."""
    place = Path(path)
    place.write_text("code,name\nAA,American\nUA,United\nAA,again\n7,seven\n")
    return str(place)


CASES = {
    "between": Case(
        lambda **k: rules.between("sched_hour", 0, 23, **k),
        [{"sched_hour": 0}, {"sched_hour": 23}], [{"sched_hour": 77}, {"sched_hour": -1}], "out_of_range", "sched_hour",
    ),
    "one_of": Case(
        lambda **k: rules.one_of("carrier", ["AA", "UA"], **k), [{"carrier": "AA"}], [{"carrier": "ZZ"}, {"carrier": ""}],
        "not_allowed", "carrier",
    ),
    "in_file": Case(
        lambda **k: rules.in_file("carrier", named("codes.csv"), "code", **k), [{"carrier": "UA"}, {"carrier": "AA"}],
        [{"carrier": "ZZ"}, {"carrier": "code"}], "not_in_file", "carrier",
    ),
    "matches": Case(
        lambda **k: rules.matches("dest", r"[A-Z]{3}", **k), [{"dest": "JFK"}], [{"dest": "jfk"}, {"dest": "JFKX"}, {"dest": "JFK\n"}],
        "no_match", "dest",
    ),
    "not_null": Case(
        lambda **k: rules.not_null("temp", **k), [{"temp": 0.0}], [{"temp": None}], "missing_value", "temp",
    ),
    "finite": Case(  # NaN and infinities are refused in every float field, before any rule: nothing is left to fail here
        lambda **k: rules.finite("temp", **k), [{"temp": 1e15}, {"temp": None}], [], "not_finite", "temp",
    ),
    "not_after_now": Case(
        lambda **k: rules.not_after_now("asked_at", "5m", **k), [{"asked_at": NOW + 300_000}, {"asked_at": 0}],
        [{"asked_at": NOW + 300_001}], "in_the_future", "asked_at",
    ),
    "not_older_than": Case(
        lambda **k: rules.not_older_than("asked_at", "2h", **k), [{"asked_at": NOW - 2 * HOUR}], [{"asked_at": NOW - 2 * HOUR - 1}],
        "too_old", "asked_at",
    ),
    "not_before": Case(
        lambda **k: rules.not_before("asked_at", "2013-01-01", **k), [{"asked_at": 1_356_998_400_000}],
        [{"asked_at": 1_356_998_399_999}], "too_old", "asked_at",
    ),
    "plausible": Case(
        lambda **k: rules.plausible("asked_at", "2013-01-01", "2100-01-01", **k),
        [{"asked_at": 1_356_998_400_000}, {"asked_at": NOW}],
        [{"asked_at": 1_356_998_399_999}], "implausible_time", "asked_at",
    ),
    "holds": Case(
        lambda **k: rules.holds(lambda e: e["temp"] >= e["dewp"], "temp", "dewp", that="temp is not below dewp", **k),
        [{"temp": 3.0, "dewp": 3.0}, {"temp": None, "dewp": 3.0}, {"temp": 3.0, "dewp": None}], [{"temp": 2.0, "dewp": 3.0}],
        "does_not_hold", "temp",
    ),
    "unique": Case(
        lambda **k: rules.unique("flight_id", within="1h", **k),
        [{"flight_id": "a"}, {"flight_id": "b", "asked_at": AT + HOUR}, {"flight_id": "a", "asked_at": AT + HOUR}],
        [{"flight_id": "a", "asked_at": AT + 2 * HOUR - 1}, {"flight_id": "b", "asked_at": AT + 1}], "duplicate", "flight_id",
    ),
    "monotonic": Case(
        lambda **k: rules.monotonic("flight", by="origin", within="2h", **k),
        [{"flight": 5}, {"flight": 5}, {"flight": 4, "origin": "LGA"}, {"flight": 7}],
        [{"flight": 6}, {"flight": 3, "origin": "LGA"}], "went_back", "flight",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def pipeline(*given: Rule, **changes: Any) -> Pipeline:
    return small.make(rules=list(given), views=[], **changes)


def event(**changes: Any) -> dict[str, Any]:
    return {**small.event(), "asked_at": AT, **changes}


class Said:
    """What a validator does with events, one at a time, in one partition."""

    def __init__(self, declared: Pipeline) -> None:
        self.declared, self.codec = declared, Records(declared)
        self.validator = Validator(declared, clock=lambda: NOW / 1000)
        self.slot = TopicPartition(f"{declared.name}.events", 0)
        self.validator.assign(self.slot, Position(0))
        self.offset = 0

    def of(self, changes: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        out = small.Emitted()
        data = self.codec.event.encode(event(**changes))
        self.validator.process([MemoryRecord(self.slot.topic, data, b"k", NOW, None, 0, self.offset)], out)
        self.offset += 1
        first = out.records[0]
        return first.topic().partition(".")[2], {name: value.decode() for name, value in first.headers() or []}


def test_every_rule_is_in_the_suite_and_a_file() -> None:
    public = {name for name in rules.__all__ if name.islower()}
    assert set(CASES) == public
    here = Path(rules.__file__).parent
    files = {path.stem for path in here.glob("*.py")} - {"__init__", "base", "recent"}
    assert files == public, "one file each"


def test_what_passes_and_what_fails(case: Case) -> None:
    said = Said(pipeline(case.make()))
    for changes in case.passing:
        assert said.of(changes) == ("events.valid", {}), changes
    for changes in case.failing:
        to, headers = said.of(changes)
        assert to == "dlq", changes
        rule = case.make()
        assert (headers["tidemill.rule"], headers["tidemill.reason"], headers["tidemill.field"]) == (
            rule.name, case.reason, case.field,
        )  # fmt: skip
        message = headers["__connect.errors.exception.message"]
        assert repr(case.field) in message
        assert "expected" in message or "no value" in message


def test_a_rule_that_warns_lets_everything_pass_and_marks_it(case: Case) -> None:
    rule = case.make(warn=True)
    said = Said(pipeline(rule))
    for changes in case.passing:
        assert said.of(changes) == ("events.valid", {}), changes
    for changes in case.failing:
        assert said.of(changes) == ("events.valid", {WARNING: f"{rule.name}:{case.field}"}), changes
    assert said.validator.counts["warnings", f"{rule.name}:{case.field}"] == len(case.failing)
    assert "warns" in rule.description


def test_it_says_what_it_is(case: Case) -> None:
    rule = case.make()
    assert rule.description
    assert rule.expected
    assert rule.field == case.field
    assert rule.warn is False


def test_a_missing_value_passes_all_but_not_null(case: Case) -> None:
    rule = case.make()
    if rule.field not in ("temp", "dewp"):
        rule = replace(rule, field="temp")
        if rule.memory is not None:
            return
    said = Said(pipeline(rule)) if not rule.types or "double" in rule.types else None
    if said:
        assert said.of({"temp": None})[0] == ("dlq" if rule.name == "not_null" else "events.valid")


@pytest.mark.slow
def test_rules_together_are_asked_in_the_order_in_which_they_are_declared(case: Case) -> None:
    """And one that is broken first hides the others; names of one rule's condition are not another's."""
    other = rules.between("distance", 1, 2)
    for order in ((case.make(), other), (other, case.make())):
        said = Said(pipeline(*order))
        for changes in case.passing:
            assert said.of({**changes, "distance": 1.5})[0] == "events.valid"
        assert (
            said.of({"flight_id": "new", "flight": 99, "temp": 3.0, "dewp": 2.0, "distance": 3.0})[1].get(
                "tidemill.rule"
            )
            == "between"
        )
        for changes in case.failing:
            assert (
                said.of({**changes, "distance": 1.5})[1]["tidemill.rule"]
                == order[0 if order[0] is not other else 1].name
            )


def test_records_are_not_changed(case: Case) -> None:
    check_rule(case.make(), pipeline(case.make()).events, event(), case.passing, case.failing, NOW)


def test_it_is_refused_on_a_field_that_is_not_there_or_of_another_kind(case: Case) -> None:
    rule = case.make()
    with pytest.raises(DeclarationError, match="no_such"):
        pipeline(replace(rule, field="no_such"))
    if rule.types:
        wrong = "distance" if "string" in rule.types else "origin"
        with pytest.raises(DeclarationError, match=wrong):
            pipeline(replace(rule, field=wrong))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: rules.between("x", 2, 1), "low end"),
        (lambda: rules.between("x", math.nan, 1), "low end"),
        (lambda: rules.one_of("x", []), "at least one"),
        (lambda: rules.one_of("x", "abc"), "a text would be one of its letters"),
        (lambda: rules.not_after_now("x", "soon"), "duration"),
        (lambda: rules.not_older_than("x", "old"), "duration"),
        (lambda: rules.unique("x", within="long"), "duration"),
        (lambda: rules.monotonic("x", by="y", within="long"), "duration"),
        (lambda: rules.not_before("x", "then"), "ISO 8601"),
        (lambda: rules.plausible("x", "then", "2100-01-01"), "ISO 8601"),
        (lambda: rules.plausible("x", "2100-01-01", "1971-01-01"), "is later than"),
        (lambda: rules.holds(lambda _: True, that="x"), "name the fields"),
        (lambda: rules.in_file("x", "none.csv", "code"), "no such file"),
        (lambda: rules.in_file("x", named("codes.csv"), "colour"), "no column 'colour'"),
    ],
)
def test_a_senseless_rule_is_refused_when_it_is_declared(make: Callable[[], Rule], says: str) -> None:
    with pytest.raises((ValueError, DeclarationError), match=says):
        make()


@pytest.mark.parametrize(("field", "values"), [("distance", ["a"]), ("carrier", [1, 2.5]), ("carrier", [True])])
def test_values_that_the_field_never_has_are_refused(field: str, values: list[Any]) -> None:
    """Otherwise every record would be."""
    with pytest.raises(DeclarationError, match=f"field '{field}' is "):
        pipeline(rules.one_of(field, values))
    pipeline(rules.one_of("sched_hour", [5, 6.0]))


def test_a_predicate_that_raises_does_not_hold() -> None:
    said = Said(pipeline(rules.holds(lambda e: 1 / 0, "flight", that="x")))
    assert said.of({})[1]["tidemill.reason"] == "does_not_hold"


# Rules that remember.

STEPS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 40), st.integers(0, 5)), min_size=1, max_size=60
)  # id, minutes, a number


REMEMBERS = pipeline(rules.unique("flight_id", within="10m"))
NEVER_BACK = pipeline(rules.monotonic("flight", by="carrier", within="10m"))
BOTH = pipeline(rules.unique("flight_id", within="10m"), rules.monotonic("flight", by="origin", within="10m"))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_unique_in_order_is_what_it_says(steps: list[tuple[str, int, int]]) -> None:
    """In order of time: refused where one that was accepted has the same id and is less than the horizon away."""
    said, accepted = Said(REMEMBERS), []
    for name, minute, _ in sorted(steps, key=lambda s: s[1]):
        time = AT + minute * 60_000
        expected = any(of == name and time - at < 600_000 for of, at in accepted)
        assert (said.of({"flight_id": name, "asked_at": time})[0] == "dlq") == expected
        if not expected:
            accepted.append((name, time))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_monotonic_in_order_is_what_it_says(steps: list[tuple[str, int, int]]) -> None:
    said, last = Said(NEVER_BACK), {}
    for entity, minute, number in sorted(steps, key=lambda s: s[1]):
        time = AT + minute * 60_000
        before = last.get(entity)
        expected = before is not None and number < before[0] and time - before[1] < 600_000
        assert (said.of({"carrier": entity, "flight": number, "asked_at": time})[0] == "dlq") == expected
        if not expected:
            last[entity] = (number, time)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(STEPS, st.integers(0, 60))
def test_what_is_remembered_is_rebuilt_from_the_log(steps: list[tuple[str, int, int]], cut: int) -> None:
    """A validator that begins in the middle, from where the note says, ends as one that never stopped; out of order as well."""
    declared = BOTH
    codec, slot = Records(declared), TopicPartition(f"{declared.name}.events", 0)
    log = [
        MemoryRecord(
            slot.topic,
            codec.event.encode(event(flight_id=i, asked_at=AT + m * 60_000, flight=n)),
            b"k",
            NOW,
            None,
            0,
            o,
        )
        for o, (i, m, n) in enumerate(steps)
    ]

    def ended(records: Sequence[MemoryRecord], validator: Validator) -> list[str]:
        out = small.Emitted()
        for record in records:
            validator.process([record], out)
        return [record.topic() for record in out.records]

    whole = Validator(declared, clock=lambda: NOW / 1000)
    whole.assign(slot, Position(0))
    everything = ended(log, whole)
    cut = min(cut, len(log))
    first = Validator(declared, clock=lambda: NOW / 1000)
    first.assign(slot, Position(0))
    ended(log[:cut], first)
    second = Validator(declared, clock=lambda: NOW / 1000 + 1e6)
    start = second.assign(slot, Position(cut, first.commit_metadata(slot).encode()))
    assert start.live_from == cut
    second.process(log[start.rebuild_from : cut], discard)
    second.clock = lambda: NOW / 1000
    assert ended(log[cut:], second) == everything[cut:]


@pytest.mark.slow
def test_what_is_remembered_is_bounded_by_the_horizon() -> None:
    declared = pipeline(rules.unique("flight_id", within="1h"), rules.monotonic("flight", by="tailnum", within="1h"))
    memories, shuffle = RuleState(declared.events, declared.event_checks), random.Random(3)
    for offset in range(30_000):  # ten a minute
        time = AT + offset * 6000 - shuffle.randrange(60_000)
        memories.check(event(flight_id=str(offset), tailnum=f"N{offset}", asked_at=time, flight=offset), offset)
        for _, memory in memories._memories:
            assert len(memory.recent) <= 600 * 9 / 8 + 2 * 10 + 1
    assert memories.begin() is not None
    assert 30_000 - memories.begin() <= 600 * 9 / 8 + 30
