"""Processes that end with the one that starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidemill.runtime.worker import die_with_parent


def free_port() -> int:
    """Return a TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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


def end(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """Stop a process, and kill it when it does not stop."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
