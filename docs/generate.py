"""The reference pages, made of the code's own tables while the site is built (a hook of mkdocs; `python docs/generate.py` prints them)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from prometheus_client.metrics import MetricWrapperBase

import tidemill
from tidemill import aggregates, limits, metrics, ranges, rules, testing
from tidemill.cli.main import cli
from tidemill.settings import Settings, default_text, is_secret
from tidemill.wire.topics import TOPICS

DECLARED = (
    "Pipeline",
    "Stream",
    "View",
    "Table",
    "number",
    "category",
    "flag",
    "Gate",
    "Training",
    "Monitor",
    "Protect",
    "Fuse",
    "Retention",
    "Forgetting",
    "Search",
    "tuned",
    "load",
)

#: What commands do, from Python.
FUNCTIONS = ("backtest", "dataset", "replay")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those that are built (called by mkdocs)."""
    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    return {
        "index": _index(),
        "declaration": _declaration(),
        "rules": _plug_ins(
            "Rules",
            rules.__name__,
            [name for name in rules.__all__ if name.islower()],
            "What a field's value must be. [How to use and write them](../how-to/rules.md).",
        ),
        "aggregates": _plug_ins(
            "Aggregates",
            aggregates.__name__,
            aggregates.__all__,
            "What a view keeps of an entity. [How to use and write them](../how-to/aggregates.md).",
        ),
        "ranges": _plug_ins(
            "Ranges",
            ranges.__name__,
            _functions(ranges),
            "What `tidemill tune` may try. [How to tune](../how-to/tuning.md).",
        ),
        "testing": "# Testing\n\nTry and check plug-ins of your own.\n"
        + "".join(_object(f"tidemill.testing.{name}") for name in testing.__all__),
        "python": "# Python\n\nWhat commands do, from Python. [How to use it](../how-to/notebooks.md).\n\n"
        + "".join(_object(f"tidemill.api.{name}") for name in FUNCTIONS)
        + _object("tidemill.api.BacktestResult", members=True)
        + "\n## The gateway's client\n\nAsk a running pipeline over HTTP. [How to use it](../how-to/gateway.md#from-python).\n"
        + _object("tidemill.client.Client", members=True)
        + _object("tidemill.client.Prediction", members=True),
        "features": "# Feature store\n\n"
        "Features as stored, from Python. [How to read them](../how-to/features.md).\n\n"
        + _object("tidemill.features.store.Store", members=True),
        "cli": "# Commands\n\n" + "\n".join(_command(cli, ("tidemill",))),
        "settings": _settings(),
        "topics": _topics(),
        "metrics": _metrics(),
        "limits": _limits(),
    }


def _index() -> str:
    return (
        "# Reference\n\nThese pages are made of the code when the site is built.\n\n"
        "- [The declaration](declaration.md): `Pipeline` and its parts\n"
        "- [Rules](rules.md), [aggregates](aggregates.md), [ranges](ranges.md): each with an example that the tests run\n"
        "- [Testing](testing.md): checks for plug-ins of your own\n"
        "- [Python](python.md): backtests, data sets and replays; [feature store](features.md): online features\n"
        "- [Commands](cli.md), [settings](settings.md), [topics](topics.md), [metrics](metrics.md), [limits](limits.md)\n"
    )


def _declaration() -> str:
    missing = set(tidemill.__all__) - {*DECLARED, *FUNCTIONS, "aggregates", "features", "ranges", "rules"}
    if missing:
        raise ValueError(f"docs/generate.py: DECLARED lacks {', '.join(sorted(missing))}")
    text = "# The declaration\n\nA pipeline is declared in one Python file. `from tidemill import` each of these.\n"
    return text + "".join(_object(f"tidemill.{name}") for name in DECLARED)


def _plug_ins(title: str, module: str, names: Iterable[str], introduction: str) -> str:
    return f"# {title}\n\n{introduction}\n" + "".join(
        _object(f"{module}.{name}.{name}" if module != ranges.__name__ else f"{module}.{name}") for name in names
    )


def _object(path: str, *, members: bool = False) -> str:
    return f"\n::: {path}\n" + ("    options:\n      members: true\n" if members else "")


def _functions(module: Any) -> list[str]:
    return [
        name
        for name, thing in vars(module).items()
        if inspect.isfunction(thing) and thing.__module__ == module.__name__ and name[0] != "_"
    ]


def _command(command: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    context = click.Context(command, info_name=" ".join(path), max_content_width=110, terminal_width=110)
    if len(path) > 1:
        yield f"{'#' * min(len(path), 4)} {' '.join(path)}\n"
    yield f"```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _command(inner, (*path, name))


def _settings() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        shown = f"`{text}`" if (text := default_text(name)) else ""
        or_file = ", or `..._FILE`" if is_secret(name) else ""
        rows.append((f"`TIDEMILL_{name.upper()}`{or_file}", shown, field.description or ""))
    text = (
        "# Settings\n\nEnvironment variables. An option of a command wins over its variable, a variable over its line in a "
        "file `.env` in the working folder, and that over the default. The file is read as Docker Compose reads it: "
        "what is between single quotes is a value as it stands, elsewhere `${NAME}` is a variable. A name that is almost "
        "a setting's is a finding of `tidemill doctor`.\n\n"
    )
    return text + _table(("variable", "default", "what"), rows)


def _topics() -> str:
    rows = []
    for topic in TOPICS:
        kept = "for ever" if topic.retention_ms < 0 else f"{topic.retention_ms // 86_400_000} d"
        rows.append(
            (
                f"`{topic.suffix}`",
                topic.doc,
                topic.key,
                topic.record,
                str(topic.partitions or "as declared"),
                kept,
                ", ".join(topic.writers),
                ", ".join(topic.readers),
            )
        )
    text = (
        "# Topics\n\nEach name begins with the pipeline's, as in `flights.events`. "
        "`tidemill topics flights --create` creates missing ones.\n\n"
    )
    return text + _table(("topic", "what", "key", "record", "partitions", "kept", "written by", "read by"), rows)


def _metrics() -> str:
    found: dict[str, tuple[str, ...]] = {}
    for value in vars(metrics).values():
        for metric in value.values() if isinstance(value, dict) else (value,):
            if isinstance(metric, MetricWrapperBase):
                name = metric._name + ("_total" if metric._type == "counter" else "")
                found[name] = (
                    f"`{name}`",
                    metric._type,
                    ", ".join(f"`{label}`" for label in metric._labelnames),
                    metric._documentation,
                )
    text = "# Metrics\n\nEach service answers Prometheus on `/metrics` at `TIDEMILL_HTTP_PORT`.\n\n"
    return text + _table(("metric", "type", "labels", "what"), [found[name] for name in sorted(found)])


def _limits() -> str:
    rows = [
        (f"`{name}`", limit.subject.rstrip(","), f"{limit.max:,}", limit.unit.rstrip(","), limit.then)
        for name, limit in limits.table().items()
    ]
    text = (
        "# Limits\n\nWhat one record, request, connection, schema or pattern from outside may cost at most. "
        "They are in `tidemill.limits`, and none is a setting.\n\n"
    )
    return text + _table(("limit", "of a", "at most", "of what", "what happens to one with more"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    for name, text in pages().items():
        print(f"<!-- {name}.md -->\n{text}")
