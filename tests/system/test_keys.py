"""Keys are rotated while everything runs, on real Kafka: nothing is lost, refused or delayed; the old key then ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ledger import Ledger, Verdict, places, registry_of
from running import until

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.keys import SIGNERS, VERIFY_FILE, Keyring, make_keys, private_file
from tidemill.local.processes import spawn
from tidemill.local.replay import Replay
from tidemill.registry.decisions import all_decisions, decisions
from tidemill.registry.latest import latest
from tidemill.registry.manifests import Registry
from tidemill.stream.kafka.producer import Sender
from tidemill.wire import topics

#: The longest pause between two predictions.
MAX_PAUSE_SECONDS = 5.0


@pytest.mark.long  # it measures a pause, which a busy machine makes longer
def test_keys_are_rotated_under_load_and_the_old_key_alone_is_refused_after_its_date(running) -> None:
    run = running("flights", partitions=2, snapshot_seconds=0.3)
    messages = script(run.pipeline, data.flights((1,), days=3), corrupt_every=100)
    folder = run.stack.folder / "keys"
    stolen, first = (
        private_file(folder, "learner").read_text(),
        Keyring(str(folder / VERIFY_FILE), str(folder), "learner"),
    )
    run.stack.start_all()
    run.stack.wait_ready()
    ledger = Ledger(run)
    ledger.start()
    limit = [len(messages) // 3]
    replay = Replay(
        run.broker.servers, messages, speed=60 * 60 * 4, has_room=lambda: replay.events + replay.labels < limit[0]
    )
    replay.start()

    def newest() -> dict[str, str]:
        found, _ = latest(run.broker, registry_of(run), dict.fromkeys(run.pipeline.model_names, 1))
        return {model: one[0].signature.key_id for model, one in found.items() if one}

    def refusals(role: str) -> list[str]:
        status, text = run.stack.fetch(role, "/metrics")
        assert status == 200, f"{role} says nothing"
        return [line for line in text.splitlines() if "records_refused_total{" in line]

    until(lambda: newest().keys() == set(run.pipeline.model_names), "there are no versions", 60, run.stack.check)
    old = first.signs_with
    assert set(newest().values()) == {old}
    limit[0] = len(messages) + 1
    end = time.time() + 6
    make_keys(folder, until=int(end * 1000))
    until(lambda: old not in newest().values(), "the new key does not sign", 30, run.stack.check)
    until(lambda: time.time() > end, "the old key does not end", 30)
    until(lambda: bool(replay.ended_at) or replay.error is not None, "the replay stalls", 120, run.stack.check)
    assert replay.error is None
    ledger.arrive(len(messages))
    assert not ledger.others_behind("gate")
    for role in run.stack.processes:
        assert refusals(role) == [], role

    # All that was signed before is still usable; what the old key signs from now on is not.
    reader = registry_of(run)
    kept, _ = latest(run.broker, reader, {"logreg": 1000})
    assert {one.signature.key_id for one in kept["logreg"]} >= {old}
    assert all_decisions(run.pipeline, run.broker, decisions(run.pipeline, reader.keys)) is not None
    thief = Registry(run.pipeline, reader.store, Keyring(str(folder / VERIFY_FILE), stolen))
    latest(run.broker, thief, {"logreg": 1}, chains=thief.chains)
    forged = thief.sign(kept["logreg"][-1])
    sender = Sender(run.broker.servers)
    sender.send(run.name(topics.MODELS), thief.encode(forged), b"logreg")
    sender.flush()
    until(lambda: any("expired_key" in line for line in refusals("scorer")), "the old key is not refused", 30)
    found, _ = latest(run.broker, reader, {"logreg": 1})
    assert found["logreg"][0].version == kept["logreg"][0].version

    ledger.end()
    verdict = Verdict()
    places(run, ledger, messages, verdict)
    assert not str(verdict)
    times = sorted(ledger.times(topics.PREDICTIONS))
    begun = next(index for index, at in enumerate(times) if at > times[0])
    pauses = [after - before for before, after in zip(times[begun:], times[begun + 1 :], strict=False)]
    print(f"longest pause between predictions: {max(pauses):.2f} s; {len(times)} predictions")
    assert max(pauses) < MAX_PAUSE_SECONDS


def test_only_those_that_sign_are_given_a_private_key(running) -> None:
    run = running("plain", partitions=1)
    run.stack.spawn = spawn  # a fork's /proc shows its parent's environment
    for role in (
        "scorer",
        "learner:logreg" if "logreg" in run.pipeline.model_names else f"learner:{run.pipeline.champion}",
    ):
        process = run.stack.start(role)
        environment = Path(f"/proc/{process.pid}/environ").read_text()
        assert ("TIDEMILL_SIGNING_KEY=" in environment) == (role.partition(":")[0] in SIGNERS)
    run.stack.wait_ready()
