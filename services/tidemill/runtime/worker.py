"""A service's two processes: the worker, and its parent, which forks a new worker when a signal kills the old one.

The parent imports everything, opens nothing, and forks; the fork is the service. When a signal kills the worker (out of
memory, a crash in a client library, kill -9), the parent forks the next one at once, without the two seconds that
Python takes to import River. When the worker exits by itself, the parent exits with its code: whether to start it again
is the orchestrator's decision. The parent also ends when workers are repeatedly killed soon after their start.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import time
from typing import NoReturn

log = logging.getLogger(__name__)

FORWARDED = (signal.SIGTERM, signal.SIGINT)
#: A worker that is killed sooner than this after its start was perhaps killed by what it does at its start.
EARLY_SECONDS = 5.0
#: How many early kills in a row are followed by a new worker.
MAX_EARLY_KILLS = 3


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent ends, for whatever reason."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def become_worker() -> None:
    """Fork, and return in the worker only; the calling process stays as the parent, and ends after its last worker.

    Call it when everything is imported, and before the first thread or connection. On systems other than Linux, where a
    worker could outlive its parent, it returns at once, and the process itself is the worker.
    """
    if sys.platform == "linux":
        gc.collect()
        gc.freeze()  # so that parent and worker keep sharing memory
        _Parent().run()


class _Parent:
    """The first process: it waits for its worker, and forwards the signals that ask it to end."""

    def __init__(self) -> None:
        self.worker = 0
        self.is_ending = False
        self._handlers_before = {number: signal.getsignal(number) for number in FORWARDED}

    def run(self) -> None:
        """Return in the worker; in the parent, start workers, and exit."""
        early_kills = 0
        while True:
            started = time.monotonic()
            if not self._fork():
                return
            _, status = os.waitpid(self.worker, 0)
            if os.WIFEXITED(status):
                os._exit(os.WEXITSTATUS(status))
            number = os.WTERMSIG(status)
            early_kills = early_kills + 1 if time.monotonic() - started < EARLY_SECONDS else 0
            if self.is_ending or early_kills > MAX_EARLY_KILLS:
                _end_by(number)
            log.error(
                "worker was killed; starting another",
                extra={"signal": signal.Signals(number).name, "worker": self.worker},
            )

    def _fork(self) -> bool:
        """Fork; return whether this is the parent. Signals are blocked meanwhile, so that none is lost."""
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            if self.is_ending:
                _end_by(signal.SIGTERM)
            self.worker = os.fork()
            if self.worker == 0:
                die_with_parent(signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(1)
            for number in FORWARDED:
                signal.signal(number, self._forward if self.worker else self._handlers_before[number])
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        return self.worker != 0

    def _forward(self, number: int, _: object) -> None:
        self.is_ending = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.worker, number)


def _end_by(number: int) -> NoReturn:
    """End as the worker ended, so that the orchestrator sees the signal."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
