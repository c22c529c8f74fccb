"""The demo's figures: read from the pipeline's topics, as any consumer could, without asking a service."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Any

from river.utils import Rolling

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import Scorecard, metric_names
from tidemill.encoding.codec import HEADER
from tidemill.registry.decisions import ModelRef
from tidemill.stream.api import Record
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.origin import origin_of
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetter, read_dead_letter
from tidemill.wire.records import Records, newness

ROLLING = 2000
READ = (
    topics.EVENTS_VALID,
    topics.LABELS_VALID,
    topics.DLQ,
    topics.FEATURES,
    topics.PREDICTIONS,
    topics.PREDICTION_LOG,
    topics.EXAMPLES,
    topics.EXPIRED,
    topics.MODELS,
    topics.UPDATES,
    topics.PROMOTIONS,
    topics.ALERTS,
)


class Observer(threading.Thread):
    """Counts and measures, in a thread of its own; its attributes may be read at any time."""

    def __init__(self, broker: KafkaBroker, pipeline: Pipeline) -> None:
        super().__init__(name="observer", daemon=True)
        self.pipeline, self.records = pipeline, Records(pipeline)
        self._suffix = {topic.name(pipeline): topic.suffix for topic in READ}
        self._reader = broker.follow_topics(list(self._suffix))
        self._stop_asked = threading.Event()
        self._metrics_lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.dead_letters: Counter[str] = Counter()
        self.last_letters: dict[str, str] = {}
        self.versions: deque[tuple[str, int, int]] = deque(maxlen=200)
        self.latest: dict[str, Any] = {}
        self.decision: dict[str, Any] | None = None
        #: What a person would want to hear of as it happens; whoever prints it takes it out.
        self.news: deque[str] = deque()
        self.last_letter: DeadLetter | None = None
        self.delays: list[float] = []
        self.first_prediction_at = 0.0
        self.last_change = time.monotonic()
        self.metrics = {name: Scorecard(pipeline.metric()) for name in pipeline.model_names}
        self.rolling = {
            name: Scorecard(
                [Rolling(m, window_size=ROLLING) for m in pipeline.metric()], metric_names(pipeline.metric())
            )
            for name in pipeline.model_names
        }
        self.course: list[dict[str, float]] = []
        self.error: Exception | None = None

    def run(self) -> None:
        """Read until `stop`."""
        try:
            while not self._stop_asked.is_set():
                for record in self._reader.poll():
                    self._take(record)
                    self.last_change = time.monotonic()
            self._reader.close()
        except Exception as error:  # raised by the thread that waits for this one
            self.error = error

    def stop(self) -> None:
        """Stop reading."""
        self._stop_asked.set()
        if self.is_alive():
            self.join(5)

    def _take(self, record: Record) -> None:
        suffix = self._suffix[record.topic()]
        self.counts[suffix] += 1
        value = record.value() or b""
        if suffix == topics.PREDICTIONS.suffix:
            now = time.time()
            if not self.first_prediction_at:
                self.first_prediction_at = now
            self.delays.append(now - origin_of(record) / 1000)
        elif suffix == topics.EXAMPLES.suffix:
            if example := self.records.example.of(value):
                self._update(example)
        elif suffix == topics.DLQ.suffix:
            self.last_letter = letter = read_dead_letter(record)
            self.dead_letters[letter.reason] += 1
            self.last_letters[letter.reason] = letter.message
        elif suffix == topics.MODELS.suffix:
            manifest = self.records.manifest.record(value[HEADER:])
            if not self.latest:
                self.news.append(
                    f"the first learned version: {manifest['model']} after {manifest['examples']:,} examples"
                )
            self.latest[manifest["model"]] = manifest
            self.versions.append((manifest["model"], manifest["version"], manifest["examples"]))
        elif suffix == topics.PROMOTIONS.suffix:
            self._decided(self.records.decision.of(value))
        elif suffix == topics.ALERTS.suffix:
            alert = self.records.alert.of(value)
            if alert and alert["state"] == "opened":
                self.news.append(f"alert: {alert['message']}")

    def _decided(self, decision: dict[str, Any] | None) -> None:
        if decision is None:
            return
        if decision["champion"] != decision["before"]:
            now, before = ModelRef(**decision["champion"]), ModelRef(**decision["before"])
            examples = f"{decision['examples']:,} examples"
            self.news.append(f"the gate, after {examples}: {now} serves instead of {before}: {decision['why']}")
        self.decision = decision

    def _update(self, example: Any) -> None:
        prediction, kind = example["prediction"], self.pipeline.kind
        # A model may answer as two versions, one on probation or pinned: the newest counts. Candidates have no row.
        scores = sorted((prediction["champion"], *prediction["challengers"]), key=newness)
        for name, score in {score["model"]: score for score in scores if score["model"] in self.metrics}.items():
            judged = kind.judged(score["score"], score["probabilities"], score["answered"])
            with self._metrics_lock:
                for scorecard in (self.metrics[name], self.rolling[name]):
                    scorecard.update(example["label"], judged)
        if self.counts[topics.EXAMPLES.suffix] % 100 == 0:
            self.course.append({name: list(of.values().values())[1] for name, of in self.rolling.items()})

    @property
    def champion(self) -> ModelRef:
        """The model that serves now."""
        return ModelRef(**self.decision["champion"]) if self.decision else ModelRef(self.pipeline.champion)

    @property
    def pending(self) -> int:
        """Predictions that still wait for their label."""
        c, dead = self.counts, self.dead_letters["duplicate_event"]
        return c[topics.PREDICTION_LOG.suffix] - c[topics.EXAMPLES.suffix] - c[topics.EXPIRED.suffix] - dead

    @property
    def unlearned(self) -> int:
        """Examples that are not yet in a version of every model."""
        learned: list[int] = [self.latest.get(name, {}).get("examples", 0) for name in self.pipeline.model_names]
        return self.counts[topics.EXAMPLES.suffix] - min(learned)

    def waiting(self, sent: int) -> int:
        """Return how many of the events and labels that were sent are on their way to a prediction or to the joiner."""
        c = self.counts
        judged = c[topics.EVENTS_VALID.suffix] + c[topics.LABELS_VALID.suffix] + c[topics.DLQ.suffix]
        return sent - judged + c[topics.EVENTS_VALID.suffix] - c[topics.PREDICTIONS.suffix]

    def values(self) -> dict[str, dict[str, float]]:
        """Return every model's metrics over all examples."""
        with self._metrics_lock:
            return {name: scorecard.values() for name, scorecard in self.metrics.items()}

    def delay_ms(self, share: float) -> float:
        """Return a quantile of the delay from event sent to prediction read, in ms."""
        delays = sorted(self.delays)
        return round(delays[min(len(delays) - 1, int(share * len(delays)))] * 1000, 1) if delays else float("nan")
