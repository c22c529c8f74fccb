"""A model as text, with its hyperparameters: what a version's identity and its seeds are made of."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Mapping
from typing import Any

#: Where River's own texts are made that have every parameter, and those that are made of the texts of their steps; by
#: name, for commands that only print import no River. Those of ensembles, policies, metrics and statistics have state.
_BY_PARAMETERS = frozenset({"river.base.base", "river.optim.base"})
_BY_STEPS = frozenset({f"river.compose.{name}" for name in ("pipeline", "union", "product", "select")})
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")


def parameters(thing: Any) -> dict[str, Any]:
    """Return what a River object was made with, by name; of `*steps` all of them, of `**kwargs` each by its own."""
    values: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(thing).__init__).parameters.items():
        if hasattr(thing, name):
            value = getattr(thing, name)
            values |= value if parameter.kind == parameter.VAR_KEYWORD else {name: value}
    return values


def stable_repr(thing: Any) -> str:
    """Return a model as text that has every parameter exactly, and is the same in every process.

    It is River's where that is such a text, which it is for most.
    """
    return _text(thing, ())


def _text(thing: Any, within: tuple[int, ...]) -> str:
    try:
        printed = repr(thing)
    except Exception:  # River's fails for SelectType of two types
        printed = ""
    if printed and not _ADDRESS.search(printed) and _is_complete(thing):
        return printed
    if id(thing) in within:
        return f"{type(thing).__name__}(...)"
    text = functools.partial(_text, within=(*within, id(thing)))
    if isinstance(thing, types.MethodType):  # before its object, which may be the one that has it
        return f"{type(thing.__self__).__qualname__}.{thing.__name__}"
    if isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType)):
        return f"{thing.__module__}.{thing.__qualname__}"
    if isinstance(thing, functools.partial):
        parts = [text(thing.func), text(thing.args), text(thing.keywords)]
    elif _has_parameters(thing):  # also what looks like a list or a mapping of models
        parts = [f"{name}={text(value)}" for name, value in sorted(parameters(thing).items())]
    elif isinstance(thing, Mapping):
        parts = [f"{key}: {text(value)}" for key, value in thing.items()]
    elif isinstance(thing, (set, frozenset)):
        parts = sorted(map(text, thing))
    elif isinstance(thing, (list, tuple)):
        parts = [text(value) for value in thing]
    else:
        parts = [f"{name}={text(value)}" for name, value in sorted(getattr(thing, "__dict__", {}).items())]
    return f"{type(thing).__name__}({', '.join(parts)})"


def _has_parameters(thing: Any) -> bool:
    """Whether this is of a class of River's, or derived from one: they keep what they were made with."""
    return any(kind.__module__.startswith("river.") for kind in type(thing).__mro__)


def _is_complete(thing: Any) -> bool:
    """Whether `repr` of this has every parameter, to the last digit."""
    if _has_parameters(thing):
        made_in = getattr(type(thing).__repr__, "__module__", "")
        if made_in in _BY_PARAMETERS:
            return _is_shown(thing)
        return made_in in _BY_STEPS and all(map(_is_complete, parameters(thing).values()))
    if isinstance(thing, (list, tuple, set, frozenset)):
        return all(map(_is_complete, thing))
    return not isinstance(thing, Mapping) or all(map(_is_complete, thing.values()))


def _is_shown(value: Any) -> bool:
    """Whether River's text of an object has this parameter of it: it rounds numbers, and leaves `**kwargs` out."""
    if isinstance(value, float):
        shown = f"{value:.0e}" if value > 1e5 or 0 < value < 1e-4 else f"{value:.6f}"
        return float(shown) == value
    if not _has_parameters(value):
        return _is_complete(value)
    given = inspect.signature(type(value).__init__).parameters.values()
    is_left_out = any(one.kind == one.VAR_KEYWORD and hasattr(value, one.name) for one in given)
    return not is_left_out and all(map(_is_shown, parameters(value).values()))


def model_text(printed: str) -> str:
    """Return River's text of a model on one line, without the blanks inside its parentheses."""
    return re.sub(r" ?\( ", "(", " ".join(printed.split())).replace(" )", ")").replace(" ()", "()")
