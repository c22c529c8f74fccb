"""`tidemill` with a hook that lets a test stop the process exactly around a produce, a commit or a write.

No service knows of it: only this launcher, which only tests start, puts it in. A test writes a plan
(`{"point": "commit:before", "skip": 3, "action": "kill"}`) and sends SIGUSR1; at the chosen passage of the point the process
writes that it fired, and kills or stops itself with the signal that nothing can catch.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidemill.cli import main as cli
from tidemill.features.redis import RedisView
from tidemill.files import Files
from tidemill.registry.store import ArtifactStore
from tidemill.stream.kafka.producer import KafkaProducer

DURING_SECONDS = 0.002
"""How long after its beginning a call is cut short, for the points `:during`."""


class Hook:
    """Waits for its plan; fires once."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.point = ""
        self.skip = self.fired = 0
        self.action = signal.SIGKILL
        self.writing: dict[str, Any] = {}

    def arm(self, *_: Any) -> None:
        plan = json.loads(self.place.read_text())
        self.skip = plan["skip"]
        self.action = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[plan["action"]]
        self.point = plan["point"]

    def pass_(self, point: str) -> None:
        if point != self.point:
            return
        if self.skip > 0:
            self.skip -= 1
            return
        self.point = ""
        self.fired += 1
        self.say({"fired": point, "at": time.monotonic(), **self.writing})
        os.kill(os.getpid(), self.action)

    def say(self, what: dict[str, Any]) -> None:
        with self.place.with_suffix(".fired").open("a") as out:
            out.write(json.dumps(what) + "\n")

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call` with a point before, within and after it."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.pass_(f"{name}:before")
            if self.point == f"{name}:during":
                threading.Timer(DURING_SECONDS, self.pass_, [f"{name}:during"]).start()
            outcome = call(*arguments, **named)
            self.pass_(f"{name}:after")
            return outcome

        return wrapped


def instrument(hook: Hook) -> None:
    KafkaProducer.emit = hook.around("produce", KafkaProducer.emit)  # type: ignore[method-assign]
    decide = KafkaProducer._decide

    def decided(self: KafkaProducer, doing: str, *arguments: Any) -> None:
        hook.around({"sending offsets": "offsets", "committing": "commit"}[doing], decide)(self, doing, *arguments)

    KafkaProducer._decide = decided  # type: ignore[method-assign]
    write = RedisView.write

    def written(self: RedisView, partition: int, base: int, offset: int, changes: Any, note: str = "") -> str:
        if not changes:  # a look whether the store still holds what it held: nothing that could come too late
            return write(self, partition, base, offset, changes, note)
        fired = hook.fired
        hook.writing = {"key": f"{self.prefix}/partition:{partition}", "offset": offset}
        outcome: str = hook.around("redis", write)(self, partition, base, offset, changes, note)
        hook.writing = {}
        if hook.fired > fired:  # this write was stopped, and went on later
            hook.say({"redis": outcome})
        return outcome

    RedisView.write = written  # type: ignore[method-assign]
    ArtifactStore.put = hook.around("store", ArtifactStore.put)  # type: ignore[method-assign]
    Files.write = hook.around("file", Files.write)  # type: ignore[method-assign]


def main() -> None:
    options = dict(zip(sys.argv, sys.argv[1:], strict=False))
    service = options["run"]
    role = f"{service}:{options['--model']}" if "--model" in options else service
    hook = Hook(Path(os.environ["FAULTS"]) / f"{role}#{options['--instance']}.plan")
    signal.signal(signal.SIGUSR1, hook.arm)
    faulthandler.register(signal.SIGUSR2)  # for who wants to know where it hangs
    instrument(hook)
    cli.main()


if __name__ == "__main__":
    main()
