"""Archiver, monitor and status beside a whole pipeline on a real Kafka and Redis, and killed on the way."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ledger import registry_of
from running import Running, until, worker
from site_by_hand import alert

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.encoding.codec import HEADER
from tidemill.local.replay import Replay
from tidemill.offline.dataset import Form, Span, served, span_of, written
from tidemill.offline.recompute import recompute
from tidemill.offline.source import ArchiveSource, KafkaSource
from tidemill.registry.alerts import MONITOR, alerts
from tidemill.registry.signing import Chains
from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka.producer import Sender
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.topics import WATCHING

CHANGES = 'monitor=replace(_base.monitor, window="6h", reference="1d", lateness="12h", least=20)'
TOKEN = "a-token-for-these-tests-0123456789"


def records(run: Running, topic: Topic) -> list[Any]:
    """Return all that a topic holds."""
    slots = [TopicPartition(run.name(topic), p) for p in range(run.broker.partitions(run.name(topic)))]
    ranges = {slot: run.broker.offset_range(slot) for slot in slots}
    return [record for batch in run.broker.read(ranges) for record in batch]


def windows(run: Running, source: str) -> list[dict[str, Any]]:
    decoded = [run.records.window.record(r.value(), HEADER) for r in records(run, topics.WINDOWS)]
    return [window for window in decoded if window["source"] == source]


def archive(run: Running, topic: Topic) -> pd.DataFrame:
    return pd.read_parquet(Path(run.stack.env["TIDEMILL_ARCHIVE_URL"]) / run.pipeline.name / topic.suffix)


def get(run: Running, path: str, **more: Any) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{run.stack.ports['status']}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **more), timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def run(module_running: Callable[..., Running]) -> Running:
    """Four days of flights; monitor and archiver are killed -9 in the middle, and start again."""
    run = module_running(
        "flights", 4, changes=CHANGES, snapshot_seconds=0.3, archive_seconds=1, status_token=TOKEN, max_delay_ms=50
    )
    run.stack.start_all(watched=True)
    run.stack.wait_ready(120)
    messages = script(run.pipeline, data.flights((1,), days=4), corrupt_every=100)
    replay = Replay(run.broker.servers, messages, 4 * 86_400 / 30)
    replay.start()
    until(lambda: replay.events > 1700, "the replay does not go on", 120)
    for role in ("monitor", "archiver"):
        os.kill(worker(run.stack.processes[role]), signal.SIGKILL)
    until(lambda: replay.ended_at > 0, "the replay does not end", 120)
    wanted = replay.labels
    until(lambda: handled(run, "joiner") >= replay.events * 0.98 + wanted, "the joiner is behind", 120)
    until(lambda: len(windows(run, "examples")) >= 12, "windows are not closed", 90)
    for topic in (topics.PREDICTION_LOG, topics.EXAMPLES):
        until(lambda of=topic: len(archive(run, of)) == len(records(run, of)), f"no archive of all {topic.suffix}", 60)
    return run


def handled(run: Running, role: str) -> float:
    lines = run.stack.fetch(role, "/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("tidemill_records_total"))


@pytest.mark.parametrize("topic", [topics.PREDICTION_LOG, topics.EXAMPLES], ids=lambda topic: topic.suffix)
def test_the_archive_holds_every_record_exactly_once(run: Running, topic: Topic) -> None:
    sent = sorted((r.partition(), r.offset()) for r in records(run, topic))
    rows = archive(run, topic)
    assert sorted(zip(rows["partition"], rows["offset"], strict=True)) == sent
    assert len(sent) > 3000


def test_windows_that_the_killed_monitor_did_not_see_whole_say_so_and_the_others_are_whole(run: Running) -> None:
    found = windows(run, "prediction-log")
    assert any(window["interrupted"] for window in found)
    rows = archive(run, topics.PREDICTION_LOG)
    whole = [window for window in found if not window["interrupted"] and not window["late"]]
    assert len(whole) >= 5
    for window in whole:
        there = rows[(as_ms(rows["event_time"]) >= window["start"]) & (as_ms(rows["event_time"]) < window["end"])]
        assert window["records"] == window["rows"] == len(there)


def as_ms(column: pd.Series) -> pd.Series:
    return column.astype("datetime64[ms, UTC]").astype("int64")


def figure(window: dict[str, Any], name: str, **of: Any) -> float | None:
    wanted = {"model": "", "version": -1, "segment": "", "feature": ""} | of
    found = [f["value"] for f in window["figures"] if f["name"] == name and all(f[k] == v for k, v in wanted.items())]
    assert len(found) <= 1
    return found[0] if found else None


def test_the_figures_of_predictions_are_those_that_pandas_finds_in_the_archive(run: Running) -> None:
    rows, compared = archive(run, topics.PREDICTION_LOG), 0
    for window in windows(run, "prediction-log"):
        if window["interrupted"] or window["late"]:
            continue
        there = rows[(as_ms(rows["event_time"]) >= window["start"]) & (as_ms(rows["event_time"]) < window["end"])]
        for name in ("distance", "temp", "origin_count_1h"):
            column = there[f"x_{name}"]
            assert figure(window, "missing", feature=name) == pytest.approx(column.isna().mean())
            assert figure(window, "mean", feature=name) == pytest.approx(column.mean())
            assert figure(window, "std", feature=name) == pytest.approx(column.std(ddof=0))
            assert figure(window, "p95", feature=name) == pytest.approx(column.quantile(0.95))
        assert figure(window, "distinct", feature="carrier") == there["x_carrier"].nunique()
        assert figure(window, "score_mean", model="logreg") == pytest.approx(there["score_logreg"].mean())
        for view in ("origin", "dest", "tailnum_outcome"):
            as_of, stale = there[f"as_of_{view}"], there["stale"].map(lambda names, view=view: view in names)
            ages = (as_ms(there["event_time"]) - as_ms(as_of.dropna()))[as_of.notna()].clip(lower=0) / 1000
            assert figure(window, "unknown", feature=view) == pytest.approx((as_of.isna() & ~stale).mean())
            assert figure(window, "stale", feature=view) == pytest.approx(stale.mean())
            for share, name in ((0.5, "freshness_p50"), (0.99, "freshness_p99")):
                assert figure(window, name, feature=view) == (
                    pytest.approx(ages.quantile(share)) if len(ages) else None
                )
        compared += 1
    assert compared >= 5


def test_the_figures_of_examples_are_those_that_pandas_finds_in_the_archive(run: Running) -> None:
    rows, compared = archive(run, topics.EXAMPLES), 0
    for window in windows(run, "examples"):
        if window["interrupted"] or window["late"]:
            continue
        there = rows[(as_ms(rows["label_time"]) >= window["start"]) & (as_ms(rows["label_time"]) < window["end"])]
        assert window["rows"] == len(there)
        truth, score = there["label"].astype(float), there["score_logreg"]
        assert figure(window, "label_mean") == pytest.approx(truth.mean())
        assert figure(window, "Accuracy", model="logreg") == pytest.approx(((score > 0.5) == (truth > 0)).mean())
        log_loss = -np.log(np.where(truth > 0, score, 1 - score)).mean()
        assert figure(window, "LogLoss", model="logreg") == pytest.approx(log_loss)
        united = there[there["x_carrier"] == "UA"]
        if len(united) >= 20:
            expected = ((united["score_slow"] > 0.5) == united["label"]).mean()
            assert figure(window, "Accuracy", model="slow", segment="carrier=UA") == pytest.approx(expected)
        compared += 1
    assert compared >= 5


def test_psi_is_that_of_the_first_day_of_labels(run: Running) -> None:
    rows, examples = archive(run, topics.PREDICTION_LOG), archive(run, topics.EXAMPLES)
    examples = examples.sort_values("offset")
    begin = as_ms(examples["label_time"]).iloc[0] // 21_600_000 * 21_600_000
    late = (as_ms(examples["label_time"]) >= begin + 86_400_000).to_numpy()
    reference = examples.iloc[: int(late.argmax())]["x_carrier"].value_counts(normalize=True)
    compared = 0
    for window in windows(run, "prediction-log"):
        found = figure(window, "psi", feature="carrier")
        if found is None or window["interrupted"] or window["late"]:
            continue
        there = rows[(as_ms(rows["event_time"]) >= window["start"]) & (as_ms(rows["event_time"]) < window["end"])]
        now = there["x_carrier"].value_counts(normalize=True)
        names = reference.index.union(now.index)
        p, q = (s.reindex(names).fillna(0.0).clip(lower=1e-4) for s in (now, reference))
        assert found == pytest.approx(float(((p - q) * np.log(p / q)).sum()), abs=1e-9)
        compared += 1
    assert compared >= 3


def test_a_training_set_from_kafka_is_the_one_from_the_archive(run: Running, tmp_path: Path) -> None:
    out = [tmp_path / "kafka.parquet", tmp_path / "archive.parquet"]
    command = [*run.stack.launcher, "dataset", run.reference, "--out", str(out[0]), "--from", "2013-01-02"]
    command += ["--brokers", run.broker.servers]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    with written(out[1], Form(run.pipeline), span_of("2013-01-02", None)) as writer:
        served(run.pipeline, ArchiveSource(run.stack.env["TIDEMILL_ARCHIVE_URL"]), writer)
    one, other = (pd.read_parquet(path).sort_values("event_id", ignore_index=True) for path in out)
    pd.testing.assert_frame_equal(one, other)
    rows = archive(run, topics.EXAMPLES)
    assert len(one) == (as_ms(rows["event_time"]) >= pd.Timestamp("2013-01-02").value // 10**6).sum() > 2000
    assert f"{len(one):,} rows" in done.stdout


def in_time(run: Running) -> set[str]:
    """Return the events that came after all earlier ones of their partition, and before all later ones."""
    found: set[str] = set()
    valid = [(r.partition(), run.records.event.decode(r.value())) for r in records(run, topics.EVENTS_VALID)]
    for partition in range(run.pipeline.partitions):
        events = [event for of, event in valid if of == partition]
        times = [event["asked_at"] for event in events]
        before = list(itertools.accumulate(times, max))
        after = list(itertools.accumulate(reversed(times), min))[::-1]
        found |= {e["flight_id"] for e, b, a in zip(events, before, after, strict=True) if b <= e["asked_at"] <= a}
    return found


def test_a_training_set_made_anew_has_the_features_that_were_served(run: Running, tmp_path: Path) -> None:
    """But for views of other entities, which were read a moment late, and for events that others had overtaken."""
    with written(tmp_path / "x.parquet", Form(run.pipeline, is_served=False), Span()) as writer:
        recompute(run.pipeline, KafkaSource(run.broker), writer)
    made = pd.read_parquet(tmp_path / "x.parquet").sort_values("event_id", ignore_index=True)
    rows = archive(run, topics.EXAMPLES).sort_values("event_id", ignore_index=True)
    same = ["event_id", "entity_id", "label", *(f"x_{name}" for name in run.pipeline.request_features)]
    pd.testing.assert_frame_equal(made[same], rows[same])
    own = [f"x_{name}" for view in run.pipeline.inline_views for name in view.features]
    came = made["event_id"].isin(in_time(run))
    assert came.sum() > 1000
    pd.testing.assert_frame_equal(made[came][own], rows[came][own])


def test_status_tells_of_every_service_and_all_are_well(run: Running) -> None:
    until(lambda: get(run, "/api/overview")[1]["models"][0]["version"], "status has read nothing", 30)
    _, told = get(run, "/api/overview")
    assert {service["name"] for service in told["services"]} == set(run.stack.addresses())
    assert {service["state"] for service in told["services"]} == {"ok"}
    assert [d["ok"] for d in told["dependencies"]] == [True, True]
    assert [model["champion"] for model in told["models"]] == [True, False, False]
    assert len(told["performance"]["windows"]) >= 10
    assert {row["segment"] for row in told["performance"]["segments"]} & {"carrier=UA", "origin=JFK"}
    assert told["dead_letters"]["total"] == len(records(run, topics.DLQ)) > 0
    assert {"validator", "archiver", "monitor"} <= {edge["to"] for edge in told["flow"]}


def test_one_prediction_with_all_that_made_it(run: Running) -> None:
    rows = archive(run, topics.EXAMPLES).sort_values("offset")
    wanted = rows.iloc[len(rows) // 2]
    code, found = get(run, f"/api/predictions/{wanted['event_id']}")
    assert code == 200
    assert found["event"]["record"]["flight_id"] == wanted["event_id"]
    assert found["vector"]["distance"] == wanted["x_distance"] == found["event"]["record"]["distance"]
    assert found["scores"][0]["score"] == wanted["score_logreg"]
    assert found["scores"][0]["version"] == wanted["version_logreg"]
    assert (found["outcome"]["state"], found["outcome"]["label"]) == ("joined", bool(wanted["label"]))
    assert found["outcome"]["offset"] == wanted["offset"]
    code, said = get(run, "/api/predictions/no-such-flight")
    assert code == 404
    assert "no-such-flight" in said["detail"]


def test_one_entitys_features(run: Running) -> None:
    code, found = get(run, "/api/entities/JFK")
    assert code == 200
    views = {view["view"]: view for view in found["views"]}
    assert views.keys() == {"origin", "origin_outcome"}
    assert views["origin"]["key"] == f"{run.pipeline.name}:origin:JFK"
    assert views["origin"]["features"]["origin_count_1h"] >= 0
    assert all(0 <= view["age"] < 12 * 3600 for view in views.values())
    assert get(run, "/api/entities/XYZ")[0] == 404


def command(run: Running, *arguments: str) -> str:
    """Return what `tidemill features ...` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tidemill.cli", "features", *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, **run.stack.env}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_says_what_views_know_as_stored_and_as_of_any_time(run: Running) -> None:
    updates = [run.records.update.decode(r.value()) for r in records(run, topics.UPDATES)]
    last = max(u["time"] for u in updates if (u["source"], u["entity"], u["entity_id"]) == ("events", "dest", "ATL"))
    reference = run.stack.reference
    count, outcome = json.loads(command(run, "get", reference, "dest", "ATL", "--json"))
    assert (count["view"], outcome["view"]) == ("dest", "dest_outcome")
    assert count["event_time"] == count["at"] == last
    assert count["whole"]
    assert outcome["whole"]
    assert count["features"]["dest_count_3h"] >= 1
    later = datetime.fromtimestamp(last / 1000, UTC) + timedelta(days=1)
    count, _ = json.loads(command(run, "get", reference, "dest", "ATL", "--json", "--at", later.isoformat()))
    assert count["features"] == {"dest_count_3h": 0.0}
    assert "dest_count_3h" in command(run, "get", reference, "dest", "ATL")


def test_a_backfill_of_what_was_told_already_tells_nothing(run: Running) -> None:
    before = len(records(run, topics.UPDATES))
    said = command(run, "backfill", run.stack.reference, "--view", "dest")
    assert re.fullmatch(r"dest from events: 0 updates written, [\d,]{5,} were there already\n", said)
    assert len(records(run, topics.UPDATES)) - before == 4, "that it is filled is said to each partition"


def test_an_acknowledgement_needs_the_token_and_an_alert(run: Running) -> None:
    body = json.dumps({"by": "anybody", "why": "looking at it"}).encode()
    plain = {"Content-Type": "application/json"}
    known = {**plain, "Authorization": f"Bearer {TOKEN}"}
    path = "/api/alerts/no:such/acknowledge"
    assert get(run, path, data=body, headers=plain, method="POST")[0] == 401
    assert get(run, path, data=body, headers=known, method="POST")[0] == 404
    sender, chains = Sender(run.broker.servers), Chains(alerts(run.pipeline, registry_of(run, "monitor").keys))
    chains.restore(records(run, topics.ALERTS))
    signed = chains.sign(chains.codec.parse(alert("drift:temp")), MONITOR, kind="alert")
    sender.send(run.name(topics.ALERTS), signed, b"drift:temp", partition=0)
    sender.flush()
    until(lambda: "drift:temp" in [a["id"] for a in get(run, "/api/alerts")[1]["alerts"]], "it is not shown", 20)
    path = "/api/alerts/drift:temp/acknowledge"
    assert get(run, path, data=body, headers=known, method="POST")[0] == 200
    until(lambda: any(a["by"] == "admin" for a in get(run, "/api/alerts")[1]["alerts"]), "it is not told", 20)


def test_those_who_look_on_end_when_they_are_asked_to(run: Running) -> None:
    for role in WATCHING:
        process = run.stack.processes[role]
        process.terminate()
        assert process.wait(20) == 0, run.stack.last_line(role)
