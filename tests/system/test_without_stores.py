"""Every service that has worked before starts while all that it uses beside Kafka is away, and catches up when it is back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger import Ledger, Verdict, archive, places, store, versions
from proxy import Proxy
from registry_server import RegistryServer
from running import Running, until

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.processes import free_port
from tidemill.local.replay import Replay
from tidemill.local.servers import Redis
from tidemill.local.stack import roles
from tidemill.wire import topics

#: Of each process: whether it is ready while its stores are away, and what its log or its answer then names.
WITHOUT = {
    "validator": (True, "no schema registry at"),
    "featurizer": (True, "no Redis at"),
    "materializer": (True, "no Redis at"),
    "joiner": (True, ""),
    "gate": (True, "store_url"),
    "learner:logreg": (False, "artifact store"),
    "archiver": (None, "archive"),
    "status": (False, "no Redis at"),
}


class Door:
    """What stands before Redis, the schema registry, the artifact store and the archive; closed, all are away."""

    def __init__(self, folder: Path, redis: Redis, registry: RegistryServer) -> None:
        self.real, self.place = folder / "real", folder / "door"
        self.real.mkdir()
        self.targets = {free_port(): redis.port, free_port(): registry.port}
        self.proxies: list[Proxy] = []
        self.open()
        redis_port, registry_port = self.targets
        self.settings = {
            "redis_url": f"redis://127.0.0.1:{redis_port}/0",
            "registry_url": f"http://127.0.0.1:{registry_port}",
            "store_url": self.place / "artifacts",
            "archive_url": self.place / "archive",
        }

    def open(self) -> None:
        self.place.unlink(missing_ok=True)
        self.place.symlink_to(self.real)
        self.proxies = [Proxy(port, target) for port, target in self.targets.items()]

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        self.place.unlink()
        self.place.write_text("a file where a folder should be")


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    server = RegistryServer()
    yield server
    server.stop()


def status_of(run: Running, role: str) -> int:
    return run.stack.fetch(role, "/readyz")[0]


def is_behind(run: Running, role: str) -> bool:
    lines = run.stack.fetch(role, "/metrics")[1].splitlines()
    return any(line.startswith("tidemill_view_behind{") and line.endswith(" 1.0") for line in lines)


@pytest.mark.slow
def test_services_start_without_their_stores_and_catch_up_when_they_are_back(
    running, redis_server: Redis, registry: RegistryServer, tmp_path: Path
) -> None:
    door = Door(tmp_path, redis_server, registry)
    run = running("flights", partitions=2, snapshot_seconds=0.3, archive_seconds=1, max_delay_ms=50)
    run.stack.env |= {f"TIDEMILL_{name.upper()}": str(value) for name, value in door.settings.items()}
    everybody = [*roles(run.pipeline), "archiver", "status"]
    for role in everybody:
        run.stack.start(role)
    run.stack.wait_ready(120)
    ledger = Ledger(run)
    ledger.start()
    messages = script(run.pipeline, data.flights((1,), days=2)[::2], corrupt_every=100)
    limit = [len(messages) // 2]
    replay = Replay(run.broker.servers, messages, speed=1e12, has_room=lambda: replay.events + replay.labels < limit[0])
    replay.start()
    until(lambda: ledger.count(topics.EXAMPLES) > 100, "no example", 120)
    until(lambda: {r.key() for r in ledger.of(topics.MODELS)} >= {b"logreg"}, "no version", 60)
    until(lambda: bool(list(door.real.glob("archive/*/*/*/*.parquet"))), "nothing is archived", 60)

    # The scorer goes on: it has its models. All others are stopped, and start again without anything but Kafka.
    restarted = [role for role in everybody if role != "scorer"]
    for role in restarted:
        run.stack.processes[role].terminate()
    for role in restarted:
        assert run.stack.processes[role].wait(30) == 0, run.stack.last_line(role)
    lengths = {role: len(run.stack.log(role).read_text()) for role in restarted}
    door.close()
    for role in restarted:
        run.stack.start(role)

    def log_of(role: str) -> str:
        return run.stack.log(role).read_text()[lengths[role] :]

    for role, (is_ready, names) in WITHOUT.items():
        if is_ready:
            until(lambda role=role: status_of(run, role) == 200, f"{role} is not ready", 60, run.stack.check)
        until(
            lambda role=role, names=names: names in log_of(role) + run.stack.fetch(role, "/readyz")[1],
            f"{role} does not name {names}", 60, run.stack.check,
        )  # fmt: skip
    before = ledger.count(topics.PREDICTIONS)
    limit[0] = len(messages) - len(messages) // 6
    until(lambda: ledger.count(topics.PREDICTIONS) > before + 100, "predictions do not go on", 120, run.stack.check)
    for role, (is_ready, _) in WITHOUT.items():
        if is_ready is False:
            assert status_of(run, role) == 503, role
    assert is_behind(run, "featurizer")
    assert is_behind(run, "materializer")
    for role in restarted:
        assert "Traceback" not in log_of(role), role
    run.stack.check()

    door.open()
    limit[0] = len(messages) + 1
    for role in everybody:
        until(lambda role=role: status_of(run, role) == 200, f"{role} is not ready again", 90, run.stack.check)
    until(lambda: not is_behind(run, "featurizer") and not is_behind(run, "materializer"), "the views are behind", 60)
    until(lambda: bool(replay.ended_at) or replay.error is not None, "the replay stalls", 120)
    assert replay.error is None
    ledger.arrive(len(messages))
    assert not ledger.others_behind("gate", "archiver")
    ledger.end()
    verdict = Verdict()
    places(run, ledger, messages, verdict)
    store(run, ledger, redis_server.url, verdict)
    versions(run, ledger, verdict)
    archive(run, ledger, verdict)
    assert not str(verdict)
