"""Model versions, and two models beside each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import river
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tidemill.cli.text.shared import format_value, minute, printable, render, second
from tidemill.declare.stable_repr import model_text
from tidemill.models.evidence import Interval
from tidemill.offline.against import CHANGED, DEPLOYED, AgainstReport
from tidemill.offline.compare import ComparisonReport
from tidemill.registry.manifests import Manifest
from tidemill.registry.store import ArtifactStore
from tidemill.registry.versions import Version, Versions, artifact_state


def _notes(versions: Versions, version: Version) -> list[str]:
    """Return remarks about a version."""
    notes = ["newest"] if version.is_newest else []
    if version.refused:
        notes.append(f"refused: {version.refused}")
    elif version.manifest and not versions.is_declared(version.manifest):
        notes.append("another declaration")
    return notes


def versions_text(
    versions: Versions, store: ArtifactStore, newest: Sequence[Version], superseded: Mapping[int, int] | None = None
) -> str:
    """Return versions as a table, the newest first; `superseded` counts their examples with another label by now."""
    if not newest:
        return f"no such version in {versions.topic}\n"
    names = list(dict.fromkeys(name for one in newest if one.manifest for name in one.manifest.metrics))[:4]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    counted = ("superseded",) if superseded else ()
    for column in ("model", "version", "examples", *counted, "created", "role", *names, "River", "artifact", ""):
        table.add_column(
            format_value(column, 20),
            justify="right" if column in ("version", "examples", *counted, *names) else "left",
            no_wrap=bool(column),
        )
    for one in newest:
        manifest, notes = one.manifest, format_value(", ".join(_notes(versions, one)))
        if manifest is None:
            table.add_row(format_value(one.key, 40), *[""] * (len(names) + len(counted) + 6), notes)
            continue
        metrics = (f"{manifest.metrics[name]:z.4f}" if name in manifest.metrics else "" for name in names)
        table.add_row(
            format_value(one.key, 40),
            f"@{manifest.version}",  # an offset, as in `slow@120`: no count
            f"{manifest.examples:,}",
            *(_count(superseded, one.offset) for _ in counted),
            minute(manifest.created_at),
            versions.pipeline.role(manifest.model, versions.champion),
            *metrics,
            format_value(manifest.river, 20),
            artifact_state(store, manifest),
            notes,
        )
    signed = "checked" if versions.registry else "not checked: TIDEMILL_VERIFY_KEYS is not set"
    return render(table) + f"\nartifacts in {store.url}; signatures {signed}\n"


def _count(counts: Mapping[int, int] | None, offset: int) -> str:
    return f"{counts[offset]:,}" if counts and offset in counts else ""


def version_text(
    versions: Versions, store: ArtifactStore, version: Version, refused: int, superseded: int | None = None
) -> str:
    """Return everything about one version; `refused`: how many newer records of its model no service takes.

    `superseded`: how many of its examples have another label by now.
    """
    manifest, pipeline = version.manifest, versions.pipeline
    assert manifest is not None  # noqa: S101  `find` returns no other
    artifact = {
        "stored": "in the store, and its hash is right",
        "corrupted": "CORRUPTED: its bytes have another hash; no service loads it",
        "missing": f"missing: nothing of that name is in {store.url}",
    }[store.state(manifest.sha256)]
    if store.has_note(manifest.sha256):
        artifact += "; replaced by a rebuild from the same examples, with other bytes"
    signature = {
        "valid": "valid",
        "refused": f"REFUSED: {version.refused}; no service takes it",
        "not checked": "not checked: TIDEMILL_VERIFY_KEYS is not set",
    }[versions.signature(version)]
    same = versions.is_declared(manifest)
    declared = "as declared now" if same else "NOT as declared now: another model, vector or task"
    river_now = f", this is {river.__version__}: no service loads it" if manifest.river != river.__version__ else ""
    metrics = [(name, f"{value:z.6f}") for name, value in manifest.metrics.items()]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("role", pipeline.role(manifest.model, versions.champion)),
        ("examples", f"{manifest.examples:,}: {pipeline.name}.examples[{manifest.begin}..{manifest.version})"),
        *([] if superseded is None else [("superseded", f"{superseded:,} of them have another label by now")]),
        ("went on from", f"version {manifest.parent}" if manifest.parent else "nothing"),
        ("learning took", f"{manifest.seconds:,.1f} s of CPU"),
        ("learned until", f"{second(manifest.learned_until)} UTC, event time of a label"),
        ("created", f"{second(manifest.created_at)} UTC"),
        *metrics,
        ("", ""),
        ("signature", signature),
        ("declaration", f"{manifest.declaration}\n{declared}"),
        ("artifact", f"{manifest.uri}\n{artifact}"),
        ("sha256", manifest.sha256),
        ("golden vectors", f"{len(manifest.golden)}"),
        ("", ""),
        ("River", f"{manifest.river}{river_now}"),
        ("Python", manifest.python),
        ("Tidemill", manifest.tidemill),
        ("schema ids", ", ".join(f"{name} {number}" for name, number in manifest.schemas.items()) or "unknown"),
        ("model", model_text(manifest.hyperparameters)),
    ]
    for name, text in rows:
        table.add_row(format_value(name), Text("\n").join(format_value(line, 4000) for line in text.split("\n")))
    notes = ", ".join(_notes(versions, version))
    head = f"{format_value(version.key)}@{manifest.version} of {versions.topic}, offset {version.offset}" + (
        f": {printable(notes)}" if notes else ""
    )
    newer = f"newer records of this model that no service takes: {refused:,}; `models list --model` shows why\n"
    segments = "\n" + render(_segments(manifest)) if manifest.segments else ""
    return head + "\n\n" + render(table) + segments + (f"\n{newer}" if refused else "")


def _segments(manifest: Manifest) -> Table:
    names = list(dict.fromkeys(name for segment in manifest.segments for name in segment["metrics"]))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("segment", overflow="fold")
    for column in ("examples", *names):
        table.add_column(format_value(column, 20), justify="right", no_wrap=True)
    for segment in manifest.segments:
        value = "(others)" if segment["others"] else "(missing)" if segment["value"] is None else segment["value"]
        table.add_row(
            format_value(f"{segment['feature']} {value}", 40),
            f"{segment['examples']:,}",
            *(f"{segment['metrics'][name]:z.4f}" if name in segment["metrics"] else "" for name in names),
        )
    return table


def _figure(value: float | None) -> str:
    """Return a number with four digits, or all digits of a larger whole part."""
    if value is None:
        return ""
    if abs(value) < 1:
        return f"{value:z.4f}"
    return f"{value:,.{max(0, 4 - len(str(int(abs(value)))))}f}"


def _margin(interval: Interval | None) -> str:
    """Return a mean and half of its interval, with two digits of that."""
    if interval is None:
        return "too few"
    half = interval.high - interval.mean
    digits = min(12, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 4
    if half >= 1e6:
        return f"{interval.mean:+.2g} ± {half:.2g}"
    return f"{interval.mean:+,.{digits}f} ± {half:,.{digits}f}"


def _lines(report: ComparisonReport) -> Table:
    sides = [f"{name} A / B" for name in report.metrics]
    loss = [f"{report.loss}, A - B"] if report.loss else []
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("segment", overflow="fold")
    for column in ("questions", *sides, *loss):
        table.add_column(column, justify="right", no_wrap=column in loss)
    table.add_column("verdict" if loss else "", no_wrap=True)
    before = ""
    for line in report.lines:
        if line.segment.field != before:
            table.add_section()
            before = line.segment.field
        both = ((_figure(line.a.get(name)), _figure(line.b.get(name))) for name in report.metrics)
        table.add_row(
            format_value(str(line.segment), 30),
            f"{line.questions:,}",
            *(f"{a} / {b}" if a or b else "" for a, b in both),
            *([_margin(line.difference)] if loss else []),
            line.verdict if loss else "",
        )
    return table


def comparison_text(report: ComparisonReport) -> str:
    """Return which of two models is better, in which segment."""
    left = [
        (report.only_a, f"only {report.a} answered"),
        (report.only_b, f"only {report.b} answered"),
        (report.neither, "neither answered"),
        (report.skipped, "are of an earlier declaration, with other vectors"),
        (report.unlabelled, f"have no label, of {report.predictions:,} predictions in the log"),
    ]
    warned = "".join(f"WARNING: {text}\n" for text in report.warnings)
    others = "".join(f"left out: {n:,} that {what}\n" for n, what in left if n)
    others += f"not counted: predictions that have no label ({report.uncounted})\n" if report.uncounted else ""
    same = f"in {report.same:,} of them A and B were the same model\n" if report.same else ""
    corrected = f"{report.corrected:,} of them have a label that was corrected\n" if report.corrected else ""
    sides = "".join(
        f"{side.upper()}  {name}, versions {report.versions[side][0]} to {report.versions[side][1]}\n"
        for side, name in (("a", report.a), ("b", report.b))
    )
    head = (
        f"{report.pipeline}: {report.questions:,} questions that both answered, asked {minute(report.first_event)} to "
        f"{minute(report.last_event)} UTC\n{sides}{same}{corrected}{others}"
    )
    return warned + head + "\n" + render(_lines(report)) + "\n" + _loss_text(report)


def against_text(report: AgainstReport) -> str:
    """Return which of two declarations is better, in which segment."""
    warned = "".join(f"WARNING: {text}\n" for text in report.warnings)
    return (
        f"{warned}A is {report.against}, B is this declaration\n{_sides_text(report)}\n"
        f"{comparison_text(report.comparison)}"
    )


def _sides_text(report: AgainstReport) -> str:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    for column in SIDE_COLUMNS:
        table.add_column(column, justify="right")
    for name, figures in _sides(report):
        table.add_row(name, *figures)
    return render(table) + _differ_text(report)


SIDE_COLUMNS = ("events", "refused", "predictions", "joined", "decisions")


def _sides(report: AgainstReport) -> list[tuple[str, list[str]]]:
    return [
        (
            name,
            [
                f"{count:,}"
                for count in (one.events, sum(one.refused.values()), one.predictions, one.joined, len(one.decisions))
            ],
        )
        for name, one in ((DEPLOYED, report.deployed), (CHANGED, report.changed))
    ]


def _differ_text(report: AgainstReport) -> str:
    if not report.labels_differ:
        return ""
    return f"{report.labels_differ:,} labels are others than A's: both are judged by this declaration's\n"


def against_markdown(report: AgainstReport) -> str:
    """Return the same for a pull request."""
    comparison = report.comparison

    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(printable(cell).replace("|", "\\|").split()) for cell in cells) + " |"

    def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
        return [row(head), row(["---", *["---:"] * (len(head) - 1)]), *map(row, rows)]

    lines = [
        f"### {'Worse' if report.is_worse else 'Not shown to be worse'} than {report.against}: {comparison.pipeline}",
        "",
        *(line for text in report.warnings for line in (f"**Warning**: {text}", "")),
        f"{comparison.questions:,} questions that both answered, asked {minute(comparison.first_event)} to "
        f"{minute(comparison.last_event)} UTC; A is {report.against}, B is this declaration. "
        f"{_differ_text(report)}".strip(),
        "",
        *table(
            [
                "segment",
                "questions",
                *(f"{name} A / B" for name in comparison.metrics),
                f"{comparison.loss}, A - B",
                "verdict",
            ],
            (
                [
                    str(line.segment),
                    f"{line.questions:,}",
                    *(f"{_figure(line.a.get(name))} / {_figure(line.b.get(name))}" for name in comparison.metrics),
                    _margin(line.difference) if comparison.loss else "",
                    line.verdict if comparison.loss else "",
                ]
                for line in comparison.lines
            ),
        ),
        "",
        *table(["", *SIDE_COLUMNS], ([name, *figures] for name, figures in _sides(report))),
        "",
        " ".join(_loss_text(comparison).split()),
    ]
    return "\n".join(lines) + "\n"


def _loss_text(report: ComparisonReport) -> str:
    if not report.loss:
        return "an anomaly score costs nothing by itself, so there is no interval, and no verdict\n"
    return (
        f"{report.loss}, A - B: below 0, A is better; after ± half of the interval "
        f"(a confidence sequence, as the gate has it; none\n"
        f"under {report.min_questions:,} questions, in a segment under {report.min_segment_questions:,}). "
        "A verdict needs the whole interval on one side of 0. It is\n"
        f"wrong with a probability of at most {report.rate:.2g} for each line, however often you look.\n"
    )
