"""What the benchmark of peers prints and writes: the table, the plot, and both in the page."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "peers.md"


class Peer(NamedTuple):
    """One row: what it is called; the processes of ours, or a module of this folder and its options; whether it is ours.

    `is_slow`: it is run once, because that takes as long as all others.
    """

    title: str
    command: tuple[str, ...]
    is_ours: bool = False
    is_slow: bool = False


SERVICES = ("validator", "featurizer", "scorer", "joiner", "learner")
PEERS = {
    "chain": Peer("Tidemill, all five in one process", ("+".join(SERVICES),), is_ours=True),
    "chains": Peer("Tidemill, two chains", ("validator+featurizer+scorer", "joiner+learner"), is_ours=True),
    "apart": Peer("Tidemill, five services", SERVICES, is_ours=True),
    "river": Peer("River alone: no Kafka, vectors ready", ("river_alone",)),
    "handwritten": Peer("a loop by hand: no recovery", ("handwritten",)),
    "quix-own": Peer("Quix Streams, state of one's own", ("quix", "own")),
    "quix-windows": Peer("Quix Streams, its windows and join", ("quix", "windows"), is_slow=True),
    "faust-own": Peer("faust-streaming, state of one's own", ("faust_app", "own")),
    "faust-windows": Peer("faust-streaming, its windows", ("faust_app", "windows"), is_slow=True),
}
#: What the ratios are to.
BASE = "chains"


def costs(figures: dict[str, Any]) -> dict[str, list[float]]:
    """Return µs of CPU an event by peer, sorted."""
    return {name: sorted(row["us"] for row in found) for name, found in figures["rows"].items() if found}


def table(figures: dict[str, Any]) -> str:
    """Return the table, as Markdown; each run's ratio is to the two chains of the same run."""
    rows, cost = figures["rows"], costs(figures)
    lines = [
        "| | runs | ratio: median | min | max | µs an event: median | min | max | broker | ROCAUC |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in cost.items():
        base = {row["run"]: row["us"] for row in rows.get(BASE, [])}
        if base and PEERS[name].is_slow:
            base = {row["run"]: median(base.values()) for row in rows[name]}
        ratios = sorted(row["us"] / base[row["run"]] for row in rows[name] if row["run"] in base)
        to_base = f"{median(ratios):.2f} | {ratios[0]:.2f} | {ratios[-1]:.2f}" if ratios else " | | "
        broker = median(row["broker_us"] for row in rows[name])
        rocauc = median(row["metrics"]["ROCAUC"] for row in rows[name])
        lines.append(
            f"| {PEERS[name].title} | {len(found)} | {to_base} | {median(found):.0f} | {found[0]:.0f} | {found[-1]:.0f} "
            f"| {f'{broker:.0f}' if name != 'river' else ''} | {rocauc:.4f} |"
        )
    if "apart" in rows:
        parts = {p: median(row["parts"][p] for row in rows["apart"]) / figures["events"] * 1e6 for p in SERVICES}
        lines += [
            "",
            "The five services: " + ", ".join(f"{name} {us:.0f}" for name, us in parts.items()) + " µs (medians).",
        ]
    return "\n".join(lines)


def write(figures: dict[str, Any]) -> None:
    """Put the table into the page, and plot it beside it."""
    text = (
        f"`make bench-peers`, {time.strftime('%Y-%m-%d')}: {max(map(len, figures['rows'].values()))} runs of each in turns on "
        f"{figures['events']:,} events and {figures['labels']:,} labels; those with windows of their own once, on three days of them. "
        f"{os.cpu_count()} cores; load of the machine before each run: {', '.join(f'{load:.1f}' for load in figures['loads'])}."
        f"\n\n{table(figures)}"
    )
    put("table", text)
    plot(figures, PAGE.with_suffix(".svg"))


def put(name: str, text: str) -> None:
    """Replace what stands in the page between the marks of this name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL))


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw medians as bars, least and most as whiskers."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "tidemill"
    cost = dict(sorted(costs(figures).items(), key=lambda item: -median(item[1])))
    middle = [median(found) for found in cost.values()]
    whiskers = [[m - found[0] for m, found in zip(middle, cost.values(), strict=True)],
                [found[-1] - m for m, found in zip(middle, cost.values(), strict=True)]]  # fmt: skip
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    axes.barh(
        [PEERS[name].title for name in cost], middle, xerr=whiskers, ecolor="0.3", capsize=3, height=0.65,
        color=["#00897b" if PEERS[name].is_ours else "#b0bec5" for name in cost],
    )  # fmt: skip
    for at, found in enumerate(cost.values()):
        axes.text(found[-1] * 1.08, at, f"{median(found):,.0f}", va="center", color="0.25")
    axes.set(xscale="log", xlabel="µs of CPU an event, exactly once (log scale)", xlim=(10, max(middle) * 3))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
