"""Processes that end with the one that starts them."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tidemill.errors import BrokerError
from tidemill.runtime.worker import die_with_parent

#: Linux gives outgoing connections ports from 32,768 on, others from 49,152 on.
PORTS = range(20_000, 32_768)


class Process(Protocol):
    """A child: one that was started, or one that was forked."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Forked:
    """A child made by `fork`, with the methods of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code once it has ended. Raises TimeoutExpired."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("fork", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def share_memory() -> None:
    """Have forks keep sharing what is loaded by now. Call it when all is imported, before the first fork."""
    import gc

    gc.collect()
    gc.freeze()


def fork(work: Callable[[], int], output: int) -> Forked:
    """Run `work` in a child, which ends with its return value, when this process ends, or with 1 where it raises.

    What it prints goes to the file descriptor `output`. It has a session of its own, so that Ctrl-C reaches only us.
    A fork has only the thread that forks: call it before there are others, for a lock that one of them holds stays
    locked in the child. Raises RuntimeError where there are.
    """
    if threading.active_count() > 1:
        raise RuntimeError(f"a fork would lose the threads {', '.join(t.name for t in threading.enumerate()[1:])}")
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return Forked(pid)
    code = 1
    try:
        die_with_parent(signal.SIGKILL)
        if os.getppid() == parent:
            _become_own(output)
            code = work()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def clear_up_if_killed(folder: Path) -> Callable[[], None]:
    """Say so where this process is killed, and delete the folder; call what is returned where it ends by itself.

    Whoever does that is no child of ours, and waits until all who were forked from us are gone as well.
    """
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(reading)
        os.waitpid(child, 0)

        def end_by_itself() -> None:
            os.write(writing, b".")
            os.close(writing)

        return end_by_itself
    os.setsid()
    for number in (*ENDING, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not os.fork():
        os.close(writing)
        if not os.read(reading, 1):
            with contextlib.suppress(OSError):
                os.write(2, b"tidemill up was killed; all that it had started has ended with it\n")
            shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _become_own(output: int) -> None:
    """In a fork: let go of what is the parent's."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (*ENDING, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


_given_ports: set[int] = set()


def free_port() -> int:
    """Return a TCP port that nothing listens on. Raises BrokerError where all are taken.

    It is chosen at random below the ports that systems give to outgoing connections: one of those may be taken by a
    client between this answer and the service that is to listen there.
    """
    first = secrets.randbelow(len(PORTS))
    # Who was given a port may not listen yet.
    ports: list[int] = sorted((*PORTS[first:], *PORTS[:first]), key=_given_ports.__contains__)
    for port in ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            _given_ports.add(port)
            return port
    raise BrokerError(f"no port of {PORTS.start} to {PORTS.stop - 1} is free")


ENDING = (signal.SIGINT, signal.SIGTERM)


def spawn(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process of its own session, so that Ctrl-C reaches only us, with its output in the file `log`."""
    # Python drops what a signal handler raises during a fork: block signals until the process has started.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        with log.open("ab") as out:
            return subprocess.Popen(  # noqa: S603  our own commands
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env=None if env is None else {**os.environ, **env},
                preexec_fn=_begin,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """In the child: end with the parent, and receive signals."""
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def end(process: Process, patience: float = 10.0) -> None:
    """Stop a process, and kill it when it does not stop."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
