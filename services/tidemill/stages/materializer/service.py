"""The materializer: updates in; the views of other entities than the events' own, and over outcomes, in Redis.

reads   <pipeline>.updates, keyed by entity
writes  Redis: each view's features by entity
state   event-time tiles of every entity of the partitions it holds; rebuilt from Redis and the log
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import Reject
from tidemill.features.ports import ViewStore
from tidemill.features.tiles import Plan
from tidemill.features.views import Views, ViewState
from tidemill.stream.api import Emit, Position, Processor, Record, Start, TopicPartition, discard
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.group import Service
from tidemill.wire.records import Records
from tidemill.wire.services import service


class Materializer(Processor):
    """Keeps views from their updates.

    Parameters
    ----------
    stores
        The online store of each view, by the view's name; views without one are kept in memory only.
    """

    def __init__(self, pipeline: Pipeline, stores: Mapping[str, ViewStore] | None = None) -> None:
        super().__init__()
        self.records = Records(pipeline)
        self.views = Views([Plan(view) for view in pipeline.remote_views], stores or {}, self.counts)
        self._of: dict[tuple[str, str], list[int]] = {}
        self._missing: dict[str, None] = {}
        for index, plan in enumerate(self.views.plans):
            self._of.setdefault((plan.view.source, plan.view.entity), []).append(index)
            self._missing |= dict.fromkeys(plan.fields)

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        # Where a person has decided from where it goes on, or records were erased, the log is another than the stores
        # were made from.
        metadata = CommitMetadata.decode(committed.metadata)
        from_log = metadata.rebuild_from is not None or metadata.erased < self.erased
        begin = self.views.assign(topic_partition.partition, committed.offset, from_log=from_log)
        return Start(begin, committed.offset)

    def truncated(self, topic_partition: TopicPartition) -> None:
        self.views.truncated(topic_partition.partition)

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        for topic_partition in topic_partitions:
            self.views.revoke(topic_partition.partition)

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        if emit is not discard:  # nothing is emitted: what it writes is its stores
            self.traces.took(records)
        decode = self.records.update.decode
        for record in records:
            partition, offset = record.partition(), record.offset()
            states = self.views.states[partition]
            try:
                update = decode(record.value())
            except Reject as reject:
                self.counts["skipped", reject.reason] += 1
            else:
                for index in self._of.get((update["source"], update["entity"]), ()):
                    if offset >= states[index].offset:
                        self._update(states[index], update)
            for state in states:
                if state.offset <= offset:
                    state.offset = offset + 1
        return True

    def _update(self, state: ViewState, update: Mapping[str, Any]) -> None:
        time = update["time"]
        if update["control"] == "begins":
            state.begins(time)
        elif update["control"] == "filled":
            state.fill()
        else:
            state.is_partial(time)  # where the log was cut, the first one says until when
            values = {**self._missing, **update["numbers"], **update["texts"]}
            if not state.add(update["entity_id"], time, values):
                self.counts["tile_too_old", state.plan.view.label] += 1

    def committed(self) -> None:
        """Bring the stores to what is committed."""
        self.views.committed()

    def gauges(self) -> Mapping[tuple[str, str], float]:
        return self.views.gauges()


def build(pipeline: Pipeline, stores: Mapping[str, ViewStore]) -> Service:
    """Wire the materializer to its topic."""
    return service("materializer", pipeline, Materializer(pipeline, stores))
