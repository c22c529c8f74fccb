"""`tidemill models promote`, `rollback`, `pin`, `unpin`, `train`, `reset` and `decisions`.

All but `decisions` are sent to the gate by the status service, for the holder of TIDEMILL_STATUS_TOKEN.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON_LINES, PIPELINE, connected, keys_to_verify, with_settings
from tidemill.errors import SettingsError
from tidemill.wire import topics

if TYPE_CHECKING:
    from tidemill.declare.pipeline import Pipeline

POLL_SECONDS = 0.3
#: Longer than the status service tries to reach Kafka.
ANSWER_SECONDS = 30.0


def command_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command to the gate."""
    for add in (
        with_settings("status_url"),
        click.option(
            "--wait",
            type=click.FloatRange(min=0),
            default=30.0,
            show_default=True,
            help="Seconds to wait for the gate's decision.",
        ),
        click.option(
            "--id", "command_id", help="The command's id; repeated, it is carried out once. Default: a new one."
        ),
        click.option("--why", required=True, help="The reason; it is kept in the decision."),
    ):
        command = add(command)
    return command


@click.command()
@PIPELINE
@click.argument("target", metavar="MODEL[@VERSION]", required=False)
@click.option(
    "--best", type=click.IntRange(1, 100), help="Instead of a model: 1 for the best by --metric, 2 for the second, ..."
)
@click.option("--metric", help="With --best: one of the pipeline's metrics. Default: the first.")
@with_settings("brokers", "store_url")
@command_options
def promote(pipeline: str, target: str | None, best: int | None, metric: str | None, **options: Any) -> None:
    """Make a model, or one version of it, the champion.

    With a gate declared the old champion shadows for a while, and serves again if the new one does worse.
    """
    if (target is None) == (best is None):
        raise SettingsError("name a model, as logreg or logreg@12000, or choose one by --best: one of the two")
    if metric is not None and best is None:
        raise SettingsError(f"--metric {metric} goes with --best")
    declared, chosen = tidemill.load(pipeline), _settings(options)
    if best is not None:
        target = _best(declared, chosen, best, metric)
        click.echo(f"{declared.name}: number {best} is {target}")
    _send(declared, chosen, "promote", target or "", **options)


@click.command()
@PIPELINE
@click.option("--steps", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many champions back.")
@command_options
def rollback(pipeline: str, steps: int, **options: Any) -> None:
    """Make the previous champion, or an earlier one, serve again."""
    _send(tidemill.load(pipeline), _settings(options), "rollback", "", steps=steps, **options)


@click.command()
@PIPELINE
@click.argument("target", metavar="MODEL@VERSION")
@command_options
def pin(pipeline: str, target: str, **options: Any) -> None:
    """Serve one version until `unpin`; the gate does not replace it."""
    _send(tidemill.load(pipeline), _settings(options), "pin", target, **options)


@click.command()
@PIPELINE
@command_options
def unpin(pipeline: str, **options: Any) -> None:
    """End `pin`: the gate decides again.

    The pinned model serves as it has learned by now.
    """
    _send(tidemill.load(pipeline), _settings(options), "unpin", "", **options)


@click.command()
@PIPELINE
@click.argument("model")
@click.option(
    "--from",
    "begin",
    default=None,
    metavar="WHERE",
    help="The first example: earliest, an offset, or -N for the latest N. Default: as Training(...) says.",
)
@click.option(
    "--corrected",
    "is_corrected",
    is_flag=True,
    help="Learn each example with its last corrected label; --from is earliest, where it is not given.",
)
@command_options
def train(pipeline: str, model: str, begin: str | None, *, is_corrected: bool, **options: Any) -> None:
    """Train a fresh copy of a model on history.

    It shadows as a candidate, MODEL~OFFSET, as soon as it has caught up; with --corrected it is MODEL~OFFSET~BEFORE,
    and has learned the corrections that lie before that offset.
    """
    declared = tidemill.load(pipeline)
    if is_corrected:
        begin = begin or "earliest"
    declared_examples = declared.training.examples if declared.training else 0
    offset = -declared_examples if begin is None else 0 if begin == "earliest" else _number(begin)
    kind = "train_corrected" if is_corrected else "train"
    _send(declared, _settings(options), kind, model, begin=offset, **options)


@click.command()
@PIPELINE
@click.argument("model")
@command_options
def reset(pipeline: str, model: str, **options: Any) -> None:
    """Begin another life of a model, with nothing learned.

    Its learner folds the examples again from the first one that the log has, and publishes once it has learned as much
    as was published before; until then the version in use serves. Only this command starts a model again.
    """
    _send(tidemill.load(pipeline), _settings(options), "reset", model, **options)


@click.command()
@PIPELINE
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Print this many, the newest."
)
@AS_JSON_LINES
@with_settings("brokers")
def decisions(pipeline: str, limit: int, *, as_json: bool, **options: Any) -> None:
    """Print decisions about which model serves, newest first.

    Also those that refused a command, and the evidence. Signatures are checked where TIDEMILL_VERIFY_KEYS names
    the public keys.
    """
    from tidemill.cli.text.decisions import decisions_text
    from tidemill.registry.decisions import all_decisions
    from tidemill.registry.decisions import decisions as signed

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    broker = connected(declared, chosen, topics.PROMOTIONS)
    newest = all_decisions(declared, broker, signed(declared, keys_to_verify(chosen)))[-limit:][::-1]
    if as_json:
        for decision in newest:
            click.echo(json.dumps(decision.as_dict()))
        return
    click.echo(decisions_text(declared, newest), nl=False)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingsError(f"--from {text!r}: expected earliest, an offset as 12000, or -N for the latest N") from None


def _settings(options: dict[str, Any]) -> settings.Settings:
    names = settings.Settings.model_fields.keys() & options.keys()
    return settings.load(**{name: options.pop(name) for name in names})


def _best(declared: Pipeline, chosen: settings.Settings, best: int, metric: str | None) -> str:
    """Return the model in place `best`, by the newest version of each."""
    from tidemill.declare.scorecard import Scorecard
    from tidemill.registry.latest import latest
    from tidemill.runtime import run as running

    known = dict(Scorecard(declared.metric()))
    metric = metric or next(iter(known))
    if metric not in known:
        raise SettingsError(f"--metric {metric!r} is not one of the pipeline's: {', '.join(known)}")
    broker = connected(declared, chosen, topics.MODELS)
    newest, _ = latest(broker, running.registry_of(declared, chosen), dict.fromkeys(declared.models, 1))
    values = {
        name: manifests[0].metrics[metric]
        for name, manifests in newest.items()
        if manifests and metric in manifests[0].metrics
    }
    ranked = sorted(values, key=lambda name: values[name], reverse=bool(known[metric].bigger_is_better))
    if best > len(ranked):
        ranking = ", ".join(f"{name} {values[name]:.4g}" for name in ranked) or "none"
        raise SettingsError(f"--best {best}: models with a version that has {metric}, the best first: {ranking}")
    return ranked[best - 1]


def _send(
    declared: Pipeline,
    chosen: settings.Settings,
    kind: str,
    target: str,
    *,
    why: str,
    command_id: str | None,
    wait: float,
    **more: Any,
) -> None:
    """Send a command to the gate, wait for the decision, and print it; exit code 1 where the gate refused."""
    name = command_id or uuid.uuid4().hex
    body = {"id": name, "kind": kind, "target": target, "why": why, **more}
    decided = ask_gate(declared, chosen, body, wait, f"repeat it with --id {name}")
    champion = decided["champion"]
    serves = champion["model"] + (f"@{champion['version']}" if champion["version"] else "")
    click.echo(f"{decided['kind'].replace('_', ' ')}: {decided['why']}")
    click.echo(f"{serves} serves" + (", pinned" if decided["pinned"] else ""))
    watched, gate = decided["on_probation_against"]["model"], declared.gate
    if watched and gate:
        click.echo(
            f"{watched} is watched: for {gate.watch:,} questions it takes its place again if {serves} does worse"
        )
    if decided["candidate"]:
        click.echo(f"{decided['candidate']} is the candidate")
    if decided["kind"] == "training":
        click.echo(f"it shadows once it has caught up: `tidemill models list {declared.name}` shows its versions")
    if decided["kind"] == "reset":
        model = decided["subject"]["model"]
        click.echo(f"life {decided['epochs'][model]} of {model} begins with the first example of the log")
    if decided["kind"] == "refused":
        sys.exit(1)


def ask_gate(
    declared: Pipeline, chosen: settings.Settings, command: dict[str, Any], wait: float, repeat: str
) -> dict[str, Any]:
    """Send a command to the gate by the status service, and return the decision on it.

    `wait`: seconds. `repeat`: how the command is given again. Raises SettingsError where there is no decision by then.
    """
    decided = call_status(chosen, "/api/commands", repeat, command)["decision"]
    deadline = time.monotonic() + wait
    while decided is None:
        if time.monotonic() > deadline:
            raise SettingsError(
                f"the gate has not answered within {wait:g} s: is it running? The command is in "
                f"{declared.name}.commands and is carried out once the gate runs; {repeat}"
            )
        time.sleep(POLL_SECONDS)
        decided = call_status(chosen, f"/api/commands/{urllib.parse.quote(command['id'])}", repeat)["decision"]
    return cast("dict[str, Any]", decided)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token is for the service that the settings name, and no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def call_status(
    chosen: settings.Settings, path: str, repeat: str, body: dict[str, Any] | None = None, known_by: str = "decision"
) -> dict[str, Any]:
    """Return the answer of the status service to a command, or to what has become of it; it has the key `known_by`.

    Raises SettingsError; `repeat` says how the command is given again.
    """
    url = chosen.status_url.rstrip("/") + path
    request = urllib.request.Request(url)  # noqa: S310
    if token := chosen.status_token.get_secret_value():
        request.add_header("Authorization", f"Bearer {token}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    repeat = f"{repeat}, and it is carried out once"
    try:
        # The setting's pattern allows http and https alone.
        opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=chosen.client_context()))
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            answered: dict[str, Any] = json.load(answer)
            return answered | {known_by: answered[known_by]}
    except urllib.error.HTTPError as error:
        again = f"; {repeat}" if error.code in (408, 429) or error.code >= 500 else ""
        raise SettingsError(
            f"the status service at {chosen.status_url} refused the command ({error.code}): {_detail(error)}{again}"
        ) from None
    except urllib.error.URLError as error:
        raise SettingsError(
            f"no status service at {chosen.status_url}: {error.reason}; start it with `tidemill run status`, or set "
            f"TIDEMILL_STATUS_URL"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise SettingsError(
            f"the status service at {chosen.status_url} gave no answer that can be read ({error!r:.100}), so it is not "
            f"known whether the command will be carried out: {repeat}"
        ) from None


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        detail = json.load(error)["detail"]
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
    if isinstance(detail, list):  # FastAPI's own words about a field
        return "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in detail)
    return str(detail)
