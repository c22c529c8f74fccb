"""What the pipeline's topics hold now: windows, alerts, versions, decisions, dead letters."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import BrokerError
from tidemill.keys import Keyring, RefusedError
from tidemill.offline.lookup import public_manifest
from tidemill.registry.alerts import alerts
from tidemill.registry.decisions import decisions
from tidemill.registry.latest import restore_latest
from tidemill.registry.manifests import manifest_codec
from tidemill.registry.signing import Chains, SignedCodec
from tidemill.stream.api import Record
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.consumer import KafkaFollower
from tidemill.wire import dead_letters, topics
from tidemill.wire.personal import Mask
from tidemill.wire.records import Records

log = logging.getLogger(__name__)

#: The topics that are read, and with how many of their latest records reading starts; see `restore_latest`.
START_RECORDS = {
    topics.WINDOWS: 2000,
    topics.ALERTS: 5000,
    topics.MODELS: 2000,
    topics.PROMOTIONS: 1000,
    topics.DLQ: 1000,
}
#: Windows kept of each source.
MAX_WINDOWS = 400
MAX_LETTERS = 200
#: Signed records kept that were refused, for people: why, and where they are.
MAX_REFUSED = 100
MAX_RESOLVED_ALERTS = 20
MAX_DECISIONS = 1000
#: Combinations of reason, rule and field that dead letters are counted by; further ones are counted as "others".
MAX_REASONS = 200


class TopicFollower:
    """Reads the topics in a thread of its own. Other threads take `lock` to read its fields."""

    def __init__(self, broker: KafkaBroker, pipeline: Pipeline, keys: Keyring | None) -> None:
        self._thread = threading.Thread(target=self.run, name="follower", daemon=True)
        self.broker, self.pipeline, self.records = broker, pipeline, Records(pipeline)
        self.lock = threading.Lock()
        self.windows: dict[str, dict[int, dict[str, Any]]] = {}
        self.alerts: dict[str, dict[str, Any]] = {}
        self.resolved: deque[dict[str, Any]] = deque(maxlen=MAX_RESOLVED_ALERTS)
        self.manifests: dict[str, dict[str, Any]] = {}
        self.versions: dict[tuple[str, int], dict[str, Any]] = {}
        self.decisions: deque[dict[str, Any]] = deque(maxlen=MAX_DECISIONS)
        self.letters: deque[dict[str, Any]] = deque(maxlen=MAX_LETTERS)
        self.reasons: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.letter_count = 0
        self.refused: deque[dict[str, Any]] = deque(maxlen=MAX_REFUSED)
        self.error: str | None = "not read yet"
        #: Set once it is known whether the topics can be read.
        self.has_tried = threading.Event()
        self._handlers = {
            topics.WINDOWS.name(pipeline.name): self._window,
            topics.DLQ.name(pipeline.name): self._letter,
        }
        signed: tuple[tuple[SignedCodec[Any], Callable[[dict[str, Any]], None]], ...] = (
            (alerts(pipeline, keys), self._alert),
            (manifest_codec(pipeline, keys), self._manifest),
            (decisions(pipeline, keys), self._decision),
        )
        self._signed = {codec.topic: (codec, handler) for codec, handler in signed}
        self._chains: dict[str, Chains[Any]] = {}
        self._ending = threading.Event()

    def start(self) -> None:
        """Start to read."""
        self._thread.start()

    def run(self) -> None:
        """Read until `stop`. While Kafka can't be read, `error` says why, and reading is tried again."""
        reader: KafkaFollower | None = None
        starts = {topic.name(self.pipeline): records for topic, records in START_RECORDS.items()}
        while not self._ending.is_set():
            try:
                if reader is None:
                    missing = [name for name in starts if not self.broker.partitions(name)]
                    if missing:
                        raise BrokerError(f"no topic {', '.join(missing)}")
                    for name in self._signed:
                        self._restore(name, starts[name])
                    reader = self.broker.follow_topics(list(starts), starts)
                    self.error = None
                    self.has_tried.set()
                for record in reader.poll(2000, 0.2):
                    with self.lock:
                        self._handle(record)
                self.error = None
            except BrokerError as error:
                self.error = str(error)
                self.has_tried.set()
                if reader is not None:
                    reader.close()
                    reader = None
                self._ending.wait(1.0)
        if reader is not None:
            reader.close()

    def stop(self) -> None:
        """Read no more."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _restore(self, topic: str, last: int) -> None:
        """Read the latest records of a topic whose records are signed, and the newest; `_handle` passes over them."""
        codec, handler = self._signed[topic]
        chains = Chains(codec, self._refuse)
        contents, _ = restore_latest(self.pipeline, self.broker, topic, chains, last)
        with self.lock:
            self._chains[topic] = chains
            for content in contents:
                handler(_fields(content, verified=codec.keys is not None))

    def _refuse(self, record: Record, error: RefusedError) -> None:
        refused = {"topic": record.topic(), "offset": record.offset(), "reason": error.reason, "why": str(error)}
        if refused not in self.refused:
            self.refused.appendleft(refused)

    def _handle(self, record: Record) -> None:
        try:
            if record.topic() not in self._signed:
                self._handlers[record.topic()](record)
                return
            content = self._chains[record.topic()].take(record)
            if content is not None:
                codec, handler = self._signed[record.topic()]
                handler(_fields(content, verified=codec.keys is not None))
        except Exception as error:  # one bad record must not stop the others
            log.error(
                "record can't be read",
                extra={"topic": record.topic(), "offset": record.offset(), "cause": repr(error)},
            )

    def _window(self, record: Record) -> None:
        window = self.records.window.of(record.value())
        if window is None:
            return
        windows = self.windows.setdefault(window["source"], {})
        previous = windows.get(window["start"])
        # A monitor that was interrupted may write a window twice: the one with more records counts.
        if previous is None or window["records"] >= previous["records"]:
            windows[window["start"]] = window
        while len(windows) > MAX_WINDOWS:
            del windows[min(windows)]

    def _alert(self, alert: dict[str, Any]) -> None:
        known = self.alerts.get(alert["id"])
        if alert["state"] == "acknowledged":
            if known:
                known |= {"acknowledged": True, "by": alert["by"], "why": alert["message"]}
        elif alert["state"] == "resolved":
            self.alerts.pop(alert["id"], None)
            self.resolved.appendleft(alert | {"acknowledged": False, "by": ""})
        else:
            acknowledgement = {name: known[name] for name in ("acknowledged", "by", "why")} if known else {}
            self.alerts[alert["id"]] = alert | {"acknowledged": False, "by": "", "why": ""} | acknowledgement

    def _manifest(self, manifest: dict[str, Any]) -> None:
        version, newest = public_manifest(manifest), self.manifests.get(manifest["model"], {})
        if (manifest["epoch"], manifest["version"]) >= (newest.get("epoch", 0), newest.get("version", 0)):
            self.manifests[manifest["model"]] = version
        self.versions[manifest["model"], manifest["version"]] = version
        while len(self.versions) > START_RECORDS[topics.MODELS]:
            del self.versions[next(iter(self.versions))]

    def _decision(self, decision: dict[str, Any]) -> None:
        self.decisions.append(decision)

    @property
    def champion(self) -> tuple[str, int]:
        """The serving model, and the version it is pinned at, or 0 where it serves as it learns."""
        with self.lock:
            champion = self.decisions[-1]["champion"] if self.decisions else {}
        model = champion.get("model", "")
        return (model, champion["version"]) if self.pipeline.knows(model) else (self.pipeline.champion, 0)

    @property
    def candidates(self) -> list[str]:
        """Models that score besides the declared ones: copies of them that learn from a later example on."""
        with self.lock:
            last = self.decisions[-1] if self.decisions else {}
        names = (last["champion"]["model"], last["on_probation_against"]["model"], last["candidate"]) if last else ()
        undeclared = (name for name in dict.fromkeys(names) if name not in self.pipeline.model_names)
        return [name for name in undeclared if self.pipeline.knows(name)]

    @property
    def pinned(self) -> bool:
        """Whether a person has pinned the champion, so that the gate decides nothing."""
        with self.lock:
            last = self.decisions[-1] if self.decisions else None
        return last is not None and last["pinned"] and self.pipeline.knows(last["champion"]["model"])

    def decision_on(self, command: str) -> dict[str, Any] | None:
        """Return the decision that a command led to, or None so far."""
        with self.lock:
            return next((decision for decision in self.decisions if decision["command"] == command), None)

    def _letter(self, record: Record) -> None:
        letter = letter_as_dict(record, self.records.mask)
        self.letters.appendleft(letter)
        self.letter_count += 1
        key = (letter["reason"], letter["rule"], letter["field"])
        if key not in self.reasons and len(self.reasons) >= MAX_REASONS:
            key = ("others", "", "")
        total = self.reasons.setdefault(key, {"reason": key[0], "rule": key[1], "field": key[2], "count": 0})
        total |= {"count": total["count"] + 1, "last_message": letter["message"], "last_at": letter["at"]}

    def latest(self, source: str, last: int = MAX_WINDOWS) -> list[dict[str, Any]]:
        """Return the last windows of a source, oldest first."""
        with self.lock:
            windows = self.windows.get(source, {})
            return [windows[start] for start in sorted(windows)[-last:]]


def _fields(content: Any, *, verified: bool = False) -> dict[str, Any]:
    """Return what is shown of a signed record; `verified` is whether its signature was checked."""
    fields = content if isinstance(content, dict) else dataclasses.asdict(content)
    return {name: value for name, value in fields.items() if name != "signature"} | {"verified": verified}


def letter_as_dict(record: Record, mask: Mask | None = None) -> dict[str, Any]:
    """Return a dead letter for the page; `at` is when it was refused."""
    letter = dead_letters.read_dead_letter(record)
    letter = mask.letter(letter) if mask else letter
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
    shown = {name: getattr(letter, name) for name in names}
    for name, value in shown.items():
        if isinstance(value, str):  # a key, as a producer's own header, is as long as whoever wrote it wanted
            shown[name] = dead_letters.shorten(value, dead_letters.MAX_MESSAGE_CHARACTERS)
    return {"at": letter.refused_at, "letter": str(letter.place)} | shown
