"""The demo as a newcomer runs it: embedded broker, own Redis, all processes; its figures add up; it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

KEYS = {
    "events", "valid", "dead_letters", "predictions", "labels", "joined", "pending", "examples", "metrics",
    "events_per_second", "latency_ms",
}  # fmt: skip


def demo(*arguments: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tidemill.cli", "demo", "--headless", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean,
    )  # fmt: skip


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_for_children(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    while len(found := children(process)) < count:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    return found


def test_two_days_end_by_themselves_with_figures_that_add_up(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    process = demo("--days", "2", "--report", str(report))
    processes = wait_for_children(process, 8)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    found = json.loads(report.read_text())
    assert found.keys() >= KEYS
    assert found["events"] == found["valid"] + found["events_rejected"]
    assert found["dead_letters"].keys() == {"out_of_range", "wrong_type", "missing_field", "truncated"}
    assert sum(found["dead_letters"].values()) == found["events_rejected"] + found["labels_rejected"]
    assert found["predictions"] == found["valid"] == found["joined"] + found["expired"] + found["pending"]
    assert found["labels"] == found["joined"] + found["labels_rejected"] + found["waiting_labels"]
    assert found["joined"] == found["examples"] > 1500
    assert set(found["metrics"]) == {"scheduled", "departed", "baseline"}
    assert found["model_versions"].keys() == found["metrics"].keys()
    # The models learn before the end, and what they learn first serves soon.
    assert "the first learned version: " in out
    # The gate promotes the challenger on its evidence, and it ends better than doing nothing, in every metric.
    assert "departed serves instead of scheduled: departed is better than scheduled: Brier score lower by" in out
    champion, baseline = (found["metrics"][name] for name in ("departed", "baseline"))
    assert champion["Accuracy"] > baseline["Accuracy"]
    assert champion["ROCAUC"] > baseline["ROCAUC"] + 0.1
    assert champion["LogLoss"] < baseline["LogLoss"]
    assert " ".join(out.split()).count("equal ($ tidemill replay departures") == 1
    assert "a corrupted event" in out
    assert "try next" in out
    assert out.count("  tidemill ") == 5
    assert "Traceback" not in out
    assert not [p for p in processes if p.is_running()], "a process is left behind"


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL],
    ids=lambda n: n.name,
)
def test_it_leaves_no_process_behind_however_it_is_ended(number: signal.Signals) -> None:
    process = demo("--days", "31")
    processes = wait_for_children(process, 8)
    time.sleep(1)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number != signal.SIGKILL else -9)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
