"""The feature store: views as tiles of event time, their state, the online store in Redis, and look-ups in it.

The public names are those of `features.store`. They are imported when they are first used, because they need Redis'
client and tiles do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.features.store import Known, Store, now, schema

__all__ = ["Known", "Store", "now", "schema"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tidemill.features' has no attribute {name!r}")
    value = getattr(import_module("tidemill.features.store"), name)
    globals()[name] = value
    return value
