"""The artifact store is emptied under a running pipeline: no version goes back, nothing is lost, and all is restored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from ledger import Ledger, judge
from running import until

from tidemill.cli.main import cli
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.replay import Replay
from tidemill.local.servers import Redis
from tidemill.wire import topics

RESTARTED = ("learner:logreg", "scorer")


@pytest.mark.long
def test_learner_and_scorer_that_start_with_an_empty_store_publish_and_serve_nothing_older(
    running, redis_server: Redis, tmp_path: Path
) -> None:
    store = tmp_path / "artifacts"
    run = running("flights", partitions=2, snapshot_seconds=0.3, max_delay_ms=50)
    run.stack.env["TIDEMILL_STORE_URL"] = str(store)
    run.stack.start_all()
    run.stack.wait_ready(120)
    ledger = Ledger(run)
    ledger.start()
    messages = script(run.pipeline, data.flights((1,), days=2)[::2])
    limit = [len(messages) // 4]
    replay = Replay(run.broker.servers, messages, speed=1e12, has_room=lambda: replay.events + replay.labels < limit[0])
    replay.start()
    until(lambda: {r.key() for r in ledger.of(topics.MODELS)} >= {b"logreg", b"slow"}, "no versions", 120)
    limit[0] = len(messages) // 2
    until(lambda: replay.events + replay.labels >= limit[0], "the replay stalls", 120, run.stack.check)
    until(lambda: any(score["version"] for score in served(run, ledger)), "no version serves", 60)

    for role in RESTARTED:
        run.stack.kill(role)
    # The other learner goes on writing: a folder that is emptied file by file would not be empty in the end.
    shutil.rmtree(store.rename(tmp_path / "gone"), ignore_errors=True)
    run.stack.start("scorer")

    def waits() -> bool:
        code, why = run.stack.fetch("scorer", "/readyz")
        return code == 503 and "'logreg' can't be opened" in why

    until(waits, "the scorer does not say that it has nothing to serve", 60)
    run.stack.start("learner:logreg")
    for role in RESTARTED:
        until(lambda role=role: run.stack.fetch(role, "/readyz")[0] == 200, f"{role} is not ready", 90, run.stack.check)
    limit[0] = len(messages) + 1
    until(lambda: bool(replay.ended_at) or replay.error is not None, "the replay stalls", 120)
    assert replay.error is None
    ledger.arrive(len(messages))
    ledger.end()

    for model in (b"logreg", b"slow"):
        versions = [
            run.records.manifest.decode(r.value())["version"] for r in ledger.of(topics.MODELS) if r.key() == model
        ]
        assert versions == sorted(set(versions)), "nothing older, and nothing twice"
    last: dict[int, int] = {}
    for record in ledger.of(topics.PREDICTION_LOG):
        version = run.records.prediction_log.decode(record.value())["champion"]["version"]
        assert version >= last.get(record.partition(), 0), "a version went back"
        last[record.partition()] = version
    rebuilt = CliRunner().invoke(
        cli,
        ["models", "rebuild", run.reference, "--all", "--missing", "--json"],
        env=run.stack.operator_env,
        catch_exceptions=False,
    )
    assert rebuilt.exit_code == 0, rebuilt.output
    assert json.loads(rebuilt.stdout)["equal"] is True
    verdict = judge(run, ledger, messages, redis_url=redis_server.url)
    assert not str(verdict)


def served(run, ledger: Ledger) -> list:
    return [run.records.prediction_log.decode(r.value())["champion"] for r in ledger.of(topics.PREDICTION_LOG)]
