"""`tidemill up` as a newcomer uses it: it says where all is, keeps it running, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from running import until

from tidemill.demo import data
from tidemill.local.processes import free_port
from tidemill.offline import history

PIPELINE = """
from dataclasses import replace
from tidemill.demo.flights import plain as _plain
pipeline = replace(_plain, name="{name}")
"""


class Started:
    """A `tidemill up` in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str, pipeline: str = "plain") -> None:
        self.port = free_port()
        self.folder, self.log = folder, folder / f"up-{self.port}.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
        self.clean = clean
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tidemill.cli", "up", pipeline, "--port", str(self.port), *arguments],
                stdout=out, stderr=subprocess.STDOUT, env=clean, cwd=folder,
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.log.read_text()

    def until(self, text: str, patience: float = 90) -> None:
        until(lambda: text in self.text, f"no {text!r} in {self.text}", patience, self.check)

    def check(self) -> None:
        assert self.process.poll() is None, self.text

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def port_of(self, role: str) -> int:
        return int(re.search(rf"{role} :(\d+)", self.text)[1])

    def process_at(self, port: int) -> psutil.Process:
        listening = lambda p: any(c.laddr.port == port for c in p.net_connections())  # noqa: E731
        return next(p for p in self.children() if listening(p))

    def command(self, *arguments: str, code: int = 0, given: str = "") -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "tidemill.cli", *arguments],
            capture_output=True, text=True, env=self.clean, cwd=self.folder, input=given,
        )  # fmt: skip
        assert ran.returncode == code, ran.stderr + ran.stdout
        return ran.stdout

    def end(self, number: int = signal.SIGINT) -> int:
        children = self.children()
        self.process.send_signal(number)
        code = self.process.wait(60)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive, [p.cmdline() for p in alive]
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    made: list[Started] = []

    def begin(*arguments: str, pipeline: str = "plain") -> Started:
        made.append(Started(tmp_path, *arguments, pipeline=pipeline))
        return made[-1]

    yield begin
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_everything_runs_is_found_from_the_folder_is_there_again_when_killed_and_ends_at_ctrl_c(start) -> None:
    one = start()
    one.until("Ctrl-C stops all of it")
    assert f"http://localhost:{one.port}/" in one.text
    assert json.loads(get(one.port, "/api/overview"))
    assert 'tidemill_heartbeat_seconds{service="scorer"}' in get(one.port_of("scorer"), "/metrics")
    # A command in the same folder needs no settings: all topics are as declared.
    assert "wrong" not in one.command("doctor", "plain").replace("0 wrong", "")
    killed = one.process_at(one.port_of("scorer"))
    killed.kill()
    one.until("scorer ended by SIGKILL; it is started again in 1 s")
    one.until("scorer is ready again")
    assert "Traceback" not in one.text
    assert one.end() == 0
    assert "no process is left" in one.text
    assert not list(one.folder.glob(".tidemill/*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP], ids=lambda n: n.name)
def test_it_leaves_no_process_behind_however_it_is_ended(start, number: signal.Signals) -> None:
    one = start("--without", "monitor")
    until(lambda: len(one.children()) >= 5, "no services", 60, one.check)
    folder = next(Path(child.cwd()) for child in one.children() if child.name() == "redis-server")
    assert one.end(number) == (0 if number != signal.SIGKILL else -9)
    until(lambda: "has ended with it" in one.text or "no process is left" in one.text, "no word", 20)
    until(lambda: not folder.exists(), "the folder", 20)


@pytest.mark.slow
def test_one_process_serves_each_service_under_its_name(start) -> None:
    one = start("--processes", "1", "--without", "monitor", "--without", "archiver")
    one.until("Ctrl-C stops all of it")
    assert [child.name() for child in one.children()] == ["redis-server"]
    port = int(re.search(r"metrics +http://localhost:(\d+)/metrics", one.text)[1])
    assert 'service="joiner"' in get(port, "/metrics")
    scorer = get(port, "/scorer/metrics")
    assert 'service="scorer"' in scorer
    assert 'service="joiner"' not in scorer
    assert get(port, "/readyz") == get(port, "/scorer/livez") == "ok\n"
    states = {row["name"]: row["state"] for row in json.loads(get(one.port, "/api/overview"))["services"]}
    assert states.keys() >= {"validator", "scorer", "learner-logreg"}
    assert one.end() == 0
    assert "no process is left" in one.text


@pytest.mark.slow
def test_files_are_replayed_and_what_is_sent_is_followed_to_its_end(start, tmp_path: Path) -> None:
    flights = data.flights((1,), days=1)
    history.write(tmp_path / "events.csv", [f.event for f in flights[:60]])
    history.write(tmp_path / "labels.csv", data.labels(flights[:40]))
    given = ("--replay", "events.csv", "labels.csv", "--speed", "100000")
    one = start("--processes", "1", "--without", "monitor", "--without", "archiver", "--without", "status", *given)
    one.until(f"replayed: 60 events, {len(data.labels(flights[:40]))} labels")

    event, label = flights[50].event, flights[50].label
    assert label is not None
    sent = one.command("send", "plain", "events", "--json", json.dumps({**flights[61].event}))
    assert re.search(
        rf"{flights[61].event['flight_id']}  predicted 0\.\d+ by logreg@\d+ in [\d,]+ ms\n1 event sent: 1 predi", sent
    )
    sent = one.command("send", "plain", "labels", "-", "--json-lines", given=json.dumps(label))
    outcome = json.loads(sent)
    assert (outcome["id"], outcome["state"], outcome["label"]) == (
        event["flight_id"],
        "joined",
        label["arr_delay"] > 15,
    )
    spoilt = [{**flights[62].event, "sched_hour": 77}, {"flight_id": "x"}]
    sent = one.command("send", "plain", "events", *(a for e in spoilt for a in ("--json", json.dumps(e))), code=1)
    assert "dead letter out_of_range of the validator" in sent
    assert "dead letter missing_field of the validator" in sent
    assert "2 events sent: 2 dead letter" in sent
    early = {**label, "flight_id": "not asked yet"}
    assert "waits for the prediction" in one.command(
        "send", "plain", "labels", "--json", json.dumps(early), "--timeout", "2"
    )

    first = one.command("tail", "plain", "predictions", "--from-start", "-n", "61").splitlines()
    assert len(first) == 61
    assert any(flights[0].event["flight_id"] in line for line in first)
    letters = one.command("tail", "plain", "dlq", "--from-start", "--json", "-n", "1", "--where", "reason=out_of_range")
    assert json.loads(letters)["value"] == "77"
    one.command("tail", "plain", "examples", "--from-start", "--where", "nothing=1", code=1)
    assert one.end() == 0


@pytest.mark.slow
def test_a_taken_port_and_a_second_one_in_the_folder_are_one_line_each(start, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one = start("--port", str(port))
        assert one.process.wait(60) == 1
    assert one.text.startswith(f"tidemill: port {port} for the page is taken")
    assert one.text.count("\n") == 1
    first = start("--only", "validator")
    until(lambda: len(first.children()) >= 3, "no services", 60, first.check)
    text = first.text
    second = Started(tmp_path, "--only", "validator")
    assert second.process.wait(60) == 1
    assert second.text.startswith("tidemill: `tidemill up` runs in this folder already")
    assert second.text.count("\n") == 1
    assert "Traceback" not in text
    assert first.end(signal.SIGKILL) == -9
    third = start("--only", "validator")  # what the killed one left behind stops nobody
    until(lambda: len(third.children()) >= 3, "no services", 60, third.check)
    assert third.end() == 0


@pytest.mark.slow
def test_a_service_that_no_start_can_mend_is_not_started_again_and_says_why(start, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    os.environ.pop("TIDEMILL_VERIFY_KEYS", None)
    one = start("--verify-keys", str(keys), "--only", "learner")
    assert one.process.wait(60) == 1
    assert "it is not started again" in one.text
    assert one.text.rstrip().rpartition("\n")[2].startswith("tidemill: learner-")
    assert "Traceback" not in one.text
