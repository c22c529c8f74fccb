"""Aggregates over event-time tile windows: what a view can keep of an entity. One file each; see base.py."""

from tidemill.featurizer.aggregates.base import Aggregate as Aggregate
from tidemill.featurizer.aggregates.base import Column as Column
from tidemill.featurizer.aggregates.count import count
from tidemill.featurizer.aggregates.decayed_mean import decayed_mean
from tidemill.featurizer.aggregates.distinct import distinct
from tidemill.featurizer.aggregates.first import first
from tidemill.featurizer.aggregates.last import last
from tidemill.featurizer.aggregates.max import max
from tidemill.featurizer.aggregates.mean import mean
from tidemill.featurizer.aggregates.min import min
from tidemill.featurizer.aggregates.quantile import quantile
from tidemill.featurizer.aggregates.rate import rate
from tidemill.featurizer.aggregates.ratio import ratio
from tidemill.featurizer.aggregates.shrunk_mean import shrunk_mean
from tidemill.featurizer.aggregates.std import std
from tidemill.featurizer.aggregates.sum import sum
from tidemill.featurizer.aggregates.time_since_last import time_since_last
from tidemill.featurizer.aggregates.top_share import top_share

__all__ = [
    "count",
    "decayed_mean",
    "distinct",
    "first",
    "last",
    "max",
    "mean",
    "min",
    "quantile",
    "rate",
    "ratio",
    "shrunk_mean",
    "std",
    "sum",
    "time_since_last",
    "top_share",
]
