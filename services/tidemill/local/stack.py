"""The services of one pipeline as processes that end with this one."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tidemill import logs, settings
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import (
    DeclarationError,
    NotAllowed,
    PositionError,
    SettingsError,
    StoreNotAllowed,
    TidemillError,
    TopicError,
    VersionsError,
)
from tidemill.keys import KEY_OWNERS, SIGNERS, VERIFY_FILE, make_keys
from tidemill.local.processes import Process, end, fork, free_port, share_memory, spawn
from tidemill.runtime import run as running
from tidemill.runtime.together import Member
from tidemill.wire.topics import SERVICES, WATCHING

log = logging.getLogger(__name__)

#: Errors that another start does not help.
FOR_A_PERSON = (
    DeclarationError, NotAllowed, PositionError, SettingsError, StoreNotAllowed, TopicError, VersionsError,
)  # fmt: skip
#: Exit code of a service that ended with one of them: EX_CONFIG of sysexits.h.
GIVEN_UP = 78


def roles(pipeline: Pipeline) -> list[str]:
    """Return the processes of a pipeline: each service, and one learner a model, as `learner:NAME`."""
    idle = {"learner", *([] if pipeline.remote_views else ["materializer"]), *([] if pipeline.gate else ["gate"])}
    return [s for s in SERVICES if s not in idle] + [f"learner:{name}" for name in pipeline.model_names]


def chained(roles_: Sequence[str]) -> list[str]:
    """Return roles with those that can share a process as one: fewer transactions, and less memory.

    What predicts is one chain, what learns another: a model that saves a version holds up no prediction.
    """
    left = list(roles_)
    learners = [role for role in left if role.startswith("learner")]
    for chain in (["validator", "featurizer", "scorer"], ["joiner", *learners]):
        if len(chain) > 1 and all(role in left for role in chain):
            left[left.index(chain[0])] = "+".join(dict.fromkeys(role.partition(":")[0] for role in chain))
            left = [role for role in left if role not in chain]
    return left


def starting_order(names: Iterable[str]) -> list[str]:
    """Return roles in the order in which they are started: the monitor first, which takes longest.

    Forks are made as soon as what they need is imported, so that they start while the next is imported. The monitor
    imports what it alone needs by itself, beside us.
    """
    return sorted(names, key=lambda name: name != "monitor")


def name_of(role: str) -> str:
    """Return the name of a role's process: `learner-logreg` of `learner:logreg`."""
    return role.replace(":", "-")


def _name(role: str, instance: str) -> str:
    return role if instance == "0" else f"{role}#{instance}"


class Stack:
    """The services of one pipeline as processes.

    Parameters
    ----------
    reference
        The pipeline, as commands take it.
    chosen
        TIDEMILL_* without the prefix, for every process (brokers, redis_url, ...).
    forks
        Whether processes are forks of this one, which has to have no threads when it starts them: they start sooner,
        and share what it has imported. Else each is `tidemill run`.
    """

    def __init__(
        self,
        reference: str,
        pipeline: Pipeline,
        folder: Path,
        chosen: Mapping[str, object],
        *,
        forks: bool = False,
    ) -> None:
        self.reference, self.pipeline, self.folder, self.forks = reference, pipeline, folder, forks
        make_keys(folder / "keys", tuple(KEY_OWNERS))
        self.env = {
            "TIDEMILL_VERIFY_KEYS": str(folder / "keys" / VERIFY_FILE),
            "TIDEMILL_STORE_URL": str(folder / "artifacts"),
            "TIDEMILL_ARCHIVE_URL": str(folder / "archive"),
            "PYTHONHASHSEED": "0",
            **{f"TIDEMILL_{name.upper()}": str(value) for name, value in chosen.items()},
        }
        self.launcher, self.spawn = [sys.executable, "-m", "tidemill.cli"], spawn
        self.processes: dict[str, Process] = {}
        self.ports: dict[str, int] = {}

    @property
    def operator_env(self) -> Mapping[str, str]:
        """What commands get that sign, as `models rebuild` does: every service's private key."""
        return {"TIDEMILL_SIGNING_KEY": str(self.folder / "keys"), **self.env}

    def start(self, role: str, instance: str = "0") -> Process:
        """Start one process; a further instance of a service has a name of its own."""
        name = _name(role, instance)
        port = self.ports.setdefault(name, free_port())
        if self.forks:
            for service in {*role.partition(":")[0].split("+")} - {"monitor"}:
                running.load(service)
            share_memory()
            output = self.output(role)
            try:
                self.processes[name] = fork(partial(self._serve, role, instance), output)
            finally:
                os.close(output)
        else:
            service, _, model = role.partition(":")
            command = [*self.launcher, "run", service, self.reference, "--instance", instance, "--http-port", str(port)]
            if model:
                command += ["--model", model]
            self.processes[name] = self.spawn(command, self.log(role), self.env_of(service, self.addresses()))
        return self.processes[name]

    def env_of(self, service: str, addresses: Mapping[str, str]) -> Mapping[str, str]:
        """Return what a service has in its environment; `addresses` are those of the others."""
        env = self.env
        if set(service.split("+")) & {*SIGNERS} and "TIDEMILL_SIGNING_KEY" not in env:
            env = {**env, "TIDEMILL_SIGNING_KEY": str(self.folder / "keys")}
        if service == "status":
            env = {**env, "TIDEMILL_SERVICES": json.dumps(addresses)}
        return env

    def output(self, role: str) -> int:
        """Return a file descriptor for what a forked process prints."""
        return os.open(self.log(role), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def member(self, role: str, addresses: Mapping[str, str], instance: str = "0") -> Member:
        """Return what a service is run with; settings are read from this process's environment, which it changes."""
        service, _, model = role.partition(":")
        os.environ.update(self.env_of(service, addresses))
        chosen = settings.load(instance=instance, http_port=self.ports[_name(role, instance)])
        return Member(service, model or None, chosen)

    def _serve(self, role: str, instance: str) -> int:
        """In a fork: run a service, and return the exit code; what is wrong is logged."""
        try:
            service, model, chosen = self.member(role, self.addresses(), instance)
            logs.setup(name_of(role), chosen.log_level)
            running.run(service, self.pipeline, chosen, model)
        except TidemillError as error:
            log.critical(str(error), extra={"error": type(error).__name__})
            return GIVEN_UP if isinstance(error, FOR_A_PERSON) else 1
        except Exception:
            log.critical("service failed", exc_info=True)
            return 1
        return 0

    def log(self, role: str) -> Path:
        """Return where a process writes its log lines."""
        return self.folder / f"{name_of(role)}.log"

    def addresses(self) -> dict[str, str]:
        """Return the HTTP address of each process, by name."""
        return {name_of(role): f"http://127.0.0.1:{port}" for role, port in self.ports.items() if role != "status"}

    def start_all(self, *, watched: bool = False) -> None:
        """Start every process of the pipeline; `watched`: also the watchers."""
        for role in starting_order([*roles(self.pipeline), *(WATCHING if watched else ())]):
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
