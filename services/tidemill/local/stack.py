"""The services of one pipeline as processes that end with this one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import TidemillError
from tidemill.keys import SIGNERS, VERIFY_FILE, make_keys
from tidemill.local.processes import end, free_port, spawn
from tidemill.wire.topics import SERVICES, WATCHING


def roles(pipeline: Pipeline) -> list[str]:
    """Return the processes of a pipeline: each service, and one learner a model, as `learner:NAME`."""
    idle = {"learner", *([] if pipeline.remote_views else ["materializer"]), *([] if pipeline.gate else ["gate"])}
    return [s for s in SERVICES if s not in idle] + [f"learner:{name}" for name in pipeline.model_names]


def name_of(role: str) -> str:
    """Return the name of a role's process: `learner-logreg` of `learner:logreg`."""
    return role.replace(":", "-")


class Stack:
    """The services of one pipeline as processes.

    Parameters
    ----------
    reference
        The pipeline, as commands take it.
    settings
        TIDEMILL_* without the prefix, for every process (brokers, redis_url, ...).
    """

    def __init__(self, reference: str, pipeline: Pipeline, folder: Path, settings: Mapping[str, object]) -> None:
        self.reference, self.pipeline, self.folder = reference, pipeline, folder
        make_keys(folder / "keys")
        self.env = {
            "TIDEMILL_VERIFY_KEYS": str(folder / "keys" / VERIFY_FILE),
            "TIDEMILL_STORE_URL": str(folder / "artifacts"),
            "TIDEMILL_ARCHIVE_URL": str(folder / "archive"),
            "PYTHONHASHSEED": "0",
            **{f"TIDEMILL_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.launcher = [sys.executable, "-m", "tidemill.cli"]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}

    @property
    def operator_env(self) -> Mapping[str, str]:
        """What commands get that sign, as `models rebuild` does: every service's private key."""
        return {"TIDEMILL_SIGNING_KEY": str(self.folder / "keys"), **self.env}

    def start(self, role: str, instance: str = "0") -> subprocess.Popen[bytes]:
        """Start one process; a further instance of a service has a name of its own."""
        service, _, model = role.partition(":")
        port = self.ports.setdefault(role if instance == "0" else f"{role}#{instance}", free_port())
        command = [*self.launcher, "run", service, self.reference, "--instance", instance, "--http-port", str(port)]
        if model:
            command += ["--model", model]
        env = self.env
        if service in SIGNERS and "TIDEMILL_SIGNING_KEY" not in env:
            env = {**env, "TIDEMILL_SIGNING_KEY": str(self.folder / "keys")}
        if service == "status":
            env = {**env, "TIDEMILL_SERVICES": json.dumps(self.addresses())}
        process = spawn(command, self.log(role), env)
        self.processes[role if instance == "0" else f"{role}#{instance}"] = process
        return process

    def log(self, role: str) -> Path:
        """Return where a process writes its log lines."""
        return self.folder / f"{name_of(role)}.log"

    def addresses(self) -> dict[str, str]:
        """Return the HTTP address of each process, by name."""
        return {name_of(role): f"http://127.0.0.1:{port}" for role, port in self.ports.items() if role != "status"}

    def start_all(self, *, watched: bool = False) -> None:
        """Start every process of the pipeline; `watched`: also the watchers."""
        for role in [*roles(self.pipeline), *(WATCHING if watched else ())]:
            self.start(role)

    def kill(self, role: str) -> None:
        """Kill -9 one process, and wait until it is gone."""
        process = self.processes[role]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def fetch(self, role: str, path: str) -> tuple[int, str]:
        """Return status and body of a process's own HTTP endpoint; (0, why) where it does not answer."""
        import urllib.error
        import urllib.request

        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[role]}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_ready(self, patience: float = 60.0) -> None:
        """Wait until every process is ready. Raises TidemillError, with its last log line, where one is not."""
        deadline = time.monotonic() + patience
        waiting = list(self.processes)
        while waiting:
            waiting = [role for role in waiting if self.fetch(role, "/readyz")[0] != 200]
            self.check(waiting)
            if waiting and time.monotonic() > deadline:
                raise TidemillError(
                    f"not ready after {patience:.0f} s: {', '.join(waiting)}; {self.last_line(waiting[0])}"
                )
            time.sleep(0.05)

    def check(self, roles_: Sequence[str] | None = None) -> None:
        """Raise TidemillError where a process has ended."""
        for role in roles_ if roles_ is not None else self.processes:
            code = self.processes[role].poll()
            if code is not None:
                raise TidemillError(f"{role} ended with code {code}: {self.last_line(role)}")

    def last_line(self, role: str) -> str:
        """Return the last line of a process's log."""
        path = self.log(role.partition("#")[0])
        lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
        return lines[-1] if lines else f"{path} is empty"

    def stop(self) -> None:
        """Stop every process, all at once."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            end(process)
