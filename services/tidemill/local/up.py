"""`tidemill up`: everything that a pipeline needs, on this machine, until it is asked to stop.

One process imports what the services need, forks each of them, reads what they print, and starts one that has ended
again. It has no threads and no clients, which a fork would break: what it needs to ask, a fork asks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill import logs
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError, TidemillError
from tidemill.keys import KEY_OWNERS, make_keys
from tidemill.local.console import Console, ConsoleHandler
from tidemill.local.processes import Process, clear_up_if_killed, end, fork, free_port
from tidemill.local.replay import Reading, send_all
from tidemill.local.servers import Redis, create_topics, embedded_settings, start_broker, start_embedded
from tidemill.local.stack import GIVEN_UP, Stack, chained, name_of, roles, starting_order
from tidemill.runtime import run as running
from tidemill.runtime.host import Host
from tidemill.runtime.together import Together
from tidemill.security import Secured
from tidemill.settings import RUNNING_FILE, Settings, as_text
from tidemill.tokens import new_token
from tidemill.wire.topics import NOTIFYING, SERVING, WATCHING, WITH_INTERFACE

#: Pauses before an ended service is started again, the next longer than the one before.
RESTART_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
#: One that has run for this long begins with the shortest pause again.
WELL_SECONDS = 60.0
#: How long all may take to end before they are killed.
STOP_SECONDS = 12.0
POLL_SECONDS = 0.05
#: How often models publish versions, where that is not set: people watch it.
SNAPSHOT_SECONDS = 1.0
#: Where the page is.
PAGE_PORT = 8000
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Options:
    """What `tidemill up` was asked for.

    Parameters
    ----------
    only, without
        Services that are started, all where none is named; and those that are not.
    port
        The page's port.
    apart
        A process for each service, also where several could share one.
    """

    only: Sequence[str] = ()
    without: Sequence[str] = ()
    port: int = PAGE_PORT
    apart: bool = False


@dataclass
class _State:
    """How one process is doing."""

    started_at: float = 0.0
    is_ready: bool = False
    failures: int = 0
    restart_at: float = 0.0
    is_given_up: bool = False


@dataclass
class _Pipe:
    """What a process prints, as it comes."""

    name: str
    begun: bytes = b""


class Piped(Stack):
    """A stack whose processes print into pipes."""

    def __init__(
        self, reference: str, pipeline: Pipeline, folder: Path, chosen: Mapping[str, object], *, forks: bool = True
    ) -> None:
        super().__init__(reference, pipeline, folder, chosen, forks=forks)
        self.pipes: dict[int, _Pipe] = {}

    def output(self, role: str) -> int:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self.pipes[reading] = _Pipe(name_of(role))
        return writing


def chosen_roles(
    pipeline: Pipeline, only: Sequence[str], without: Sequence[str], *, notifies: bool = False
) -> list[str]:
    """Return the roles to start; `notifies`: also the notifier. Raises SettingsError for a service it has not."""
    known = [*roles(pipeline), *WATCHING, *(NOTIFYING if notifies else ()), *SERVING]
    services = [role.partition(":")[0] for role in known]
    for name in (*only, *without):
        if name not in known and name not in services:
            expected = ", ".join(dict.fromkeys(services))
            raise SettingsError(f"no service {name!r} in pipeline {pipeline.name!r}: expected one of {expected}")

    def fits(role: str, names: Sequence[str]) -> bool:
        return role in names or role.partition(":")[0] in names

    chosen = [role for role in known if (not only or fits(role, only)) and not fits(role, without)]
    if not chosen:
        raise SettingsError("no service is left to start: see --only and --without")
    return chosen


def check_port(port: int, what: str, option: str) -> None:
    """Raise SettingsError where something listens on this port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SettingsError(
                f"port {port} for {what} is taken ({(error.strerror or str(error)).lower()}): stop what uses it, or "
                f"name another with {option}"
            ) from None


def lock_running_file() -> int:
    """Return the open file in which it is noted what runs in this folder. Raises SettingsError where something does."""
    try:
        RUNNING_FILE.parent.mkdir(exist_ok=True)
        file = os.open(RUNNING_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingsError(
            "`tidemill up` runs in this folder already: stop that one, or start this one in another folder"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"{RUNNING_FILE} can't be written: {error.strerror}; start it in a folder of yours"
        ) from None
    return file


def write_running_file(file: int, settings: Mapping[str, str]) -> None:
    """Note where what runs in this folder is."""
    os.ftruncate(file, 0)
    os.pwrite(file, "".join(f"{name}={value}\n" for name, value in settings.items()).encode(), 0)


class Local:
    """One pipeline on this machine: what it stands on, and where it is.

    Parameters
    ----------
    messages
        What to send once all is ready, at so many seconds of event time a second.
    """

    def __init__(
        self,
        reference: str,
        pipeline: Pipeline,
        settings: Settings,
        options: Options,
        console: Console,
        messages: Reading | None = None,
        speed: float = 1.0,
    ) -> None:
        self.reference, self.pipeline, self.settings = reference, pipeline, settings
        self.options, self.console, self.messages, self.speed = options, console, messages, speed
        self.roles = chosen_roles(pipeline, options.only, options.without, notifies=bool(settings.receivers()))
        self.began = time.monotonic()
        self.redis: Redis | None = None
        self.embedded = "brokers" not in settings.model_fields_set
        self.services = len(self.roles)
        if not self.embedded and settings.delivery == "exactly_once" and not options.apart:
            self.roles = chained(self.roles)
        self.stack: Piped
        console.is_quiet = "log_level" not in settings.model_fields_set
        console.names([name_of(role) for role in self.roles])

    def run(self) -> int:
        """Start all, and watch over it until it is asked to stop; returns the exit code. Raises a TidemillError."""
        if "status" in self.roles:
            check_port(self.options.port, "the page", "--port")
        running_file = lock_running_file()
        with ExitStack() as cleanup:
            if self.messages is not None:
                cleanup.callback(self.messages.stop)
            cleanup.callback(RUNNING_FILE.unlink, missing_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="tidemill-up-"))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            cleanup.callback(clear_up_if_killed(folder))
            if "redis_url" not in self.settings.model_fields_set:
                self.redis = Redis(folder)
                cleanup.callback(self.redis.stop)
            self.stack = self._stack(folder, self._broker(cleanup))
            write_running_file(running_file, self._for_commands())
            self._run()
        self.console.say("stopped; no process is left")
        return 0

    def _broker(self, cleanup: ExitStack) -> dict[str, object]:
        """Start the embedded broker, or create the topics of the named one; returns the settings for it."""
        raise NotImplementedError

    def _run(self) -> None:
        """Run the services. Raises a TidemillError where they can't."""
        raise NotImplementedError

    def _stack(self, folder: Path, broker: Mapping[str, object]) -> Piped:
        given, chosen = self.settings.model_fields_set, {"log_level": self.settings.log_level, **broker}
        if self.redis:
            chosen["redis_url"] = self.redis.url
        if not self.embedded:  # what a Kafka outlives, its models outlive as well
            chosen |= {name: getattr(self.settings, name) for name in ("store_url", "archive_url", "delivery")}
        if self.settings.http_certificate:  # its services ask each other on this machine alone
            chosen |= {"http_certificate": "", "http_key": ""}
        if "snapshot_seconds" not in given:
            chosen["snapshot_seconds"] = SNAPSHOT_SECONDS
        chosen["status_token"] = self.settings.status_token.get_secret_value() or new_token()
        for name in ("gateway_keys", "gateway_key"):
            chosen[name] = getattr(self.settings, name).get_secret_value()
        chosen["gateway_key"] = chosen["gateway_key"] or new_token()
        chosen |= self._keys()
        stack = Piped(self.reference, self.pipeline, folder, chosen)
        for role in self.roles:
            stack.ports[role] = self._port(role)
        return stack

    def _port(self, role: str) -> int:
        """Return a role's port: the page's is chosen, the gateway's the next one where that is free."""
        if role == "status":
            return self.options.port
        if role == "gateway":
            with contextlib.suppress(SettingsError, OverflowError):
                check_port(self.options.port + 1, "the gateway", "--port")
                return self.options.port + 1
        return free_port()

    def _keys(self) -> dict[str, object]:
        """Return the keys that are set; else, beside a Kafka that outlives this run, those of the folder."""
        chosen = self.settings
        key = chosen.signing_key.get_secret_value()
        if key or "verify_keys" in chosen.model_fields_set:
            return {"verify_keys": chosen.verify_keys, **({"signing_key": key} if key else {})}
        if self.embedded:
            return {}
        folder = Path(chosen.verify_keys).parent.parent
        if not Path(chosen.verify_keys).is_file():
            make_keys(folder, tuple(KEY_OWNERS))
        return {"verify_keys": chosen.verify_keys, "signing_key": folder}

    def _for_commands(self) -> dict[str, str]:
        """Return the settings of commands to what runs here."""
        names = ("BROKERS", "REDIS_URL", "STORE_URL", "ARCHIVE_URL", "VERIFY_KEYS", "DELIVERY")
        secrets = ("STATUS_TOKEN", "GATEWAY_KEY")
        found = {f"TIDEMILL_{name}": self.stack.env.get(f"TIDEMILL_{name}", "") for name in (*names, *secrets)}
        found["TIDEMILL_SIGNING_KEY"] = self.stack.operator_env["TIDEMILL_SIGNING_KEY"]
        found["TIDEMILL_STATUS_URL"] = f"http://localhost:{self.options.port}"
        if "gateway" in self.roles:
            found["TIDEMILL_GATEWAY_URL"] = f"http://localhost:{self.stack.ports['gateway']}"
        for name in Secured.model_fields.keys() & self.settings.model_fields_set:
            if not name.startswith("http_") or name == "http_ca":
                found.setdefault(f"TIDEMILL_{name.upper()}", as_text(getattr(self.settings, name)))
        return {name: value for name, value in found.items() if value}

    def _greet(self, processes: str, metrics: str) -> None:
        """Print where everything is."""
        console, env = self.console, self.stack.env
        console.is_quiet = False
        console.say(
            f"ready in {time.monotonic() - self.began:.1f} s: {self.services} services of {self.pipeline.name} in "
            f"{processes}"
        )
        if "status" in self.roles:
            console.say(f"page     http://localhost:{self.options.port}/")
        if "gateway" in self.roles:
            console.say(f"gateway  http://localhost:{self.stack.ports['gateway']}/v1/predict")
        console.say(f"Kafka    {env['TIDEMILL_BROKERS']}{' (embedded)' if self.embedded else ''}")
        redis = env.get("TIDEMILL_REDIS_URL") or self.settings.redis_url.get_secret_value()
        console.say(f"Redis    {redis.rpartition('@')[2]}")
        console.say(f"metrics  {metrics}")
        console.say("Ctrl-C stops all of it")


class Up(Local):
    """A process for each service, forked from this one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.states: dict[str, _State] = {}
        self.broker: Process | None = None
        self.after: Process | None = None
        self.asked_to_stop = 0
        self.is_ready = False
        self.why = ""
        self._wake_reading, self._wake_writing = os.pipe()
        for end_ in (self._wake_reading, self._wake_writing):
            os.set_blocking(end_, False)

    def run(self) -> int:
        """Start all, and watch over it until it is asked to stop; returns the exit code. Raises a TidemillError."""
        for number in ENDING:
            signal.signal(number, self._ask_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_writing, warn_on_full_buffer=False)
        return super().run()

    def _ask_to_stop(self, *_: object) -> None:
        self.asked_to_stop += 1

    def _broker(self, cleanup: ExitStack) -> dict[str, object]:
        if not self.embedded:
            create_topics(running.broker_of(self.settings), self.pipeline, self.settings.replication)
            return {"brokers": self.settings.brokers}
        self.broker, servers = start_broker(self.pipeline)
        cleanup.callback(end, self.broker)
        return embedded_settings(servers)

    def _run(self) -> None:
        try:
            for role in starting_order(self.roles):
                if not self.asked_to_stop:
                    self._begin(role)
            while not self.asked_to_stop and not self.why:
                self._turn()
        finally:
            self._stop()
        if self.why:
            raise TidemillError(self.why)

    def _begin(self, role: str) -> None:
        state = self.states.setdefault(role, _State())
        state.started_at, state.is_ready, state.restart_at = time.monotonic(), False, 0.0
        self.stack.start(role)

    def _turn(self) -> None:
        self._read(POLL_SECONDS)
        self._reap()
        if self.messages and self.messages.is_done() and self.is_ready and not self.after:
            self.after = self._replay(self.messages)
        now = time.monotonic()
        for role, state in self.states.items():
            if state.restart_at and now >= state.restart_at:
                self._begin(role)
        self._look()

    def _read(self, seconds: float) -> None:
        """Print what processes have printed; wait so long for more."""
        pipes = self.stack.pipes
        readable, _, _ = select.select([*pipes, self._wake_reading], [], [], seconds)
        for descriptor in readable:
            try:
                data = os.read(descriptor, 65_536)
            except BlockingIOError:
                continue
            if descriptor == self._wake_reading:
                continue
            pipe = pipes[descriptor]
            if not data:
                os.close(descriptor)
                del pipes[descriptor]
            *lines, pipe.begun = (pipe.begun + data + (b"" if data else b"\n")).split(b"\n")
            for line in filter(None, lines):
                self.console.line(pipe.name, line.decode(errors="replace"))

    def _reap(self) -> None:
        """Note which processes have ended, and when they are started again."""
        for role, state in self.states.items():
            if state.restart_at or state.is_given_up or (code := self.stack.processes[role].poll()) is None:
                continue
            self._read(0.0)
            now = time.monotonic()
            state.is_ready = False
            ended = f"{name_of(role)} ended {_how(code)}"
            if code == GIVEN_UP:
                state.is_given_up = True
                self.console.say(f"{ended}; it is not started again: another start would not help", "error")
                if not self.is_ready or all(other.is_given_up for other in self.states.values()):
                    self.why = f"{name_of(role)} can't run: the line above says why"
                continue
            state.failures = state.failures + 1 if now - state.started_at < WELL_SECONDS else 1
            pause = RESTART_SECONDS[min(state.failures, len(RESTART_SECONDS)) - 1]
            state.restart_at = now + pause
            self.console.say(f"{ended}; it is started again in {pause:.0f} s", "warning")
        if self.broker is not None and (code := self.broker.poll()) is not None:
            self.why = f"the embedded broker ended {_how(code)}, and what it held is gone: start again"
        if self.redis is not None and (code := self.redis.process.poll()) is not None:
            self.console.say(f"redis ended {_how(code)}; it is started again, and views are written again", "warning")
            self.redis.start()
        if self.after is not None and self.after.poll() is not None:
            if self.messages:
                self.messages.stop()
            self.after = self.messages = None

    def _look(self) -> None:
        """Ask those that are not ready yet whether they are."""
        for role, state in self.states.items():
            if not state.is_ready and not state.restart_at and not state.is_given_up:
                state.is_ready = self.stack.fetch(role, "/readyz")[0] == 200
                if state.is_ready and self.is_ready:
                    self.console.say(f"{name_of(role)} is ready again")
        if not self.is_ready and all(state.is_ready for state in self.states.values()):
            self.is_ready = True
            ports = "  ".join(f"{name_of(role)} :{self.stack.ports[role]}" for role in self.roles if role != "status")
            self._greet(f"{len(self.roles)} processes", f"http://localhost:PORT/metrics  {ports}")

    def _replay(self, messages: Reading) -> Process:
        output = self.stack.output("replay")

        def work() -> int:
            os.environ.update(self.stack.env)
            logs.setup("replay", self.settings.log_level)
            return send_all(messages, self.speed)

        try:
            return fork(work, output)
        finally:
            os.close(output)

    def _stop(self) -> None:
        """End all processes, and kill those that take too long, or all at the second Ctrl-C."""
        ours = [*self.stack.processes.values(), *([self.after] if self.after else [])]
        for process in ours:
            process.terminate()
        until = time.monotonic() + STOP_SECONDS
        while any(process.poll() is None for process in ours):
            self._read(POLL_SECONDS)
            if time.monotonic() > until or self.asked_to_stop > 1:
                for process in ours:
                    process.kill()
        self._read(0.0)


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"with code {code}"


class One(Local):
    """All services in this process, a thread each. When one ends, all end."""

    def _broker(self, cleanup: ExitStack) -> dict[str, object]:
        if not self.embedded:
            broker = running.broker_of(self.settings)
            broker.connect()
            broker.create(running.topic_table(self.pipeline), self.settings.replication)
            return {"brokers": self.settings.brokers}
        embedded = start_embedded(self.pipeline)
        cleanup.callback(lambda: embedded)  # it lives as long as something refers to it
        return embedded_settings(embedded.servers)

    def _run(self) -> None:
        port = free_port()
        addresses = {
            name_of(role): f"http://127.0.0.1:{port}/{name_of(role)}"
            for role in self.roles
            if role not in WITH_INTERFACE
        }
        addresses |= {role: f"http://127.0.0.1:{self.stack.ports[role]}" for role in self.roles if role in SERVING}
        members = {name_of(role): self.stack.member(role, addresses) for role in self.roles}
        handler = ConsoleHandler(self.console, (*members, "replay"))
        logs.send_to(handler, self.settings.log_level)
        group = Together(self.pipeline, members)
        threading.Thread(target=self._when_ready, args=(group, port), name="up", daemon=True).start()
        group.run(port, Host(ENDING))

    def _when_ready(self, group: Together, port: int) -> None:
        apart, messages = [role for role in self.roles if role in WITH_INTERFACE], self.messages
        try:
            while group.ready() or any(self.stack.fetch(role, "/readyz")[0] != 200 for role in apart):
                if group.is_stopping:
                    return
                if messages:
                    messages.is_done()  # a file that can't be read ends it now
                time.sleep(POLL_SECONDS)
            self._greet("one process", f"http://localhost:{port}/metrics")
            while messages and not messages.is_done():
                time.sleep(POLL_SECONDS)
            if messages:
                send_all(messages, self.speed)
                messages.stop()
        except SettingsError as error:
            group.error = error
            group.stop()
