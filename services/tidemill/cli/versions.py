"""`tidemill models list`, `show`, `compare`, `prune`, `rebuild` and `mirror`: versions and their artifacts."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import (
    AS_JSON,
    AS_JSON_LINES,
    PIPELINE,
    connected,
    keys_to_verify,
    moment_of,
    print_report,
    progress,
    with_settings,
)
from tidemill.durations import milliseconds
from tidemill.errors import SettingsError
from tidemill.wire import topics

if TYPE_CHECKING:
    from tidemill.declare.pipeline import Pipeline
    from tidemill.keys import Keyring
    from tidemill.registry.latest import Version
    from tidemill.registry.store import ArtifactStore
    from tidemill.registry.versions import Version as Listed
    from tidemill.registry.versions import Versions
    from tidemill.stream.api import Broker


@click.command("list")
@PIPELINE
@click.option("--model", help="Only versions of this model.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Print this many, the newest."
)
@click.option(
    "--superseded",
    "with_superseded",
    is_flag=True,
    help="Count how many examples of each have another label by now; reads all examples.",
)
@AS_JSON_LINES
@with_settings("brokers", "store_url")
def list_(
    pipeline: str, model: str | None, limit: int, *, with_superseded: bool, as_json: bool, **options: Any
) -> None:
    """Print the newest versions, newest first.

    Signatures are checked where TIDEMILL_VERIFY_KEYS names the public keys.
    """
    from tidemill.cli.text.models import versions_text

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    versions, store = _versions(declared, chosen)
    with progress("versions", None) as advance:
        newest = list(itertools.islice(versions.read(model, advance), limit))
    if model is not None and not newest and not declared.knows(model):
        raise SettingsError(
            f"no version of model {model!r} in {versions.topic}: the pipeline declares "
            f"{', '.join(declared.model_names)}"
        )
    counts = _superseded(declared, versions, newest) if with_superseded else {}
    if not as_json:
        click.echo(versions_text(versions, store, newest, counts), nl=False)
        return
    for version in newest:
        more = {"superseded": counts[version.offset]} if version.offset in counts else {}
        click.echo(json.dumps(versions.as_dict(version, store) | more))


def _superseded(declared: Pipeline, versions: Versions, newest: Sequence[Listed]) -> dict[int, int]:
    """Return, by its offset among the versions, how many examples of a version have another label by now."""
    from tidemill.models.refold import FoldRange
    from tidemill.offline.superseded import superseded

    if not declared.corrections_ms:
        raise SettingsError(
            '--superseded: the pipeline declares no corrections of labels, as in Stream(..., corrections="30d")'
        )
    of = {
        one.offset: FoldRange(one.manifest.model, one.manifest.version, one.manifest.begin)
        for one in newest
        if one.manifest and declared.knows(one.manifest.model)
    }
    with progress("examples", None) as advance:
        counts = superseded(declared, versions.broker, set(of.values()), advance)
    return {offset: counts[target] for offset, target in of.items()}


@click.command()
@PIPELINE
@click.argument("model", metavar="MODEL[@VERSION]")
@with_settings("brokers", "store_url")
def show(pipeline: str, model: str, **options: Any) -> None:
    """Print everything about one version, the newest by default.

    Shows its manifest, and whether its signature and its artifact are valid.
    """
    from tidemill.cli.text.models import version_text

    name, at, version = model.partition("@")
    if at and not version.isdecimal():
        raise SettingsError(
            f"{model!r} is not a version: expected MODEL or MODEL@VERSION, as in {name or 'logreg'}@26000"
        )
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    versions, store = _versions(declared, chosen)
    with progress("versions", None) as advance:
        newest, refused = versions.find(name, int(version) if at else None, advance)
    counts = _superseded(declared, versions, [newest]) if declared.corrections_ms else {}
    click.echo(version_text(versions, store, newest, refused, counts.get(newest.offset)), nl=False)


@click.command()
@PIPELINE
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--from",
    "begin",
    metavar="TIME",
    help="Questions asked at this event time or later, ISO 8601; UTC unless it has a zone.",
)
@click.option("--to", "end", metavar="TIME", help="Questions asked before this event time.")
@click.option(
    "--segment",
    "segments",
    multiple=True,
    metavar="FIELD",
    help="A category of the vector; may be repeated. Default: Monitor(segments=...).",
)
@AS_JSON
@with_settings("brokers")
def compare(
    pipeline: str,
    a: str,
    b: str,
    begin: str | None,
    end: str | None,
    segments: tuple[str, ...],
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare two models on the same questions.

    Prints which one is better, overall and in every segment. A and B are models, or `champion`: whichever model served.
    Compared are the answers that were given at the time.
    """
    from tidemill.cli.text.models import comparison_text
    from tidemill.offline import compare as comparison

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    request = comparison.ComparisonRequest(
        a,
        b,
        None if begin is None else moment_of("--from", begin),
        None if end is None else moment_of("--to", end),
        tuple(dict.fromkeys(segments or declared.monitor.segments)),
    )
    request.check(declared)
    broker = connected(declared, chosen, topics.EXAMPLES)
    with progress("examples", None) as advance:
        report = comparison.compare(declared, broker, request, advance)
    print_report(report, comparison_text, as_json=as_json)


@click.command()
@PIPELINE
@click.option("--keep", type=int, required=True, help="Keep this many versions of each model, the newest.")
@click.option("--older-than", metavar="DURATION", help="Delete only those older than this, as 30d.")
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, and delete nothing.")
@AS_JSON
@with_settings("brokers", "store_url")
def prune(pipeline: str, keep: int, older_than: str | None, *, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Delete the artifacts of old versions.

    Their manifests stay, and `models rebuild` makes an artifact again. Artifacts stay that a learner may continue from,
    and those of versions that were promoted or are pinned. Manifests are verified with TIDEMILL_VERIFY_KEYS.
    """
    from tidemill.cli.text.artifacts import pruned_text
    from tidemill.registry import pruning
    from tidemill.registry.latest import MAX_MANIFESTS_BACK
    from tidemill.registry.versions import Versions
    from tidemill.runtime import run as running

    if keep < MAX_MANIFESTS_BACK:
        raise SettingsError(
            f"--keep {keep}: expected at least {MAX_MANIFESTS_BACK}, the versions that a learner looks at for an "
            f"intact artifact"
        )
    before = None if older_than is None else int(time.time() * 1000) - _duration("--older-than", older_than)
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    # Without a key anybody's manifest would decide what is deleted.
    registry = running.registry_of(declared, chosen)
    broker = connected(declared, chosen, topics.MODELS, topics.PROMOTIONS)
    with progress("versions", None) as advance:
        versions, kept = Versions(declared, broker, registry).read(progress=advance), versions_to_keep(declared, broker)
        plan = pruning.plan(versions, registry, keep=keep, before=before, kept=kept)
    if not dry_run:
        with progress("artifacts", len(plan.artifacts)) as advance:
            pruning.prune(plan, registry.store, advance)
    print_report(plan, lambda plan: pruned_text(plan, registry.store.url), as_json=as_json)


@click.command()
@PIPELINE
@click.argument("named", nargs=-1, metavar="[MODEL@VERSION]...")
@click.option("--all", "every", is_flag=True, help="Rebuild every version of this declaration.")
@click.option("--missing", is_flag=True, help="With --all: only those whose artifact is missing or corrupted.")
@click.option("--dry-run", is_flag=True, help="Compare, and restore nothing.")
@AS_JSON
@with_settings("brokers", "store_url")
def rebuild(
    pipeline: str, named: tuple[str, ...], *, every: bool, missing: bool, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Rebuild versions from the examples, and compare scores.

    Exit code 1 unless all scores are equal. An artifact that is missing, corrupted or of another River version is
    restored, which the learner's TIDEMILL_SIGNING_KEY signs.
    """
    from tidemill.cli.text.artifacts import rebuilt_text
    from tidemill.offline.rebuild import Rebuild, RebuildReport
    from tidemill.runtime import run as running

    if bool(named) == every:
        raise SettingsError("name the versions to rebuild, as MODEL@VERSION, or use --all: one of the two")
    if missing and not every:
        raise SettingsError("--missing goes with --all: a version that is named is rebuilt anyway")
    wanted = [_version_of(text) for text in dict.fromkeys(named)]
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    registry, broker = (
        running.registry_of(declared, chosen, "" if dry_run else "learner"),
        connected(declared, chosen, topics.MODELS, topics.EXAMPLES),
    )
    rebuilding, others = Rebuild(declared, broker, registry), 0
    if every:
        with progress("versions", None) as advance:
            manifests, others = rebuilding.every(advance)
        manifests = [one for one in manifests if not (missing and registry.is_intact(one))]
    else:
        manifests = rebuilding.named(wanted)
    with progress("folding examples", max((m.version for m in manifests), default=0)) as advance:
        rebuilt = list(rebuilding.run(manifests, write=not dry_run, progress=advance))
    report = RebuildReport(rebuilt, others)
    print_report(report, partial(rebuilt_text, declared.name), as_json=as_json)
    if not report.is_equal:
        sys.exit(1)


@click.command()
@PIPELINE
@click.option("--tracking-uri", metavar="URI", help="MLflow's server or database. [MLFLOW_TRACKING_URI]")
@click.option("--last", type=click.IntRange(min=1), help="Copy only this many versions of each model, the newest.")
@click.option("--follow", is_flag=True, help="Copy every new version, too, until Ctrl-C.")
@with_settings("brokers", "store_url")
def mirror(pipeline: str, tracking_uri: str | None, last: int | None, *, follow: bool, **options: Any) -> None:
    """Copy versions to MLflow.

    Makes runs with metrics, registered models with aliases, and models that MLflow loads and serves. Versions that
    MLflow has already are not copied again. Manifests are verified with TIDEMILL_VERIFY_KEYS.
    """
    from tidemill.registry.latest import latest
    from tidemill.registry.versions import Versions
    from tidemill.runtime import run as running

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise SettingsError(
            "no MLflow server: give --tracking-uri or set MLFLOW_TRACKING_URI, as in http://mlflow:5000 or "
            "sqlite:///mlflow.db"
        )
    try:
        from tidemill.offline.mlflow_mirror import Mirror
    except ModuleNotFoundError as error:
        raise SettingsError(f"the mirror needs {error.name}: pip install 'tidemill[mlflow]'") from None
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    registry, broker = (
        running.registry_of(declared, chosen),
        connected(declared, chosen, topics.MODELS, topics.PROMOTIONS),
    )
    mirroring = Mirror(declared, registry, uri)
    _, end = latest(broker, registry, dict.fromkeys(declared.model_names, 1), chains=mirroring.chains)
    with progress("versions", None) as advance:
        mirroring.catch_up(Versions(declared, broker, registry).read(progress=advance), last)
        mirroring.name_roles(champion_of(declared, broker, registry.keys))
    click.echo(mirroring.as_text())
    if follow:
        mirroring.follow(broker, end, lambda: champion_of(declared, broker, registry.keys), click.echo)


def champion_of(declared: Pipeline, broker: Broker, keys: Keyring | None) -> str:
    """Return which model is the champion: by the last decision; before the first, the declared one."""
    from tidemill.registry.decisions import all_decisions, decisions

    if not broker.partitions(topics.PROMOTIONS.name(declared.name)):
        return declared.champion
    decided = all_decisions(declared, broker, decisions(declared, keys))
    return decided[-1].champion.model if decided else declared.champion


def _version_of(text: str) -> Version:
    """Return the model and the version that MODEL@VERSION names."""
    name, _, version = text.rpartition("@")
    if not name or not version.isdecimal():
        raise SettingsError(
            f"{text!r} is not a version: expected MODEL@VERSION, as in {name or text or 'logreg'}@26000"
        )
    return name, int(version)


def versions_to_keep(declared: Pipeline, broker: Broker) -> Collection[Version]:
    """Return the versions whose artifacts are kept, however old: those that were promoted or are pinned."""
    from tidemill.registry.decisions import kept_versions, readable_decisions

    # Refused decisions count, too: rather too much is kept than too little.
    return kept_versions(readable_decisions(declared, broker))


def _duration(option: str, text: str) -> int:
    try:
        return milliseconds(text)
    except ValueError as error:
        raise SettingsError(f"{option}: {error}") from None


def _versions(declared: Pipeline, chosen: settings.Settings) -> tuple[Versions, ArtifactStore]:
    from tidemill.registry.manifests import Registry
    from tidemill.registry.store import ArtifactStore
    from tidemill.registry.versions import Versions

    store = ArtifactStore(chosen.store_url, create=False)
    keys = keys_to_verify(chosen)
    registry = Registry(declared, store, keys) if keys else None
    broker = connected(declared, chosen, topics.MODELS)
    return Versions(declared, broker, registry, champion_of(declared, broker, keys)), store
