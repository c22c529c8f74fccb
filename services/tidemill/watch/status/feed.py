"""What the pipeline's topics say, as it is now: windows, alerts, versions, dead letters."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import BrokerError
from tidemill.offline.lookup import shown
from tidemill.stream.api import Record
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.consumer import KafkaFollower
from tidemill.wire import dead_letters as letters
from tidemill.wire import topics
from tidemill.wire.records import Records

log = logging.getLogger(__name__)

LAST = {topics.WINDOWS: 2000, topics.ALERTS: 5000, topics.MODELS: 2000, topics.PROMOTIONS: 1000, topics.DLQ: 1000}
"""Topics that are read, and how many records back they are begun."""
KEPT_WINDOWS, KEPT_LETTERS, KEPT_RESOLVED, KEPT_DECISIONS = 400, 200, 20, 1000
MOST_REASONS = 200


class Feed(threading.Thread):
    """Reads, in a thread of its own; what it knows may be asked at any time."""

    def __init__(self, broker: KafkaBroker, pipeline: Pipeline) -> None:
        super().__init__(name="feed", daemon=True)
        self.broker, self.pipeline, self.records = broker, pipeline, Records(pipeline)
        self.lock = threading.Lock()
        self.windows: dict[str, dict[int, dict[str, Any]]] = {}
        self.alerts: dict[str, dict[str, Any]] = {}
        self.resolved: deque[dict[str, Any]] = deque(maxlen=KEPT_RESOLVED)
        self.manifests: dict[str, dict[str, Any]] = {}
        self.versions: dict[tuple[str, int], dict[str, Any]] = {}
        self.decisions: deque[dict[str, Any]] = deque(maxlen=KEPT_DECISIONS)
        self.letters: deque[dict[str, Any]] = deque(maxlen=KEPT_LETTERS)
        self.reasons: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.counts: Counter[str] = Counter()
        self.trouble: str | None = "not read yet"
        self._take = {
            topics.WINDOWS.name(pipeline.name): self._window,
            topics.ALERTS.name(pipeline.name): self._alert,
            topics.MODELS.name(pipeline.name): self._manifest,
            topics.PROMOTIONS.name(pipeline.name): self._decision,
            topics.DLQ.name(pipeline.name): self._letter,
        }
        self._ending = threading.Event()

    def run(self) -> None:
        """Read until `stop`; what goes wrong is told, and tried again."""
        reader: KafkaFollower | None = None
        last = {topic.name(self.pipeline.name): many for topic, many in LAST.items()}
        while not self._ending.is_set():
            try:
                if reader is None:
                    missing = [name for name in last if not self.broker.partitions(name)]
                    if missing:
                        raise BrokerError(f"no topic {', '.join(missing)}")
                    reader = self.broker.follow_topics(list(last), last)
                for record in reader.poll(2000, 0.2):
                    with self.lock:
                        self._tell(record)
                self.trouble = None
            except BrokerError as error:
                self.trouble = str(error)
                if reader is not None:
                    reader.close()
                    reader = None
                self._ending.wait(1.0)
        if reader is not None:
            reader.close()

    def stop(self) -> None:
        """Read no more."""
        self._ending.set()
        if self.is_alive():
            self.join(5)

    def _tell(self, record: Record) -> None:
        try:
            self._take[record.topic()](record)
        except Exception as error:  # whatever somebody else has written there must not blind everybody
            log.error(
                "a record can't be read",
                extra={"topic": record.topic(), "offset": record.offset(), "cause": repr(error)},
            )

    def _window(self, record: Record) -> None:
        window = self.records.window.of(record.value())
        if window is None:
            return
        kept = self.windows.setdefault(window["source"], {})
        before = kept.get(window["start"])
        # A monitor that was interrupted may tell a window twice: the one that has seen more of it counts.
        if before is None or window["records"] >= before["records"]:
            kept[window["start"]] = window
        while len(kept) > KEPT_WINDOWS:
            del kept[min(kept)]

    def _alert(self, record: Record) -> None:
        alert = self.records.alert.of(record.value())
        if alert is None:
            return
        known = self.alerts.get(alert["id"])
        if alert["state"] == "acknowledged":
            if known:
                known |= {"acknowledged": True, "by": alert["by"], "why": alert["message"]}
        elif alert["state"] == "resolved":
            self.alerts.pop(alert["id"], None)
            self.resolved.appendleft(alert | {"acknowledged": False, "by": ""})
        else:
            said = {name: known[name] for name in ("acknowledged", "by", "why")} if known else {}
            self.alerts[alert["id"]] = alert | {"acknowledged": False, "by": "", "why": ""} | said

    def _manifest(self, record: Record) -> None:
        manifest = self.records.manifest.of(record.value())
        if manifest is None:
            return
        told = shown(manifest)
        self.manifests[manifest["model"]] = told
        self.versions[manifest["model"], manifest["version"]] = told
        while len(self.versions) > LAST[topics.MODELS]:
            del self.versions[next(iter(self.versions))]

    def _decision(self, record: Record) -> None:
        decision = self.records.decision.of(record.value())
        if decision is not None:
            self.decisions.append({name: value for name, value in decision.items() if name != "signature"})

    @property
    def champion(self) -> tuple[str, int]:
        """Who serves: a model, and the version that it is held at, or 0 where it serves as it learns."""
        with self.lock:
            said = self.decisions[-1]["champion"] if self.decisions else {}
        model = said.get("model", "")
        return (model, said["version"]) if self.pipeline.knows(model) else (self.pipeline.champion, 0)

    @property
    def candidates(self) -> list[str]:
        """Models that answer besides the declared ones: copies of them that learn from a later example on."""
        with self.lock:
            said = self.decisions[-1] if self.decisions else {}
        names = (said["champion"]["model"], said["watched"]["model"], said["candidate"]) if said else ()
        beside = (name for name in dict.fromkeys(names) if name not in self.pipeline.model_names)
        return [name for name in beside if self.pipeline.knows(name)]

    @property
    def pinned(self) -> bool:
        """Whether a person holds the champion at its version, and the gate decides nothing."""
        with self.lock:
            said = self.decisions[-1] if self.decisions else None
        return said is not None and said["held"] and self.pipeline.knows(said["champion"]["model"])

    def decided(self, command: str) -> dict[str, Any] | None:
        """Return the decision that a command led to, if it has."""
        with self.lock:
            return next((one for one in self.decisions if one["command"] == command), None)

    def _letter(self, record: Record) -> None:
        letter = shown_letter(record)
        self.letters.appendleft(letter)
        self.counts["dead_letters"] += 1
        key = (letter["reason"], letter["rule"], letter["field"])
        if key not in self.reasons and len(self.reasons) >= MOST_REASONS:
            key = ("others", "", "")
        said = self.reasons.setdefault(key, {"reason": key[0], "rule": key[1], "field": key[2], "count": 0})
        said |= {"count": said["count"] + 1, "last_message": letter["message"], "last_at": letter["at"]}

    def latest(self, source: str, last: int = KEPT_WINDOWS) -> list[dict[str, Any]]:
        """Return the last windows of a source, oldest first."""
        with self.lock:
            kept = self.windows.get(source, {})
            return [kept[start] for start in sorted(kept)[-last:]]


def shown_letter(record: Record) -> dict[str, Any]:
    """Return a dead letter as people are shown it; `at` is when it was refused."""
    letter = letters.letter_of(record)
    names = (
        "stage",
        "topic",
        "partition",
        "offset",
        "reason",
        "rule",
        "field",
        "value",
        "message",
        "key",
        "size",
        "attempt",
    )
    return {"at": letter.refused_at, "letter": str(letter.place)} | {name: getattr(letter, name) for name in names}
