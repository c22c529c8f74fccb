"""`tidemill examples`: the pipelines that are shipped, as files to begin with."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import click

from tidemill.errors import SettingsError

#: What the examples' data is written with.
_DATA = "data.py"


@click.command()
@click.argument("name", required=False)
@click.argument("folder", required=False, type=click.Path(path_type=Path), metavar="[DIR]")
def examples(name: str | None, folder: Path | None) -> None:
    """List the shipped examples, or copy one.

    Each is a pipeline with its schemas, and a script that writes its data; the first lines of its file have the
    commands.
    """
    from tidemill.offline.scaffold.files import shipped

    place = shipped("examples")
    files = {path.stem: path for path in sorted(place.glob("*.py")) if path.name not in ("__init__.py", _DATA)}
    if name is None:
        for stem, path in files.items():
            about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            click.echo(f"{stem:<10} {about.splitlines()[0]}")
        click.echo("\nCopy one with `tidemill examples NAME DIR`.")
        return
    if name not in files:
        raise SettingsError(f"no example {name!r}: there are {', '.join(files)}")
    if folder is None:
        raise SettingsError(f"name the folder that {name!r} is copied into: tidemill examples {name} DIR")
    if folder.exists():
        raise SettingsError(f"{folder} exists: nothing is overwritten, so name a folder that does not exist")
    inside = folder / "examples"
    inside.mkdir(parents=True)
    for path in (files[name], place / "__init__.py", place / _DATA):
        shutil.copy(path, inside)
    shutil.copytree(place / "schemas" / name, inside / "schemas" / name)
    click.echo(f"{folder}: in it, run\n")
    lines = (ast.get_docstring(ast.parse(files[name].read_text(encoding="utf-8"))) or "").splitlines()
    click.echo("\n".join(f"  {line}" for line in lines if line.startswith(("python ", "tidemill "))))
