"""What may come from outside, and how much of it: every limit in one table.

A limit bounds what one record, request, connection, schema or expression of somebody else's may cost. None of them is a
setting: they are far above what a pipeline needs. The reference page "Limits" is made of this table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """At most `max` of `unit` in one `subject`; `then` says what happens to one that has more."""

    subject: str
    max: int
    unit: str
    then: str

    def excess(self, value: int, name: str = "") -> str:
        """Return what is wrong with one that has `value`, which is more than `max`; `name` says which one it is."""
        shown = f"{self.subject} {name}" if name else self.subject
        return f"{shown} has {value:,} {self.unit} where at most {self.max:,} are allowed"


#: The largest magnitude of a float field, of a number feature that a function or a table returns, and of a label that
#: is a number.
#:
#: Squares and sums of such values stay finite, and with them windows, scalers and gradients: 1e308 is finite and its
#: square is not, and one infinity leaves a model NaN for ever. It is also about where a double stops counting in steps
#: that matter (a quarter at 1e15, one at 9e15), so hardly anything that is measured lies beyond.
LARGEST_NUMBER = 1e15

# Messages of producers.
MESSAGE_BYTES = Limit("message", 1_000_000, "bytes", "dead letter `too_large`, before it is decoded")

MESSAGE_MEMORY_BYTES = Limit(
    "message", 100_000_000, "bytes of memory at worst, decoded by its schema,", "dead letter `too_large`"
)
ID_CHARACTERS = Limit("id or entity in field", 500, "characters", "dead letter `too_long`")
TEXT_CHARACTERS = Limit("text in field", 10_000, "characters", "dead letter `too_long`")
VECTOR_BYTES = Limit("vector", 900_000, "bytes, encoded,", "dead letter `too_large` of the featurizer")
PREDICTION_BYTES = Limit(
    "prediction with its vector and all scores", 1_900_000, "bytes, encoded,", "dead letter `too_large` of the scorer"
)
DEAD_LETTER_BYTES = Limit(
    "dead letter",
    2_000_000,
    "bytes",
    "its value is cut, and its headers `tidemill.cut` and `tidemill.sha256` have the size and the hash that it had",
)

# Schemas that messages name, and those of a declaration.
SCHEMA_DEPTH = Limit("schema", 16, "nested records, arrays and maps", "its messages are dead letters, or `check` fails")
SCHEMA_FIELDS = Limit(
    "schema, with each named record written out where it is used,",
    10_000,
    "fields",
    "its messages are dead letters, or `check` fails",
)

# Connections to a service's /livez, /readyz and /metrics.
PROBE_CONNECTIONS = Limit("service", 128, "connections", "the oldest that has not sent its request is closed")
PROBE_SECONDS = Limit("connection to /livez, /readyz or /metrics", 5, "seconds", "it is closed")
PROBE_HEAD_BYTES = Limit("request to /livez, /readyz or /metrics", 16_384, "bytes", "answer 431")

# The status service.
STATUS_CONNECTIONS = Limit("status service", 600, "connections", "the one that has kept it waiting longest is closed")
STATUS_SECONDS = Limit(
    "request to the status service", 10, "seconds to be sent, or its answer to be read", "it is closed"
)
STATUS_HEAD_BYTES = Limit("request to the status service", 16_384, "bytes before its body", "answer 400")
STATUS_BODY_BYTES = Limit("request to the status service", 16_384, "bytes in its body", "answer 413")
STATUS_GUESSERS = Limit("status service", 1000, "clients with wrong tokens remembered", "the oldest is forgotten")
STATUS_STREAMS = Limit("status service", 100, "open pages", "answer 503")
STATUS_STREAMS_OF_CLIENT = Limit("client of the status service", 50, "open pages", "answer 503")
LOG_LOOKUPS = Limit("status service", 3, "look-ups in the log at once", "answer 503")
LOG_LOOKUP_SECONDS = Limit("look-up in the log", 20, "seconds", "answer 504")
ENTITY_LOOKUPS = Limit("status service", 10, "look-ups in the online store at once", "answer 503")
STATUS_CHANGES = Limit("status service", 5, "commands and acknowledgements at once", "answer 503")
STATUS_COMMANDS = Limit("status service", 1000, "commands whose ids are remembered", "the oldest is left to the gate")

# The gateway.
GATEWAY_CONNECTIONS = Limit("gateway", 2_000, "connections", "the one that has kept it waiting longest is closed")
GATEWAY_BODY_BYTES = Limit("request to the gateway", 10_000_000, "bytes in its body", "answer 413")
GATEWAY_BODIES_BYTES = Limit("gateway", 200_000_000, "bytes of bodies at once", "answer 503 with Retry-After")
GATEWAY_RECORDS = Limit("request to the gateway", 10_000, "records", "answer 413")
GATEWAY_QUESTIONS = Limit("request to the gateway", 1_000, "events to predict, or entities", "answer 413")
GATEWAY_UNANSWERED = Limit("gateway", 5_000, "events sent and not answered", "answer 503 with Retry-After")
GATEWAY_IDS = Limit("gateway", 100_000, "event ids remembered, with their answers", "the oldest are left to the log")
GATEWAY_STREAMS = Limit("gateway", 100, "open streams of predictions", "answer 503")
GATEWAY_STREAM_RECORDS = Limit("stream of predictions", 1_000, "predictions not read yet", "it ends")
GATEWAY_HEADER_CHARACTERS = Limit("Idempotency-Key", 200, "characters", "answer 400")

# Versions of models, in the artifact store and in MLflow's.
ARTIFACT_BYTES = Limit("artifact", 1_000_000_000, "bytes", "it is not read, and no version with more is published")
REPLACEMENT_BYTES = Limit("copy of a manifest beside an artifact", 2_000_000, "bytes", "it is not read")

SNAPSHOT_ITEMS = Limit("range, or array of ones, in a snapshot", 10_000, "numbers", "it is not opened")
SNAPSHOT_BITS = Limit("fraction in a snapshot", 10_000, "bits in a number", "it is not opened")

# Keys and names.
KEY_FILE_BYTES = Limit("key file", 1_000_000, "bytes", "the service or command ends")
TOKEN_CHARACTERS = Limit("token", 512, "characters", "it opens nothing, and who is given it does not start")
#: Names of topics, groups and files are made of them: Kafka takes 249 characters, file systems 255.
NAME_CHARACTERS = Limit("name of a pipeline or model", 100, "characters", "`check` fails")

# What is read over HTTP and from files.
SCRAPE_BYTES = Limit("answer of a service", 16_000_000, "bytes", "the service is shown as down")
NOTICE_ANSWER_BYTES = Limit("answer to a webhook", 4_096, "bytes", "no more is read")
SCRAPE_SECONDS = Limit("answer of a service", 2, "seconds", "the service is shown as down")
REGISTRY_BYTES = Limit("answer of a schema registry", 16_000_000, "bytes", "the registry counts as away")
REGISTRY_SECONDS = Limit("answer of a schema registry", 10, "seconds", "the registry counts as away")
SCHEMA_BYTES = Limit("schema in a registry", 1_000_000, "bytes", "its messages are dead letters")
SCHEMA_VERSIONS = Limit("subject in a registry", 1_000, "versions", "the oldest are not read")
UNZIPPED_BYTES = Limit("packed file", 4_000_000_000, "bytes", "the command or `check` fails")

# Rules.
PATTERN_BYTES = Limit("pattern of `rules.matches`", 8 << 20, "bytes of memory, compiled", "`check` fails")


def table() -> dict[str, Limit]:
    """Return every limit by its name."""
    return {name: value for name, value in globals().items() if isinstance(value, Limit)}
