"""Tidemill: online machine learning on Kafka. Declare a pipeline in one Python file; services keep it learning."""

from tidemill.featurizer import aggregates
from tidemill.gate.declaration import Gate, Training
from tidemill.learner.protection import Protect
from tidemill.monitor.declaration import Monitor
from tidemill.pipeline import Pipeline, Stream, View, category, flag, load, number
from tidemill.tables import Table
from tidemill.tuning import ranges
from tidemill.tuning.search import Search, tuned
from tidemill.validator import rules
from tidemill.validator.fuse import Fuse

__version__ = "0.1.0"

__all__ = [
    "Fuse",
    "Gate",
    "Monitor",
    "Pipeline",
    "Protect",
    "Search",
    "Stream",
    "Table",
    "Training",
    "View",
    "aggregates",
    "category",
    "flag",
    "load",
    "number",
    "ranges",
    "rules",
    "tuned",
]
