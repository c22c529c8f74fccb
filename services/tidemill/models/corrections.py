"""Corrected labels: what an example's label is by its last correction. One definition for folds, reports and data sets.

The corrected log before an offset has the examples in their own order, each with the label of its last correction that
lies before that offset, and with its own label where there is none. All else of an example stays, its label's time
too: at that time it was first known. A correction whose example is not in the log corrects nothing.

memory  an entry for each corrected example
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.stream.api import Broker, Progress, Record
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Correction, Example, Records

#: The event's id, and its partition and offset in <pipeline>.events.valid: an id may come again, long after.
Key = tuple[str, int, int]


def key_of(event: Mapping[str, Any]) -> Key:
    """Return what names the example of an event; takes features, or a correction."""
    return event["event_id"], event["partition"], event["offset"]


class Corrections:
    """The last correction of each example, of those taken so far that lie before an offset."""

    def __init__(self, records: Records, before: int = sys.maxsize) -> None:
        self.before = before
        self.labels: dict[Key, Any] = {}
        self._codec = records.correction

    def take(self, record: Record) -> bool:
        """Take the next record of the examples; returns whether it is a correction."""
        if not self.is_one(record):
            return False
        if record.offset() < self.before:
            correction: Correction | None = self._codec.of(record.value())
            if correction is not None:
                self.labels[key_of(correction)] = correction["label"]
        return True

    def is_one(self, record: Record) -> bool:
        """Return whether a record of the examples is a correction."""
        return (record.value() or b"").startswith(self._codec.header)

    def label(self, key: Key, label: Any) -> Any:
        """Return the label that an example with this one has by its last correction."""
        return self.labels.get(key, label)

    def apply(self, example: Example) -> Example:
        """Return an example with its corrected label; the same object where its label is no other."""
        if not self.labels:
            return example
        label = self.label(key_of(example["prediction"]["features"]), example["label"])
        return example if label == example["label"] else {**example, "label": label}


def read_corrections(pipeline: Pipeline, broker: Broker, progress: Progress | None = None) -> Corrections:
    """Return the corrections that <pipeline>.examples holds at this moment: none where the pipeline declares none."""
    corrections = Corrections(Records(pipeline))
    if pipeline.corrections_ms:
        for batch in broker.read(full_range(broker, topics.EXAMPLES.name(pipeline.name))):
            for record in batch:
                corrections.take(record)
            if progress:
                progress(len(batch))
    return corrections
