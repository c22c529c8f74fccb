"""The demo's screen: the services as a table, the models against the baseline, and the dead letters."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tidemill.demo.observer import ROLLING, Observer
from tidemill.local.replay import Replay
from tidemill.registry.decisions import ModelRef

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Flow:
    """One row: a service, how many records it has done, and how many wait for it, where topics show that."""

    name: str
    done: int
    waits: int | None
    unit: str


def flows(observer: Observer, replay: Replay) -> list[Flow]:
    """Return a row for each service."""
    c = observer.counts
    learned = observer.latest.get(observer.champion.model, {}).get("examples", 0)
    judged = c["events.valid"] + c["labels.valid"] + c["dlq"]
    rows = [
        Flow("validator", judged, max(0, replay.events + replay.labels - judged), "events, labels"),
        Flow("featurizer", c["features"], max(0, c["events.valid"] - c["features"]), "vectors"),
        Flow("scorer", c["predictions"], max(0, c["features"] - c["predictions"]), "predictions"),
        Flow("joiner", c["examples"], observer.pending, "flights in the air"),
        Flow("learner", learned, max(0, c["examples"] - learned), "until the next version"),
    ]
    if observer.pipeline.remote_views:  # its results are in Redis, not on a topic
        rows.insert(2, Flow("materializer", c["updates"], None, "updates of views"))
    if observer.pipeline.gate:
        rows.append(Flow("gate", c["promotions"], None, f"decisions; {observer.champion} serves"))
    return rows


class Rates:
    """Records per second of each flow over the last seconds."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, int]]] = {}

    def of(self, flow: Flow) -> float:
        """Return the rate, and remember the present count."""
        now = time.monotonic()
        seen = self._seen.setdefault(flow.name, [])
        seen.append((now, flow.done))
        while len(seen) > 2 and now - seen[0][0] > 3:
            seen.pop(0)
        (t0, n0), (t1, n1) = seen[0], seen[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0


def moment(ms: int) -> str:
    """Return an event time as text."""
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%a %d %b %Y %H:%M UTC")


def spark(values: Sequence[float], low: float, high: float, width: int = 48) -> str:
    """Return values as a line of bars between `low` and `high`, at most `width` wide."""
    if len(values) > width:
        step = len(values) / width
        values = [values[int(i * step)] for i in range(width)]
    span = (high - low) or 1.0
    return "".join(_BARS[min(7, max(0, int((v - low) / span * 8)))] for v in values)


class Screen:
    """Draws the run; `render` is called a few times a second."""

    def __init__(self, title: str, observer: Observer, replay: Replay, total: int) -> None:
        self.title, self.observer, self.replay, self.total = title, observer, replay, total
        self.rates = Rates()

    def render(self, note: str = "") -> RenderableType:
        """Return the screen as it is now."""
        sent = self.replay.events + self.replay.labels
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(Text(self.title, style="bold"), Text(moment(self.replay.clock), style="cyan"))
        body = [
            head,
            ProgressBar(total=max(1, self.total), completed=sent),
            self._services(),
            self._models(),
            self._letters(),
        ]
        if self.observer.versions:
            recent = list(self.observer.versions)[-4:][::-1]
            body.append(Text("versions  " + "   ".join(f"{m}@{v:,}" for m, v, _ in recent), style="dim", no_wrap=True))
        if note:
            body.append(Text(note, style="yellow"))
        return Panel(Group(*body), box=ROUNDED, border_style="blue", width=100)

    def _services(self) -> Table:
        table = Table(box=SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1))
        for name, justify in (
            ("service", "left"),
            ("records", "right"),
            ("per second", "right"),
            ("waiting", "right"),
            ("", "left"),
        ):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for flow in flows(self.observer, self.replay):
            table.add_row(
                flow.name,
                f"{flow.done:,}",
                f"{self.rates.of(flow):,.0f}",
                "" if flow.waits is None else f"{flow.waits:,}",
                Text(flow.unit, style="dim"),
            )
        return table

    def _models(self) -> Table:
        return models_table(self.observer)

    def _letters(self) -> RenderableType:
        if not self.observer.dead_letters:
            return Text("dead letters: none", style="dim")
        table = Table(box=SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1))
        table.add_column("dead letters")
        table.add_column("", justify="right")
        table.add_column("last message", ratio=1, no_wrap=True, overflow="ellipsis")
        for reason, n in self.observer.dead_letters.most_common(6):
            table.add_row(reason, f"{n:,}", Text(self.observer.last_letters[reason], style="dim"))
        return table


def models_table(observer: Observer) -> Table:
    """Return each model's metrics on served predictions, with the rolling course of the second metric."""
    values_of = observer.values()
    names = list(next(iter(values_of.values())))
    table = Table(box=SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1))
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column(f"{names[1]}, last {ROLLING:,} flights", ratio=1, no_wrap=True)
    course = observer.course
    values = [v for row in course for v in row.values()]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if "ROCAUC" in names:
        low, high = min(0.45, low), max(0.7, high)
    for model, figures in values_of.items():
        role = {observer.champion.model: "green", "baseline": "dim"}.get(model, "")
        shown = model
        line = spark([row[model] for row in course], low, high, 32)
        last = f"{course[-1][model] + 0.0:.3f} " if course else ""  # first, for a narrow terminal cuts the line
        cells = [f"{figures[name] + 0.0:.4f}" for name in names]  # River's -0.0, too
        table.add_row(Text(shown, style=role), *cells, Text(last + line, style=role))
    return table


def summary(report: Mapping[str, object], observer: Observer, title: str) -> RenderableType:
    """Return the run's summary."""
    r = report
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold")
    lines.add_column()
    dead = r["dead_letters"]
    assert isinstance(dead, Mapping)  # noqa: S101  for the type checker
    delay = r["latency_ms"]
    assert isinstance(delay, Mapping)  # noqa: S101  for the type checker
    lines.add_row("events", f"{r['events']:,} = valid {r['valid']:,} + dead letters {r['events_rejected']:,}")
    lines.add_row(
        "labels",
        f"{r['labels']:,} = joined {r['joined']:,} + dead letters {r['labels_rejected']:,} "
        f"+ waiting {r['waiting_labels']:,}",
    )
    lines.add_row(
        "predictions",
        f"{r['predictions']:,} = joined {r['joined']:,} + expired {r['expired']:,} + pending {r['pending']:,}",
    )
    lines.add_row("dead letters", ", ".join(f"{reason} {n:,}" for reason, n in dead.items()) or "none")
    lines.add_row(
        "speed",
        f"{r['events_per_second']:,.0f} events/s; event to prediction p50 {delay['p50']} ms, p99 {delay['p99']} ms",
    )
    lines.add_row(
        "versions", ", ".join(f"{m} {x['examples']:,} examples" for m, x in observer.latest.items()) or "none"
    )
    lines.add_row("champion", _serves(observer))
    return Panel(
        Group(Text(title, style="bold"), lines, models_table(observer)), box=ROUNDED, border_style="green", width=100
    )


def _serves(observer: Observer) -> str:
    """Return the serving model, and the last decision about it."""
    last = observer.decision
    if last is None:
        return f"{observer.champion}, as declared"
    decision = f"{last['kind'].replace('_', ' ')} {ModelRef(**last['subject'])}"
    decisions = f"last of {observer.counts['promotions']:,} decisions, after {last['examples']:,} examples: {decision}"
    return f"{observer.champion}; {decisions}"
