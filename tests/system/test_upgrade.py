"""Services of an earlier version and of this one, at once and in both directions, on one log: nothing is lost or doubled.

The earlier versions come from the clone's own history; where that is not to be had, the tests are skipped.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from fork_server import spawn_forked
from ledger import Ledger, judge
from running import DECLARATION, Running, until

from tidemill.cli.main import cli
from tidemill.declare.load import load
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.keys import SIGNERS, make_keys
from tidemill.local.processes import Process, end, spawn
from tidemill.local.replay import Message, Replay
from tidemill.local.stack import roles, starting_order
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = [pytest.mark.kafka, pytest.mark.long]
ROOT = Path(__file__).parents[2]
EARLIER = ["61b099cc"]
IN_FLIGHT = 400
TOKEN = "a-token-for-these-tests-0123456789"
FIRST_HALF = ("validator", "scorer", "joiner", "learner:slow")
"""Their neighbours on both sides are of the other version, and one learner of two."""


@pytest.fixture
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder of an earlier version's packages."""
    commit = request.param
    archive = ["git", "-C", str(ROOT), "archive", commit, "services", "schemas", "k8s", "ops"]
    made = subprocess.run(archive, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"the history of this clone has no {commit}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as tar:
        tar.extractall(tmp_path / "earlier", filter="data")
    return tmp_path / "earlier" / "services"


class Mixed:
    """A pipeline whose processes are of either version, and what it was sent."""

    def __init__(self, run: Running, earlier: Path) -> None:
        self.run, self.earlier, self.ledger = run, earlier, Ledger(run)
        self.roles = starting_order(roles(run.pipeline))
        self.is_earlier: dict[str, bool] = {}
        self.sent: list[Message] = []
        keys = run.stack.folder / "keys"
        shutil.rmtree(keys)
        make_keys(keys, tuple(SIGNERS))  # an earlier version does not know who else signs in a later one

    def start(self, of_earlier: Iterable[str], *, without: str = "") -> None:
        """Have these services be of the earlier version, the others of this one: those that change are restarted."""
        stack = self.run.stack
        for role in (role for role in self.roles if role != without):
            wanted = role in of_earlier
            if self.is_earlier.get(role) == wanted:
                continue
            if role in stack.processes:
                end(stack.processes[role])
            stack.spawn = self._spawn_earlier if wanted else spawn_forked
            stack.start(role)
            self.is_earlier[role] = wanted
        stack.wait_ready(120)

    def declare(self, text: str) -> None:
        """Stop all, and declare the pipeline otherwise."""
        self.run.stack.stop()
        self.run.stack.processes.clear()
        self.is_earlier.clear()
        Path(self.run.reference).write_text(text)
        self.run.pipeline = self.run.stack.pipeline = load(self.run.reference)
        self.run.records = Records(self.run.pipeline)
        self.roles = starting_order(roles(self.run.pipeline))

    def reset(self, model: str) -> None:
        """Have a model begin another life, as somebody does who has the token."""
        stack = self.run.stack
        stack.start("status")
        stack.wait_ready(60)
        env = {**stack.env, "TIDEMILL_STATUS_URL": f"http://127.0.0.1:{stack.ports['status']}"}
        words = ["models", "reset", self.run.reference, model, "--why", "another vector"]
        done = CliRunner().invoke(cli, words, env=env, catch_exceptions=False)
        assert done.exit_code == 0, done.output

    def _spawn_earlier(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Process:
        return spawn(command, log, {**(env or {}), "PYTHONPATH": str(self.earlier)})

    def send(self, messages: Sequence[Message]) -> None:
        """Send them, and wait for all that comes of them."""
        before = self.ledger.count(topics.PREDICTIONS, topics.DLQ)

        def has_room() -> bool:
            return replay.events + before - self.ledger.count(topics.PREDICTIONS, topics.DLQ) < IN_FLIGHT

        replay = Replay(self.run.broker.servers, messages, speed=1e12, has_room=has_room)
        replay.start()
        until(lambda: bool(replay.ended_at) or replay.error is not None, "the replay stalls", 240, self.run.stack.check)
        assert replay.error is None
        self.sent += messages

    def is_predicted(self) -> bool:
        """Whether all that was sent is valid or refused, and what is valid has its prediction."""
        count = self.ledger.count
        is_valid = count(topics.EVENTS_VALID, topics.LABELS_VALID) + self.refused()["validator"] == len(self.sent)
        return is_valid and count(topics.EVENTS_VALID) == count(topics.PREDICTIONS) == count(topics.PREDICTION_LOG)

    def refused(self) -> Counter[str]:
        """Return how many dead letters there are, by who has made them."""
        letters = self.ledger.of(topics.DLQ)
        return Counter(dict(record.headers())["__connect.errors.stage"].decode() for record in letters)


CHANGED = """
    request={
        **{name: feature for name, feature in _base.request.items() if name not in ("temp", "dow")},
        "weekday": _base.request["dow"],
        "flight": __import__("tidemill").number("flight"),
    },
    models={"logreg2": _base.models["logreg"], "slow2": _base.models["slow"]}, champion="logreg2", search={},
"""
"""A feature removed, one added, one renamed; the models, which are of another vector then, have other names."""


def test_a_declaration_that_changed_and_is_changed_back_loses_nothing(running) -> None:
    run: Running = running("flights", partitions=2, snapshot_seconds=0.3, status_token=TOKEN)
    mixed = Mixed(run, Path())
    earlier = Path(run.reference).read_text()
    messages = script(run.pipeline, data.flights((1,), days=2), corrupt_every=100)
    mixed.ledger.start()
    parts, learned = [len(messages) * n // 3 for n in range(4)], list[int]()
    later = DECLARATION.format(base="flights", name=run.pipeline.name, partitions=2, changes=CHANGED)
    for declaration, (begin, stop) in zip([earlier, later, earlier], pairwise(parts), strict=True):
        mixed.declare(declaration)
        mixed.start((), without="learner:baseline" if begin else "")
        if begin:  # as `tidemill diff` says: its name can't be changed
            mixed.reset("baseline")
            mixed.start(())
        mixed.send(messages[begin:stop])
        until(mixed.is_predicted, "an event has no prediction", 120, run.stack.check)
        served = run.records.prediction.decode(mixed.ledger.of(topics.PREDICTIONS)[-1].value())["champion"]
        assert served["model"] in run.pipeline.model_names
        learned.append(mixed.ledger.count(topics.EXAMPLES))
    mixed.ledger.end()
    ledger, ids = mixed.ledger, mixed.ledger.ids(topics.PREDICTIONS)
    assert mixed.refused().keys() <= {"validator", "joiner"}, "no vector was on its way"
    assert Counter(ids) == Counter({*ids}) == Counter(ledger.ids(topics.FEATURES)), "each has one prediction"
    joined = ledger.ids(topics.EXAMPLES)
    assert len({*joined}) == len(joined)
    assert 0 < learned[0] < learned[1] < learned[2], "models learn under each declaration"


@pytest.mark.parametrize("earlier", EARLIER, indirect=True)
def test_upgraded_and_downgraded_service_by_service_nothing_is_lost(running, redis_server, earlier: Path) -> None:
    run: Running = running("flights", partitions=2, snapshot_seconds=0.3)
    mixed = Mixed(run, earlier)
    messages = script(run.pipeline, data.flights((1,), days=3), corrupt_every=100)
    mixed.ledger.start()
    every = {*mixed.roles}
    stages = [every, every - {*FIRST_HALF}, set(), {*FIRST_HALF}, every, set()]
    parts = [len(messages) * n // len(stages) for n in range(len(stages) + 1)]
    for of_earlier, (begin, stop) in zip(stages, pairwise(parts), strict=True):
        mixed.start(of_earlier)
        mixed.send(messages[begin:stop])
        mixed.ledger.arrive(len(mixed.sent))
        assert not mixed.ledger.behind(len(mixed.sent)), of_earlier
    mixed.ledger.end()
    verdict = judge(run, mixed.ledger, messages, redis_url=redis_server.url)
    assert not str(verdict), verdict
