"""`tidemill schema`: print schemas, check a new one before producers use it, and register the declared ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report, with_settings
from tidemill.encoding import schema_files
from tidemill.errors import SettingsError
from tidemill.wire import topics

if TYPE_CHECKING:
    from tidemill.declare.pipeline import Pipeline
    from tidemill.declare.stream import Stream
    from tidemill.encoding.compatibility import Verdict
    from tidemill.encoding.schema_registry import SchemaRegistry

LEVELS = ("BACKWARD_TRANSITIVE", "BACKWARD", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE", "NONE")
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def schema() -> None:
    """Print schemas, check new ones, and register the declared ones."""


@schema.command()
@PIPELINE
@click.argument("topic", required=False)
@AS_JSON
def show(pipeline: str, topic: str | None, *, as_json: bool) -> None:
    """Print the schema and id of every topic's records, or of one.

    TOPIC is events, labels, predictions, ...; its schema is complete in itself. Its id, and how records are
    framed, is on standard error.
    """
    from tidemill.cli.text.schemas import TopicSchema, topic_schemas, topic_schemas_text

    schemas = topic_schemas(tidemill.load(pipeline))
    if topic is None:
        print_report(schemas, topic_schemas_text, as_json=as_json)
        return
    chosen: TopicSchema | None = next((one for one in schemas if topic in (one.topic, one.short)), None)
    if chosen is None:
        raise SettingsError(
            f"{topic!r} is no topic of the pipeline: expected {', '.join(one.short for one in schemas)}"
        )
    if as_json:
        click.echo(json.dumps(chosen.as_dict(), indent=2))
        return
    if chosen.avro is None:
        raise SettingsError(f"{chosen.topic} has no Avro schema: its records are {chosen.framing}")
    click.echo(json.dumps(chosen.avro, indent=2, ensure_ascii=False))
    click.echo(f"{chosen.topic}: id {chosen.id}; {chosen.framing}", err=True)


@schema.command()
@PIPELINE
def types(pipeline: str) -> None:
    """Print Python types of events and labels, for who sends them.

    They are a module with two classes, Event and Label, of the records as JSON: a type checker holds what
    `tidemill.client` is given to them.
    """
    from tidemill.encoding.json_schema import json_schema
    from tidemill.encoding.python_types import module

    declared = tidemill.load(pipeline)
    schemas = {
        name: json_schema(stream.avro) for name, stream in (("Event", declared.events), ("Label", declared.labels))
    }
    doc = f"The records of the pipeline {declared.name}, made by `tidemill schema types`."
    click.echo(module(schemas, doc), nl=False)


@schema.command()
@PIPELINE
@click.option("--all", "inner", is_flag=True, help="Also the topics that only the pipeline's services write and read.")
@with_settings("brokers", "registry_url")
def asyncapi(pipeline: str, *, inner: bool, **options: Any) -> None:
    """Print the topics as an AsyncAPI 3 document, in JSON.

    For producers and consumers, of every topic that others write or read: its key, its records with their schemas, how
    it is kept; and where Kafka is. Its version is another one whenever any of that is another.
    """
    from tidemill.wire.asyncapi import document

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    is_secure = "SSL" in str(chosen.kafka_properties().get("security.protocol", "")).upper()
    made = document(
        declared, chosen.brokers.split(","), is_secure=is_secure, registry=chosen.registry_place(), inner=inner
    )
    click.echo(json.dumps(made, indent=2, ensure_ascii=False))


@schema.command()
@PIPELINE
@click.argument("stream", type=click.Choice(["events", "labels"]))
@click.argument("new", type=FILE, metavar="NEW.avsc")
@click.option("--against", "files", type=FILE, multiple=True, help="An earlier schema; may be repeated, oldest first.")
@click.option(
    "--compatibility",
    "level",
    type=click.Choice(LEVELS, case_sensitive=False),
    help="Default: the level of the subject in the registry, else BACKWARD_TRANSITIVE.",
)
@AS_JSON
@with_settings("registry_url")
def check(
    pipeline: str, stream: str, new: Path, files: Sequence[Path], level: str | None, *, as_json: bool, **options: Any
) -> None:
    """Check whether producers may use NEW.avsc.

    Exit code 1 where they may not. Earlier versions are those of --against, else the registry's, else those that the
    pipeline declares and accepts.
    """
    compatibility = _compatibility()
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    of: Stream = getattr(declared, stream)
    earlier, set_level = {str(path): _read(path) for path in files}, ""
    url = chosen.registry_url.get_secret_value()
    if url and not files:
        earlier, set_level = _registered(_registry(url, chosen.http_ca), _subjects(declared)[stream])
    earlier = earlier or {**of.others, of.schema_name: of.avro}
    verdict = compatibility.check(_read(new), of.avro, earlier, level or set_level or LEVELS[0], of.units)
    print_report(verdict, lambda _: _verdict_text(verdict, new.name, of), as_json=as_json)
    if not verdict.is_safe:
        sys.exit(1)


@schema.command()
@PIPELINE
@click.option(
    "--file",
    "files",
    type=FILE,
    multiple=True,
    help="Register this schema of the events or labels, not the declared ones.",
)
@click.option(
    "--compatibility",
    "level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default=LEVELS[0],
    show_default=True,
    help="Set for a subject without a level of its own.",
)
@AS_JSON
@with_settings("registry_url")
def register(pipeline: str, files: Sequence[Path], level: str, *, as_json: bool, **options: Any) -> None:
    """Register the declared schemas in the registry.

    Schemas that are already registered stay as they are.
    """
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    url = chosen.registry_url.get_secret_value()
    if not url:
        raise SettingsError("registry_url is not set: set TIDEMILL_REGISTRY_URL, or give --registry-url")
    given = [(_stream_of(declared, path), _read(path)) for path in files]
    given = given or [("events", declared.events.avro), ("labels", declared.labels.avro)]
    registry, rows = _registry(url, chosen.http_ca), []
    for stream, avro in given:
        subject = _subjects(declared)[stream]
        version = registry.register(subject, avro)
        held = registry.level(subject)
        if not held:
            registry.set_level(subject, level)
        rows.append({"subject": subject, "id": version.id, "version": version.number, "compatibility": held or level})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['subject']}: id {row['id']}, version {row['version']}, {row['compatibility']}")


def _verdict_text(verdict: Verdict, new: str, stream: Stream) -> str:
    versions = f"{len(verdict.versions)} earlier version{'' if len(verdict.versions) == 1 else 's'}"
    lines = [f"{new} against {versions}, {verdict.level}: {'not compatible' if verdict.problems else 'compatible'}"]
    for problem in verdict.problems:
        reads = f"the new schema can't read what {problem.version} wrote"
        if problem.direction == "forward":
            reads = f"{problem.version} can't read what the new schema writes"
        lines += [f"  field {problem.field!r}: {problem.why}", f"    {reads}: {problem.fix}"]
    if not verdict.unreadable:
        lines.append(f"the pipeline reads it with {stream.schema_name}: producers may use it now")
    else:
        lines.append(f"the pipeline can't read it with {stream.schema_name}: {verdict.unreadable}")
        if verdict.problems:
            lines.append("  fix the schema")
        else:
            declared = repr(stream.schema) if isinstance(stream.schema, str) else stream.schema_name
            lines.append(f"  first deploy the pipeline with it: Stream({new!r}, ..., accepts=[{declared}])")
    return "\n".join(lines) + "\n"


def _subjects(pipeline: Pipeline) -> dict[str, str]:
    from tidemill.stages.validator.schema_follower import subject_of

    return {
        "events": subject_of(topics.EVENTS.name(pipeline)),
        "labels": subject_of(topics.LABELS.name(pipeline)),
    }


def _registered(registry: SchemaRegistry, subject: str) -> tuple[dict[str, Any], str]:
    """Return the Avro schemas of a subject, oldest first, and its level."""
    versions = [registry.version(subject, number) for number in registry.versions(subject)]
    return {v.name: json.loads(v.schema) for v in versions if v.kind == "AVRO"}, registry.level(subject)


def _stream_of(pipeline: Pipeline, path: Path) -> str:
    name = _read(path).get("name")
    fits = [stream for stream in ("events", "labels") if getattr(pipeline, stream).avro.get("name") == name]
    if len(fits) != 1:
        names = f"{pipeline.events.avro.get('name')} and {pipeline.labels.avro.get('name')}"
        raise SettingsError(
            f"--file {path}: its record is {name}; expected one of {names}, the events' and the labels'"
        )
    return fits[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        avro: dict[str, Any] = schema_files.find(str(path.resolve()))
    except (OSError, ValueError) as error:
        raise SettingsError(str(error)) from error
    why = schema_files.malformed(avro)
    if why:
        raise SettingsError(f"{path}: {why}")
    return avro


def _compatibility() -> Any:
    try:
        from tidemill.encoding import compatibility
    except ModuleNotFoundError as error:
        raise _lacking(error) from None
    return compatibility


def _registry(url: str, ca: str) -> SchemaRegistry:
    try:
        from tidemill.encoding.schema_registry import SchemaRegistry
    except ModuleNotFoundError as error:
        raise _lacking(error) from None
    return SchemaRegistry(url, ca)


def _lacking(error: ModuleNotFoundError) -> SettingsError:
    return SettingsError(f"schemas are checked and registered with {error.name}: pip install 'tidemill[registry]'")
