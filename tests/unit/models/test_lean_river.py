"""River without the parts of SciPy that it seldom calls: what calls them gets the same."""

import subprocess
import sys

import pytest

USE = """
import random, sys
if sys.argv[1] == "lean":
    import tidemill.declare.pipeline
    assert not {"scipy.stats", "scipy.integrate", "scipy.ndimage"} & set(sys.modules)
from river import drift, metrics, preprocessing, proba, tree

chance = random.Random(3)
pairs = [(chance.random() < 0.5, chance.random()) for _ in range(50)]
mean, area = metrics.GeometricMean(), metrics.ROCAUC()
for truth, score in pairs:
    mean.update(truth, score < 0.5)
    area.update(truth, score)
print(mean.get(), area.get())
grown = tree.SGTClassifier(grace_period=20, delta=0.5)
for _ in range(300):
    x = {"a": chance.random(), "b": chance.random()}
    grown.learn_one(x, x["a"] > 0.5)
print(grown.height, grown.predict_proba_one({"a": 0.2, "b": 0.3}))
gaussian = proba.MultivariateGaussian(seed=4)
for _ in range(20):
    gaussian.update({"a": chance.random(), "b": chance.random()})
print(gaussian({"a": 0.2, "b": 0.1}), gaussian.cdf({"a": 0.2, "b": 0.1}), gaussian.sample())
kswin = drift.KSWIN(seed=1, window_size=30, stat_size=10)
print([i for i in range(300) if (kswin.update(chance.random() + (i > 200)), kswin.drift_detected)[1]])
topics = preprocessing.LDA(n_components=2, number_of_documents=4, seed=2)
for text in ("a b c d", "b c d e", "x y z a", "x z y"):
    print(topics.learn_transform_one(dict.fromkeys(text.split(), 1)))

import scipy.stats
from scipy.stats import norm
print(type(scipy.stats), scipy.stats.norm is norm, norm.cdf(1.0))
"""


def printed(how: str) -> str:
    return subprocess.run([sys.executable, "-c", USE, how], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_what_calls_scipy_gives_what_it_gives_without_us() -> None:
    lean = printed("lean")
    assert lean == printed("plain")
    assert len(lean.splitlines()) == 9
