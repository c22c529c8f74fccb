"""A linear model in the form in which it learns fast is River's own to the last digit; River is the oracle."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import compose, linear_model, optim, preprocessing, tree

from tidemill.models import linear
from tidemill.models.linear import LinearModel, river_model, specialised

Make = Callable[[], Any]

NAMES = ("a", "b", "c", "a_b", "word", "word_b")
PLAIN_NUMBERS = st.floats(-1e3, 1e3) | st.sampled_from([0.0, -0.0, 1.0])
NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | PLAIN_NUMBERS
WORDS = st.sampled_from(["", "b", "c", "b_c", "x", "y", "z"])
VALUES = NUMBERS | WORDS | st.booleans()
#: As a pipeline makes them: a feature keeps its type, or is missing.
TYPED = st.fixed_dictionaries(
    {},
    optional={"a": PLAIN_NUMBERS, "b": PLAIN_NUMBERS, "c": st.booleans(), "word": WORDS, "kind": WORDS},
)
#: Anything: a feature's type changes, keys collide, values are infinite or of types that River refuses.
ANY = st.dictionaries(st.sampled_from(NAMES), VALUES | st.integers() | st.none(), max_size=6)

ENCODERS = {
    "scaled": lambda: compose.SelectType(float) | preprocessing.StandardScaler(),
    "one-hot": lambda: compose.SelectType(str) | preprocessing.OneHotEncoder(),
    "ones": lambda: compose.SelectType(str) | preprocessing.OneHotEncoder(drop_zeros=True),
    "flags": lambda: compose.SelectType(bool),
    "all but": lambda: compose.Discard("word", "kind") | preprocessing.StandardScaler(),
    "raw": lambda: compose.SelectType(float),
}
SHAPES: tuple[tuple[str, ...], ...] = (
    ("scaled",), ("raw",), ("all but",), ("one-hot",), ("ones",), ("scaled", "one-hot"), ("one-hot", "scaled"),
    ("flags", "scaled", "ones"), ("one-hot", "flags", "raw"), ("all but", "one-hot"), ("all but", "flags"), (),
)  # fmt: skip
#: What stands before those.
SELECTORS: tuple[tuple[Callable[[], Any], ...], ...] = (
    (),
    (lambda: compose.Discard("b", "kind"),),
    (lambda: compose.SelectType(float, str),),
    (lambda: compose.Discard("a"), lambda: compose.SelectType(str, bool)),
)
RATES = st.sampled_from([0.01, 0.3, 1, 1e-5, 1e200])
SCHEDULES = st.one_of(RATES, RATES.map(optim.schedulers.InverseScaling))
LOSSES = {
    linear_model.LogisticRegression: (
        optim.losses.Log,
        optim.losses.Hinge,
        lambda: optim.losses.Log(5.0, 0.5),
        optim.losses.BinaryFocalLoss,
    ),
    linear_model.LinearRegression: (
        optim.losses.Squared,
        optim.losses.Absolute,
        optim.losses.Huber,
        lambda: optim.losses.Quantile(0.9),
    ),
}
INITIALIZERS = (
    lambda: optim.initializers.Zeros(),
    lambda: optim.initializers.Constant(0.25),
    lambda: optim.initializers.Normal(seed=3),
)


@st.composite
def models(draw: st.DrawFn) -> Make:
    """Return what makes a linear model of a drawn shape, always the same."""
    shape, kind = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(list(LOSSES)))
    selectors = draw(st.sampled_from(SELECTORS))
    penalty = draw(st.sampled_from([{}, {"l1": 0.01}, {"l2": 0.01}]))
    loss, initializer = draw(st.sampled_from(LOSSES[kind])), draw(st.sampled_from(INITIALIZERS))
    rate, intercept_rate = draw(SCHEDULES), draw(SCHEDULES)
    clip, intercept = draw(st.sampled_from([1e12, 0.1, math.inf])), draw(st.sampled_from([0.0, 0.5]))

    def make() -> Any:
        model = kind(
            optim.SGD(rate), loss(), **penalty, intercept_init=intercept, intercept_lr=intercept_rate,
            clip_gradient=clip, initializer=initializer(),
        )  # fmt: skip
        parts = [ENCODERS[name]() for name in shape]
        made = (parts[0] if len(parts) == 1 else compose.TransformerUnion(*parts)) | model if parts else model
        for selector in reversed(selectors):
            made = selector() | made
        return made

    return make


def _is_classifier(model: Any) -> bool:
    return type(_linear(model)) is linear_model.LogisticRegression


def _linear(model: Any) -> Any:
    return model._last_step if isinstance(model, compose.Pipeline) else model


def outcome(call: Callable[..., Any], *args: Any) -> str:
    """Return what a call gives, as text in which NaN is itself and 0.0 is -0.0; or the kind of its error."""
    try:
        answer = call(*args)
    except Exception as error:
        return type(error).__name__
    return repr([value + 0.0 for value in (answer.values() if isinstance(answer, dict) else [answer or 0.0])])


def learned(model: Any) -> dict[str, Any]:
    """Return a model's state: the order of weights, too, without the sign of zeros."""
    own = _linear(model)
    state: dict[str, Any] = {"intercept": own.intercept, "steps": own.optimizer.n_iterations}
    state["weights"] = [(name, value + 0.0) for name, value in own.weights.items()]
    if own.l1:
        state["l1"] = [own.max_cum_l1, sorted((name, value) for name, value in own.cum_l1.items() if value)]
    return state


def both(make: Make, steps: Iterable[tuple[str, dict[str, Any], bool]]) -> LinearModel:
    """Ask and teach both the same, with a restart now and then, and compare all that they say."""
    river, own = make(), specialised(make())
    assert isinstance(own, LinearModel)
    for step, x, y in steps:
        if step == "learn":
            assert outcome(own.learn_one, dict(x), y) == outcome(river.learn_one, dict(x), y)
        elif step == "ask":
            asked = "predict_proba_one" if _is_classifier(river) else "predict_one"
            assert outcome(getattr(own, asked), dict(x)) == outcome(getattr(river, asked), dict(x))
        else:
            river, own = pickle.loads(pickle.dumps(river)), specialised(pickle.loads(pickle.dumps(river_model(own))))
    assert repr(learned(river_model(own))) == repr(learned(river))
    return own


STEPS = ("learn", "ask", "learn", "save")


@pytest.mark.slow
@given(models(), st.lists(st.tuples(st.sampled_from(STEPS), TYPED | ANY, st.booleans()), max_size=12))
@settings(max_examples=100, deadline=None)
def test_any_vectors_are_learned_as_river_learns_them(
    make: Make, steps: list[tuple[str, dict[str, Any], bool]]
) -> None:
    both(make, steps)


def stream(rng: random.Random, length: int, *, huge: bool = False) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield a stream as pipelines have them: features are missing, categories and features come later."""
    for index in range(length):
        x: dict[str, Any] = {f"n{at}": rng.gauss(at, 10.0**at) for at in range(4)}
        x |= {f"c{at}": f"v{int(rng.expovariate(0.2))}" for at in range(4)}
        x |= {"flag": rng.random() < 0.5, "word": rng.choice("ab"), "late": 1.0 if index > length / 2 else None}
        if huge and rng.random() < 0.05:
            x["n0"] = rng.choice([1e200, -1e308, math.inf, math.nan, 5e-324])
        x = {name: value for name, value in x.items() if value is not None and rng.random() < 0.9}
        yield rng.choices(STEPS, (10, 10, 10, 1))[0], x, rng.random() < 0.3


@pytest.mark.slow
@given(models(), st.integers(0, 2**32), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_stream_is_learned_as_river_learns_it(make: Make, seed: int, huge: bool) -> None:
    both(make, stream(random.Random(seed), 150, huge=huge))


def _demo(**changes: Any) -> Any:
    numbers, categories = ENCODERS["scaled"](), ENCODERS["one-hot"]()
    return (categories + numbers) | linear_model.LogisticRegression(**changes)


def test_the_order_of_operations_is_river_s() -> None:
    own = both(_demo, stream(random.Random(1), 1_000))
    assert "learn_one" not in vars(own), "no vector of a pipeline is left to River"


def test_two_categories_of_one_name_are_left_to_river() -> None:
    x = {"word": "b_c", "word_b": "c"}
    own = both(_demo, [("learn", {"word": "a"}, True), ("learn", x, False), ("ask", x, True), ("learn", x, True)])
    assert "learn_one" in vars(own)


def test_a_zero_counts_as_soon_as_a_weight_may_be_infinite() -> None:
    """In River's sum it is 0 * inf, which is no number, although the vector does not have the category."""
    steps = [("learn", {"word": "a"}, True)] * 3 + [("learn", {"word": "b"}, False), ("ask", {"word": "b"}, True)]
    for rate in (1e300, 1e308, 1e99):
        for weight in (1.0, 10.0):  # with 1e308 and 10.0, the first step makes one infinite

            def make(rate: float = rate, weight: float = weight) -> Any:
                return _demo(optimizer=optim.SGD(rate), loss=optim.losses.Log(weight_pos=weight))

            own = both(make, [*steps, ("save", {}, True), *steps])
            is_infinite = not all(map(math.isfinite, _linear(river_model(own)).weights.values()))
            assert is_infinite == ((rate, weight) == (1e308, 10.0))


def test_other_shapes_are_river_s_own() -> None:
    scaler, model = preprocessing.StandardScaler, linear_model.LogisticRegression
    for other in (
        tree.HoeffdingTreeClassifier(),
        scaler() | tree.HoeffdingTreeClassifier(),
        linear_model.SoftmaxRegression(),
        model(optim.Adam()),
        scaler(with_std=False) | model(),
        scaler(window_size=3) | model(),
        preprocessing.MinMaxScaler() | model(),
        scaler() | preprocessing.Normalizer() | model(),
        preprocessing.OneHotEncoder(drop_first=True) | model(),
        preprocessing.OneHotEncoder(categories={"word": {"a"}}) | model(),
        compose.Select("a") | model(),
        (compose.FuncTransformer(dict) + scaler()) | model(),
        compose.Select("a") | (compose.SelectType(bool) + scaler()) | model(),
        scaler() | compose.Discard("a") | model(),
        (compose.Select("a") | preprocessing.OneHotEncoder()) + preprocessing.OneHotEncoder() | model(),
    ):
        assert specialised(other) is other is river_model(other)


def test_layouts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MAX_LAYOUTS", 3)
    assert len(both(_demo, stream(random.Random(2), 300))._layouts) <= 3


def test_a_deviation_is_a_power_as_river_takes_it() -> None:
    """`v**0.5` and the square root of v differ in the last digit, in one of 1,200 cases."""
    variance = 188.1441779504145
    assert variance**0.5 != math.sqrt(variance)

    def make() -> Any:
        # After so many examples another one changes nothing.
        scaler = preprocessing.StandardScaler._from_state({"a": 10**40}, {"a": 0.0}, {"a": variance})
        return scaler | linear_model.LogisticRegression(initializer=optim.initializers.Constant(1.0))

    steps = [(step, {"a": at / 7}, at % 2 == 0) for at in range(100) for step in ("learn", "ask")]
    both(make, steps)
    both(make, [("learn", {"a": 1.0}, True), ("save", {}, True), *(one for one in steps if one[0] == "ask")])


def test_where_somebody_has_changed_what_river_does_river_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compose.Pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    assert specialised(model) is not model
    monkeypatch.setattr(preprocessing.StandardScaler, "transform_one", lambda _, x: x)
    assert specialised(model) is model
