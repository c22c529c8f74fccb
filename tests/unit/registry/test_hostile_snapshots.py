"""Snapshots that would do something when they are opened: none is, and nothing is done."""

from __future__ import annotations

import copy
import datetime as dt
import fractions
import functools
import gc
import inspect
import random
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gadgets
import pytest
import river_wheel
from river import compose, linear_model, naive_bayes, preprocessing, stats, tree

from tidemill.errors import MAX_QUOTING_CHARACTERS, ArtifactError
from tidemill.registry import parts, pickles, river_parts, snapshots, values
from tidemill.registry.parts import all_parts, parts_of

pytestmark = pytest.mark.slow

CORPUS = gadgets.corpus("the mark of a test")
GROUPS = sorted({case.partition(" ")[0] for case in CORPUS})


def _everything() -> dict[str, Any]:
    """What every class and function that a snapshot may name consists of."""
    return {".".join(name): dict(vars(thing)) for name, thing in all_parts().real.items() if hasattr(thing, "__dict__")}


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A path that no snapshot may make; memory is limited, so that what makes gigabytes is seen and does no harm."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, hard))
    before, folder = _everything(), set(tmp_path.iterdir())
    yield tmp_path / "was_run"
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert set(tmp_path.iterdir()) == folder, "a file was made"
    assert _everything() == before, "a class or a function was changed"


def assert_refused(data: bytes) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactError) as caught:
        snapshots.load(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= MAX_QUOTING_CHARACTERS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000, "kB of memory"


@pytest.mark.parametrize("group", GROUPS)
def test_no_hostile_snapshot_is_opened_and_nothing_is_done(group: str, mark: Path) -> None:
    cases = {case: data for case, data in gadgets.corpus(str(mark)).items() if case.partition(" ")[0] == group}
    assert cases
    for data in cases.values():
        assert_refused(data)
        assert not mark.exists()


def test_the_corpus_is_large_and_its_opcodes_are_right(tmp_path: Path) -> None:
    assert len(CORPUS) > 900
    mark = tmp_path / "was_run"
    script = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    data = gadgets.corpus(str(mark))["call os:mkdir"]
    subprocess.run([sys.executable, "-c", script], input=data, check=True)
    assert mark.is_dir(), "Python's own unpickler does what it says"


def test_what_is_hostile_is_found_wherever_it_is(mark: Path) -> None:
    hostile = gadgets.raw(gadgets.call(gadgets.name("os:mkdir"), str(mark)))
    good = gadgets.raw(gadgets.value("array", "<f8", (1,), b"12345678", "C"))
    for deep in ({"model": [good, {"a": (hostile,)}]}, [good] * 1000 + [hostile], {"a": good, "b": {"c": hostile}}):
        assert_refused(gadgets.whole(gadgets.plain(deep)))
    assert snapshots.load(gadgets.whole(gadgets.plain([good])))[0][0] > 0


def test_nothing_is_made_before_all_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(preprocessing.StandardScaler, "__setstate__", lambda *_: made.append("a scaler"), raising=True)
    data = snapshots.dump([preprocessing.StandardScaler(), 1])
    assert_refused(data[:-2] + gadgets.name("os:mkdir") + data[-2:])
    assert made == []
    snapshots.load(data)
    assert made == ["a scaler"]


def test_times_of_a_zone_are_opened() -> None:
    """Such a time is made by a call with what another call has made."""
    zone = dt.timezone(dt.timedelta(hours=2))
    times = [
        dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        dt.datetime(2026, 1, 2, tzinfo=zone),
        dt.time(3, tzinfo=dt.UTC),
        zone,
    ]
    assert snapshots.load(snapshots.dump(times)) == times


# Only what the declared model consists of -------------------------------------------------------------------------------


class _OwnState:
    """A class of a pipeline that saves what it likes."""

    def __init__(self) -> None:
        self.words = ["a"]

    def __getstate__(self) -> list[str]:
        return self.words

    def __setstate__(self, words: list[str]) -> None:
        self.words = words


class _Slots:
    __slots__ = ("count", "window")

    def __init__(self) -> None:
        self.count, self.window = 3, fractions.Fraction(1, 3)


def test_states_of_every_own_form_are_set_once() -> None:
    opened = snapshots.load(snapshots.dump([_OwnState(), _Slots()]), parts=parts_of(_OwnState(), _Slots()))
    assert (opened[0].words, opened[1].count, opened[1].window) == (["a"], 3, fractions.Fraction(1, 3))


def test_a_second_state_that_nothing_takes_is_more_of_the_first() -> None:
    twice = gadgets.state(gadgets.state(gadgets.new(gadgets.MEAN), {"a": 1}), {"b": 2})
    assert vars(snapshots.load(gadgets.whole(twice))) == {"a": 1, "b": 2}


@pytest.mark.parametrize("text", ["__setstate__", "__class__", "append", "__call__"])
def test_a_model_may_have_learned_any_text(text: str) -> None:
    model = preprocessing.OneHotEncoder() | naive_bayes.BernoulliNB()
    for index in range(10):
        model.learn_one({"word": text, text: index}, index % 2 == 0)
    again = snapshots.load(snapshots.dump(model), parts=parts_of(model.clone()))
    assert again.predict_proba_one({"word": text, text: 3}) == model.predict_proba_one({"word": text, text: 3})


def test_each_of_rivers_classes_is_stood_in_for_by_what_is_filled_as_it_is() -> None:
    """The quick ones have no way in that the real class has not: what it lacks, they lack, and slots are its own."""
    quick = 0
    for name, real in all_parts().real.items():
        if not isinstance(real, type):
            continue
        empty = pickles.quick_stand_in(name, real)
        if empty is pickles.stand_in(name, real):
            continue
        quick += 1
        made = empty.__new__(empty)
        slots = [one for base in real.__mro__ for one in vars(base).get("__slots__", ())]
        assert all(hasattr(empty, one) for one in slots), name
        assert not hasattr(made, "__dict__"), name
        assert callable(made) is (inspect.getattr_static(real, "__call__", None) is not None), name
        if slots:
            with pytest.raises(AttributeError):
                made.__class__ = empty
        else:
            for state in ((None, {"a": 1}), [("a", 1)], None, 5, "a", made):
                with pytest.raises(TypeError):
                    made.__setstate__(state)
    assert quick > 300


def test_another_model_is_refused_in_the_place_of_the_declared_one() -> None:
    declared = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    allowed = parts_of(declared)
    snapshots.load(snapshots.dump(declared), parts=allowed)
    for other in (tree.HoeffdingTreeClassifier(), naive_bayes.GaussianNB(), preprocessing.StandardScaler() | _Own()):
        with pytest.raises(ArtifactError, match="may not contain"):
            snapshots.load(snapshots.dump({"model": other}), parts=allowed)


class _Helper:
    def __init__(self) -> None:
        self.count = 0


class _Stranger:
    """A class of the same file that no model names."""


class _Own:
    """A model of the pipeline's file, which makes a helper while it learns."""

    def __init__(self) -> None:
        self.helpers: list[_Helper] = []

    def learn_one(self, x: Mapping[str, Any], y: bool) -> None:
        self.helpers.append(_Helper())
        self.mean = stats.Mean()

    def predict_proba_one(self, x: Mapping[str, Any]) -> dict[bool, float]:
        return {True: len(self.helpers) / 10}


def shout(x: Mapping[str, Any]) -> dict[str, Any]:
    return {name.upper(): value for name, value in x.items()}


def test_a_pipelines_own_classes_are_opened_with_what_they_make_as_they_learn() -> None:
    model = _Own()
    allowed = parts_of(model)
    model.learn_one({}, True)
    assert snapshots.load(snapshots.dump(model), parts=allowed).predict_proba_one({}) == {True: 0.1}
    with pytest.raises(ArtifactError, match="_Stranger"):
        snapshots.load(snapshots.dump([model, _Stranger()]), parts=allowed)
    with pytest.raises(ArtifactError, match="_Own"):
        snapshots.load(snapshots.dump(model))


def test_a_pipelines_own_function_is_kept_and_never_called() -> None:
    model = compose.FuncTransformer(shout) | linear_model.LogisticRegression()
    allowed = parts_of(model)
    assert snapshots.load(snapshots.dump(model), parts=allowed).steps["shout"].func is shout
    called = gadgets.call(gadgets.name(f"{__name__}:shout"), {"a": 1})
    with pytest.raises(ArtifactError):
        snapshots.load(gadgets.whole(called), parts=allowed)


def test_a_method_that_no_model_keeps_is_refused_when_it_is_opened() -> None:
    with pytest.raises(ArtifactError, match="the attribute 'update'"):
        snapshots.load(snapshots.dump(stats.Mean().update))


# River's wheel -----------------------------------------------------------------------------------------------------------


def test_the_list_is_all_of_rivers_parts_and_nothing_else() -> None:
    listed = {module: tuple(names.split()) for module, names in river_parts.CLASSES.items()}
    assert listed == river_wheel.parts(), "run python tests/support/river_wheel.py, and read what it changes"
    assert sum(map(len, listed.values())) > 400


def test_nothing_of_rivers_that_opens_evaluates_deletes_imports_or_calls_out_can_be_reached(mark: Path) -> None:
    dangerous = [one for one in (*river_wheel.classes(), *river_wheel.functions()) if river_wheel.is_dangerous(one)]
    outside = [one for one in river_wheel.classes() if one.__module__.startswith(river_wheel.OTHERS)]
    names = {f"{one.__module__}:{one.__qualname__}" for one in (*dangerous, *outside)}
    for known in ("datasets.synth.agrawal:Agrawal", "stream.cache:Cache", "stream.utils:open_filepath"):
        assert f"river.{known}" in names, "what is known to be dangerous is seen"
    assert len(names) > 60
    for one in names:
        for code in (
            gadgets.call(gadgets.name(one), str(mark)),
            gadgets.state(gadgets.new(gadgets.name(one)), {"path": str(mark)}),
            gadgets.value("partial", gadgets.raw(gadgets.name(one)), (str(mark),), {}),
            gadgets.value("default_dict", gadgets.raw(gadgets.name(one))),
        ):
            assert_refused(gadgets.whole(code))
            assert not mark.exists()


def test_no_function_or_method_that_is_kept_is_dangerous() -> None:
    for module, listed in river_parts.FUNCTIONS.items():
        for name in listed.split():
            assert not river_wheel.is_dangerous(parts._resolve((module, name))), name
    by_name = {f"{one.__module__}.{one.__qualname__}": one for one in river_wheel.classes()}
    by_name |= {"random.Random": random.Random, "builtins.str": str}
    for method in river_parts.METHODS:
        owner, _, name = method.rpartition(".")
        assert name in vars(by_name[owner]), method
        assert not river_wheel.names_of(vars(by_name[owner])[name]) & river_wheel.DANGERS, method


def test_no_function_of_rivers_can_be_called(mark: Path) -> None:
    for one in (*river_wheel.functions(), *river_wheel.classes()):
        assert_refused(gadgets.whole(gadgets.call(gadgets.name(f"{one.__module__}:{one.__qualname__}"), str(mark))))


# Bytes that nobody chose ------------------------------------------------------------------------------------------------

FUZZ = """
import random, sys, warnings
warnings.simplefilter("ignore")
from river import ensemble, drift, linear_model, preprocessing, stats, tree
from tidemill.errors import MAX_QUOTING_CHARACTERS, ArtifactError
from tidemill.registry import snapshots
rng = random.Random(int(sys.argv[1]))
models = [
    preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    tree.HoeffdingAdaptiveTreeClassifier(grace_period=20, delta=0.1, seed=1),
    [stats.Quantile(0.3), stats.RollingQuantile(0.3, 20), stats.IQR(), drift.ADWIN(), stats.Kurtosis(), stats.PeakToPeak()],
]
for n in range(200):
    x = {"a": rng.random(), "b": rng.gauss(0, 1)}
    for model in models[:2]:
        model.learn_one(x, x["a"] > 0.5)
    for one in models[2]:
        one.update(x["b"])
sound = [snapshots.dump(model) for model in models]
opened = 0
for _ in range(int(sys.argv[2])):
    data = bytearray(rng.choice(sound))
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(2, len(data))
        if rng.random() < 0.7:
            data[place] = rng.randrange(256)
        else:
            del data[place : place + rng.randrange(1, 9)]
    try:
        snapshots.load(bytes(data))
        opened += 1
    except ArtifactError:
        pass
print(opened)
"""


@pytest.mark.parametrize(("seed", "many"), [(1, 700), pytest.param(2, 3_000, marks=pytest.mark.long)])
def test_damaged_snapshots_are_refused_or_opened_and_never_end_the_process(seed: int, many: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(seed), str(many)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout) < many


@pytest.mark.parametrize("kind", sorted(values._RUST))
def test_the_bytes_of_rivers_statistics_in_rust_never_panic_afterwards(kind: str) -> None:
    make, arguments, update = values._RUST[kind]
    sound = make(*arguments)
    for _ in range(60):
        sound.update(*update)
    state, rng, opened = bytes(sound.__getstate__()), random.Random(7), 0
    for _ in range(300):
        data = bytearray(state)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            made = values.rust(kind, bytes(data))
        except ArtifactError:
            continue
        opened += 1
        for _ in range(values.PROBE_UPDATES):
            made.update(*update)
    assert opened > 0
    assert values.rust(kind, state).__getstate__() == sound.__getstate__()


def test_the_collector_runs_again_after_a_snapshot_was_opened_or_refused() -> None:
    assert gc.isenabled()
    snapshots.load(snapshots.dump({"a": 1}))
    with pytest.raises(ArtifactError):
        snapshots.load(gadgets.whole(gadgets.call(gadgets.name("os:mkdir"), "x")))
    assert gc.isenabled()


def test_a_function_is_saved_by_its_name_and_a_partial_by_what_it_has() -> None:
    made = functools.partial(copy.deepcopy, [1, 2])
    opened = snapshots.load(snapshots.dump(made))
    assert (opened.func, opened.args, opened()) == (copy.deepcopy, ([1, 2],), [1, 2])
