"""What is searched, and how a file of winners becomes models again.

def logreg(rate: float, l2: float) -> Any:
    return StandardScaler() | LogisticRegression(optim.SGD(rate), l2=l2)

SEARCH = {"logreg": Search(logreg, {"rate": ranges.log_uniform(1e-4, 1.0), "l2": ranges.choice(0.0, 1e-6, 1e-4)})}

flights = Pipeline(..., models={"logreg": logreg(0.003, 0.0), **tuned("winners.json", SEARCH)}, search=SEARCH)
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field

from tidemill.declare.checks import Fail, Is, check_fields
from tidemill.declare.stable_repr import stable_repr
from tidemill.errors import DeclarationError
from tidemill.loading import loading
from tidemill.ranges import Range, Value

Parameters = Mapping[str, Value]


@dataclass(frozen=True)
class Search:
    """One kind of model to be searched.

    Parameters
    ----------
    make
        Takes a value of each parameter, by name, and returns a new model.
    over
        The values of each parameter, by name.
    """

    make: Callable[..., Any]
    over: Mapping[str, Annotated[Is[Range], Field(description="a range, as in ranges.uniform(0, 1),")]]

    def check(self, where: str, fail: Fail) -> Any:
        """Check the fields, and that the function can be called with such values; returns the model that it made."""
        check_fields(self, where, fail)
        try:
            return self.make(**self.draw(random.Random(0)))  # noqa: S311  it hides nothing
        except Exception as error:  # the declaration's own function
            fail(where, f"its function raised {type(error).__name__}: {error}")

    def draw(self, rng: random.Random) -> Parameters:
        """Return a value of each parameter, drawn at random in the declared order."""
        return {name: of.draw(rng) for name, of in self.over.items()}

    def near(self, parameters: Parameters, rng: random.Random) -> Parameters:
        """Return values like these, drawn at random."""
        return {name: of.near(rng, parameters[name]) for name, of in self.over.items()}


def name_of(search: str, parameters: Parameters, model: Any) -> str:
    """Return the name of a searched model: the same for the same parameters and model, in every process."""
    content = json.dumps([search, dict(sorted(parameters.items())), stable_repr(model)])
    return f"{search}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def tuned(name: str | Path, search: Mapping[str, Search]) -> dict[str, Any]:
    """Return the models of a file that `tidemill tune --out` wrote, by name, for a declaration's `models`.

    The file is looked for beside the pipeline's, then in the working directory. Raises DeclarationError where it does
    not exist, is no such file, or makes another model now than the one that won.
    """
    folders = dict.fromkeys(folder for folder in (loading.get(), Path.cwd()) if folder)
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        _fail(name, f"no such file in {' or '.join(map(str, folders))}; `tidemill tune --out` writes it")
    try:
        winners = [
            (str(w["name"]), str(w["search"]), dict(w["parameters"])) for w in json.loads(path.read_text())["winners"]
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        _fail(name, f"this is no file of `tidemill tune --out`: {type(error).__name__}: {error}")
    return {name_: _made(name, name_, search, of, parameters) for name_, of, parameters in winners}


def _made(file: str | Path, name: str, search: Mapping[str, Search], of: str, parameters: Parameters) -> Any:
    if of not in search:
        _fail(file, f"{name!r} is of the search {of!r}, which is not declared: there are {', '.join(search) or 'none'}")
    try:
        model = search[of].make(**parameters)
    except Exception as error:  # the declaration's own function
        _fail(file, f"{name!r} can't be made any more: {of}(...) raised {type(error).__name__}: {error}; tune again")
    if name_of(of, parameters, model) != name:
        _fail(file, f"{name!r} would be another model now: what {of!r} makes was changed since it won; tune again")
    return model


def _fail(name: str | Path, message: str) -> NoReturn:
    raise DeclarationError(f"winners {str(name)!r}: {message}")
