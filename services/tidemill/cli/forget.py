"""`tidemill forget`: every record of an entity erased, the models folded again without them, and a certificate."""

from __future__ import annotations

import getpass
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import PIPELINE, with_settings
from tidemill.durations import minute
from tidemill.errors import SettingsError

if TYPE_CHECKING:
    from tidemill.runtime.forget import Forget

KIND = "certificate"


@click.command()
@PIPELINE
@click.option("--entity", "entities", multiple=True, metavar="FIELD=ID", help="Whom to forget; may be repeated.")
@click.option("--why", help="The reason; it is kept for ever, so it must not name the id.")
@click.option("--by", help="Who asks; default: the user of this machine.")
@click.option("--dry-run", is_flag=True, help="Print what there is of it, and erase nothing.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The folder to write the certificate to.")
@click.option(
    "--keep", multiple=True, metavar="TOPIC", help="Leave this topic, as events, to its retention; may be repeated."
)
@click.option("--mentions-too", is_flag=True, help="Erase records of other events, too, that hold an id elsewhere.")
@click.option(
    "--patience", type=click.FloatRange(min=1), default=300.0, show_default=True, help="Seconds to wait for each step."
)
@click.option(
    "--ask", is_flag=True, help="Have the status service write a request that waits, with TIDEMILL_STATUS_TOKEN."
)
@click.option("--now", is_flag=True, help="Do it now, where the pipeline declares that requests wait for each other.")
@click.option(
    "--due", is_flag=True, help="Do all requests that wait, once the first has waited as long as is declared."
)
@click.option(
    "--verify",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Instead: check a certificate, and with --entity search for them again.",
)
@with_settings("brokers", "redis_url", "store_url", "archive_url", "status_url")
def forget(
    pipeline: str,
    entities: tuple[str, ...],
    why: str | None,
    by: str | None,
    out: Path | None,
    keep: tuple[str, ...],
    patience: float,
    verify: Path | None,
    *,
    dry_run: bool,
    mentions_too: bool,
    ask: bool,
    now: bool,
    due: bool,
    **options: Any,
) -> None:
    """Erase all of an entity, and fold the models again without it.

    Services go on meanwhile. After it broke off, the same command goes on; without --entity, requests are listed, with
    their deadlines. Where forgetting has `every`, requests wait, and --due, to be run daily, does them together. The
    pipeline has to declare forgetting, and `tidemill keys new forget` makes the key that requests are signed with.
    """
    from tidemill.registry.forgetting import deadline, refold_at

    declared, chosen = tidemill.load(pipeline), settings.load(**options)
    wanted = [_entity(text) for text in entities]
    if verify is not None:
        _verify(declared, chosen, verify, wanted, patience)
        return
    if ask:
        if by or out or keep or dry_run or mentions_too or now or due:
            raise SettingsError("--ask goes with --entity and --why alone: who asks is who holds the token")
        _ask(chosen, wanted, why)
        return
    work = _work(declared, chosen, keep, patience)
    work.mentions_too = mentions_too
    by = by or getpass.getuser()
    if due:
        _due(work, wanted, by, out)
        return
    if not wanted:
        _list(work)
        return
    if dry_run:
        subject = work.subject(wanted)
        click.echo(f"{len(subject.events):,} events, {len(subject.vectors):,} vectors")
        findings = work.find(subject, everywhere=True)
        for store, count in findings.counts().items():
            click.echo(f"{store}: {count:,}")
        if findings.mentions:
            click.echo(f"{len(findings.mentions):,} of these records are of other events: see --mentions-too")
        return
    assert declared.forgetting is not None  # noqa: S101  checked when it was made
    if declared.forgetting.every and not now:
        if not why:
            raise SettingsError("a request needs --why; --dry-run says what there is")
        waiting = work.wait(wanted, by, why)
        _say_when(waiting.id, refold_at(declared, waiting), deadline(declared, waiting))
        return
    if not why or out is None:
        raise SettingsError("forgetting needs --why and --out; --dry-run says what there is")
    _write(work, work.run(wanted, by, why), out)


def _ask(chosen: settings.Settings, wanted: list[tuple[str, str]], why: str | None) -> None:
    from tidemill.cli.champion import call_status

    if not wanted or not why:
        raise SettingsError("--ask needs --entity and --why")
    entities: dict[str, list[str]] = {}
    for name, id_ in wanted:
        entities.setdefault(name, []).append(id_)
    answer = call_status(chosen, "/api/forgetting", "ask again", {"entities": entities, "why": why}, "until")
    _say_when(answer["id"], answer["begins"], answer["until"])


def _say_when(request: str, begins: int, until: int) -> None:
    click.echo(
        f"request {request} waits: --due does it from {minute(begins)} UTC on; it has to be done until {_late(until)}"
    )


def _late(until: int) -> str:
    return f"{minute(until)} UTC{', which is past' if until < time.time() * 1000 else ''}"


def _due(work: Forget, wanted: list[tuple[str, str]], by: str, out: Path | None) -> None:
    if wanted or out is None:
        raise SettingsError("--due does the requests that wait, without --entity, and needs --out")
    certificate = work.due(by)
    if certificate is None:
        click.echo("no request is due")
        return
    _write(work, certificate, out)


def _write(work: Forget, certificate: dict[str, Any], out: Path) -> None:
    from tidemill.offline import audit_files
    from tidemill.report import certificate_page

    keys = work.registry.keys
    audit_files.write(out, certificate, certificate_page.render(certificate, keys.signs_with), keys, KIND)
    again = "forgotten before" if certificate.get("again") else "forgotten"
    for one in certificate["models"]:
        change = "unknown" if one["largest_change"] is None else f"{one['largest_change']:.3g}"
        before, after = (certificate_page.metrics_text(one[f"metrics_{when}"]) for when in ("before", "after"))
        click.echo(
            f"{one['model']}: {before} before, {after} after, in the latest {one['examples']:,} examples; largest "
            f"change of a score on test vectors {change}, in the shadow {certificate_page.shadow_text(one['shadow'])}"
        )
    click.echo(f"{again} on {minute(certificate['done_at'])} UTC, request {certificate['request']}")
    click.echo(f"written: {out / f'{KIND}.json'}, {out / f'{KIND}.html'}")


def _entity(text: str) -> tuple[str, str]:
    name, is_given, id_ = text.partition("=")
    if not is_given or not id_:
        raise SettingsError(f"--entity {text!r}: expected FIELD=ID, as user_id=U123")
    return name, id_


def _work(declared: Any, chosen: settings.Settings, keep: tuple[str, ...], patience: float) -> Forget:
    from tidemill.cli.champion import ask_gate
    from tidemill.features.redis import connect
    from tidemill.files import Files
    from tidemill.runtime import run as running
    from tidemill.runtime.forget import Forget

    def reset(model: str, command: str, reason: str) -> None:
        body = {"id": command, "kind": "reset", "target": model, "why": reason}
        decided = ask_gate(declared, chosen, body, patience, "run it again")
        if decided["kind"] == "refused":
            raise SettingsError(f"the gate refused to reset {model}: {decided['why']}")

    broker = running.broker_of(chosen, declared)
    broker.connect()
    keys = chosen.keyring("forget")
    registry = running.registry_of(declared, chosen)
    registry.keys = keys
    redis = connect(chosen.redis_address()) if declared.views else None
    archive = Files(chosen.archive_url, "archive_url", "archive", create=False)
    return Forget(
        declared,
        broker,
        registry,
        redis,
        archive,
        kept=keep,
        reset=reset,
        say=lambda what: click.echo(what, err=True),
        patience=patience,
    )


def _list(work: Forget) -> None:
    from tidemill.registry.forgetting import Requests, deadline

    requests = Requests(work.pipeline, work.broker, work.registry.keys)
    for one in requests.records:
        if one.state not in ("asked", "waiting"):
            continue
        done = requests.done.get(one.id)
        state = (
            f"done {minute(done.time)}"
            if done
            else f"{one.state}, to be done until {_late(deadline(work.pipeline, one))}"
        )
        click.echo(f"{one.id}  asked {minute(one.time)} UTC by {one.by}: {one.why}; {state}")


def _verify(
    declared: Any, chosen: settings.Settings, folder: Path, wanted: list[tuple[str, str]], patience: float
) -> None:
    from tidemill.offline import audit_files

    content, problems = audit_files.verify(folder, chosen.keyring(), KIND)
    if problems:
        raise SettingsError(f"{folder}: {'; '.join(problems)}")
    click.echo(f"it is as it was written: request {content['request']}, done {minute(content['done_at'])} UTC")
    if not wanted:
        return
    work = _work(declared, chosen, tuple(content["kept"]), patience)
    hashes = {work.hashes.entity(*one) for one in wanted}
    if foreign := len(hashes - set(content["entities"])):
        raise SettingsError(f"{foreign} of these entities are not in the certificate")
    if counts := work.check_again(wanted, content["request"]).counts():
        raise SettingsError(f"something is there: {json.dumps(counts)}")
    click.echo("no byte of them was found")
