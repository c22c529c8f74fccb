"""All of River's classes that are made to be used, made, taught, and asked: what a declaration may hold."""

from __future__ import annotations

import functools
import inspect
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import river_wheel
from river import (
    anomaly,
    bandit,
    base,
    cluster,
    compose,
    drift,
    dummy,
    ensemble,
    feature_extraction,
    feature_selection,
    forest,
    imblearn,
    linear_model,
    metrics,
    misc,
    model_selection,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    proba,
    reco,
    rules,
    sketch,
    stats,
    time_series,
    tree,
    utils,
)
from river.tree import splitter

Maker = Callable[[], Any]


def first(x: Mapping[str, Any]) -> dict[str, Any]:
    """A function of a declaration's own."""
    return {"first": x.get("a", 0.0)}


def cube(y: float) -> float:
    """What undoes a cube root."""
    return y**3


def _linear() -> Any:
    return preprocessing.StandardScaler() | linear_model.LinearRegression()


def _logistic() -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


#: Parameters of classes that have needed ones, and more ways of others.
MADE: Mapping[str, list[Maker]] = {
    "FuncTransformer": [lambda: compose.FuncTransformer(first) | linear_model.LogisticRegression()],
    "Grouper": [lambda: compose.Grouper(preprocessing.StandardScaler(), by="word")],
    "Prefixer": [lambda: compose.Prefixer("p_")],
    "Suffixer": [lambda: compose.Suffixer("_s")],
    "Renamer": [lambda: compose.Renamer({"a": "b"})],
    "TargetTransformRegressor": [lambda: compose.TargetTransformRegressor(_linear(), math.cbrt, cube)],
    "Agg": [lambda: feature_extraction.Agg(on="a", by="word", how=stats.Mean())],
    "TargetAgg": [lambda: feature_extraction.TargetAgg(by="word", how=stats.BayesianMean(1.0, 3))],
    "PoissonInclusion": [lambda: feature_selection.PoissonInclusion(p=0.3, seed=1)],
    "RandomOverSampler": [
        lambda: imblearn.RandomOverSampler(_logistic(), desired_dist={False: 0.4, True: 0.6}, seed=1)
    ],
    "RandomSampler": [lambda: imblearn.RandomSampler(_logistic(), desired_dist={False: 0.4, True: 0.6}, seed=1)],
    "RandomUnderSampler": [
        lambda: imblearn.RandomUnderSampler(_logistic(), desired_dist={False: 0.4, True: 0.6}, seed=1)
    ],
    "FBeta": [lambda: metrics.FBeta(2.0)],
    "MacroFBeta": [lambda: metrics.MacroFBeta(2.0)],
    "MicroFBeta": [lambda: metrics.MicroFBeta(2.0)],
    "WeightedFBeta": [lambda: metrics.WeightedFBeta(2.0)],
    "MultiFBeta": [lambda: metrics.MultiFBeta(betas={True: 0.5, False: 2.0}, weights={True: 1.0, False: 1.0})],
    "Metrics": [lambda: metrics.Accuracy() + metrics.F1()],
    "SDFT": [lambda: misc.SDFT(8)],
    "Skyline": [lambda: misc.Skyline(minimize=["a"], maximize=["b"])],
    "SuccessiveHalvingClassifier": [
        lambda: model_selection.SuccessiveHalvingClassifier(
            [_logistic() for _ in range(4)], metric=metrics.Accuracy(), budget=400
        )
    ],
    "SuccessiveHalvingRegressor": [
        lambda: model_selection.SuccessiveHalvingRegressor(
            [_linear() for _ in range(4)], metric=metrics.MAE(), budget=400
        )
    ],
    "TargetMinMaxScaler": [lambda: preprocessing.TargetMinMaxScaler(_linear())],
    "TargetStandardScaler": [lambda: preprocessing.TargetStandardScaler(_linear())],
    "AutoCorr": [lambda: stats.AutoCorr(3)],
    "Link": [lambda: stats.Shift(1) | stats.Mean()],
    "BayesianMean": [lambda: stats.BayesianMean(1.0, 3)],
    **{
        name: [functools.partial(getattr(stats, name), window_size=20)]
        for name in ("RollingIQR", "RollingAbsMax", "RollingMax", "RollingMin", "RollingMode", "RollingPeakToPeak")
    },
    "RollingQuantile": [lambda: stats.RollingQuantile(0.4, 20)],
    "LogisticRegression": [
        functools.partial(lambda make: linear_model.LogisticRegression(make()), make)
        for make in (
            optim.AdaBound, optim.AdaDelta, optim.AdaGrad, optim.AdaMax, optim.Adam, optim.AMSGrad, optim.Averager,
            optim.FTRLProximal, optim.Momentum, optim.Nadam, optim.NesterovMomentum, optim.RMSProp, optim.SGD,
            lambda: optim.SGD(optim.schedulers.InverseScaling(0.1)),
            lambda: optim.SGD(optim.schedulers.Optimal(optim.losses.Log())),
        )
        if make is not optim.Averager
    ] + [
        lambda: linear_model.LogisticRegression(l2=0.1, initializer=optim.initializers.Normal(seed=1)),
        lambda: linear_model.LogisticRegression(l1=0.1, initializer=optim.initializers.Constant(0.5)),
        lambda: linear_model.LogisticRegression(loss=optim.losses.BinaryFocalLoss()),
        lambda: linear_model.LogisticRegression(optim.Averager(optim.SGD(0.01))),
        lambda: compose.Select("a") + compose.Discard("word", "c") | linear_model.LogisticRegression(),
        lambda: compose.SelectType(str) | preprocessing.OneHotEncoder() | linear_model.LogisticRegression(),
        lambda: compose.SelectType(str) | preprocessing.FeatureHasher(n_features=20) | linear_model.LogisticRegression(),
        lambda: (compose.SelectType(str) | preprocessing.OrdinalEncoder())
        + (compose.SelectType(float, int) | preprocessing.StandardScaler())
        | linear_model.LogisticRegression(),
        lambda: preprocessing.StatImputer(("a", stats.Mean()), ("word", stats.Mode()))
        | compose.SelectType(float)
        | linear_model.LogisticRegression(),
        lambda: feature_extraction.BagOfWords(on="word", ngram_range=(1, 2)) | linear_model.LogisticRegression(),
        lambda: feature_extraction.TFIDF(on="word") | naive_bayes.ComplementNB(),
        lambda: preprocessing.RobustScaler() | feature_extraction.PolynomialExtender() | linear_model.LogisticRegression(),
        lambda: feature_selection.SelectKBest(stats.PearsonCorr(), k=2) | linear_model.LogisticRegression(),
        lambda: compose.TransformerProduct(compose.Select("a"), compose.Select("b")) | linear_model.LogisticRegression(),
    ],
    "LinearRegression": [
        functools.partial(lambda loss: preprocessing.StandardScaler() | linear_model.LinearRegression(loss=loss()), loss)
        for loss in (
            optim.losses.Absolute, optim.losses.Cauchy, optim.losses.EpsilonInsensitiveHinge, optim.losses.Huber,
            optim.losses.Quantile, optim.losses.Squared,
        )
    ],
    "HoeffdingTreeClassifier": [
        functools.partial(
            lambda leaf, split, part, binary: tree.HoeffdingTreeClassifier(
                grace_period=20, delta=0.1, leaf_prediction=leaf, split_criterion=split, splitter=part(),
                nominal_attributes=["word"], binary_split=binary,
            ),
            leaf, split, part, binary,
        )
        for leaf, split, part, binary in (
            ("mc", "gini", splitter.GaussianSplitter, False),
            ("nb", "info_gain", splitter.ExhaustiveSplitter, True),
            ("nba", "hellinger", splitter.HistogramSplitter, False),
        )
    ],
    "HoeffdingTreeRegressor": [
        functools.partial(
            lambda leaf, part: tree.HoeffdingTreeRegressor(
                grace_period=20, delta=0.1, leaf_prediction=leaf, splitter=part(), nominal_attributes=["word"]
            ),
            leaf, part,
        )
        for leaf, part in (
            ("mean", splitter.EBSTSplitter), ("model", splitter.TEBSTSplitter), ("adaptive", splitter.QOSplitter),
        )
    ],
    "HoeffdingAdaptiveTreeClassifier": [
        functools.partial(
            lambda leaf: tree.HoeffdingAdaptiveTreeClassifier(
                grace_period=20, delta=0.1, leaf_prediction=leaf, nominal_attributes=["word"], seed=1, binary_split=leaf == "mc"
            ),
            leaf,
        )
        for leaf in ("mc", "nb", "nba")
    ],
    "HoeffdingAdaptiveTreeRegressor": [
        functools.partial(
            lambda leaf: tree.HoeffdingAdaptiveTreeRegressor(
                grace_period=20, delta=0.1, leaf_prediction=leaf, nominal_attributes=["word"], seed=1
            ),
            leaf,
        )
        for leaf in ("mean", "model", "adaptive")
    ],
    "ExtremelyFastDecisionTreeClassifier": [
        functools.partial(
            lambda leaf, binary: tree.ExtremelyFastDecisionTreeClassifier(
                grace_period=20, delta=0.1, leaf_prediction=leaf, nominal_attributes=["word"], binary_split=binary,
                min_samples_reevaluate=20,
            ),
            leaf, binary,
        )
        for leaf, binary in (("mc", True), ("nb", False), ("nba", False))
    ],
    "LASTClassifier": [
        functools.partial(lambda leaf: tree.LASTClassifier(leaf_prediction=leaf, nominal_attributes=["word"]), leaf)
        for leaf in ("mc", "nb", "nba")
    ],
    "ISOUPTreeRegressor": [
        functools.partial(lambda leaf: tree.ISOUPTreeRegressor(grace_period=20, leaf_prediction=leaf), leaf)
        for leaf in ("mean", "model", "adaptive")
    ],
    "ARFClassifier": [
        functools.partial(
            lambda leaf: forest.ARFClassifier(
                n_models=3, grace_period=20, delta=0.1, leaf_prediction=leaf, seed=1, nominal_attributes=["word"]
            ),
            leaf,
        )
        for leaf in ("mc", "nb", "nba")
    ],
    "ARFRegressor": [
        functools.partial(
            lambda leaf: forest.ARFRegressor(n_models=3, grace_period=20, delta=0.1, leaf_prediction=leaf, seed=1), leaf
        )
        for leaf in ("mean", "model", "adaptive")
    ],
    "OXTRegressor": [
        functools.partial(
            lambda leaf, sampling, mode: forest.OXTRegressor(
                n_models=3, grace_period=20, delta=0.1, leaf_prediction=leaf, resampling_strategy=sampling,
                detection_mode=mode, seed=1,
            ),
            leaf, sampling, mode,
        )
        for leaf, sampling, mode in (
            ("mean", "bagging", "all"), ("model", "subbagging", "drop"), ("adaptive", None, "off"),
        )
    ],
    "KNNClassifier": [
        lambda: neighbors.KNNClassifier(n_neighbors=3),
        lambda: neighbors.KNNClassifier(
            engine=neighbors.SWINN(dist_func=functools.partial(utils.math.minkowski_distance, p=2), graph_k=4, seed=1)
        ),
        lambda: neighbors.KNNClassifier(engine=neighbors.LazySearch(window_size=50)),
    ],
    "KNNRegressor": [
        lambda: neighbors.KNNRegressor(n_neighbors=3, aggregation_method="mean"),
        lambda: neighbors.KNNRegressor(aggregation_method="median"),
    ],
    "StatisticRegressor": [
        lambda: dummy.StatisticRegressor(stats.Quantile(0.3)),
        lambda: dummy.StatisticRegressor(stats.RollingQuantile(0.3, 50)),
        lambda: dummy.StatisticRegressor(utils.Rolling(stats.Mean(), window_size=20)),
        lambda: dummy.StatisticRegressor(stats.Shift(2)),
    ],
    "EWARegressor": [lambda: ensemble.EWARegressor([_linear(), _linear()], loss=optim.losses.Squared())],
    "VotingClassifier": [lambda: ensemble.VotingClassifier([_logistic(), naive_bayes.GaussianNB()])],
    "ADWINBaggingClassifier": [lambda: ensemble.ADWINBaggingClassifier(_logistic(), n_models=3, seed=1)],
    "SRPClassifier": [
        functools.partial(
            lambda training: ensemble.SRPClassifier(
                tree.HoeffdingTreeClassifier(grace_period=20, delta=0.1), n_models=3, seed=1, training_method=training
            ),
            training,
        )
        for training in ("patches", "subspaces", "resampling")
    ],
    "DriftRetrainingClassifier": [
        functools.partial(
            lambda detector: drift.DriftRetrainingClassifier(naive_bayes.GaussianNB(), drift_detector=detector()), detector
        )
        for detector in (
            drift.binary.DDM, drift.binary.EDDM, drift.binary.FHDDM, drift.binary.HDDMA, drift.binary.HDDMW,
        )
    ],
    "BanditClassifier": [
        functools.partial(
            lambda policy: model_selection.BanditClassifier(
                [_logistic(), naive_bayes.GaussianNB()], metric=metrics.Accuracy(), policy=policy()
            ),
            policy,
        )
        for policy in (
            lambda: bandit.EpsilonGreedy(0.1, seed=1), lambda: bandit.UCB(1.0, seed=1), lambda: bandit.Exp3(0.5, seed=1),
            lambda: bandit.ThompsonSampling(reward_obj=proba.Beta(), seed=1),
        )
    ],
    "BanditRegressor": [
        lambda: model_selection.BanditRegressor(
            [_linear(), _linear()], metric=metrics.MAE(), policy=bandit.BayesUCB(seed=1)
        )
    ],
    "HoltWinters": [
        lambda: time_series.HoltWinters(0.3, 0.1, 0.6, seasonality=5),
        lambda: time_series.HoltWinters(0.3, 0.1, 0.6, seasonality=5, multiplicative=True),
    ],
    "SNARIMAX": [lambda: time_series.SNARIMAX(2, 1, 2, sp=2, sq=1, m=5, sd=1, regressor=_linear())],
    "HorizonAggMetric": [],
    "HorizonMetric": [lambda: time_series.HorizonMetric(metrics.MAE())],
    "MacroAverage": [lambda: metrics.multioutput.MacroAverage(metrics.F1())],
    "MicroAverage": [lambda: metrics.multioutput.MicroAverage(metrics.F1())],
    "PerOutput": [lambda: metrics.multioutput.PerOutput(metrics.F1())],
    "SampleAverage": [lambda: metrics.multioutput.SampleAverage(metrics.F1())],
    "AMRules": [
        lambda: rules.AMRules(n_min=20, delta=0.1, pred_type="mean"),
        lambda: rules.AMRules(n_min=20, delta=0.1, pred_type="adaptive", splitter=splitter.TEBSTSplitter()),
    ],
    "GaussianScorer": [lambda: anomaly.GaussianScorer()],
    "QuantileFilter": [
        lambda: anomaly.QuantileFilter(anomaly.HalfSpaceTrees(seed=1), q=0.9),
        lambda: preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(n_trees=5, height=4, window_size=40, seed=1),
    ],
    "Rolling": [lambda: utils.Rolling(stats.Var(), window_size=20), lambda: utils.Rolling(metrics.Accuracy(), 20)],
    "BagOfWords": [lambda: feature_extraction.BagOfWords()],
    "SWINN": [lambda: neighbors.SWINN(seed=1)],
    "Shift": [lambda: stats.Shift(2)],
    "KMeans": [lambda: cluster.KMeans(n_clusters=3, seed=1)],
    "FeatureHasher": [lambda: preprocessing.FeatureHasher(n_features=5, seed=1)],
    "Histogram": [lambda: sketch.Histogram(max_bins=8)],
    "RandomNormal": [lambda: reco.RandomNormal(seed=1)],
    "PAClassifier": [functools.partial(lambda mode: linear_model.PAClassifier(mode=mode), mode) for mode in (0, 1, 2)],
    "LeveragingBaggingClassifier": [
        functools.partial(
            lambda way: ensemble.LeveragingBaggingClassifier(_logistic(), n_models=3, bagging_method=way, seed=1), way
        )
        for way in ("bag", "me", "half", "wt", "subag")
    ],
    "PageHinkley": [functools.partial(lambda mode: drift.PageHinkley(mode=mode), mode) for mode in ("up", "down", "both")],
    "DummyDriftDetector": [lambda: drift.DummyDriftDetector("random", t_0=10, w=5, seed=1)],
    "AdjustedMutualInfo": [lambda: metrics.AdjustedMutualInfo(average_method="geometric")],
}  # fmt: skip


def makers() -> dict[str, Maker]:
    """Return what makes each of River's classes, by a name of its own, with every way that River tests it in."""
    made: dict[str, Maker] = {}
    for one in river_wheel.classes():
        if one.__module__.startswith(river_wheel.OTHERS) or one.__name__.startswith("_"):
            continue
        ways: list[Maker] = []
        if not inspect.isabstract(one) and issubclass(one, base.Base):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ways += [functools.partial(_again, one, n) for n, _ in enumerate(_parameters(one))]
        ways += MADE.get(one.__name__, []) if not one.__module__.startswith(("river.stream", "river.base")) else []
        for number, way in enumerate(ways):
            made[f"{one.__module__.removeprefix('river.')}.{one.__name__}#{number}"] = way
    return made


def _parameters(one: type) -> list[Any]:
    try:
        return list(one._unit_test_params())  # type: ignore[attr-defined]
    except Exception:  # an abstract class, or a part of another one
        return []


def _again(one: type, number: int) -> Any:
    """Make one anew: parameters are models themselves, and may not be shared."""
    return one(**_parameters(one)[number])


def rows(count: int, seed: int = 1, words: bool = True) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield vectors of the kinds that a pipeline has, each with a number to learn; what is right changes half way."""
    rng = random.Random(seed)
    for index in range(count):
        x: dict[str, Any] = {"a": rng.gauss(0, 1), "b": rng.random() * 10, "c": rng.gauss(3, 2)}
        if words:
            x["word"] = rng.choice(("red", "green", "the red one"))
        right = x["a"] if index < count / 2 else -x["a"]
        yield x, right + (x["b"] > 5) + rng.gauss(0, 0.1)


def _lessons(x: Mapping[str, Any], y: float) -> Iterator[tuple[Any, ...]]:
    numbers = {name: value for name, value in x.items() if not isinstance(value, str)}
    for given in (dict(x), numbers):
        yield (given, y > 0.5)
        yield (given, ("low", "middle", "high")[(y > 0) + (y > 1)])
        yield (given, y)
        yield (given, {"p": y > 0, "q": y > 1})
        yield (given, {"p": y, "q": -y})
        yield (given,)
    text = f"{x.get('word', 'red')} and {int(y)}"
    yield (text, y > 0.5)
    yield (text,)
    yield (y > 0.5, y > 0)
    yield (y > 0.5, {False: 0.3, True: 0.7})
    yield (y, x["b"])
    yield ({"p": y > 0, "q": y > 1}, {"p": y > 0.2, "q": y > 0.9})
    yield (y > 0.5,)
    yield (y,)
    yield (x["b"], y > 0.5, 1.0)
    yield (x["b"], y, 1.0)
    yield (f"u{int(x['b'])}", f"i{int(x['c'])}", y)
    yield (numbers,)
    yield (y, numbers)
    yield (numbers, 1, {0: numbers, 1: numbers})


def taught(make: Maker, count: int = 400) -> tuple[Any, int]:
    """Return a model, a metric or a statistic that was taught whatever it can learn, and how many lessons it took."""
    ways = range(len(list(_lessons(*next(rows(1))))))
    best = max(ways, key=lambda way: _taught(make, way, 12)[1])
    return _taught(make, best, count)


def _taught(make: Maker, way: int, count: int) -> tuple[Any, int]:
    thing = make()
    return thing, _teach(thing, way, count, 1)


def _teach(thing: Any, way: int, count: int, seed: int) -> int:
    learn, taken = getattr(thing, "learn_one", None) or getattr(thing, "update", None), 0
    if learn is None:
        return 0
    for x, y in rows(count, seed):
        answers(thing, x)
        try:
            learn(*list(_lessons(x, y))[way])
        except Exception:  # it is for other arguments
            if taken == 0:
                break
            continue
        taken += 1
    return taken


def teach_more(thing: Any, count: int) -> None:
    """Teach a model further, by the first way that it takes."""
    ways = range(len(list(_lessons(*next(rows(1))))))
    next((way for way in ways if _teach(thing, way, count, 2)), None)


def answers(thing: Any, x: Mapping[str, Any]) -> list[str]:
    """Return all that a model says about a vector, to the last digit."""
    numbers = {name: value for name, value in x.items() if not isinstance(value, str)}
    found: list[str] = []
    for method in ("predict_proba_one", "predict_one", "score_one", "transform_one", "get", "forecast"):
        ask = getattr(thing, method, None)
        if ask is None:
            continue
        for arguments in ((dict(x),), (numbers,), (f"{x.get('word', 'red')} and more",), (), ("u1", "i2"), (3,)):
            try:
                answer = ask(*arguments)
                # The order of a prediction means nothing (River's ISOUP has that of a set, which saving may change); that of a
                # vector is the order in which the next step adds up.
                if isinstance(answer, Mapping) and method.startswith("predict"):
                    answer = dict(sorted(answer.items(), key=repr))
                found.append(f"{method} {_exact(answer)}")
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # it is for other arguments; what is in rust panics, which is no Exception
                continue
            break
    return found


def _exact(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_exact(k)}: {_exact(v)}" for k, v in value.items()) + "}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.tolist()!r}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, str, np.generic)) else repr(value)
