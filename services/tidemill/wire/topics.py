"""Every topic of a pipeline, in one table: key, record, partitions, retention, writers, readers."""

from __future__ import annotations

from collections.abc import Mapping

from tidemill.stream.topic import DAY, MAX_RECORD_BYTES, Named, Topic

#: The services of the data plane, along the river.
SERVICES = ("validator", "featurizer", "materializer", "scorer", "joiner", "learner", "gate")
#: Those that a prediction waits for.
WAITED_FOR = ("validator", "featurizer", "materializer", "scorer")
#: The services that only look on; one process of each a pipeline.
WATCHING = ("archiver", "monitor", "status")
#: Tells others' programs and people what the river says; one process a pipeline, where somebody is to be told.
NOTIFYING = ("notifier",)
#: The services at the edge, which others' programs ask; as many processes as are needed.
SERVING = ("gateway",)
#: Those with an HTTP interface for others, which has their probes as well.
WITH_INTERFACE = ("status", *SERVING)
#: Every service.
ALL = (*SERVICES, *WATCHING, *NOTIFYING, *SERVING)
#: Those that keep offsets and their progress.
KEEPING_PROGRESS = (*SERVICES, "archiver", *NOTIFYING)
#: Others' programs, and the command that sends dead letters back.
APPLICATIONS = ("producers", "consumers", "redrive")
#: Who else writes or reads: those, who audits, and `tidemill forget`.
OUTSIDE = (*APPLICATIONS, "auditor", "forget")


EVENTS = Topic(
    "events", "any", "event", ("producers", "redrive", "gateway"), ("validator", "gateway"),
    doc="Events as producers send them.",
)  # fmt: skip
LABELS = Topic(
    "labels", "any", "label", ("producers", "redrive", "gateway"), ("validator",),
    doc="Labels as producers send them.",
)  # fmt: skip
EVENTS_VALID = Topic(
    "events.valid", "entity_id", "event", ("validator",), ("featurizer",), retention_ms=30 * DAY,
    max_message_bytes=MAX_RECORD_BYTES, erasable=True, doc="Events that passed; what the views are rebuilt from.",
)  # fmt: skip
LABELS_VALID = Topic(
    "labels.valid", "event_id", "label", ("validator",), ("joiner",), retention_ms=30 * DAY,
    max_message_bytes=MAX_RECORD_BYTES, joined=True, erasable=True, doc="Labels that passed.",
)  # fmt: skip
DLQ = Topic(
    "dlq", "as received", "bytes as received",
    ("validator", "featurizer", "scorer", "joiner"), ("monitor", "status", "redrive", "gateway"),
    retention_ms=30 * DAY, max_message_bytes=MAX_RECORD_BYTES,
    erasable=True, doc="Dead letters: the original bytes; why, in the headers.",
)  # fmt: skip
WARNINGS = Topic(
    "warnings", "stream", "Warnings", ("validator",), ("monitor", "notifier"), partitions=1,
    retention_ms=30 * DAY,
    doc="What rules that only warn have found, batch by batch; and that a circuit breaker is open.",
)  # fmt: skip
REDRIVES = Topic(
    "redrives", "letter", "Redrive", ("redrive",), ("redrive",), partitions=1, retention_ms=-1,
    doc="Which dead letters went back; for ever, so that none goes back twice, however long it is kept.",
)  # fmt: skip
UPDATES = Topic(
    "updates", "entity:entity_id", "Update", ("featurizer", "joiner"), ("materializer",), retention_ms=30 * DAY,
    max_message_bytes=MAX_RECORD_BYTES,
    erasable=True, doc="Events and outcomes by each entity that views are kept of; what those views are rebuilt from.",
)  # fmt: skip
FEATURES = Topic(
    "features", "entity_id", "Features", ("featurizer",), ("scorer",),
    max_message_bytes=MAX_RECORD_BYTES, passing=True, erasable=True,
    doc="The vector, as served; not written in a chain.",
)  # fmt: skip
PREDICTIONS = Topic(
    "predictions", "entity_id", "Prediction", ("scorer",), ("consumers", "gateway"),
    max_message_bytes=MAX_RECORD_BYTES, doc="For consumers.",
)  # fmt: skip
PREDICTION_LOG = Topic(
    "prediction-log", "event_id", "PredictionLog", ("scorer",), ("joiner", "archiver", "monitor"),
    retention_ms=30 * DAY, max_message_bytes=MAX_RECORD_BYTES, joined=True,
    erasable=True, doc="Vector, scores, versions: all that it takes to do a prediction again.",
)  # fmt: skip
EXAMPLES = Topic(
    "examples", "event_id", "Example", ("joiner",), ("learner", "gate", "archiver", "monitor"),
    partitions=1, retention_ms=-1, max_message_bytes=MAX_RECORD_BYTES,
    erasable=True,
    doc="What models learn from, in one order; a model's version is an offset here. Corrections of labels, too.",
)  # fmt: skip
EXPIRED = Topic(
    "expired", "event_id", "PredictionLog", ("joiner",), ("monitor",),
    max_message_bytes=MAX_RECORD_BYTES, erasable=True, doc="Predictions whose label never came in time.",
)  # fmt: skip
MODELS = Topic(
    "models", "model", "Manifest", ("learner",), ("scorer", "learner", "gate", "monitor", "status"),
    partitions=1, retention_ms=-1, max_message_bytes=MAX_RECORD_BYTES,
    erasable=True, doc="The registry: the signed manifest of every version.",
)  # fmt: skip
COMMANDS = Topic(
    "commands", "command", "Command", ("status",), ("gate", "monitor"), partitions=1, retention_ms=365 * DAY,
    doc="What people ask of the gate: promote, roll back, pin, train, reset; signed by the status service.",
)  # fmt: skip
PROMOTIONS = Topic(
    "promotions", "id", "Decision", ("gate",), ("scorer", "learner", "gate", "monitor", "status", "notifier"),
    partitions=1, retention_ms=-1,
    doc="Who serves, since when, by whose word and on what evidence; what was refused, as well.",
)  # fmt: skip
WINDOWS = Topic(
    "windows", "source", "Window", ("monitor",), ("status",), partitions=1, retention_ms=90 * DAY,
    doc="What predictions and examples were like, window by window of event time.",
)  # fmt: skip
ALERTS = Topic(
    "alerts", "alert", "Alert", ("monitor", "status"), ("monitor", "gate", "status", "notifier"),
    partitions=1, retention_ms=365 * DAY,
    doc="What is beyond its limits: opened, continuing, resolved; with the evidence.",
)  # fmt: skip

ACCESS = Topic(
    "access", "by", "Access", ("status", "gateway"), ("auditor",), partitions=1, retention_ms=365 * DAY,
    doc="Who has read or commanded what, by the status service or the gateway, and how that was answered.",
)  # fmt: skip

FORGOTTEN = Topic(
    "forgotten", "request", "Forgetting", ("forget",), ("forget", "auditor"), partitions=2, retention_ms=-1,
    doc="Requests to forget entities, and what came of them; signed. It has hashes of their ids, and none of the ids. "
    "What is in its second partition says to services that records were erased.",
)  # fmt: skip

PROGRESS = Topic(
    "progress", "group/topic/partition", "JSON", KEEPING_PROGRESS, KEEPING_PROGRESS,
    partitions=2, retention_ms=-1, compacted=True,
    doc="How far each group has come, in one transaction with its output: what is left when its offsets are lost. One "
    "partition is of the services that a prediction waits for, one of the others.",
)  # fmt: skip

TOPICS: tuple[Topic, ...] = (
    EVENTS, LABELS, EVENTS_VALID, LABELS_VALID, DLQ, REDRIVES, WARNINGS, UPDATES, FEATURES, PREDICTIONS, PREDICTION_LOG,
    EXAMPLES, EXPIRED, MODELS, COMMANDS, PROMOTIONS, WINDOWS, ALERTS, ACCESS, FORGOTTEN, PROGRESS,
)  # fmt: skip

#: What a service reads besides when it is asked: a prediction with its event, its models and its outcome; and the
#: models that would answer.
LOOKED_INTO: Mapping[str, tuple[Topic, ...]] = {
    "status": (PREDICTION_LOG, EVENTS_VALID, EXAMPLES, EXPIRED, MODELS),
    "gateway": (PREDICTION_LOG, EVENTS_VALID, EXAMPLES, EXPIRED, MODELS, PROMOTIONS),
    "auditor": (
        EVENTS,
        LABELS,
        EVENTS_VALID,
        LABELS_VALID,
        DLQ,
        REDRIVES,
        PREDICTION_LOG,
        EXAMPLES,
        EXPIRED,
        MODELS,
        COMMANDS,
        PROMOTIONS,
        WINDOWS,
        ALERTS,
    ),
}


def erasable(pipeline: Named, *, is_declared: bool) -> frozenset[str]:
    """Return the names of the topics of which single records can be erased: none unless that is declared."""
    return frozenset(topic.name(pipeline) for topic in TOPICS if topic.erasable and is_declared)


def reads(service: str) -> tuple[Topic, ...]:
    """Topics that `service` consumes."""
    return tuple(topic for topic in TOPICS if service in topic.readers)


def writes(service: str) -> tuple[Topic, ...]:
    """Topics that `service` produces to."""
    return tuple(topic for topic in TOPICS if service in topic.writers)


def consumes(service: str) -> tuple[Topic, ...]:
    """Topics that the consumer group of `service` follows. It reads the others without a group."""
    apart = (PROGRESS,) if service in NOTIFYING else (MODELS, PROMOTIONS, PROGRESS)
    return tuple(topic for topic in reads(service) if topic not in apart)


def outputs(service: str) -> tuple[Topic, ...]:
    """Topics that `service` alone writes: a record there shows that it has worked."""
    return tuple(topic for topic in TOPICS if topic.writers == (service,))
