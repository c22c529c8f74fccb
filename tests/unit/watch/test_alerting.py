"""What `alerting.py` says of random series is what Prometheus' own `promtool` says; it runs where that is on the PATH."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from alerting import RULES, Alerting, Labels

PROMTOOL = shutil.which("promtool")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROMTOOL is None, reason="no promtool on the PATH")]
TARGETS = [{"job": "tidemill", "instance": name, "namespace": name} for name in ("a", "b")]
LABELS: dict[str, list[dict[str, str]]] = {
    "tidemill_records_total": [{"service": name} for name in ("validator", "learner-x", "scorer", "monitor")],
    "tidemill_dead_letters_total": [{"service": "validator", "reason": name} for name in ("x", "y")],
    "tidemill_skipped_total": [{"service": "learner-x", "reason": name} for name in ("over_share", "empty")],
    "tidemill_lag_records": [{"service": "scorer", "topic": "t", "partition": name} for name in "01"],
    "tidemill_model_loads_total": [{"service": "scorer", "outcome": name} for name in ("loaded", "refused")],
    "tidemill_alerts_open": [{"kind": name, "model": "m"} for name in ("drift", "forgetting_late")],
}


def numbers(name: str, rng: random.Random, count: int, interval: int) -> list[float | None]:
    """Return what a series of this name may be; None: it is gone."""
    made: list[float | None] = []
    value, pace = 0.0, rng.choice([0, 0, 1, 5, 400])
    for index in range(count):
        if rng.random() < 0.02:
            pace = rng.choice([0, 0, 1, 5, 400])
        if rng.random() < 0.01:
            value = 0.0  # it began again
        if name.endswith("_total"):
            value += rng.randint(0, pace)
        elif "heartbeat" in name:
            value = index * interval if pace else value
        elif "lag" in name or "window_end" in name:
            value = max(0.0, value + rng.randint(-pace, 2 * pace))
        elif rng.random() < 0.05:
            value = rng.choice([0.0, 1.0])
        made.append(None if rng.random() < 0.005 or (index < 20 and pace == 1) else value)
    return made


@pytest.mark.parametrize("seed", range(4))
def test_the_same_alerts_fire(tmp_path: Path, seed: int) -> None:
    rng, interval = random.Random(seed), 600 if seed == 3 else 30
    count = 450 if interval == 600 else 200
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for rule in (rule for group in groups["groups"] for rule in group["rules"]):
        del rule["annotations"], rule["labels"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(groups))
    names = sorted({*re.findall(r"\b(?:tidemill_\w+|up)\b", RULES.read_text(encoding="utf-8"))} - {"tidemill"})
    names = [name for name in names if re.search(rf"\b{name}\b", str(groups))]
    series = {
        (name, frozenset({**target, **more}.items())): numbers(name, rng, count, interval)
        for name in names for target in TARGETS for more in LABELS.get(name, [{}])
    }  # fmt: skip
    ours, fired = Alerting(), dict[int, dict[str, list[Labels]]]()
    for index in range(count):
        ours.now = index * interval
        ours.series.add(
            ours.now, {key: value for key, values in series.items() if (value := values[index]) is not None}
        )
        ours.judge()
        fired[index] = ours.firing
    assert len({name for firing in fired.values() for name in firing}) > 8
    chosen = rng.sample(range(count), 25)
    tests: list[dict[str, Any]] = [
        {
            "interval": f"{interval}s",
            "input_series": [
                {
                    "series": f"{name}{{" + ", ".join(f'{label}="{text}"' for label, text in sorted(labels)) + "}",
                    "values": " ".join("stale" if value is None else str(value) for value in values),
                }
                for (name, labels), values in series.items()
            ],
            "alert_rule_test": [
                {
                    "eval_time": f"{index * interval}s",
                    "alertname": name,
                    "exp_alerts": [{"exp_labels": dict(labels)} for labels in fired[index].get(name, [])],
                }
                for index in chosen
                for name in ours.rules
            ],
        }
    ]
    document = {"rule_files": ["rules.yml"], "evaluation_interval": f"{interval}s", "tests": tests}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(document))
    done = subprocess.run([str(PROMTOOL), "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
