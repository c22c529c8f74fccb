"""Linear models in one pass: the numbers that River computes in many, to the last digit.

River scales, encodes and weighs a vector step by step, each step with dicts of its own, a one-hot code with an entry
for every category ever seen. For (SelectType | StandardScaler + SelectType | OneHotEncoder) | a linear model by SGD, or
parts of that, also behind Discard or SelectType, `specialised` returns an object that learns and predicts as the model
does, in the same order of operations. River's model stays what is saved: `river` brings it up to date.
tests/contracts/test_linear_models.py has River as the oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from math import isfinite
from operator import attrgetter
from typing import Any, NamedTuple

from river import compose, linear_model, optim, preprocessing
from river.utils import VectorDict

#: Patterns of present features, and of their types, that are prepared at a time.
MAX_LAYOUTS = 1_024

#: A step of SGD beyond which a weight might become infinite one day: then the zeros of one-hot codes count (0 * inf).
MAX_STEP = 1e100


#: What the arithmetic is taken from. Where anybody has put something else in its place, River itself is asked.
_RIVER = {
    (kind, name): getattr(kind, name)
    for kind, names in {
        compose.Pipeline: ("learn_one", "predict_one", "predict_proba_one"),
        linear_model.LogisticRegression: ("learn_one", "predict_proba_one"),
        linear_model.LinearRegression: ("learn_one", "predict_one"),
        preprocessing.StandardScaler: ("learn_one", "transform_one"),
        preprocessing.OneHotEncoder: ("learn_one", "transform_one"),
    }.items()
    for name in names
}


class Weight:
    """One input of the linear model: its weight, how its feature is scaled, and `x`, what it was in the last vector."""

    __slots__ = ("count", "key", "l1", "mean", "place", "std", "value", "var", "x")

    def __init__(self, key: str, value: float = 0.0, place: int = 0) -> None:
        self.key, self.value, self.place = key, value, place
        self.count, self.mean, self.var, self.std = 0, 0.0, 0.0, 0.0
        self.l1, self.x = 0.0, 1.0


class Branch(NamedTuple):
    """One part of a union: which features it takes, and what it makes of them."""

    selectors: Sequence[Any]
    encoder: Any

    @property
    def is_one_hot(self) -> bool:
        """Whether its features are categories."""
        return type(self.encoder) is preprocessing.OneHotEncoder

    def takes(self, name: str, kind: type) -> bool:
        """Whether a feature goes into this part."""
        return all(
            issubclass(kind, one.types) if type(one) is compose.SelectType else name not in one.keys
            for one in self.selectors
        )


class Layout:
    """How vectors of one pattern go through a branch: the weights, each with its feature's place in the vector.

    Categories have their feature's name, and the weights by value, instead of a weight.
    """

    __slots__ = ("categories", "inputs", "is_added", "scales", "weights")

    def __init__(self, branch: Branch) -> None:
        self.scales = branch.encoder is not None
        self.inputs: list[tuple[Weight, int]] = []
        self.weights: list[Weight] = []
        self.categories: list[tuple[str, dict[str, Weight], int]] | None = [] if branch.is_one_hot else None
        self.is_added = False


def specialised(model: Any) -> Any:
    """Return what learns and predicts as `model` does, faster where its shape allows it; else the model itself."""
    *transformers, linear = model.steps.values() if type(model) is compose.Pipeline else (model,)
    if type(linear) not in (linear_model.LogisticRegression, linear_model.LinearRegression):
        return model
    if type(linear.optimizer) is not optim.SGD:
        return model
    if any(getattr(kind, name) is not method for (kind, name), method in _RIVER.items()):
        return model
    branches = _branches(transformers)
    encoders = [one.encoder for one in branches or () if one.is_one_hot]
    # Where an encoder has learned what the linear model has not, somebody else has had it in hand.
    if branches is None or len(encoders) > 1 or any(one._zero_dict.keys() - linear.weights for one in encoders):
        return model
    return LinearModel(model, linear, branches, encoders[0] if encoders else None)


def river_model(model: Any) -> Any:
    """Return River's own model, up to date, of what `specialised` has returned."""
    return model.river if isinstance(model, LinearModel) else model


def _branches(transformers: Sequence[Any]) -> list[Branch] | None:
    """Return the parts in the order in which River adds their features up; None where it is another shape."""
    parts = [transformers]
    first = list(takewhile(_is_selector, transformers))
    rest = transformers[len(first) :]
    if len(rest) == 1 and type(rest[0]) is compose.TransformerUnion:
        parts = [
            [*first, *(one.steps.values() if type(one) is compose.Pipeline else (one,))]
            for one in reversed(rest[0].transformers.values())
        ]
    branches = [branch for part in parts if (branch := _branch(part))]
    return branches if len(branches) == len(parts) else None


def _branch(steps: Sequence[Any]) -> Branch | None:
    selectors = list(takewhile(_is_selector, steps))
    rest = steps[len(selectors) :]
    encoder: Any = rest[0] if rest else None
    if type(encoder) is preprocessing.StandardScaler:
        fits = encoder.with_std and encoder.window_size is None
    elif type(encoder) is preprocessing.OneHotEncoder:
        fits = encoder.categories is None and not encoder.drop_first
    else:
        fits = encoder is None
    return Branch(selectors, encoder) if fits and len(rest) <= 1 else None


def _is_selector(step: Any) -> bool:
    return type(step) in (compose.SelectType, compose.Discard)


class LinearModel:
    """A model of River's in the form in which it learns and predicts; `river` is the model itself, up to date."""

    def __init__(self, model: Any, linear: Any, branches: Sequence[Branch], encoder: Any) -> None:
        self._model, self._linear, self._branches, self._encoder = model, linear, branches, encoder
        self._is_behind = False
        self._layouts: dict[tuple[Any, ...], Sequence[Layout] | None] = {}
        #: By key, in River's order.
        self._weights = {key: Weight(key, value) for key, value in linear.weights.items()}
        #: What each key stands for, a feature or its value: two of one key are River's business.
        self._owners: dict[str, tuple[Any, str]] = {}
        self._numbers: dict[str, tuple[Weight, Any]] = {}
        self._codes: dict[str, dict[str, Weight]] = {}
        self._has_new_categories = False
        #: The categories that a vector has a zero of, in the encoder's order.
        self._categories: list[Weight] = []
        if encoder is not None:
            for place, key in enumerate(encoder._zero_dict):
                self._categories.append(self._weights[key])
                self._weights[key].place = place
        for key, value in linear.cum_l1.items() if linear.l1 else ():
            self._weights[key].l1 = value
        #: Whether those zeros count: where weights shrink by themselves, or are infinite.
        self._has_zeros = bool(linear.l1 or linear.l2) or not all(isfinite(one.value) for one in self._categories)

    @property
    def river(self) -> Any:
        """River's model, with everything that was learned."""
        if self._is_behind:
            self._is_behind = False
            for name, (one, scaler) in self._numbers.items():
                if one.count:
                    scaler.counts[name], scaler.means[name], scaler.vars[name] = one.count, one.mean, one.var
            self._linear._weights = VectorDict({key: one.value for key, one in self._weights.items()})
            if self._linear.l1:
                for key, one in self._weights.items():
                    self._linear.cum_l1[key] = one.l1
        return self._model

    def predict_one(self, x: Mapping[str, Any]) -> Any:
        """Predict as River does."""
        if type(self._linear) is linear_model.LogisticRegression or (total := self._total(x)) is None:
            return self.river.predict_one(x)
        return self._linear.loss.mean_func(total)

    def predict_proba_one(self, x: Mapping[str, Any]) -> Any:
        """Predict as River does."""
        total = self._total(x)
        if total is None:
            return self.river.predict_proba_one(x)
        p = self._linear.loss.mean_func(total)
        return {False: 1.0 - p, True: p}

    def _total(self, x: Mapping[str, Any]) -> float | None:
        """Return the weighted sum of a vector; None where River must say it."""
        layouts = self._layouts_of(x)
        if layouts is None:
            return None
        values, total = tuple(x.values()), 0.0
        for layout in layouts:
            if layout.categories is not None:
                present = self._present(layout.categories, values, learns=False)
                if present is None:
                    return None
                for one in present:
                    total += one.value * one.x
            elif layout.scales:
                for one, at in layout.inputs:
                    std = one.std
                    total += one.value * ((values[at] - one.mean) / std if std else 0.0)
            else:
                for one, at in layout.inputs:
                    total += one.value * values[at]
        return float(total + self._linear.intercept)

    def learn_one(self, x: Mapping[str, Any], y: Any) -> None:
        """Learn as River does."""
        layouts, values = self._layouts_of(x), tuple(x.values())
        present: Sequence[Weight] | None = ()
        for layout in layouts or ():
            if layout.categories is not None:
                present = self._present(layout.categories, values, learns=True)
        if layouts is None or present is None:
            self._hand_over()
            self._model.learn_one(x, y)
            return
        self._is_behind = True
        used: list[Weight] = []
        total = 0.0
        for layout in layouts:
            if layout.categories is not None:
                if self._has_new_categories:
                    self._add(present)
                    self._has_new_categories = False
                for one in present:
                    total += one.value * one.x
                used += present
                continue
            if not layout.is_added:
                self._add(layout.weights)
                layout.is_added = True
            if layout.scales:
                for one, at in layout.inputs:
                    one.count = count = one.count + 1
                    value, mean, var = values[at], one.mean, one.var
                    difference = value - mean
                    one.mean = mean = mean + difference / count
                    one.var = var = var + (difference * (value - mean) - var) / count
                    if var:
                        one.std = std = var**0.5  # in the last digit this is not math.sqrt
                        one.x = scaled = (value - mean) / std
                    else:
                        one.std = one.x = scaled = 0.0
                    total += one.value * scaled
            else:
                for one, at in layout.inputs:
                    one.x = values[at]
                    total += one.value * one.x
            used += layout.weights
        self._step(y, total, used, present)

    def _step(self, y: Any, total: float, used: list[Weight], present: Sequence[Weight]) -> None:
        """Move the weights against the gradient."""
        linear = self._linear
        optimizer, clip, l2 = linear.optimizer, linear.clip_gradient, linear.l2
        gradient = linear.loss.gradient(y_true=y, y_pred=total + linear.intercept) * 1.0
        gradient = float(max(min(gradient, clip), -clip))
        linear.intercept -= linear.intercept_lr.get(optimizer.n_iterations) * gradient
        rate = float(optimizer.learning_rate)
        if not self._has_zeros and not abs(rate * gradient) < MAX_STEP:
            self._has_zeros = True
            for one in self._categories:
                if one not in present:
                    one.x = 0.0
                    used.append(one)
        if l2:
            for one in used:
                one.value -= rate * (one.x * gradient + l2 * one.value)
        else:
            for one in used:
                one.value -= rate * (one.x * gradient)
        optimizer.n_iterations += 1
        if linear.l1:
            linear.max_cum_l1 += linear.l1 * optimizer.learning_rate
            for one in used:
                self._shrink(one, linear.max_cum_l1)

    @staticmethod
    def _shrink(one: Weight, max_l1: float) -> None:
        """Apply River's cumulative l1 penalty to a weight."""
        before = one.value
        if before > 0:
            one.value = float(max(0, before - (max_l1 + one.l1)))
        elif before < 0:
            one.value = float(min(0, before + (max_l1 - one.l1)))
        one.l1 += one.value - before

    def _add(self, weights: Sequence[Weight]) -> None:
        """Give weights that are learned for the first time their initial value, and their place in River's order."""
        for one in weights:
            if one.key not in self._weights:
                one.value = float(self._linear.initializer())
                self._weights[one.key] = one

    def _present(
        self, categories: Sequence[tuple[str, dict[str, Weight], int]], values: Sequence[Any], *, learns: bool
    ) -> Sequence[Weight] | None:
        """Return the categories of a vector in the order in which River adds them up; None where it must do that."""
        present = []
        for name, codes, at in categories:
            value = values[at]
            one = codes.get(value)
            if one is None:
                key, owner = f"{name}_{value}", (name, value)
                one = self._weights.get(key)
                if one is None and not learns:
                    continue  # without a weight it adds nothing
                if self._owners.setdefault(key, owner) != owner:
                    return None
                if one is None:
                    one = self._category(name, value, key)
                elif not self._encoder.drop_zeros and key not in self._encoder._zero_dict:
                    return None
                codes[value] = one
            present.append(one)
        if self._encoder.drop_zeros:
            return present
        if self._has_zeros:
            for one in self._categories:
                one.x = 0.0
            for one in present:
                one.x = 1.0
            return self._categories
        present.sort(key=_place)
        return present

    def _category(self, name: str, value: str, key: str) -> Weight:
        """Return a category that is learned for the first time, as River's encoder does."""
        one = Weight(key, place=len(self._categories))
        self._has_new_categories = True
        if not self._encoder.drop_zeros:
            self._categories.append(one)
            self._encoder.values[name].add(value)
            self._encoder._zero_dict[key] = 0
        return one

    def _layouts_of(self, x: Mapping[str, Any]) -> Sequence[Layout] | None:
        """Return how vectors like `x` go through each branch; None where River must take them."""
        pattern = (*x, *map(type, x.values()))
        layouts = self._layouts.get(pattern)
        if layouts is None and pattern not in self._layouts:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            layouts = self._layouts[pattern] = self._lay_out(x)
        return layouts

    def _lay_out(self, x: Mapping[str, Any]) -> Sequence[Layout] | None:
        layouts = [Layout(branch) for branch in self._branches]
        for at, (name, value) in enumerate(x.items()):
            kind = type(value)
            taking = [place for place, branch in enumerate(self._branches) if branch.takes(name, kind)]
            if not taking:
                continue
            place = taking[0]
            layout, branch, owner = layouts[place], self._branches[place], (place, name)
            if len(taking) > 1 or kind not in ((str,) if branch.is_one_hot else (float, bool)):
                return None
            if layout.categories is not None:
                layout.categories.append((name, self._codes.setdefault(name, {}), at))
            elif self._owners.setdefault(name, owner) == owner:
                one = self._number(name, branch.encoder)
                layout.inputs.append((one, at))
                layout.weights.append(one)
            else:
                return None
        return layouts

    def _number(self, name: str, scaler: Any) -> Weight:
        if name not in self._numbers:
            one = self._weights.get(name) or Weight(name)
            if scaler is not None:
                one.count, one.mean, one.var = (had.get(name, 0) for had in (scaler.counts, scaler.means, scaler.vars))
                one.std = one.var**0.5
            self._numbers[name] = one, scaler
        return self._numbers[name][0]

    def _hand_over(self) -> None:
        """Leave everything to River from now on."""
        model = self.river
        self.learn_one, self.predict_one = model.learn_one, model.predict_one  # type: ignore[method-assign]
        self.predict_proba_one = getattr(model, "predict_proba_one", None)  # type: ignore[method-assign,assignment]


_place = attrgetter("place")
