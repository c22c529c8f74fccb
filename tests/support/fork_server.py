"""`tidemill run` without the second that its imports take: forks of one process that has made them.

A fork begins as `python -m tidemill.cli` does, with its own arguments, environment and working directory. It ends with
the server, which ends with the process that asks it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from tidemill.local.processes import Forked, Process, fork, share_memory, spawn
from tidemill.runtime.worker import die_with_parent

COMMAND = [sys.executable, "-m", "tidemill.cli"]
#: Python reads it before anything runs: forks have the server's.
SEED = "PYTHONHASHSEED"


class ForkServer:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, SEED: "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            preexec_fn=die_with_parent,
            start_new_session=True,
        )

    def ask(self, question: Mapping[str, object]) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        with self.lock:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())


class OfServer(Forked):
    """A fork of the server's: only its parent can ask the kernel how it ended."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        super().__init__(pid)
        self.server = server

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask({"pid": self.pid})
        return self.returncode


@cache
def _server() -> ForkServer:
    """Return the server of this process, which is started when it is needed first."""
    return ForkServer()


def spawn_forked(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Process:
    """As `processes.spawn`; what is no `tidemill` of our own is started as ever."""
    changed = {**os.environ, **(env or {})}
    if [*command[: len(COMMAND)]] != COMMAND or changed.get(SEED) != "0":
        return spawn(command, log, env)
    ask = {"arguments": command[len(COMMAND) :], "log": str(log), "env": changed, "cwd": os.getcwd()}
    return OfServer(_server(), _server().ask(ask))


def _run(arguments: Sequence[str], env: Mapping[str, str], cwd: str) -> int:
    from tidemill.cli.main import main

    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["tidemill", *arguments]
    main()
    return 0


def _serve() -> None:
    from tidemill.runtime import run as running
    from tidemill.wire.topics import ALL

    for service in ALL:
        running.load(service)
    share_memory()
    forks: dict[int, Forked] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "pid" in asked:
            print(json.dumps(forks[asked["pid"]].poll()), flush=True)
            continue
        output = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        made = fork(partial(_run, asked["arguments"], asked["env"], asked["cwd"]), output)
        os.close(output)
        forks[made.pid] = made
        print(made.pid, flush=True)


if __name__ == "__main__":
    _serve()
