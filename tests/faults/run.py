"""All faults at full length, on a real Kafka and a real Redis; what came of them goes to docs/faults.md.

    make faults                                    everything, in about an hour and a half
    make faults ARGS="--only kills --only storm"   some of the cases; prints, and writes nothing
    make faults ARGS="--seed 7 --seed 8"           another order of faults, and one more
    make faults ARGS="--report"                    the report again: what --only has run replaces its rows

The seed decides which fault comes when, and at which point; that of a report repeats its plan.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import cases
import report
from harness import Row
from ledger import Verdict
from real_kafka import RealKafka

from tidemill.local.servers import Redis


def run(chosen: list[str], seed: int, sizes: Mapping[str, float] = MappingProxyType({})) -> list[Row]:
    rows: list[Row] = []
    for case in (*cases.CASES, *([cases.short] if "short" in chosen else [])):
        if chosen and case.__name__ not in chosen:
            continue
        with tempfile.TemporaryDirectory(prefix=f"tidemill-{case.__name__}-") as name:
            folder = Path(name)
            say(f"{case.__name__}: {described(case)}")
            row = apart(case, folder, seed, sizes)
            if row is not None and not row.met:
                keep_logs(case.__name__, folder)
        if row is None:
            say(f"{case.__name__}: can't be done on this machine")
            continue
        say(str(row))
        worst = sorted(row.stalls, key=lambda stall: -stall[2])[:8]
        say("longest stalls: " + ", ".join(f"{what} of {role or 'all'} {seconds} s" for what, role, seconds in worst))
        rows.append(row)
        if not sizes:
            report.keep(case.__name__, row, described(case))
    return rows


def apart(case: Callable[..., Row | None], folder: Path, seed: int, sizes: Mapping[str, float]) -> Row | None:
    """Return the row of a case that runs in a process of its own: the load's Kafka client may crash (librdkafka#5280)."""
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        try:
            return pool.submit(tried, case, folder, seed, dict(sizes)).result()
        except BrokenProcessPool:
            why = "the process that sends the load and does the faults has crashed"
            return Row(described(case), "the case runs to its end", seed, Verdict(wrong=[why]))


def tried(case: Callable[..., Row | None], folder: Path, seed: int, sizes: Mapping[str, float]) -> Row | None:
    """Return the row of a case; of one that fails, whatever it raises, a row that says so: the others go on."""
    with ExitStack() as cleanup:
        try:
            kafka = RealKafka(folder)
            cleanup.callback(kafka.stop)
            redis = Redis(folder)
            cleanup.callback(redis.stop)
            return case(cases.Bench(kafka, redis, folder, seed), **sizes)
        except Exception as error:
            say(f"{case.__name__}: {''.join(traceback.format_exception(error))}")
            why = " ".join(f"{type(error).__name__}: {error}".split())
            return Row(described(case), "the case runs to its end", seed, Verdict(wrong=[why[:500]]))


def described(case: Callable[..., Row | None]) -> str:
    return (case.__doc__ or "").splitlines()[0].rstrip(".")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def keep_logs(name: str, folder: Path) -> None:
    """Copy what tells why out of a folder that is about to go."""
    kept = Path(tempfile.mkdtemp(prefix=f"tidemill-{name}-failed-"))
    for path in [*folder.glob("*.log"), *folder.glob("*.plan"), *folder.glob("*.fired"), *folder.glob("ledger.log")]:
        shutil.copy(path, kept)
    say(f"{name}: logs are in {kept}")


def repeat(times: int, seed: int) -> bool:
    """Run the short form again and again, each time with the next seed."""
    began = time.monotonic()
    rows = [run(["short"], seed + n)[0] for n in range(times)]
    report.RESULTS.mkdir(parents=True, exist_ok=True)
    (report.RESULTS / "repeated.json").write_text(
        json.dumps(
            {
                "runs": times,
                "green": sum(row.met for row in rows),
                "events": sum(row.verdict.counts["events"] for row in rows),
                "faults": sum(row.fired for row in rows),
                "stall": max(row.stall for row in rows),
                "seconds": time.monotonic() - began,
                "day": time.strftime("%Y-%m-%d"),
            }
        )
    )
    return all(row.met for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(case.__name__ for case in cases.CASES), "short"]
    parser.add_argument("--only", action="append", default=[], choices=names, help="a case; may be given often")
    parser.add_argument("--seed", type=int, action="append", help="may be given often: all is done with each")
    parser.add_argument("--sizes", action="append", default=[], metavar="NAME=VALUE", help="of the cases chosen")
    parser.add_argument("--repeat", type=int, metavar="N", help="the short form so many times")
    parser.add_argument("--report", action="store_true", help="only write the report, from what earlier runs have left")
    chosen = parser.parse_args()
    sizes = {name: float(value) if "." in value else int(value) for name, value in (s.split("=") for s in chosen.sizes)}
    seeds = chosen.seed or [random.randrange(10_000)]
    if chosen.repeat:
        sys.exit(0 if repeat(chosen.repeat, seeds[0]) else 1)
    if not chosen.report:
        if not chosen.only:
            report.forget()
        good = all(row.met for row in [row for seed in seeds for row in run(chosen.only, seed, sizes)])
        if chosen.only:
            sys.exit(0 if good else 1)
        good = report.run_small() and good
        report.run_mutants()
    else:
        good = True
    sys.exit(0 if report.write([case.__name__ for case in cases.CASES]) and good else 1)


if __name__ == "__main__":
    main()
