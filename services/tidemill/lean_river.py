"""River, imported without what it hardly ever calls of other libraries.

River imports `scipy.stats` and others for a handful of functions, and `sqlalchemy` and `sklearn` wherever they are
installed. They take half of the time in which a service or a command starts, and 45 MB of each process. While River is
imported here, modules stand in for them that import the real ones when something of theirs is first used. Whoever
imports them later, or River before Tidemill, gets the real ones.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np

#: What is seldom called, and which parts of River import it.
PARTS = (
    "scipy.stats", "scipy.special", "scipy.sparse", "scipy.integrate", "scipy.ndimage", "scipy.io", "scipy.io.arff",
    "scipy.io.arff._arffread", "sqlalchemy", "sklearn", "sklearn.utils",
)  # fmt: skip
USERS = (
    "river.metrics", "river.tree", "river.proba", "river.drift", "river.preprocessing", "river.optim",
    "river.linear_model", "river.bandit", "river.naive_bayes", "river.feature_extraction",
)  # fmt: skip


class _Later:
    """A function or an object of a module that is imported when it is first used."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _real(self._module, self._name)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(_real(self._module, self._name), name)


class _StandIn(ModuleType):
    """A module in place of the real one."""

    is_importing = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.is_importing:  # `from scipy.stats import f`
            return _Later(self.__name__, name)
        value = _real(self.__name__, name)
        setattr(self, name, value)
        return value


#: The same code as SciPy's, which comes with 40 MB: River's ROCAUC asks for nothing else.
_ELSEWHERE = {("scipy.integrate", "trapezoid"): getattr(np, "trapezoid", None) or np.trapz}  # type: ignore[attr-defined]


def _real(module: str, name: str) -> Any:
    if (module, name) in _ELSEWHERE and module not in sys.modules:
        return _ELSEWHERE[module, name]
    return getattr(importlib.import_module(module), name)


def _import_river() -> None:
    wanted = [name for name in PARTS if name not in sys.modules]
    stand_ins = [_StandIn(name) for name in wanted if importlib.util.find_spec(name.partition(".")[0])]
    for module in stand_ins:
        sys.modules[module.__name__] = module
        parent, _, name = module.__name__.rpartition(".")
        if parent:
            setattr(importlib.import_module(parent), name, module)
    try:
        for name in USERS:
            importlib.import_module(name)
    finally:
        for module in stand_ins:
            module.is_importing = False
            del sys.modules[module.__name__]
            parent, _, name = module.__name__.rpartition(".")
            if parent in sys.modules:
                delattr(sys.modules[parent], name)


if "river.metrics" not in sys.modules:
    _import_river()
