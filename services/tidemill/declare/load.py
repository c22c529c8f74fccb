"""Loads a declaration: from a file, a module, or one of the shipped pipelines."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any, cast

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import DeclarationError
from tidemill.loading import loading

#: Pipelines that come with the package, by the short name that commands take.
SHIPPED = {name: f"tidemill.demo.flights:{name}" for name in ("flights", "departures", "plain", "delays")}

#: The folder that imports were made to look into, if there is one.
_searched: set[str] = set()


def load(reference: str) -> Pipeline:
    """Load a pipeline from `path/to/file.py[:name]`, `package.module[:name]` or the name of a shipped one.

    Raises DeclarationError with one line that says what is wrong where; never another exception.
    """
    target, _, name = SHIPPED.get(reference, reference).partition(":")
    try:
        module = _load_file(Path(target)) if target.endswith(".py") else _load_module(target, reference)
    except DeclarationError:
        raise
    except (Exception, SystemExit) as error:
        raise DeclarationError(
            f"{target}{_line(error, target)}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    pipelines = {
        key: value for key, value in vars(module).items() if isinstance(value, Pipeline) and not key.startswith("_")
    }
    if name:
        if name not in pipelines:
            raise DeclarationError(f"{target} has no pipeline {name!r}: it declares {', '.join(pipelines) or 'none'}")
        return pipelines[name]
    if len(set(map(id, pipelines.values()))) != 1:
        what = (
            f"declares {', '.join(pipelines)}: choose one, as in {target}:{next(iter(pipelines))}"
            if pipelines
            else "declares no pipeline"
        )
        raise DeclarationError(f"{target} {what}")
    return next(iter(pipelines.values()))


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise DeclarationError(f"pipeline file {path} {'is no file' if path.exists() else 'does not exist'}")
    name = f"tidemill_pipeline_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DeclarationError(f"pipeline file {path} can't be read as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle finds a class of this file by its module's name
    token = loading.set(path.resolve().parent)
    try:
        _search(path.resolve().parent)
        spec.loader.exec_module(module)
    except ImportError as error:
        if (path.parent / "__init__.py").exists() and "relative import" in str(error):
            module_ = f"{path.resolve().parent.name}.{path.stem}"
            raise DeclarationError(
                f"{path}{_line(error, str(path))}: a file has no package for relative imports: name it as a module, as "
                f"{module_}, in the folder above"
            ) from error
        raise
    finally:
        loading.reset(token)
    return module


def _search(folder: Path) -> None:
    """Have imports look into a folder last of all, in the place of that of the pipeline before.

    What was imported from there under a name that is here as well is imported again: two pipelines of one process may
    each have a `helper.py`.
    """
    others = _searched - {str(folder)}
    files = {name: Path(getattr(module, "__file__", None) or "/") for name, module in list(sys.modules.items())}
    files = {name: file.parent if file.name == "__init__.py" else file for name, file in files.items()}
    stale = {name for name, file in files.items() if str(file.parent) in others and (folder / file.name).exists()}
    for name in files:
        if name.partition(".")[0] in stale:
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path not in _searched]
    _searched.clear()
    if str(folder) not in sys.path:
        _searched.add(str(folder))
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def _load_module(target: str, reference: str) -> Any:
    for is_last in (False, True):  # what is installed, then what is in the working directory
        if is_last:
            _search(Path.cwd())
        try:
            return importlib.import_module(target)
        except (TypeError, ValueError):  # of no name, or one that begins with a point
            raise DeclarationError(_unknown(reference)) from None
        except ModuleNotFoundError as error:
            if error.name is None or not f"{target}.".startswith(f"{error.name}."):
                raise
            if is_last or Path(target).is_dir():
                raise DeclarationError(_unknown(reference)) from error
    return None


def _unknown(reference: str) -> str:
    is_folder = f": {reference} is a folder, so name a file in it" if Path(reference).is_dir() and reference else ""
    return (
        f"unknown pipeline {reference!r}{is_folder}: expected a file as flights.py, a module as package.flights, "
        f"or one of the shipped {', '.join(SHIPPED)}"
    )


def _line(error: BaseException, target: str) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f" line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if target in (f.filename, Path(f.filename).name)]
    frames = frames or [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(Path(target).name)]
    return f" line {cast(int, frames[-1].lineno)}" if frames else ""
