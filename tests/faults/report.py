"""docs/faults.md, from what the runs have left in .cache/faults."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from harness import Row
from mutations import MUTANTS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / ".cache" / "faults"
REPORT = ROOT / "docs" / "faults.md"

SMALL = {
    "tests/faults/test_values.py": "NaN, infinities, 1e308 in every field: none reaches `learn_one`, all scores finite",
    "tests/faults/test_clocks.py": "producers' clocks a day off: no watermark jumps, the far future is quarantined",
    "tests/faults/test_times_ahead.py": "records far ahead, up to 23 of 32 in a row: all others' outcomes, features and windows equal",
    "tests/faults/test_disorder.py": "late, out-of-order and duplicate events equal the batch oracle, each is counted",
    "tests/faults/test_join_machine.py": "labels delayed, doubled, contradictory, unknown, never: a state machine with crashes",
    "tests/faults/test_artifacts.py": "artifacts: 1,000 byte flips refused before unpickling; store full or torn",
    "tests/system/test_bad_input.py": "configuration wrong: one line, the key named, no secret shown",
    "tests/unit/stages/test_validator.py": "mutated messages end byte for byte in the dead letters, with the reason",
    "tests/unit/stream/test_loop_crash.py": "a crash at every emit, commit and view write, in memory",
    "tests/contracts": "one contract for the broker and one for the store: real Kafka, real Redis, in memory",
}


def forget() -> None:
    """Forget what earlier runs have left."""
    for path in RESULTS.glob("*"):
        path.unlink()


def keep(name: str, row: Row, described: str = "") -> None:
    """Keep the row of a case and a seed for the report; `described` is its promise where it could not say its own."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = {**row.__dict__, "verdict": row.verdict.__dict__, "met": row.met, "day": time.strftime("%Y-%m-%d")}
    found["described"] = described
    (RESULTS / f"{name}.{row.seed}.json").write_text(json.dumps(found))


def run_small() -> bool:
    """Run the tests without load, and keep how many there were and how long the slowest took; returns whether all passed."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    target = RESULTS / "small.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={target}", *SMALL]
    return not subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TIDEMILL_REQUIRE_KAFKA": "1"}, check=False
    ).returncode


def run_mutants() -> None:
    """Run the mutation check."""
    target = RESULTS / "mutants.json"
    target.unlink(missing_ok=True)  # else those of another day would be taken for these
    subprocess.run([sys.executable, "tests/faults/mutations.py", "--json", str(target)], cwd=ROOT, check=False)


def write(cases: list[str]) -> bool:
    """Write the report; returns whether every promise was kept.

    What was not run again stays as the last report has it, with the day on which it was run.
    """
    rows = [json.loads(path.read_text()) for name in cases for path in sorted(RESULTS.glob(f"{name}.*.json"))]
    before = REPORT.read_text() if REPORT.exists() else ""
    again = {
        (row[name], seed) for row in rows for name in ("promise", "described") for seed in (str(row["seed"]), "")
    }  # a line without a seed is of before
    lines = [
        "# Faults",
        "",
        "What is promised, how it was attacked, and what came of it. `make faults` does it all again and writes this file; "
        f"this was on {os.cpu_count()} cores, everything (Kafka, Redis, services, load) on one machine. A short form of it is in "
        "`make test`. How memory grows is in [soak.md](soak.md).",
        "",
        "## Under load",
        "",
        "Load at a set rate through all services as processes, exactly once on a real Kafka broker and with a real Redis, four "
        "partitions. A ledger reads every topic under `read_committed` and compares: every event "
        "sent is valid or a dead letter, byte for byte; every valid event has one vector, one prediction, one log record; every "
        "prediction is joined, expired or waits; every label is joined or a dead letter; Redis equals a replay; each model's last "
        "version equals one fold over the log; and every prediction is made again from its log record, with the same score. "
        "Whatever differs would be in the columns *lost*, *doubled*, *wrong*. Each fault is counted when it is planned and when "
        "it has fired. *Longest stall* is the longest time in which nothing came out of the service in question after a fault "
        "(what was done to another one meanwhile is in it, too); *least passed* the fewest predictions that came while a fault "
        "lasted, and within 10 s of its beginning where it was a moment's (`-`: while the only broker is away nothing can pass).",
        "",
        "| promise | goal | met | faults fired / planned | events | lost | doubled | wrong | longest stall | least passed | seed, day |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = row["verdict"]
        lines.append(
            f"| {row['promise']} | {row['goal']} | {'yes' if row['met'] else '**no**'} | {row['fired']} / {row['planned']} | "
            f"{verdict['counts'].get('events', 0):,} | {len(verdict['lost'])} | {len(verdict['doubled'])} | {len(verdict['wrong'])} | "
            f"{row['stall']:.1f} s | {'-' if row['passed'] is None else row['passed']} | {row['seed']}, {row['day']} |"
        )
    lines += [line for line in _lines_of(before, "| ", "Under load") if _run_of(line) not in again]
    lines.append("")
    for row in rows:
        counts = Counter(row["verdict"]["counts"])
        exits = ", ".join(f"{name} ×{n}" for name, n in sorted(row["exits"].items())) or "none"
        said = "; ".join([*row["notes"], *distribution(row), *row["verdict"]["wrong"]])
        lines.append(
            f"- *{row['promise']}*, seed {row['seed']}: {row['seconds'] / 60:.0f} min, batches of {row['max_delay_ms']} ms; "
            f"{counts['labels']:,} labels, {counts['joined']:,} joined, "
            f"{counts['expired']:,} expired, {counts['pending']:,} waiting, {counts['unmatched']:,} unmatched; "
            f"{counts['dead_letters']:,} dead letters, {counts['versions']:,} model versions. Processes that ended (service and "
            f"exit code): {exits}. {said[:1].upper()}{said[1:]}"
        )
    lines += [line for line in _lines_of(before, "- *", "Under load") if _run_of(line) not in again]
    small = small_table() if (RESULTS / "small.xml").exists() else _section(before, "One by one")
    lines += ["", *small, ""]
    caught = {
        line.split("|")[1].strip(): line.split("|")[2].strip() for line in _lines_of(before, "| ", "Mutation check")
    }
    if (RESULTS / "mutants.json").exists():
        mutants = json.loads((RESULTS / "mutants.json").read_text())
        caught |= {m["says"]: f"`{m['caught_by'].rpartition('/')[2]}`" for m in mutants}
    caught = {mutant.says: caught[mutant.says] for mutant in MUTANTS if mutant.says in caught}
    missed = [says for says, by in caught.items() if by == "`MISSED`"]
    lines += mutation_table(caught, len(missed))
    extra = RESULTS / "repeated.json"
    if extra.exists():
        repeated = json.loads(extra.read_text())
        lines += [
            "## The short form, again and again",
            "",
            f"`python tests/faults/run.py --repeat {repeated['runs']}`: {repeated['green']} of {repeated['runs']} green, each with another "
            f"seed; {repeated['events']:,} events, {repeated['faults']} faults fired, longest stall {repeated['stall']:.1f} s, "
            f"{repeated['seconds'] / repeated['runs']:.0f} s each ({repeated['day']}).",
            "",
        ]
    REPORT.write_text("\n".join(lines))
    return not missed and all(row["met"] for row in rows)


def _run_of(line: str) -> tuple[str, str]:
    """Return the promise and the seed of a row of the table, or of a line of the list."""
    if line.startswith("| "):
        cells = line.split("|")
        promise, seed = cells[1].strip(), cells[-2].partition(",")[0].strip()
    else:
        _, promise, rest = line.split("*", 2)
        seed = rest.partition(":")[0].removeprefix(", seed ")
    return promise, seed if seed.isdecimal() else ""


def _section(text: str, title: str) -> list[str]:
    """Return the lines of a report's section, its title included."""
    _, _, rest = text.partition(f"## {title}\n")
    return [f"## {title}", *rest.partition("\n## ")[0].strip("\n").split("\n")] if rest else []


def _lines_of(text: str, begin: str, title: str) -> list[str]:
    """Return the rows of a section's table, or the lines of its list."""
    lines = [line for line in _section(text, title) if line.startswith(begin)]
    return [
        line
        for line in lines
        if not line.startswith(("| promise |", "| broken |", "|---")) and "not run yet" not in line
    ]


def mutation_table(caught: dict[str, str], missed: int) -> list[str]:
    """Return the section of the mutation check; `caught` is by which test, by what a mutant breaks."""
    left = len(MUTANTS) - len(caught)
    return [
        "## Mutation check",
        "",
        f"The services are broken on purpose in {len(MUTANTS)} ways; of {'all' if not left else f'the {len(caught)} that were run'} "
        f"the suite catches {len(caught) - missed}. `python tests/faults/mutations.py --list` shows them, `--only WORD` runs some.",
        "",
        "| broken | caught by |",
        "|---|---|",
        *(f"| {mutant.says} | {caught.get(mutant.says, 'not run yet')} |" for mutant in MUTANTS),
        "",
    ]


def distribution(row: dict[str, Any]) -> list[str]:
    """Say how the stalls lie about what is allowed, where something is."""
    allowed, stalls = row["stall_allowed"], sorted(seconds for _, _, seconds in row["stalls"])
    if allowed is None or not stalls:
        return []
    over = sum(seconds > allowed for seconds in stalls)
    return [f"stalls: median {median(stalls):.1f} s, {over} of {len(stalls)} longer than {allowed:.0f} s"]


def small_table() -> list[str]:
    """Return the table of what is shown without load."""
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in SMALL}
    for case in ET.parse(RESULTS / "small.xml").getroot().iter("testcase"):
        path = re.sub(r"\.Test\w+$", "", case.attrib["classname"]).replace(".", "/") + ".py"
        for name in SMALL:
            if path.startswith(name.removesuffix(".py")):
                state = "failed" if len(case) and case[0].tag in ("failure", "error", "skipped") else "passed"
                found[name].append((state, float(case.attrib["time"])))
    lines = ["## One by one", "", "| promise | shown by | tests passed | slowest |", "|---|---|---|---|"]
    for name, cases in found.items():
        passed = sum(state == "passed" for state, _ in cases)
        slowest = max((seconds for _, seconds in cases), default=0.0)
        lines.append(f"| {SMALL[name]} | `{name}` | {passed} of {len(cases)} | {slowest:.1f} s |")
    return lines
