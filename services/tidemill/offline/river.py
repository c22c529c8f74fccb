"""A pipeline's services in memory, each in its own loop: for tests of a declaration, and to measure what it costs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable

from tidemill.declare.pipeline import Pipeline
from tidemill.features.lookup import StoredRemoteViews
from tidemill.features.memory import MemoryReader, MemoryView
from tidemill.models.corrections import Corrections
from tidemill.models.fold import Fold
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.joiner import service as joiner
from tidemill.stages.materializer import service as materializer
from tidemill.stages.scorer import service as scorer
from tidemill.stages.validator import service as validator
from tidemill.stream.api import Processor, Record
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics
from tidemill.wire.records import Records


class River:
    """Validator, featurizer, scorer, joiner and materializer on one broker in memory, and models that learn.

    `seconds` is the CPU time that each service, and each model's learner as `learner:MODEL`, has used.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.records, self.seconds = Records(pipeline), defaultdict[str, float](float)
        self.broker = MemoryBroker(
            {topic.name(pipeline): topic.partitions or pipeline.partitions for topic in topics.TOPICS}
        )
        self.folds = {name: Fold(pipeline, name) for name in pipeline.model_names}
        self.views = {view.label: MemoryView() for view in pipeline.views}
        others = StoredRemoteViews(pipeline, MemoryReader(self.views), pipeline.partitions)
        self._scorer = scorer.build(pipeline, tuple)
        services = [
            validator.build(pipeline, fuse=False),
            featurizer.build(pipeline, self.views, others if pipeline.remote_views else None),
            self._scorer,
            joiner.build(pipeline),
            materializer.build(pipeline, self.views),
        ]
        self.processors: dict[str, Processor] = {service.name: service.processor for service in services}
        self._running = []
        for service in services:
            loop = Loop(service, self.broker, max_delay=0.0)
            consumer = self.broker.consumer(service.group, service.topics, loop.instance)
            self._running.append((service.name, loop, consumer, self.broker.producer(loop.instance)))
        self.run()

    def run(self) -> None:
        """Let all services work until none has anything to do."""
        quiet = 0
        while quiet < 3:  # a service joins its group, takes its partitions, and then reads
            has_worked = False
            for name, loop, consumer, producer in self._running:
                begun = time.process_time()
                has_worked = bool(loop.run_once(consumer, producer)) or has_worked
                self.seconds[name] += time.process_time() - begun
            quiet = 0 if has_worked else quiet + 1

    def learn(self, examples: Iterable[Record]) -> None:
        """Let every model learn examples, and the scorer score with it from then on."""
        corrections = Corrections(self.records)
        records = [record for record in examples if not corrections.is_one(record)]
        for name, fold in self.folds.items():
            begun = time.process_time()
            for record in records:
                fold.learn(self.records.example.decode(record.value() or b""), record.offset())
            self._scorer.processor.put(name, fold.version, fold.running)  # type: ignore[attr-defined]
            self.seconds[f"learner:{name}"] += time.process_time() - begun
