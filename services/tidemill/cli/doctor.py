"""`tidemill doctor`: what of a cluster can eat a pipeline."""

from __future__ import annotations

import sys
from typing import Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report, with_settings


@click.command()
@PIPELINE
@click.option("--all", "show_all", is_flag=True, help="Also what is right.")
@AS_JSON
@with_settings("brokers", "redis_url")
def doctor(pipeline: str, *, show_all: bool, as_json: bool, **options: Any) -> None:
    """Examine a pipeline's cluster, topics and offsets.

    Also the Redis that is set, schemas in a registry, versions of models, keys and tokens. The exit code is 1 if
    something is wrong.
    """
    from tidemill.cli.text.doctor import findings_text
    from tidemill.runtime.doctor import examine, examine_settings
    from tidemill.runtime.doctor_trust import examine_trust
    from tidemill.runtime.run import broker_of
    from tidemill.wire import topics

    declared, chosen = tidemill.load(pipeline), settings.load(**options)
    broker = broker_of(chosen)
    findings = examine(declared, broker)
    needed = {topic.name(declared.name) for topic in (topics.MODELS, topics.PROMOTIONS)}
    has_versions = not any(
        (one.what in needed and one.value == "missing") or (one.what, one.level) == ("broker", "wrong")
        for one in findings
    )
    findings += examine_settings(declared, chosen)
    findings += examine_trust(declared, broker if has_versions else None, chosen)
    shown = [finding for finding in findings if show_all or finding.level != "ok"]
    print_report(shown, lambda some: findings_text(some, len(findings)), as_json=as_json)
    if any(finding.level == "wrong" for finding in findings):
        sys.exit(1)
