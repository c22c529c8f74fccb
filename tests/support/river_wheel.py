"""What River's wheel holds, and what of it is allowed in a snapshot: `python tests/support/river_wheel.py` writes the list.

Run it after an upgrade of River, and read the difference: each new name is one that a snapshot may then make.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import textwrap
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import river

#: River's packages and modules that hold no part of a model.
OTHERS = (
    "river.api", "river.bandit.datasets", "river.bandit.envs", "river.bandit.evaluate", "river.checks", "river.compat",
    "river.datasets", "river.drift.datasets", "river.evaluate", "river.misc.zstd_classifier", "river.stream",
)  # fmt: skip
#: What a part of a model has no business with: names in compiled code.
DANGERS = frozenset(
    """
    open eval exec compile __import__ import_module importlib urlopen urlretrieve request requests socket connect glob
    iglob unlink rmtree rmdir mkdir makedirs chmod popen Popen system subprocess shutil os environ pickle cPickle marshal
    loads load dumps dump input breakpoint globals locals ctypes spawn fork kill tarfile zipfile gzip read_csv read_bytes
    read_text write_text write_bytes Path sleep
    """.split()  # noqa: SIM905
)
LIST = Path(__file__).parents[2] / "services" / "tidemill" / "registry" / "river_parts.py"


def modules() -> Iterator[Any]:
    """Yield all of River's modules that can be imported here, but its tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.walk_packages(river.__path__, "river."):
            last = module.name.rpartition(".")[2]
            if last.startswith("test_") or last == "conftest":
                continue
            try:
                importlib.import_module(module.name)
            except ImportError:  # it needs a library that River doesn't
                continue
    yield from (module for name, module in sorted(sys.modules.items()) if name.split(".")[0] == "river" and module)


def _own(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] == "river"


def classes() -> list[type]:
    """Return all classes that River defines, with those inside of others."""
    own: dict[type, None] = {}

    def add(thing: Any) -> None:
        if inspect.isclass(thing) and _own(thing) and thing not in own:
            own[thing] = None
            for inner in vars(thing).values():
                add(inner)

    for module in modules():
        for thing in list(vars(module).values()):
            add(thing)
    return sorted(own, key=lambda one: (one.__module__, one.__qualname__))


def functions() -> list[Any]:
    """Return all functions that River's modules define, those in rust too."""
    own = {
        thing
        for module in modules()
        for thing in vars(module).values()
        if isinstance(thing, (types.FunctionType, types.BuiltinFunctionType)) and _own(thing)
    }
    return sorted(own, key=lambda one: (one.__module__, one.__qualname__))


def names_of(thing: Any) -> set[str]:
    """Return all names that the code of a class (not of its ancestors) or a function uses."""
    if isinstance(thing, type):
        return {name for value in vars(thing).values() for name in names_of(value)}
    if isinstance(thing, (staticmethod, classmethod)):
        return names_of(thing.__func__)
    if isinstance(thing, property):
        return {name for part in (thing.fget, thing.fset, thing.fdel) if part for name in names_of(part)}
    code = getattr(thing, "__code__", None)
    return _names(code) if code else set()


def _names(code: types.CodeType) -> set[str]:
    inner = {name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)}
    return inner | set(code.co_names)


def is_dangerous(thing: Any) -> bool:
    """Whether a class or one of its ancestors, or a function, opens, evaluates, deletes, imports, waits or calls out."""
    parts = thing.__mro__ if isinstance(thing, type) else (thing,)
    return any(names_of(part) & DANGERS for part in parts if _own(part))


def is_part(one: type) -> bool:
    """Whether a class of River's may be part of a model."""
    return not (
        one.__module__.startswith(OTHERS)
        or inspect.isabstract(one)
        or issubclass(one, (BaseException, dict, type))
        or getattr(one, "_is_protocol", False)
        or one.__module__ == "river.base.typing"
        or one.__module__.startswith("river._river_rust")  # they are saved by registry/values.py
        or is_dangerous(one)
    )


def parts() -> dict[str, tuple[str, ...]]:
    """Return River's classes that may be part of a model, by module."""
    found: dict[str, list[str]] = {}
    for one in classes():
        if is_part(one):
            found.setdefault(one.__module__, []).append(one.__qualname__)
    return {module: tuple(sorted(names)) for module, names in sorted(found.items())}


def write() -> None:
    """Write the classes into the list; its functions and methods are chosen by hand."""
    head, mark, tail = LIST.read_text().partition("CLASSES: Mapping[str, str] = {\n")
    _, end, rest = tail.partition("}\n")
    lines = []
    for module, names in parts().items():
        line = f'    "{module}": "{" ".join(names)}",\n'
        if len(line) > 121:
            wrapped = textwrap.wrap(" ".join(names), 105, drop_whitespace=False)
            line = f'    "{module}": (\n' + "".join(f'        "{part}"\n' for part in wrapped) + "    ),\n"
        lines.append(line)
    LIST.write_text(head + mark + "".join(lines) + end + rest)


if __name__ == "__main__":
    write()
