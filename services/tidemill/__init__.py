"""Tidemill: online machine learning on Kafka. Declare a pipeline in one Python file; services keep it learning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill import aggregates, features, ranges, rules
    from tidemill.api import backtest, dataset, replay
    from tidemill.declare.feature import category, flag, number
    from tidemill.declare.forgetting import Forgetting
    from tidemill.declare.fuse import Fuse
    from tidemill.declare.gate import Gate
    from tidemill.declare.load import load
    from tidemill.declare.monitor import Monitor
    from tidemill.declare.pipeline import Pipeline
    from tidemill.declare.protect import Protect
    from tidemill.declare.retention import Retention
    from tidemill.declare.search import Search, tuned
    from tidemill.declare.stream import Stream
    from tidemill.declare.training import Training
    from tidemill.declare.view import View
    from tidemill.tables import Table

__version__ = "0.1.0"

#: Where each public name is; it is imported when it is first used, so that a command that declares nothing starts fast.
_HOME = {
    "Forgetting": "declare.forgetting",
    "Fuse": "declare.fuse",
    "Gate": "declare.gate",
    "Monitor": "declare.monitor",
    "Pipeline": "declare.pipeline",
    "Protect": "declare.protect",
    "Retention": "declare.retention",
    "Search": "declare.search",
    "Stream": "declare.stream",
    "Table": "tables",
    "Training": "declare.training",
    "View": "declare.view",
    "backtest": "api",
    "category": "declare.feature",
    "dataset": "api",
    "flag": "declare.feature",
    "load": "declare.load",
    "number": "declare.feature",
    "replay": "api",
    "tuned": "declare.search",
}

__all__ = [
    "Forgetting",
    "Fuse",
    "Gate",
    "Monitor",
    "Pipeline",
    "Protect",
    "Retention",
    "Search",
    "Stream",
    "Table",
    "Training",
    "View",
    "aggregates",
    "backtest",
    "category",
    "dataset",
    "features",
    "flag",
    "load",
    "number",
    "ranges",
    "replay",
    "rules",
    "tuned",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"tidemill.{_HOME[name]}"), name)
    elif name in __all__:
        value = import_module(f"tidemill.{name}")
    else:
        raise AttributeError(f"module 'tidemill' has no attribute {name!r}")
    globals()[name] = value
    return value
