"""Every Prometheus metric, in one place: typed, in base units, with closed label sets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

RECORDS = Counter("tidemill_records_total", "Records read and handled.", ["service"])
BATCH = Histogram("tidemill_step_seconds", "Time a step took for one batch.", ["service"], buckets=_SECONDS)
COMMIT = Histogram("tidemill_commit_seconds", "Time a commit took, views included.", ["service"], buckets=_SECONDS)
DELAY = Histogram(
    "tidemill_delay_seconds",
    "Age, since its producer sent it, of the oldest record of a batch.",
    ["service"],
    buckets=(*_SECONDS, 30.0, 60.0, 300.0),
)
RETRIES = Counter("tidemill_retries_total", "Times the loop went back to what is committed.", ["service"])
REBUILT = Counter("tidemill_rebuilt_records_total", "Records read again to rebuild state.", ["service"])
LAG = Gauge("tidemill_lag_records", "Records behind the end, by partition.", ["service", "topic", "partition"])
REFUSED = Counter(
    "tidemill_signed_records_refused_total",
    "Signed records that are not obeyed, by reason: damaged, forged, expired_key, foreign, old, forked or gap.",
    ["topic", "reason"],
)
HEARTBEAT = Gauge("tidemill_heartbeat_seconds", "Unix time of the loop's last turn.", ["service"])

COUNTS: Mapping[str, Counter] = {
    "dead_letters": Counter("tidemill_dead_letters_total", "Dead letters, by reason.", ["service", "reason"]),
    "warnings": Counter("tidemill_warnings_total", "Records that a rule has warned of, by rule.", ["service", "rule"]),
    "promoted": Counter(
        "tidemill_promoted_total", "Whole numbers taken where a float is declared.", ["service", "field"]
    ),
    "implausible_timestamps": Counter(
        "tidemill_implausible_timestamps_total",
        "Records without a Kafka timestamp, or with one that is negative or over an hour ahead.",
        ["service", "topic"],
    ),
    "rekeyed": Counter(
        "tidemill_rekeyed_total",
        "Raw records sent again to the partition of their key, because another instance of a chain has it.",
        ["service", "topic"],
    ),
    "old_timestamps": Counter(
        "tidemill_old_timestamps_total",
        "Records dated so far back that their topic's retention may delete them before they are read.",
        ["service", "topic"],
    ),
    "unwrapped": Counter(
        "tidemill_unwrapped_total",
        "Change events without a record, by kind: delete, tombstone, ...",
        ["service", "kind"],
    ),
    "lost_records": Counter(
        "tidemill_lost_records_total", "Committed offsets the log no longer held.", ["service", "topic"]
    ),
    "stale_vectors": Counter(
        "tidemill_stale_vectors_total", "Vectors served while a view could not be read.", ["service", "view"]
    ),
    "tile_too_old": Counter("tidemill_late_events_total", "Events older than their view keeps.", ["service", "view"]),
    "view_writes": Counter(
        "tidemill_view_writes_total", "Writes to the online store, by outcome.", ["service", "outcome"]
    ),
    "joined": Counter("tidemill_joined_total", "Predictions that met their label.", ["service", "topic"]),
    "corrected": Counter(
        "tidemill_corrections_total",
        "Corrections of labels: of the joiner those that it has written, by topic; of others those they have read.",
        ["service", "of"],
    ),
    "expired": Counter("tidemill_expired_total", "Predictions whose label never came in time.", ["service", "topic"]),
    "model_loads": Counter("tidemill_model_loads_total", "Model versions loaded, by outcome.", ["service", "outcome"]),
    "not_finite": Counter(
        "tidemill_not_finite_total", "Values that were no finite number, by what they were.", ["service", "what"]
    ),
    "skipped": Counter(
        "tidemill_skipped_total", "Records and shadow scores passed over, by reason.", ["service", "reason"]
    ),
    "decisions": Counter("tidemill_decisions_total", "Decisions about who serves, by kind.", ["service", "kind"]),
    "snapshots": Counter("tidemill_snapshots_total", "Model versions published.", ["service", "model"]),
    "stopped": Counter(
        "tidemill_model_stops_total",
        "Times a learner found its model diverged or not to be saved.",
        ["service", "model"],
    ),
    "archived": Counter("tidemill_archived_rows_total", "Rows written to the archive.", ["service", "topic"]),
    "notices": Counter("tidemill_notices_total", "Notices that a receiver has taken.", ["service", "receiver"]),
    "notice_failures": Counter(
        "tidemill_notice_failures_total", "Times that a receiver has not taken a notice.", ["service", "receiver"]
    ),
    "undelivered": Counter(
        "tidemill_notices_undelivered_total",
        "Notices given up: too old, refused, or too many that wait.",
        ["service", "receiver"],
    ),
    "not_stored": Counter(
        "tidemill_versions_not_stored_total", "Model versions the artifact store did not take.", ["service", "model"]
    ),
}
GAUGES: Mapping[str, Gauge] = {
    "pending": Gauge(
        "tidemill_pending", "Predictions that wait for their label, by partition.", ["service", "partition"]
    ),
    "notices_waiting": Gauge("tidemill_notices_waiting", "Notices that wait for a receiver.", ["service", "receiver"]),
    "waiting_labels": Gauge(
        "tidemill_waiting_labels", "Labels that wait for their prediction.", ["service", "partition"]
    ),
    "entities": Gauge("tidemill_entities", "Entities held in memory, by view.", ["service", "view"]),
    "view_event_time": Gauge(
        "tidemill_view_event_time_seconds",
        "Event time, Unix, of the newest event that is held, by view.",
        ["service", "view"],
    ),
    "view_behind": Gauge("tidemill_view_behind", "1 while the online store can't be written.", ["service", "view"]),
    "model_version": Gauge("tidemill_model_version", "Examples offset of the model in use.", ["service", "model"]),
    "unopened": Gauge(
        "tidemill_model_unopened",
        "1 while a model's newest version can't be opened: the version in use stays, or the model does not answer.",
        ["service", "model"],
    ),
    "serving_version": Gauge("tidemill_serving_version", "Version of the champion, by model.", ["service", "model"]),
    "trial_questions": Gauge(
        "tidemill_trial_questions",
        "Questions in which a challenger is held to the champion.",
        ["service", "challenger"],
    ),
    "stopped": Gauge(
        "tidemill_model_stopped",
        "1 while no version is published because of what the model scores.",
        ["service", "model"],
    ),
    "without_number": Gauge(
        "tidemill_metrics_without_number",
        "Declared metrics of which the model's newest version has no figure: its log says why.",
        ["service", "model"],
    ),
    "examples": Gauge("tidemill_examples_learned", "Examples the model has learned.", ["service", "model"]),
}
HISTOGRAMS: Mapping[str, Histogram] = {
    "feature_age": Histogram(
        "tidemill_feature_age_seconds",
        "Age in event time, by view, of the oldest features of each batch of vectors: one observation a batch.",
        ["service", "view"],
        buckets=(1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0, 604_800.0),
    ),
}


WINDOWS = Counter("tidemill_windows_total", "Windows closed, by whether they are complete.", ["source", "state"])
WINDOW_LATE = Counter(
    "tidemill_window_late_records_total", "Records that came after their window was closed.", ["source"]
)
WINDOW_END = Gauge("tidemill_window_end_seconds", "Event time, Unix, of the end of the last closed window.", ["source"])
WINDOW_FIGURE = Gauge(
    "tidemill_window_figure",
    "Figures of the last closed window: metrics, calibration, drift, delays; of freshness, `feature` is the view.",
    ["source", "figure", "model", "feature"],
)
WINDOW_SEGMENT = Gauge(
    "tidemill_window_segment", "Metrics of the last closed window by segment.", ["figure", "model", "segment"]
)
ALERTS_OPEN = Gauge("tidemill_alerts_open", "Open alerts.", ["kind", "model", "feature"])
STORED_BYTES = Gauge(
    "tidemill_stored_artifact_bytes",
    "Bytes of a model's artifacts in the store, its candidates' among them.",
    ["model"],
)
STORED_VERSIONS = Gauge(
    "tidemill_stored_versions",
    "Versions of a model whose artifact is in the store, its candidates' among them.",
    ["model"],
)
PRUNED = Counter("tidemill_artifacts_pruned_total", "Artifacts that the learner deleted by the retention.", ["model"])
ACCESS_DROPPED = Counter(
    "tidemill_access_records_dropped_total", "Records of the access log that Kafka did not take.", ["service"]
)
STATUS_REFUSED = Counter("tidemill_status_refused_total", "Requests that the status service refused.", ["reason"])


def count_refused(reason: str) -> None:
    """Count a request that the status service refused; `reason` is from a closed set."""
    STATUS_REFUSED.labels(reason).inc()


GATEWAY_REQUESTS = Counter("tidemill_gateway_requests_total", "Requests, by route and code.", ["route", "code"])
GATEWAY_SECONDS = Histogram(
    "tidemill_gateway_request_seconds", "Time from request to answer, by route.", ["route"], buckets=_SECONDS
)
GATEWAY_RECORDS = Counter(
    "tidemill_gateway_records_total",
    "Events and labels that came in, by what became of them as far as the gateway saw.",
    ["stream", "state"],
)
GATEWAY_UNANSWERED = Gauge("tidemill_gateway_unanswered", "Events sent whose prediction has not come.", ["service"])
GATEWAY_REFUSED = Counter("tidemill_gateway_refused_total", "Requests that the gateway refused, by reason.", ["reason"])


class ServiceMetrics:
    """The metrics of every service."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._records = RECORDS.labels(service)
        self._heartbeat = HEARTBEAT.labels(service)
        self._lagging: set[tuple[str, int]] = set()

    def records(self, records: int) -> None:
        """Count records."""
        self._records.inc(records)

    def heartbeat(self) -> None:
        """Say that it goes on."""
        self._heartbeat.set(time.time())

    def lag(self, behind: Mapping[Any, int]) -> None:
        """Set how far behind each (topic, partition) is; those that are not ours any more have no lag."""
        for topic, partition in self._lagging - behind.keys():
            LAG.remove(self.service, topic, str(partition))
        for (topic, partition), records in behind.items():
            LAG.labels(self.service, topic, str(partition)).set(records)
        self._lagging = set(behind)


class LoopMetrics(ServiceMetrics):
    """The loop's own metrics, bound to one service; costs one call a batch, never one a record."""

    def __init__(self, service: str) -> None:
        super().__init__(service)
        self._batch = BATCH.labels(service)
        self._commit = COMMIT.labels(service)
        self._delay = DELAY.labels(service)
        self._retries = RETRIES.labels(service)
        self._rebuilt = REBUILT.labels(service)

    def batch(self, records: int, seconds: float) -> None:
        """Count one batch."""
        self.records(records)
        self._batch.observe(seconds)

    def commit(self, seconds: float) -> None:
        """Count one commit."""
        self._commit.observe(seconds)

    def delay(self, seconds: float) -> None:
        """Note how old the oldest record of a batch was."""
        self._delay.observe(max(0.0, seconds))

    def retry(self) -> None:
        """Count one return to what is committed."""
        self._retries.inc()

    def rebuilt(self, records: int) -> None:
        """Count records read again."""
        self._rebuilt.inc(records)

    def counts(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add what a step counted."""
        for (name, label), n in counts.items():
            COUNTS[name].labels(self.service, label).inc(n)

    def observed(self, values: Mapping[tuple[str, str], float]) -> None:
        """Observe what a step measured, once each."""
        for (name, label), value in values.items():
            HISTOGRAMS[name].labels(self.service, label).observe(value)

    def gauges(self, levels: Mapping[tuple[str, str], float]) -> None:
        """Set what a step measures."""
        for (name, label), level in levels.items():
            GAUGES[name].labels(self.service, label).set(level)


class MonitorMetrics(ServiceMetrics):
    """The monitor's own metrics: what the last windows were like."""

    def __init__(self) -> None:
        super().__init__("monitor")
        self._open: set[tuple[str, str, str]] = set()
        self._figures: dict[str, set[tuple[str, str, str, str]]] = {}

    def window(self, source: str, end: int, late: int, *, complete: bool) -> None:
        """Count one closed window; `end` in ms of event time."""
        WINDOWS.labels(source, "complete" if complete else "interrupted").inc()
        WINDOW_LATE.labels(source).inc(late)
        WINDOW_END.labels(source).set(end / 1000)

    def figures(self, source: str, figures: Mapping[tuple[str, str, str, str], float]) -> None:
        """Set the figures of the last window of a source, by (name, model, segment, feature); others it has no more."""
        for name, model, segment, feature in self._figures.get(source, set()) - figures.keys():
            if segment:
                WINDOW_SEGMENT.remove(name, model, segment)
            else:
                WINDOW_FIGURE.remove(source, name, model, feature)
        for (name, model, segment, feature), value in figures.items():
            if segment:
                WINDOW_SEGMENT.labels(name, model, segment).set(value)
            else:
                WINDOW_FIGURE.labels(source, name, model, feature).set(value)
        self._figures[source] = set(figures)

    def alerts(self, counts: Mapping[tuple[str, str, str], int]) -> None:
        """Set how many alerts are open, by (kind, model, feature)."""
        for labels in self._open - counts.keys():
            ALERTS_OPEN.remove(*labels)
        for labels, count in counts.items():
            ALERTS_OPEN.labels(*labels).set(count)
        self._open = set(counts)
