"""Labels are corrected on a real broker while joiner and learner are killed: each correction is written exactly once."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from ledger import Ledger, registry_of
from running import Running, until

from tidemill.cli.main import cli
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.replay import Message, Replay
from tidemill.models.corrections import Corrections, key_of
from tidemill.models.fold import Fold
from tidemill.wire import topics
from tidemill.wire.records import Example, vector_to_x

TOKEN = "a-token-for-these-tests-0123456789"
KILLED = ("joiner", "learner:logreg") * 3
MINUTE = 60_000


def with_corrections(run: Running, messages: list[Message]) -> list[Message]:
    """Labels that contradict the ones before them, once to three times; and some that repeat them."""
    more = []
    for number, label in enumerate(message for message in messages if not message.is_event):
        record = run.records.label.decode(label.value)
        value = record["arr_delay"]
        for after in range(1, number % 4 + 1):
            value = (0.0 if value > 15 else 60.0) if (number + after) % 5 else value
            at = label.at + after * (5 + number % 7) * MINUTE
            changed = {**record, "landed_at": at, "arr_delay": value}
            more.append(label._replace(at=at, value=run.records.label.encode(changed)))
    return sorted([*messages, *more], key=lambda message: (message.at, message.is_event))


def command(run: Running, *arguments: str) -> str:
    env = {**run.stack.operator_env, "TIDEMILL_STATUS_URL": f"http://127.0.0.1:{run.stack.ports['status']}"}
    done = CliRunner().invoke(cli, arguments, env=env, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_each_correction_is_written_once_and_learned_by_those_who_ask_for_it(
    running, tmp_path: Path, place: str
) -> None:
    changes = 'labels=_base.labels.with_fields(corrections="30d")'
    run = running("plain", partitions=2, changes=changes, snapshot_seconds=0.5, max_delay_ms=50, status_token=TOKEN)
    if place == "disk":
        run.stack.env["TIDEMILL_STATE_DIR"] = str(tmp_path / "state")
    messages = with_corrections(run, script(run.pipeline, data.flights((1,), days=2)[::2]))
    run.stack.start_all()
    for role in ("gate", "status"):
        run.stack.start(role)
    run.stack.wait_ready(300)
    ledger = Ledger(run)
    ledger.start()
    limit = [0]
    replay = Replay(run.broker.servers, messages, speed=1e12, has_room=lambda: replay.events + replay.labels < limit[0])
    replay.start()

    def baseline_answers() -> bool:
        """One more message at each look: the scorer answers with a version once it has opened it."""
        limit[0] = min(limit[0] + 1, len(messages) // 4)
        time.sleep(0.05)
        newest = [run.records.prediction_log.decode(r.value()) for r in ledger.of(topics.PREDICTION_LOG)[-1:]]
        return any(score["answered"] for log in newest for score in log["challengers"])

    until(baseline_answers, "the baseline has no version", 120, run.stack.check)
    for number, role in enumerate(KILLED, 1):
        limit[0] = max(limit[0], len(messages) * number // (len(KILLED) + 1))
        # Killed at work: labels are on their way.
        until(lambda: replay.events + replay.labels >= limit[0], "the replay stalls", 120, run.stack.check)
        run.stack.kill(role)
        limit[0] += len(messages) // (2 * len(KILLED) + 2)
        run.stack.start(role)
    limit[0] = len(messages) + 1
    until(lambda: bool(replay.ended_at) or replay.error is not None, "the replay stalls", 120)
    assert replay.error is None
    for role in dict.fromkeys(KILLED):
        until(lambda role=role: run.stack.fetch(role, "/readyz")[0] == 200, f"{role} is not ready", 90, run.stack.check)

    def decided() -> int:
        return ledger.count(topics.EXAMPLES) + sum(
            dict(record.headers())["__connect.errors.stage"] == b"joiner" for record in ledger.of(topics.DLQ)
        )

    labels = sum(not message.is_event for message in messages)
    until(lambda: decided() >= labels or ledger.quiet(30), "the joiner is behind", 180, run.stack.check)
    asked = command(run, "models", "train", run.reference, "logreg", "--corrected", "--why", "labels were wrong")
    assert "it shadows once it has caught up" in asked

    def versions() -> list[dict]:
        lines = command(run, "models", "list", run.reference, "--limit", "1000", "--superseded", "--json")
        return [json.loads(line) for line in lines.splitlines()]

    def candidate_has_learned_all() -> bool:
        corrected = [one for one in versions() if one["model"].startswith("logreg~")]
        return bool(corrected) and max(one["examples"] for one in corrected) == joined

    examples = [run.records.example.of(record.value()) for record in ledger.of(topics.EXAMPLES)]
    joined = sum(example is not None for example in examples)
    until(candidate_has_learned_all, "the candidate does not catch up", 120, run.stack.check)
    listed = versions()
    out = tmp_path / "set.parquet"
    command(run, "dataset", run.reference, "--out", str(out))
    compared = json.loads(command(run, "models", "compare", run.reference, "logreg", "baseline", "--json"))
    ledger.end()
    assert_exactly_once(run, ledger, messages)

    last = Corrections(run.records)
    for record in ledger.of(topics.EXAMPLES):
        last.take(record)
    known = {key_of(e["prediction"]["features"]): e for e in examples if e}
    wrong = sum(last.label(key, e["label"]) != e["label"] for key, e in known.items())
    assert wrong > 100
    table = pq.read_table(out)
    labels_of = dict(zip(table["event_id"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert labels_of == {key[0]: last.label(key, e["label"]) for key, e in known.items()}
    both = [key for key, e in known.items() if answered_by(e) >= {"logreg", "baseline"}]
    assert (compared["questions"], compared["corrected"]) == (
        len(both),
        sum(last.label(key, known[key]["label"]) != known[key]["label"] for key in both),
    )
    assert compared["corrected"] > 50

    newest = {one["model"]: one for one in reversed(listed)}
    (candidate,) = (name for name in newest if name.startswith("logreg~"))
    assert newest["logreg"]["examples"] == newest[candidate]["examples"] == len(known), "no event is learned twice"
    assert (newest["logreg"]["superseded"], newest[candidate]["superseded"]) == (wrong, 0)
    folds = {}
    for name in ("logreg", candidate):
        fold, corrections = Fold(run.pipeline, name), last if name == candidate else Corrections(run.records, 0)
        for record in ledger.of(topics.EXAMPLES):
            if (example := run.records.example.of(record.value())) is not None:
                fold.learn(corrections.apply(example), record.offset())
        folds[name] = fold
    rebuilt = json.loads(command(run, "models", "rebuild", run.reference, "--all", "--json"))
    assert rebuilt["equal"] is True
    again = json.loads(command(run, "replay", run.reference, "--rebuild", "--sample", "50", "--json"))
    assert again["equal"] is True
    values = folds["logreg"].scorecard.values()
    assert newest["logreg"]["metrics"] == {name: value for name, value in values.items() if math.isfinite(value)}
    registry = registry_of(run)
    last_manifests = {m.model: m for m in (registry.decode(r.value()) for r in ledger.of(topics.MODELS))}
    xs = [vector_to_x(example["prediction"]["features"]["vector"]) for example in list(known.values())[::40]]
    scores = {}
    for name, fold in folds.items():
        opened = registry.open(last_manifests[name]).model
        scores[name] = [opened.predict_proba_one(x)[True] for x in xs]
        assert scores[name] == [fold.model.predict_proba_one(x)[True] for x in xs]
    assert scores["logreg"] != scores[candidate], "else nothing would be seen here"


def answered_by(example: Example) -> set[str]:
    log = example["prediction"]
    return {score["model"] for score in (log["champion"], *log["challengers"]) if score["answered"]}


def assert_exactly_once(run: Running, ledger: Ledger, messages: list[Message]) -> None:
    """By brute force: of each event the labels in the order in which they were sent."""
    expected: Counter[tuple] = Counter()
    repeated = 0
    first: dict[str, bool] = {}
    current: dict[str, bool] = {}
    for message in messages:
        if message.is_event:
            continue
        label = run.records.label.decode(message.value)
        id_, value = label["flight_id"], label["arr_delay"] > 15
        if id_ not in first:
            first[id_] = current[id_] = value
        elif value == current[id_]:
            repeated += 1
        else:
            expected[id_, label["landed_at"], value, first[id_], current[id_]] += 1
            current[id_] = value
    records = [run.records.correction.of(record.value()) for record in ledger.of(topics.EXAMPLES)]
    names = ("event_id", "label_time", "label", "first_label", "replaced_label")
    written = Counter(tuple(one[name] for name in names) for one in records if one)
    assert written == expected, "none is lost, and none is there twice"
    assert sum(expected.values()) > 200
    ids = Counter(
        example["prediction"]["features"]["event_id"]
        for record in ledger.of(topics.EXAMPLES)
        if (example := run.records.example.of(record.value()))
    )
    assert set(ids.values()) == {1}
    assert set(ids) == set(first)
    reasons = Counter(
        dict(r.headers())["tidemill.reason"]
        for r in ledger.of(topics.DLQ)
        if dict(r.headers())["__connect.errors.stage"] == b"joiner"
    )
    assert reasons == {b"duplicate_label": repeated}
