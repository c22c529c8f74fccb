"""River without what it seldom calls of other libraries: what calls them gets the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

USE = """
import random, sys
if sys.argv[1] == "lean":
    import tidemill.declare.pipeline
    parts = {"scipy.stats", "scipy.special", "scipy.sparse", "scipy.io", "scipy.integrate", "scipy.ndimage"}
    assert not {*parts, "sqlalchemy", "sklearn"} & set(sys.modules)
from river import bandit, drift, feature_extraction, linear_model, metrics, naive_bayes, optim, preprocessing, proba
from river import stream, tree

chance = random.Random(3)
pairs = [(chance.random() < 0.5, chance.random()) for _ in range(50)]
mean, area = metrics.GeometricMean(), metrics.ROCAUC()
for truth, score in pairs:
    mean.update(truth, score < 0.5)
    area.update(truth, score)
print(area.get(), end=" ")
assert sys.argv[1] != "lean" or "scipy.integrate" not in sys.modules
print(mean.get())
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
print([optim.losses.Log().gradient(True, p) for p in (-3.0, 0.0, 2.5)], optim.losses.Log().mean_func(0.3))
beta = proba.Beta(2, 3)
print(beta.cdf(0.3), beta(0.4), beta.sample() < 1)
ads = linear_model.AdPredictor()
arms = bandit.BayesUCB(seed=3)
for number in range(40):
    ads.learn_one({"a": 1.0, f"b{number % 3}": 1.0}, number % 2)
    arms.update(arms.pull([1, 2, 3]), chance.random())
print(ads.predict_proba_one({"a": 1.0, "b1": 1.0}), arms.pull([1, 2, 3]))
import pandas
for kind in (naive_bayes.MultinomialNB, naive_bayes.BernoulliNB, naive_bayes.ComplementNB):
    words = feature_extraction.BagOfWords()
    texts = pandas.Series(["red green", "green blue", "black white"])
    counts = words.transform_many(texts)
    bayes = kind()
    bayes.learn_many(counts, pandas.Series([True, True, False]))
    print(bayes.predict_proba_many(counts).to_dict())
import io
ARFF = '''@relation r
@attribute a numeric
@attribute y {0,1}
@data
1.5,0
2,1
'''
print(list(stream.iter_arff(io.StringIO(ARFF), "y")))

import sqlalchemy

with sqlalchemy.create_engine("sqlite://").connect() as connection:
    print(list(stream.iter_sql("SELECT 1 AS a, 2 AS b", connection, "b")))
print(stream.iter_sklearn_dataset.__name__)
import sklearn.utils
print(sklearn.utils.Bunch, type(sklearn))

import scipy.stats
from scipy.stats import norm
print(type(scipy.stats), scipy.stats.norm is norm, norm.cdf(1.0))
"""


def printed(how: str, folder: Path) -> str:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", USE, how]
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_what_is_left_out_gives_what_it_gives_without_us_when_it_is_called(tmp_path: Path) -> None:
    """Also a scikit-learn, which River imports where it is installed; this one has only what River names."""
    (tmp_path / "sklearn" / "utils").mkdir(parents=True)
    (tmp_path / "sklearn" / "__init__.py").touch()
    (tmp_path / "sklearn" / "utils" / "__init__.py").write_text("class Bunch: pass")
    lean = printed("lean", tmp_path)
    assert lean == printed("plain", tmp_path)
    assert len(lean.splitlines()) == 19
