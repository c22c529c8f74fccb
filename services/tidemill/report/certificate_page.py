"""A certificate of forgetting as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tidemill.durations import minute

_STYLE = (
    "body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td,th{text-align:left;padding:.2em 1em}"
)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(str(cell))}</{kind}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def metrics_text(values: Mapping[str, float] | None) -> str:
    """Return metrics in one line; a dash for none."""
    return ", ".join(f"{name} {value:.6g}" for name, value in (values or {}).items()) or "-"


def shadow_text(shadow: Mapping[str, Any] | None) -> str:
    """Return by how much a model answered otherwise in the shadow; a dash where nothing was asked."""
    if not shadow or not shadow["predictions"]:
        return "-"
    return f"{shadow['largest']:.3g} (mean {shadow['mean']:.3g}, {shadow['predictions']:,} predictions)"


def render(certificate: Mapping[str, Any], key: str) -> str:
    """Return the page; `key` is the id of the key that signs it."""
    of = certificate
    stores = sorted({*of["found"], *of["erased"]})
    kept = [
        (topic, "for ever" if until is None else f"until {minute(until)} UTC") for topic, until in of["kept"].items()
    ]
    models = [
        (
            one["model"],
            "/".join(map(str, one["version_before"] or ("-",))),
            "/".join(map(str, one["version_after"])),
            metrics_text(one["metrics_before"]),
            metrics_text(one["metrics_after"]),
            "-" if one["largest_change"] is None else f"{one['largest_change']:.3g}",
            shadow_text(one["shadow"]),
        )
        for one in of["models"]
    ]
    facts = [
        ("request", of["request"]),
        *(
            ("waited", f"request {one['request']}, asked {minute(one['asked_at'])} UTC by {one['by']}: {one['why']}")
            for one in of.get("waited", ())
        ),
        ("asked", f"{minute(of['asked_at'])} UTC by {of['by']}: {of['why']}"),
        ("done", f"{minute(of['done_at'])} UTC, after a search of every byte found nothing"),
        ("entities (HMAC)", ", ".join(one[:16] for one in of["entities"])),
        ("events", of["events"]),
        ("examples now", f"up to offset {of['examples']['end']:,}, SHA-256 {of['examples']['sha256']}"),
        ("signed with", key),
        ("check again", f"tidemill forget {of['pipeline']} --verify FOLDER --entity FIELD=ID ..."),
    ]
    sections = [
        f"<h1>Forgotten by {escape(of['pipeline'])}</h1>" + _table(("", ""), facts),
        "<h2>Stores</h2>"
        + _table(("store", "found", "left"), [(s, of["found"].get(s, of["erased"].get(s)), 0) for s in stores]),
        "<h2>Models, folded again</h2>"
        + _table(
            (
                "model",
                "life/version before",
                "after",
                "metrics in the latest examples before",
                "after",
                "largest change of score",
                "in the shadow",
            ),
            models,
        ),
    ]
    if kept:
        sections.append("<h2>Left to its retention</h2>" + _table(("topic", "kept"), kept))
    if of.get("files"):
        files = [
            (topic, "until its group reads on, or more is written" if until is None else f"until {minute(until)} UTC")
            for topic, until in of["files"].items()
        ]
        sections.append("<h2>Deleted, and in brokers' files</h2>" + _table(("topic", "at the longest"), files))
    sections.append(
        f"<p>In memory, until they are started again: {escape(', '.join(of['in_memory']))}. Replicas compact by "
        f"themselves; what was searched are the leaders.</p>"
    )
    return f"<!doctype html><meta charset='utf-8'><title>Forgotten</title><style>{_STYLE}</style>{''.join(sections)}\n"
