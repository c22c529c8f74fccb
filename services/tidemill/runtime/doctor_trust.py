"""What services trust, judged by `tidemill doctor`: registered schemas, versions of models, keys and tokens."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tidemill.declare.pipeline import Pipeline
from tidemill.durations import minute
from tidemill.errors import ArtifactError, SettingsError, StoreError
from tidemill.keys import SIGNERS, VerifyKey, private_file
from tidemill.registry.decisions import all_decisions, decisions
from tidemill.registry.latest import latest, versions, why_none
from tidemill.registry.manifests import Manifest, Registry
from tidemill.runtime.doctor import Finding, Level
from tidemill.runtime.run import registry_of
from tidemill.settings import ENV_FILE, Settings
from tidemill.stages.validator.schema_follower import Subjects, registered_schema, subject_of
from tidemill.stream.api import Broker
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Records

#: The latest versions of a subject that are judged.
MAX_VERSIONS = 20
#: A key that ends sooner than this should be rotated.
MIN_KEY_DAYS = 7


def examine_trust(pipeline: Pipeline, broker: Broker | None, settings: Settings) -> list[Finding]:
    """Return what is to say of schemas, versions, keys and tokens; without a broker, nothing of versions.

    Raises BrokerError where Kafka does not answer.
    """
    findings = [*_tokens(settings), *_files(settings), *_ends(settings)]
    if url := settings.registry_url.get_secret_value():
        from tidemill.encoding.schema_registry import SchemaRegistry  # an extra's client

        findings += examine_schemas(pipeline, SchemaRegistry(url, settings.http_ca))
    if broker is not None and any(broker.read(full_range(broker, topics.MODELS.name(pipeline.name)))):
        try:
            registry = registry_of(pipeline, settings, must_answer=False)
        except (SettingsError, StoreError) as error:
            fix = "set TIDEMILL_VERIFY_KEYS to the public keys, and TIDEMILL_STORE_URL to the artifact store"
            return [*findings, Finding("warning", "versions", f"not examined: {error}", "keys and a store", fix)]
        findings += examine_versions(pipeline, broker, registry)
    return findings


def examine_schemas(pipeline: Pipeline, registry: Subjects) -> Iterator[Finding]:
    """Judge the schemas that producers have registered: whether the declared ones read what is written by them."""
    records = Records(pipeline)
    for topic, codec, stream in (
        (topics.EVENTS, records.sent_event, pipeline.events),
        (topics.LABELS, records.sent_label, pipeline.labels),
    ):
        subject = subject_of(topic.name(pipeline))
        check = f"tidemill schema check {pipeline.name} {topic.suffix} NEW.avsc"
        fix = f"its messages are dead letters; `{check}` tries a fix"
        try:
            numbers = registry.versions(subject)
            for number in numbers[-MAX_VERSIONS:]:
                schema = registered_schema(registry.version(subject, number), codec, stream.unwrap)
                unread: Level = "wrong" if number == numbers[-1] else "warning"
                value = f"refused: {schema.refused}" if schema.refused else "read"
                yield Finding(unread if schema.refused else "ok", f"schema {schema.name}", value, "read", fix)
        except StoreError as error:
            yield Finding("wrong", f"schemas of {subject}", "not examined", "a registry that answers", str(error))


def examine_versions(pipeline: Pipeline, broker: Broker, registry: Registry) -> Iterator[Finding]:
    """Judge the newest version of each model, and the version that serves: each can be verified and opened."""
    expected = "a version that can be opened"
    for model in pipeline.model_names:
        newest = latest(broker, registry, {model: 1})[0][model]
        if newest:
            yield _opened(registry, newest[0], f"model {model}: version {newest[0].version}")
        elif why := why_none(broker, registry, model):
            yield Finding("wrong", f"model {model}", "no version that counts", expected, why)
        else:
            yield Finding("ok", f"model {model}", "no version yet", expected)
    decided = all_decisions(pipeline, broker, decisions(pipeline, registry.keys))
    serves = decided[-1].champion if decided else None
    if serves is None or not serves.version:
        return
    known, refused = versions(broker, registry, [(serves.model, serves.version)])
    manifest, what = known.get((serves.model, serves.version)), f"serving version {serves}"
    if manifest is not None:
        yield _opened(registry, manifest, what)
        return
    why = refused.get((serves.model, serves.version), "it is not on the models topic")
    fix = f"{why}; let another one serve: `tidemill models promote {pipeline.name} MODEL`"
    yield Finding("wrong", what, "missing", expected, fix)


def _opened(registry: Registry, manifest: Manifest, what: str) -> Finding:
    name = registry.pipeline.name
    fix = f"make its artifact again with `tidemill models rebuild {name}`, or set TIDEMILL_STORE_URL to where it is"
    try:
        registry.open(manifest)
    except (ArtifactError, StoreError) as error:
        return Finding("wrong", what, str(error), "can be opened", fix)
    return Finding("ok", what, "can be opened", "can be opened", fix)


def _ends(settings: Settings, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Judge until when the keys count with which this machine's services sign."""
    signing = settings.signing_key.get_secret_value()
    for service in SIGNERS if signing else ():
        try:
            keys = settings.keyring(service)
            yield from _end(service, keys.keys[keys.signs_with], clock())
        except SettingsError:
            continue  # it is a finding by itself


def _end(service: str, key: VerifyKey, now: float) -> Iterator[Finding]:
    if key.until is None:
        return
    days = (key.until / 1000 - now) / 86_400
    level: Level = "wrong" if days <= 0 else "warning" if days < MIN_KEY_DAYS else "ok"
    fix = f"`tidemill keys rotate {service}`: what it signs after that is refused"
    yield Finding(level, f"key of {service}", f"counts until {minute(key.until)}", f"{MIN_KEY_DAYS} days more", fix)


def _files(settings: Settings) -> Iterator[Finding]:
    """Judge who may read what is secret, and write what is believed."""
    signing, verify = settings.signing_key.get_secret_value(), settings.verify_keys
    private = (
        [private_file(Path(signing), service) for service in SIGNERS] if os.path.isdir(signing) else [Path(signing)]
    )
    yield from _modes("private key", private, 0o077, "read")
    yield from _modes("public keys", [Path(verify)], 0o022, "written")
    yield from _modes("settings", [Path(ENV_FILE)], 0o077, "read")


def _modes(what: str, paths: Iterable[Path], forbidden: int, verb: str) -> Iterator[Finding]:
    for path in paths:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except (OSError, ValueError):
            continue  # the key itself, its JSON, or a file that is missed elsewhere
        if not path.is_file():
            continue
        change = "go-rwx" if verb == "read" else "go-w"
        level: Level = "warning" if mode & forbidden else "ok"
        yield Finding(
            level, f"{what} {path}", f"mode {mode:04o}", f"{verb} by its owner alone", f"chmod {change} {path}"
        )


def _tokens(settings: Settings) -> Iterator[Finding]:
    """Say who holds a token; one that is too short, or an entry that is none, has ended the command before."""
    if holders := (*settings.token_holders().holders, *settings.key_holders().holders):
        names = ", ".join(f"{one.name} ({one.role_name})" for one in holders)
        yield Finding("ok", "tokens", names, "at least 128 bits each")
