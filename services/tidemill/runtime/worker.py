"""What a service is to the operating system: a worker, and the process beside it that starts the worker again.

The first process imports everything, opens nothing, and forks; the fork is the service. Where a signal kills that one (memory
ran out, a client library crashed, somebody's kill -9), the next is forked at once and needs none of the two seconds that
Python takes to import River. A worker that ends by itself ends the first process with its code, for whether that is to be
started again is the orchestrator's decision; and so does one that is killed again and again as soon as it has started.
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
SOON_SECONDS = 5.0
"""A worker that is killed sooner than this after its start was perhaps killed by what it does then."""
MOST_SOON = 3
"""How many of those in a row are started again."""


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """In a child: have the kernel send it this signal when the process that started it ends, however that happens."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def become_worker() -> None:
    """Fork, and return in the worker only; the process that called stays behind and ends when its last worker has.

    To be called when everything is imported and before any thread or connection is made. Off Linux, where a worker could
    outlive its parent, it returns at once and the process itself is the worker.
    """
    if sys.platform == "linux":
        gc.collect()
        gc.freeze()  # what is shared stays shared
        _Guard().run()


class _Guard:
    """The first process: it waits for its worker, and hands on the signals that ask for an end."""

    def __init__(self) -> None:
        self.worker = 0
        self.asked_to_end = False
        self._before = {number: signal.getsignal(number) for number in FORWARDED}

    def run(self) -> None:
        """Return in the worker; in the guard, only start workers and end."""
        soon = 0
        while True:
            began = time.monotonic()
            if not self._fork():
                return
            _, status = os.waitpid(self.worker, 0)
            if os.WIFEXITED(status):
                os._exit(os.WEXITSTATUS(status))
            number = os.WTERMSIG(status)
            soon = soon + 1 if time.monotonic() - began < SOON_SECONDS else 0
            if self.asked_to_end or soon > MOST_SOON:
                _end_by(number)
            log.error("killed; started again", extra={"signal": signal.Signals(number).name, "worker": self.worker})

    def _fork(self) -> bool:
        """Return whether this is the guard. Signals wait meanwhile, so that none falls between two processes."""
        guard = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            if self.asked_to_end:
                _end_by(signal.SIGTERM)
            self.worker = os.fork()
            if self.worker == 0:
                die_with_parent(signal.SIGKILL)
                if os.getppid() != guard:
                    os._exit(1)
            for number in FORWARDED:
                signal.signal(number, self._forward if self.worker else self._before[number])
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        return self.worker != 0

    def _forward(self, number: int, _: object) -> None:
        self.asked_to_end = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.worker, number)


def _end_by(number: int) -> NoReturn:
    """End as the worker ended, so that whoever started us learns of it."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
