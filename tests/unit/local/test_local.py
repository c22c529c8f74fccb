"""What `tidemill up` decides before it starts anything, and how it prints what processes say."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tidemill import load, settings
from tidemill.errors import BrokerError, SettingsError
from tidemill.local import processes
from tidemill.local.console import Console
from tidemill.local.processes import fork, free_port
from tidemill.local.stack import chained
from tidemill.local.up import chosen_roles, lock_running_file, write_running_file

pytestmark = pytest.mark.slow


def test_no_port_is_given_twice_before_anybody_listens_on_it() -> None:
    ports = [free_port() for _ in range(600)]
    assert len(set(ports)) == len(ports)


def test_services_are_chosen_by_service_or_role_and_an_unknown_one_is_named() -> None:
    flights = load("flights")
    assert chosen_roles(flights, ["scorer", "learner:slow"], []) == ["scorer", "learner:slow"]
    assert "learner:slow" not in chosen_roles(flights, [], ["learner"])
    assert len(chosen_roles(flights, [], ["monitor"])) == len(chosen_roles(flights, [], [])) - 1
    with pytest.raises(SettingsError, match="no service 'gate' in pipeline 'plain': expected one of validator, "):
        chosen_roles(load("plain"), ["gate"], [])
    with pytest.raises(SettingsError, match="no service is left"):
        chosen_roles(flights, ["scorer"], ["scorer"])


def test_services_that_can_share_a_process_are_one_role_where_all_of_them_are_chosen() -> None:
    flights = load("flights")
    assert chained(chosen_roles(flights, [], [])) == [
        "validator+featurizer+scorer",
        "materializer",
        "joiner+learner",
        "gate",
        "archiver",
        "monitor",
        "status",
        "gateway",
    ]
    without = chosen_roles(flights, [], ["scorer"])
    assert chained(without)[:3] == ["validator", "featurizer", "materializer"]
    assert "joiner+learner" in chained(without)
    assert chained(["joiner", "learner:logreg"]) == ["joiner+learner"]
    assert chained(["joiner"]) == ["joiner"]


def test_a_port_that_was_chosen_is_given_to_no_outgoing_connection() -> None:
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first, last = map(int, ephemeral.read_text().split()) if ephemeral.exists() else (49_152, 65_535)
    assert not set(processes.PORTS) & set(range(first, last + 1))
    with socket.create_server(("127.0.0.1", free_port()), backlog=100) as server:
        connections = [socket.create_connection(server.getsockname()) for _ in range(100)]
        assert not {connection.getsockname()[1] for connection in connections} & set(processes.PORTS)
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_on_which_something_listens_is_not_chosen(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = free_port()
    monkeypatch.setattr(processes, "PORTS", range(taken, taken + 1))
    with (
        socket.create_server((address, taken)),
        pytest.raises(BrokerError, match=f"no port of {taken} to {taken} is free"),
    ):
        free_port()
    assert free_port() == taken


def printed(line: str, *, colours: bool = False, quiet: bool = False) -> str:
    out = io.StringIO()
    console = Console(out, colours=colours)
    console.is_quiet = quiet
    console.line("scorer", line)
    return out.getvalue()


def test_a_record_of_a_log_is_one_line_with_its_service_message_and_fields() -> None:
    record = {
        "time": "2013-01-01T10:00:00.123Z",
        "level": "info",
        "service": "learner-slow",
        "message": "resumed",
        "at": 7,
    }
    line = printed(json.dumps(record))
    assert line.split() == [line.split()[0], "learner-slow", "resumed", "at=7"]
    assert line.endswith("\n")
    assert "\x1b[31m" in printed(json.dumps({**record, "level": "error"}), colours=True)
    assert "\x1b[" not in printed(json.dumps({**record, "level": "error"}))


def test_what_is_no_record_is_printed_as_it_stands_and_a_traceback_has_its_lines() -> None:
    for text in ("Segmentation fault", "[1, 2]", '{"no": "message"}', "null"):
        assert printed(text).rstrip("\n").endswith(text)
    lines = printed(
        json.dumps({"message": "failed", "level": "critical", "traceback": "Traceback\n  there"})
    ).splitlines()
    assert [line.split()[-1] for line in lines] == ["failed", "Traceback", "there"]


def test_before_all_is_ready_only_warnings_and_errors_are_printed() -> None:
    assert printed(json.dumps({"message": "started", "level": "info"}), quiet=True) == ""
    assert "away" in printed(json.dumps({"message": "away", "level": "warning"}), quiet=True)
    assert "what a library prints" in printed("what a library prints", quiet=True)


def test_settings_of_what_runs_here_are_those_of_commands_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIDEMILL_BROKERS", raising=False)
    file = lock_running_file()
    write_running_file(file, {"TIDEMILL_BROKERS": "up:1", "TIDEMILL_REDIS_URL": "redis://up:2/0"})
    assert settings.load().brokers == "up:1"
    assert settings.load(brokers="given:1").brokers == "given:1"
    monkeypatch.setenv("TIDEMILL_BROKERS", "set:1")
    assert (settings.load().brokers, settings.load().redis_url.get_secret_value()) == ("set:1", "redis://up:2/0")
    with pytest.raises(SettingsError, match="runs in this folder already"):
        lock_running_file()
    os.close(file)  # as when its process was killed
    assert settings.load().redis_url.get_secret_value() == "redis://localhost:6379/0"
    os.close(lock_running_file())


FORKS = """
import os, signal
from tidemill.local.processes import fork

def raises():
    raise ValueError("no work")

print(fork(lambda: print("done") or 7, 1).wait(20))
print(fork(raises, 1).wait(20))
waits = fork(lambda: signal.pause() or 0, 1)
waits.terminate()
print(waits.wait(20))
waits.terminate()  # once more is no error
"""


def test_a_fork_ends_with_what_its_work_returns_or_raises_or_by_its_signal() -> None:
    ran = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert [line for line in ran.stdout.splitlines() if line[-1].isdigit()] == ["7", "1", f"{-signal.SIGTERM}"]
    assert "done" in ran.stdout
    assert "ValueError: no work" in ran.stdout


def test_a_fork_beside_threads_is_refused() -> None:
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait, name="a client")
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="a client"):
            fork(lambda: 0, 1)
    finally:
        ending.set()
        thread.join()


READS = """
import os, signal, time
from tidemill.errors import SettingsError, TidemillError
from tidemill.local.replay import BATCH_MESSAGES, Message, Reading

def refuse():
    raise SettingsError("events.csv has no rows")

made = [Message(n, "t", b"k", str(n).encode(), n % 2 == 0) for n in range(2 * BATCH_MESSAGES + 1)]
read = Reading(lambda: time.sleep(0.2) or made)
print("at once", read.is_done())
while not read.is_done():
    time.sleep(0.01)
print("all", list(read) == made)
read.stop()
read.stop()
refused = Reading(refuse)
try:
    while not refused.is_done():
        time.sleep(0.01)
except SettingsError as error:
    print("refused:", error)
killed = Reading(lambda: made * 100)
while not killed.is_done():
    time.sleep(0.01)
os.kill(killed._process.pid, signal.SIGKILL)
try:
    print("all", list(killed))
except TidemillError as error:
    print("killed:", error)
"""


def test_files_are_read_by_a_fork_while_services_start_and_nothing_is_lost_in_between() -> None:
    ran = subprocess.run([sys.executable, "-c", READS], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "at once False",
        "all True",
        "refused: events.csv has no rows",
        "killed: the process that reads the files has ended",
    ]
