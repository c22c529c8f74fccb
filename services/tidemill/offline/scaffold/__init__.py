"""A project made from data: what the columns are, what to make of them, and the files that are written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tidemill.errors import SettingsError
from tidemill.offline.scaffold import columns, files
from tidemill.offline.scaffold.example import example
from tidemill.offline.scaffold.plan import Ask, Data, Options, Plan, clean_name, plan
from tidemill.offline.scaffold.topic import of_topic
from tidemill.stream.api import Progress

__all__ = ["Ask", "Data", "Options", "Plan", "make", "of_file", "of_topic", "plan"]


def of_file(path: Path) -> Data:
    """Return the rows of a file, a folder, or those that fit a pattern. Raises SettingsError."""
    given = columns.read(path)
    return Data(path.name, given, is_csv=columns.is_text_file(path))


def make(
    folder: Path,
    sources: Sequence[Data],
    options: Options,
    ask: Ask | None = None,
    shown: Callable[[], AbstractContextManager[Progress | None]] = nullcontext,
) -> Plan:
    """Write a project of events, and of labels where they are apart, into a new folder; without any, an example.

    `shown` opens what shows the progress, once nothing is asked any more. Raises SettingsError, in one line, where
    something is not right or can't be known; then nothing is written.
    """
    name = clean_name(folder.resolve().name)
    if folder.exists():
        raise SettingsError(f"{folder} exists: nothing is overwritten, so name a folder that does not exist")
    if not sources:
        sources, options = example(), Options()
    made = plan(name, sources[0], sources[1] if len(sources) > 1 else None, options, ask)
    if name != folder.resolve().name:
        made.notes.insert(0, f"the pipeline is called {name!r}, for a name has small letters, digits, - and _")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".init-") as scratch:
        whole = Path(scratch) / folder.name
        whole.mkdir()
        with shown() as progress:
            files.write(whole, made, progress)
        shutil.rmtree(whole / "__pycache__", ignore_errors=True)
        whole.rename(folder)
    return made
