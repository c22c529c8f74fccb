"""What a service is to the operating system: killed, it is there again; asked to end, it ends; what ends by itself stays ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import gone, until, worker

CHILD = """
import os, signal, sys, time
from tidemill.runtime.worker import become_worker
become_worker()
print("worker", os.getpid(), flush=True)
if sys.argv[1] == "ends":
    sys.exit(3)
if sys.argv[1] == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
stopping = []
if sys.argv[1] == "drains":
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
while not stopping:
    time.sleep(0.01)
print("drained", flush=True)
sys.exit(5)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    made: list[subprocess.Popen[bytes]] = []
    out = tmp_path / "out"

    def begin(how: str) -> tuple[subprocess.Popen[bytes], Path]:
        with out.open("ab") as stream:
            made.append(subprocess.Popen([sys.executable, "-c", CHILD, how], stdout=stream, start_new_session=True))
        return made[-1], out

    yield begin
    for process in made:
        if process.poll() is None:
            process.kill()


def workers(out: Path) -> list[int]:
    whole = out.read_text().rpartition("\n")[0]  # the last line may be half written
    return [int(line.split()[1]) for line in whole.splitlines() if line.startswith("worker")]


def test_a_killed_worker_is_there_again_and_the_guard_stays(start) -> None:
    process, out = start("drains")
    for n in range(3):
        until(lambda n=n: len(workers(out)) == n + 1, "no worker", 20)
        assert worker(process) == workers(out)[-1]
        os.kill(workers(out)[-1], signal.SIGKILL)
    until(lambda: len(workers(out)) == 4, "no worker", 20)
    assert process.poll() is None
    assert len(set(workers(out))) == 4


def test_asked_to_end_it_drains_and_says_how_it_ended(start) -> None:
    process, out = start("drains")
    until(lambda: workers(out), "no worker", 20)
    time.sleep(0.1)  # its handler is set just after it said so
    process.terminate()
    assert process.wait(10) == 5
    assert "drained" in out.read_text()


def test_a_worker_without_a_handler_ends_as_any_process_would(start) -> None:
    process, out = start("waits")
    until(lambda: workers(out), "no worker", 20)
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
    assert len(workers(out)) == 1


def test_what_ends_by_itself_stays_ended(start) -> None:
    process, out = start("ends")
    assert process.wait(20) == 3
    assert len(workers(out)) == 1


def test_what_is_killed_again_and_again_as_soon_as_it_starts_is_given_up(start) -> None:
    process, out = start("dies")
    assert process.wait(30) == -signal.SIGKILL
    assert len(workers(out)) == 4


def test_no_worker_outlives_its_guard(start) -> None:
    process, out = start("drains")
    until(lambda: workers(out), "no worker", 20)
    process.kill()
    process.wait(10)
    until(lambda: gone(workers(out)[0]), "the worker goes on alone", 10)
