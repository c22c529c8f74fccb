"""Aggregates over event-time tile windows: what a view can keep of an entity. One file each; see base.py."""

from tidemill.aggregates.base import Aggregate as Aggregate
from tidemill.aggregates.base import Column as Column
from tidemill.aggregates.count import count
from tidemill.aggregates.decayed_mean import decayed_mean
from tidemill.aggregates.distinct import distinct
from tidemill.aggregates.first import first
from tidemill.aggregates.last import last
from tidemill.aggregates.max import max
from tidemill.aggregates.mean import mean
from tidemill.aggregates.min import min
from tidemill.aggregates.quantile import quantile
from tidemill.aggregates.rate import rate
from tidemill.aggregates.ratio import ratio
from tidemill.aggregates.shrunk_mean import shrunk_mean
from tidemill.aggregates.std import std
from tidemill.aggregates.sum import sum
from tidemill.aggregates.time_since_last import time_since_last
from tidemill.aggregates.top_share import top_share

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
