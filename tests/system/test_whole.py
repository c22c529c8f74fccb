"""Four partitions at full speed: every record is in exactly one place, also when processes are killed on the way."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from ledger import Ledger, judge, registry_of
from running import Running, until

from tidemill.cli.main import cli
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.replay import Replay
from tidemill.registry.decisions import all_decisions, decisions
from tidemill.wire import topics

IN_FLIGHT = 400
TRICKLE = 5
"""Events in flight while learners or the scorer are behind."""
VERSIONS_AWAITED = 6
"""So many versions are served before the rest comes as it will."""
EVENTS_BEFORE_VERSIONS = 1500
"""Most events before each model has a version: else nearly all have passed on a machine whose learners are slow."""
EXAMPLES_PER_VERSION = 500
"""Most examples for which a version of each model is waited for: however fast the machine is, several are served."""


KILLED = ("featurizer", "scorer", "gate", "materializer", "learner:logreg")
CHANGES = (("promote", "slow"), ("pin", "logreg@{version}"), ("unpin",), ("rollback",), ("promote", "logreg"))
"""What people ask for, after each kill; `version` is the newest there is."""
TOKEN = "a-token-for-these-tests-0123456789"


def replayed(run: Running, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Do predictions again as somebody would who has the settings of the services."""
    command = ["replay", run.reference, *arguments, "--json"]
    done = CliRunner().invoke(cli, command, env=run.stack.env, catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout)


def asked(run: Running, kind: str, *target: str) -> str:
    """Ask the gate as somebody would who has the token; returns what was decided."""
    env = {**run.stack.env, "TIDEMILL_STATUS_URL": f"http://127.0.0.1:{run.stack.ports['status']}"}
    done = CliRunner().invoke(
        cli, ["models", kind, run.reference, *target, "--why", "to see"], env=env, catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.stdout


def serves_newest_decision(run: Running) -> bool:
    """Whether the scorer has opened what the gate decided last: by its own log."""
    registry = registry_of(run)
    newest = all_decisions(run.pipeline, run.broker, decisions(run.pipeline, registry.keys))[-1]
    return newest.id in run.stack.log("scorer").read_text()


def models(run: Running, command: str, *arguments: str) -> list[dict[str, Any]]:
    """Ask for versions as somebody would who has the settings of the services."""
    done = CliRunner().invoke(
        cli,
        ["models", command, run.reference, *arguments, "--json"],
        env=run.stack.operator_env,
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.stdout
    return json.loads(done.stdout)["versions"] if command == "rebuild" else [
        json.loads(line) for line in done.stdout.splitlines()
    ]  # fmt: skip


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param((), id="undisturbed", marks=pytest.mark.long),
        pytest.param(KILLED, id="killed", marks=pytest.mark.long),
    ],
)
def test_every_record_ends_in_exactly_one_place(running, redis_server, killed: tuple[str, ...]) -> None:
    run = running("flights", partitions=4, snapshot_seconds=0.3, status_token=TOKEN)
    # Three days are through, on a fast machine, before the scorer has opened four versions.
    found = data.flights((1,), days=5)
    messages = script(run.pipeline, found, corrupt_every=100)
    run.stack.start_all()
    if killed:
        run.stack.start("status")
    run.stack.wait_ready()
    ledger = Ledger(run)
    ledger.start()

    held_back: list[str] = []
    served: list[int] = []

    def versions_served() -> int:
        new = ledger.of(topics.PREDICTIONS)[len(served) :]
        served.extend(run.records.prediction.decode(record.value())["champion"]["version"] for record in new)
        return len(set(served) - {0})

    def have_versions() -> bool:
        return {record.key() for record in ledger.of(topics.MODELS)} >= {b"logreg", b"slow"}

    def has_room() -> bool:
        if replay.events >= EVENTS_BEFORE_VERSIONS and not have_versions():
            return False
        published = ledger.count(topics.EXAMPLES) // EXAMPLES_PER_VERSION
        in_flight = replay.events - ledger.count(topics.PREDICTIONS, topics.DLQ)
        # Learners publish, and the scorer takes over, while records come: where they are behind, a few do.
        is_followed = ledger.count(topics.MODELS) >= len(
            run.pipeline.model_names
        ) * published and versions_served() >= min(published, VERSIONS_AWAITED)
        return not held_back and in_flight < (IN_FLIGHT if is_followed else TRICKLE)

    replay = Replay(run.broker.servers, messages, speed=1e12, has_room=has_room)
    replay.start()
    kills, changes, pinned = [], [], 0
    if killed:
        until(have_versions, "there are no versions", 120)
    begun = replay.events + replay.labels
    for number, role in enumerate(killed, 1):
        edge = begun + number * (len(messages) - begun) // (len(killed) + 2)
        until(lambda edge=edge: replay.events + replay.labels >= edge, "the replay stalls", 120)
        run.stack.kill(role)
        kills.append(role)
        if role == "materializer":
            redis.Redis.from_url(redis_server.url).flushall()
            before = ledger.count(topics.PREDICTIONS)
            until(lambda before=before: ledger.count(topics.PREDICTIONS) > before + 100, "nothing passes", 120)
        # Else all the rest has passed before the gate has answered, or before the scorer follows.
        held_back.append(role)
        run.stack.start(role)
        kind, *target = CHANGES[number - 1]
        newest = [record for record in ledger.of(topics.MODELS) if record.key() == b"logreg"][-1]
        version = run.records.manifest.decode(newest.value())["version"]
        pinned = version if kind == "pin" else pinned
        changes.append(asked(run, kind, *[part.format(version=version) for part in target]))
        until(lambda role=role: run.stack.fetch(role, "/readyz")[0] == 200, f"the {role} is not ready", 60)
        until(lambda: serves_newest_decision(run), "the scorer does not follow the decision", 60)
        passed = ledger.count(topics.PREDICTIONS)
        held_back.clear()
        if number <= 2:  # what is asserted of who served needs some; later there may be labels alone
            until(lambda passed=passed: ledger.count(topics.PREDICTIONS) > passed + 150, "nothing passes", 120)
    assert kills == list(killed), "every planned kill was done"
    until(lambda: bool(replay.ended_at) or replay.error is not None, "the replay stalls", 120)
    assert replay.error is None
    ledger.arrive(len(messages))
    ledger.end()

    verdict = judge(run, ledger, messages, redis_url=redis_server.url)
    assert not str(verdict)
    if killed:
        log = [
            run.records.prediction_log.decode(record.value())["champion"] for record in ledger.of(topics.PREDICTION_LOG)
        ]
        by = Counter(score["model"] for score in log)
        assert [change.split(":")[0] for change in changes] == [
            "promoted",
            "pinned",
            "unpinned",
            "rolled back",
            "promoted",
        ]
        assert min(by["logreg"], by["slow"], sum(score["version"] == pinned for score in log)) > 100
    for arguments in (
        ["--sample", "1000" if killed else "200"],
        ["--rebuild", "--sample", "50"],
        [ledger.ids(topics.PREDICTION_LOG)[-1]],
    ):
        code, said = replayed(run, *arguments)
        assert (code, said["equal"]) == (0, True), said
        assert said["summary"]["predictions"] == (int(arguments[-1]) if "--sample" in arguments else 1)
        scores = said["summary"]["predictions"] * len(run.pipeline.model_names)
        assert said["summary"]["scores"] >= scores if killed else said["summary"]["scores"] == scores, (
            "more where one is pinned"
        )
    assert said["predictions"][0]["event"]["record"], "the event is where the vector says"
    listed = models(run, "list", "--limit", "100000")
    rebuilt = models(run, "rebuild", "--all")
    assert {(one["model"], one["version"]) for one in rebuilt} == {(one["model"], one["version"]) for one in listed}
    assert {(one["state"], one["artifact"]) for one in rebuilt} == {("equal", "intact")}
    store = registry_of(run).store
    lost = {one["model"]: one for one in listed}
    for one in lost.values():
        store.delete(one["sha256"])
    back = models(run, "rebuild", "--all", "--missing")
    assert {(one["model"], one["version"]) for one in back} == {(name, one["version"]) for name, one in lost.items()}
    assert {one["artifact"] for one in back} <= {"restored", "replaced"}
    assert models(run, "rebuild", "--all", "--missing") == []
    served = [run.records.features.decode(r.value()) for r in ledger.of(topics.FEATURES)]
    others = {view.label: view for view in run.pipeline.remote_views}
    for features in served:
        for name in features["stale"]:
            assert all(features["vector"][feature] is None for feature in others[name].features), (
                "stale, and still said"
            )
    stale = [bool(features["stale"]) for features in served]
    if killed:
        assert sum(stale) > 50, "while there were no views, vectors said so"
    assert not any(stale[-100:]), "in the end they are all there again"
    reasons = Counter(
        headers["tidemill.reason"].decode()
        for headers in (dict(r.headers()) for r in ledger.of(topics.DLQ))
        if headers["__connect.errors.stage"] == b"validator"
    )
    assert set(reasons) == {"out_of_range", "wrong_type", "missing_field", "truncated"}
    assert verdict.counts["joined"] > 0.9 * verdict.counts["labels"]
