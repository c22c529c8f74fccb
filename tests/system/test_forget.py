"""Twenty planes are forgotten while others fly: a search of the brokers' own files finds no trace, and versions are folds."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import redis
from click.testing import CliRunner
from ledger import registry_of
from real_kafka import RealKafka
from running import Running, until
from test_audit import forge

from tidemill.cli.main import cli
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.replay import Message, Replay
from tidemill.models.fold import Fold
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import vector_to_x

TOKEN = "a-token-for-these-tests-0123456789"
PLANES = 20
CHANGES = 'forgetting=__import__("tidemill").Forgetting(within="7d", every="1s", shadow={})'
#: The rest of a day has few departures.
SHADOW = {1: 8, 31: 100}
#: So many flights may wait for their prediction: of a month that is replayed at once labels would wait too long for it.
MAX_BEHIND = 300
#: Messages a second while they are forgotten.
RATE = {1: 20.0, 31: 200.0}
#: A broker whose cleaner and retention look often: by default they do every 15 s and 5 min.
OFTEN = ("log.cleaner.backoff.ms=500", "log.retention.check.interval.ms=1000", "log.initial.task.delay.ms=1000")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKafka]:
    server = RealKafka(tmp_path_factory.mktemp("kafka"), *OFTEN)
    yield server
    server.stop()


def environment(run: Running) -> dict[str, str]:
    url = f"http://127.0.0.1:{run.stack.ports['status']}"
    return {**os.environ, **run.stack.operator_env, "TIDEMILL_STATUS_URL": url}


def command(run: Running, *arguments: str, fails: bool = False) -> str:
    done = CliRunner().invoke(cli, arguments, env=environment(run))
    if fails:
        assert done.exception is not None
        return str(done.exception)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def planes_of(messages: list[Message], run: Running, until_index: int) -> tuple[list[str], dict[str, list[str]]]:
    """Planes of which everything lies before an index, with the ids of their flights."""
    flights: dict[str, list[str]] = {}
    plane_of: dict[str, str] = {}
    last: Counter[str] = Counter()
    for message in messages:
        if message.is_event:
            event = run.records.sent_event.decode(message.value)
            if event["tailnum"]:
                flights.setdefault(event["tailnum"], []).append(event["flight_id"])
                plane_of[event["flight_id"]] = event["tailnum"]
    for index, message in enumerate(messages):
        id_ = (message.key or b"").decode()
        if plane := plane_of.get(id_):
            last[plane] = index
    early = [plane for plane in flights if last[plane] < until_index]
    early.sort(key=lambda plane: (-len(flights[plane]), plane))
    return early[:PLANES], flights


def records(run: Running, topic: Topic) -> list:
    return [record for batch in run.broker.read(full_range(run.broker, run.name(topic))) for record in batch]


def predicted(run: Running) -> list[str]:
    codec = run.records.prediction_log
    return [codec.decode(record.value())["features"]["event_id"] for record in records(run, topics.PREDICTION_LOG)]


def lives(run: Running, model: str) -> list[tuple[bool, set[int]]]:
    """Of each prediction of a partition, in order: whether the champion is of a life before, and which answered."""
    codec, found = run.records.prediction_log, []
    for record in records(run, topics.PREDICTION_LOG):
        log = codec.decode(record.value())
        epochs = {one["epoch"] for one in (log["champion"], *log["challengers"]) if one["model"] == model}
        found.append((log["champion"]["epoch"] == 0, epochs))
    return found


def vectors_of(run: Running, is_meant: Callable[[str], bool]) -> set[bytes]:
    """The vectors of events in the prediction log, as they are written."""
    logs = [
        run.records.prediction_log.decode(record.value())["features"] for record in records(run, topics.PREDICTION_LOG)
    ]
    return {run.records.vector.body(one["vector"]) for one in logs if is_meant(one["event_id"])}


def traces(folder: Path, texts: Iterable[bytes]) -> list[str]:
    """Files that hold one of the texts; all but those with the end of a line are grep's to find, at once."""
    lines = [text for text in texts if b"\n" not in text]
    others = [text for text in texts if b"\n" in text]
    patterns = folder.parent / "patterns"
    patterns.write_bytes(b"\n".join(lines) + b"\n")
    command = ["grep", "--recursive", "--files-with-matches", "--text", "--fixed-strings", "--file", str(patterns)]
    # A file that the broker has just deleted is an error of grep's, which says nothing.
    grep = subprocess.run([*command, str(folder)], env={"LC_ALL": "C"}, capture_output=True, text=True)
    hits = set(map(Path, grep.stdout.splitlines()))
    for path in folder.rglob("*") if others else ():
        if path.is_file():
            try:
                content = path.read_bytes().rstrip(b"\0")  # indexes are 10 MB of nothing
            except OSError:
                continue  # the broker has just deleted it
            hits |= {path for text in others if text in content}
    return sorted(str(path.relative_to(folder)) for path in hits if ".deleted" not in path.name)


def archived(folder: Path) -> set[str]:
    """The ids of the events whose rows the archive's files have: a search of compressed bytes would not see them."""
    tables = [pq.read_table(path, columns=["event_id"]) for path in folder.rglob("*.parquet")]
    return {id_ for table in tables for id_ in table.column("event_id").to_pylist()}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("days", [1, 31])
def test_twenty_planes_are_forgotten_under_load(broker: RealKafka, redis_url: str, tmp_path: Path, days: int) -> None:
    changes = CHANGES.format(SHADOW[days])
    run = Running(
        broker.servers, redis_url, tmp_path, "flights", 2, changes=changes, snapshot_seconds=1.0, snapshot_examples=200,
        max_delay_ms=50, status_token=TOKEN, archive_seconds=2,
    )  # fmt: skip
    try:
        forget_twenty(broker, redis_url, tmp_path, run, days)
    finally:
        run.stack.stop()


def forget_twenty(broker: RealKafka, redis_url: str, tmp_path: Path, run: Running, days: int) -> None:
    messages = script(run.pipeline, data.flights((1,), days=days))
    part = len(messages) * 3 // 4
    planes, flights = planes_of(messages, run, part)
    assert len(planes) == PLANES
    forgotten = [flight for plane in planes for flight in flights[plane]]
    texts = [text.encode() for text in (*planes, *forgotten)]
    run.stack.start_all()
    for role in ("status", "archiver"):
        run.stack.start(role)
    run.stack.wait_ready(600)
    limit, loaded_from, reader, answered = [part], [math.inf], run.reader(topics.PREDICTION_LOG), [0]

    def has_room() -> bool:
        answered[0] += sum(record.value() is not None for record in reader.poll(1000, 0.0))
        room = limit[0] + RATE[days] * max(0.0, time.monotonic() - loaded_from[0])
        return replay.events + replay.labels < room and replay.events - answered[0] < MAX_BEHIND

    replay = Replay(run.broker.servers, messages, speed=1e12, has_room=has_room)
    replay.start()
    labelled = {(m.key or b"").decode() for m in messages[:part] if not m.is_event}

    def joined() -> set[str]:
        codec = run.records.example
        examples = (codec.of(record.value()) for record in records(run, topics.EXAMPLES))
        return {one["prediction"]["features"]["event_id"] for one in examples if one}

    def slowly(what: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: what() or time.sleep(days**0.5) is not None

    until(slowly(lambda: joined() >= labelled), "not everything is joined", 600, run.stack.check)
    until(
        slowly(lambda: any(registry_of(run).decode(r.value()).version > 300 for r in records(run, topics.MODELS))),
        "no versions", 300, run.stack.check,
    )  # fmt: skip
    time.sleep(3)  # the archiver
    assert traces(broker.folder / "log", texts), "else nothing would be seen below"
    assert days > 1 or traces(tmp_path / "archive", texts[:PLANES]), "of larger files the columns are packed"
    assert archived(tmp_path / "archive") & set(forgotten)
    entities = [argument for plane in planes for argument in ("--entity", f"tailnum={plane}")]
    shown = command(run, "forget", run.reference, *entities, "--dry-run")
    assert f"{len(forgotten)} events" in shown
    assert "names an id" in command(
        run, "forget", run.reference, *entities, "--why", f"{planes[0]} asked", "--out", str(tmp_path / "c"), fails=True
    )
    before = len(records(run, topics.EXAMPLES))
    vectors = vectors_of(run, lambda event: event in forgotten)
    names = [topic.name(run.pipeline) for topic in topics.TOPICS]
    overrides = run.broker.topic_overrides(names)

    # Two requests wait, one of them by way of the status service. Others fly on, while they are carried out, killed at
    # each step that is told, and begun again.
    for half in (entities[:PLANES], [*entities[PLANES:], "--ask"]):
        assert "waits" in command(run, "forget", run.reference, *half, "--why", "asked by the owner")
    time.sleep(1)
    arguments = ["forget", run.reference, "--due", "--out", str(tmp_path / "c")]
    if days == 1:
        nothing_is_called_done_without(broker, run, arguments, tmp_path)
    killed, began = [], time.monotonic()
    for step in ("request", "erasing from", "deleting", "waiting", "folding", "comparing", "closing", "searching"):
        limit[0] = min(len(messages), limit[0] + 30)
        if killed[-1:] == ["comparing"]:
            loaded_from[0] = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "tidemill.cli", *arguments], env=environment(run), stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(step):
                time.sleep(0.5 * (len(killed) % 3))
                process.send_signal(signal.SIGKILL)
                killed.append(step)
                break
        process.wait()
        run.stack.check()
        if process.returncode == 0:
            break
    began_last = time.monotonic()
    printed = command(run, *arguments)
    assert "forgotten" in printed
    print("killed at", killed, f"done after {time.monotonic() - began:.0f} s,", end=" ")
    print(f"the last time {time.monotonic() - began_last:.0f} s of {len(forgotten)} flights", printed)
    until(lambda: bool(replay.ended_at) or replay.error is not None, "the replay stalls", 300)
    assert replay.error is None
    certificate = json.loads((tmp_path / "c" / "certificate.json").read_text())
    print(json.dumps(certificate["found"]), json.dumps(certificate["models"], indent=1))

    assert len(certificate["requests"]) == 2
    assert [one["request"] for one in certificate["waited"]] == certificate["requests"]
    assert {one["why"] for one in certificate["waited"]} == {"asked by the owner"}
    assert {one["model"] for one in certificate["models"]} == {*run.pipeline.model_names}
    for one in certificate["models"]:
        assert one["version_before"][0] < one["version_after"][0]
        assert one["largest_change"] is not None, (
            "it was killed meanwhile, and what it knew of those that are gone is kept"
        )
        assert f"{one['model']}: " in printed
        assert one["shadow"]["predictions"] >= SHADOW[days]
        assert one["examples"] == min(1000, one["examples"]) > 100
        assert one["metrics_before"].keys() == one["metrics_after"].keys() != set()
    assert certificate["searched"]["vectors"] == certificate["searched"]["vectors_of_request"] > 0
    assert certificate["searched"]["vectors_too_plain_to_search"] < certificate["searched"]["vectors"] / 10
    assert set(certificate["files"]) == {run.name(one) for one in (topics.EVENTS, topics.LABELS, topics.PREDICTIONS)}
    others = {(m.key or b"").decode() for m in messages if m.is_event} - set(forgotten)
    until(slowly(lambda: set(predicted(run)) >= others), "others are not predicted", 300, run.stack.check)
    assert Counter(predicted(run)) == Counter(others), "none of the others is lost or doubled"
    shown = lives(run, run.pipeline.champion)
    assert sum(was and epochs == {0, 1} for was, epochs in shown) >= SHADOW[days], "beside the one that serves"
    assert any(not was and epochs == {1} for was, epochs in shown), "then it serves alone"
    deadline = time.monotonic() + 60
    vectors -= vectors_of(run, lambda _: True)  # of those that others had as well
    assert vectors
    while left := traces(broker.folder / "log", [*texts, *vectors]):
        assert time.monotonic() < deadline, left
        time.sleep(1)
    for topic in topics.TOPICS:
        folder = tmp_path / "read" / topic.suffix
        folder.mkdir(parents=True)
        kept = [(r.key() or b"") + b" " + (r.value() or b"") for r in records(run, topic)]
        (folder / "all").write_bytes(b" ".join(kept))
        assert traces(folder, [*texts, *vectors]) == [], topic.suffix
    for folder in ("archive", "artifacts"):
        assert traces(tmp_path / folder, [*texts, *vectors]) == []
    assert archived(tmp_path / "archive").isdisjoint(forgotten)
    client = redis.Redis.from_url(redis_url)
    assert [key for key in client.scan_iter(f"{run.pipeline.name}:*") if any(plane in key for plane in texts)] == []
    assert before - len([f for f in forgotten if f in labelled]) <= len(records(run, topics.EXAMPLES))

    registry = registry_of(run)
    manifests = [registry.decode(record.value()) for record in records(run, topics.MODELS)]
    for name in run.pipeline.model_names:
        newest = max((m for m in manifests if m.model == name), key=lambda m: m.newness)
        assert newest.golden
        assert newest.epoch == 1
        fold = Fold(run.pipeline, name)
        xs = []
        for record in records(run, topics.EXAMPLES):
            if record.offset() < newest.version:
                example = run.records.example.decode(record.value())
                assert example["prediction"]["features"]["event_id"] not in forgotten
                fold.learn(example, record.offset())
                xs.append(vector_to_x(example["prediction"]["features"]["vector"]))
        opened = registry.open(newest).model
        ask = run.pipeline.kind.predict
        assert [ask(opened, x) for x in xs[-200:]] == [ask(fold.running, x) for x in xs[-200:]]
        assert newest.examples == fold.examples
    assert run.broker.topic_overrides(names) == overrides
    assert "no request is due" in command(run, *arguments)
    listed = command(run, "forget", run.reference)
    assert listed.count("; done ") == 3, "two that waited, and the one that carried them out"
    again = command(
        run,
        "forget",
        run.reference,
        *entities,
        "--now",
        "--why",
        "asked by the owner",
        "--out",
        str(tmp_path / "again"),
    )
    assert "forgotten before" in again
    verified = command(run, "forget", run.reference, *entities, "--verify", str(tmp_path / "c"))
    assert "no byte of them was found" in verified
    named = command(run, "replay", run.reference, forgotten[0], fails=True)
    assert "was forgotten on" in named
    assert certificate["request"] in named
    sampled = ["replay", run.reference, "--sample", str(1000 if days == 1 else 5000), "--json"]
    report = json.loads(CliRunner().invoke(cli, sampled, env=environment(run)).stdout)
    summary, unequal = report["summary"], [score for one in report["predictions"] for score in one["scores"]]
    served = summary["predictions"] - sum(one["role"] == "champion" and one["state"] != "equal" for one in unequal)
    print("predictions whose served score is equal:", served, Counter(one["why"] for one in unequal))
    assert served > (1000 if days > 1 else 100)
    assert all("was forgotten on" in one["why"] for one in unequal if one["state"] == "gone"), "they say why"
    print(summary)
    if days == 1:
        audited(run, tmp_path / "audit", certificate, texts)
    # Those of versions that went with their test vectors, or could hold examples, say so.
    assert summary["different"] == 0
    assert summary["equal"] > (summary["gone"] if days == 1 else 1000)


def audited(run: Running, folder: Path, certificate: dict[str, Any], texts: list[bytes]) -> None:
    """After a promotion, a rollback and a forgery: the audit shows them beside what was forgotten, and no id."""
    for kind, target in (("promote", ["slow"]), ("rollback", [])):
        command(run, "models", kind, run.reference, *target, "--why", "to see")
    forge(run)
    began = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(time.time() - 3600))
    arguments = ["audit", run.reference, "--from", began, "--out", str(folder), "--sample", "200", "--seed", "3"]
    done = CliRunner().invoke(cli, arguments, env=environment(run))
    assert done.exit_code == 1, f"the forgery is not in order: {done.output} {done.exception!r}"
    content = json.loads((folder / "audit.json").read_bytes())
    assert [one["outcome"] for one in content["commands"]][-2:] == ["promoted", "rolled_back"]
    assert [(one["reason"], one["topic"]) for one in content["refused"]] == [("forged", run.name(topics.PROMOTIONS))]
    *waited, forgotten = content["forgotten"]
    assert [(one["request"], one["with"]) for one in waited] == [
        (one, certificate["request"]) for one in certificate["requests"]
    ]
    assert forgotten["request"] == certificate["request"]
    assert forgotten["certificate"]["models"] == certificate["models"]
    wrong = [one for one in content["findings"] if one["level"] == "wrong"]
    assert len(wrong) == 1, f"nothing that was forgotten is a gap: {wrong}"
    assert traces(folder, texts) == []
    assert "it is as it was written" in command(run, "audit", "--verify", str(folder))
    for name in ("audit.json", "audit.html"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before.replace(b"mallory", b"mallorx", 1))
        assert CliRunner().invoke(cli, ["audit", "--verify", str(folder)], env=environment(run)).exit_code == 1
        (folder / name).write_bytes(before)


def nothing_is_called_done_without(broker: RealKafka, run: Running, arguments: list[str], folder: Path) -> None:
    """The artifact store is away, then the broker while records are erased: the requests stay open."""
    store, elsewhere = folder / "artifacts", folder / "elsewhere"
    store.rename(elsewhere)
    command(run, *arguments, fails=True)
    shutil.rmtree(store, ignore_errors=True)
    elsewhere.rename(store)
    process = subprocess.Popen(
        [sys.executable, "-m", "tidemill.cli", *arguments, "--patience", "20"],
        env=environment(run), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    next(line for line in process.stderr if line.startswith("erasing from"))
    broker.kill()
    said = process.stderr.read()
    assert process.wait(300) != 0, said
    broker.start()

    def are_ready() -> bool:
        """A service whose client hangs ends, so that whoever watches it starts another."""
        for role, one in [*run.stack.processes.items()]:
            if one.poll() is not None:
                run.stack.start(role)
        return (
            all(run.stack.fetch(role, "/readyz")[0] == 200 for role in run.stack.processes) or time.sleep(1) is not None
        )

    until(are_ready, "not ready after the broker was away", 120)
    assert not (folder / "c").exists()
    assert "; done " not in command(run, "forget", run.reference)
