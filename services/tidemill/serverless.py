"""What predicts as a function, for a platform that calls with a batch of messages: `handle(records) -> answers`.

The validator's, the featurizer's and the scorer's own steps do the work, as in a chain, so an event has the score that
the river gives it. What a function can't keep is the river's: nothing is written, so there is no log, no label meets a
prediction, and a batch that the platform repeats is answered again.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tidemill.declare.load import load
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stages.scorer.service import Scorer
from tidemill.stages.validator.service import Validator
from tidemill.stream.api import Headers, Position, Record, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.wire import topics
from tidemill.wire.dead_letters import read_dead_letter

if TYPE_CHECKING:
    from tidemill.stages.scorer.feed import Ready

Answer = dict[str, Any]


class Handler:
    """A pipeline's predictions as a function of a batch; one process calls it from one thread.

    Parameters
    ----------
    pipeline
        A declared pipeline, or what names one: a file, a module, or a shipped pipeline.
    take
        Returns model versions that are ready, as the scorer's feed does; by default those of the registry that the
        settings name, which needs Kafka, the store and the keys as the scorer does.
    forgets
        For a pipeline with views, or rules that remember: they begin empty in every process, and know what this one
        was given. Without it such a pipeline is refused, for its vectors would not be the river's.

    Raises SettingsError, or DeclarationError where the pipeline can't be loaded.

    Examples
    --------
    >>> from tidemill.serverless import Handler
    >>> handle = Handler("plain", take=tuple, forgets=True)
    >>> [answer["reason"] for answer in handle([b'{"flight_id": 1}'])]
    ['wrong_type']
    """

    def __init__(
        self, pipeline: Pipeline | str, take: Callable[[], Sequence[Ready]] | None = None, *, forgets: bool = False
    ) -> None:
        self.pipeline = declared = pipeline if isinstance(pipeline, Pipeline) else load(str(pipeline))
        if not forgets and (kept := _kept(declared)):
            raise SettingsError(
                f"pipeline {declared.name!r} has {kept}, which a function does not keep: run its services, or say "
                f"forgets=True to have them begin empty in every process"
            )
        self._topic, self._numbers = topics.EVENTS.name(declared), 0
        self._predictions, self._dlq = topics.PREDICTIONS.name(declared), topics.DLQ.name(declared)
        validator, featurizer = Validator(declared, fuse=False), Featurizer(declared)
        self._scorer = scorer = Scorer(declared, _feed(declared) if take is None else take)
        for records in (validator.records, featurizer.records, scorer.records):
            records.carries = True
        valid = topics.EVENTS_VALID.name(declared)
        self._steps = {self._topic: validator, valid: featurizer, topics.FEATURES.name(declared): scorer}
        validator.assign(TopicPartition(self._topic, 0), Position(0))
        featurizer.assign(TopicPartition(valid, 0), Position(0))
        featurizer.truncated(TopicPartition(valid, 0))  # what came before this process is not known here
        scorer.swap()

    def __call__(self, events: Iterable[Record | bytes | None]) -> list[Answer]:
        """Return what becomes of each event, in their order: its prediction, or why it is refused.

        An event is a message's value as a producer sends it, or a record with headers and timestamp. Raises Retry where
        the serving model can't be opened: the platform is to repeat the batch.
        """
        return [self._handle(event) for event in events]

    def _handle(self, event: Record | bytes | None) -> Answer:
        self._numbers += 1
        given = MemoryRecord("", event) if isinstance(event, bytes) or event is None else event
        answer: Answer = {"state": "skipped"}

        def emit(
            topic: str,
            value: bytes,
            key: bytes | None = None,
            timestamp: int = 0,
            headers: Headers | None = None,
            partition: int = -1,
        ) -> None:
            del partition
            record = MemoryRecord(topic, value, key, timestamp, headers, 0, self._numbers)
            if topic in self._steps:
                self._steps[topic].process((record,), emit)
            elif topic == self._predictions:
                answer.update({"state": "predicted", **(self._scorer.records.read_prediction(value) or {})})
            elif topic == self._dlq:
                letter = read_dead_letter(record)
                words = {"reason": letter.reason, "rule": letter.rule, "field": letter.field, "message": letter.message}
                answer.update({"state": "refused", "service": letter.stage, **words})

        first = MemoryRecord(
            self._topic, given.value(), given.key(), given.timestamp()[1], given.headers(), 0, self._numbers
        )
        self._steps[self._topic].process((first,), emit)
        return answer


def aws_records(event: Mapping[str, Any]) -> list[Record]:
    """Return the records that AWS Lambda is called with by its event source for Kafka, partition by partition."""
    return [
        MemoryRecord(
            one["topic"],
            base64.b64decode(one["value"]) if one.get("value") is not None else None,
            base64.b64decode(one["key"]) if one.get("key") is not None else None,
            int(one.get("timestamp", 0)),
            [(name, bytes(value)) for header in one.get("headers") or () for name, value in header.items()],
            int(one["partition"]),
            int(one["offset"]),
        )
        for batch in event["records"].values()
        for one in batch
    ]


def _kept(pipeline: Pipeline) -> str:
    """Return what of a pipeline is made of earlier events, in words; nothing where each stands for itself."""
    from tidemill.stages.validator.rule_check import RuleState

    kept = [view.label for view in pipeline.views]
    remembers = bool(RuleState(pipeline.events, pipeline.event_checks))
    words = [f"views ({', '.join(kept)})"] if kept else []
    return " and ".join([*words, *(["rules that remember"] if remembers else [])])


def _feed(pipeline: Pipeline) -> Callable[[], Sequence[Ready]]:
    """Follow the registry that the settings name, as the scorer does."""
    from tidemill import settings
    from tidemill.runtime.run import connected, registry_of
    from tidemill.stages.scorer.feed import ModelFeed

    chosen = settings.load()
    broker = connected(pipeline, chosen, topics.MODELS, topics.PROMOTIONS)
    feed = ModelFeed(registry_of(pipeline, chosen), broker)
    feed.start()
    return feed.take
