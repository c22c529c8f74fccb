"""Where history comes from: Kafka, files of events and labels, or an archive.

kafka    <pipeline>.events.valid and .labels.valid, or <pipeline>.examples, as far back as the log reaches
files    events and labels, in CSV, JSON lines or Parquet: they have passed no validator yet
archive  vectors as they were served, and labels, in Parquet; no events, for vectors are not made again
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.errors import SettingsError
from tidemill.files import Files
from tidemill.offline import history, two_processes
from tidemill.offline.backtest import Backtest, BacktestReport, KnownLabel
from tidemill.offline.history import Frame, Message
from tidemill.offline.log_history import LogHistory, read_log
from tidemill.stream.api import Broker, Progress
from tidemill.wire import topics
from tidemill.wire.records import Features, Records

Rows = list[Message]


@dataclass(frozen=True)
class KafkaSource:
    """What Kafka holds of a pipeline at the moment it is read."""

    broker: Broker

    def histories(
        self, pipeline: Pipeline, stack: ExitStack, progress: Progress | None = None
    ) -> tuple[LogHistory, LogHistory]:
        """Return the valid events and labels, each in order of its time; `stack` closes the temporary files."""
        records, name = Records(pipeline), pipeline.name
        events, labels = pipeline.events, pipeline.labels
        return (
            read_log(self.broker, topics.EVENTS_VALID.name(name), records.event, events, stack, progress),
            read_log(self.broker, topics.LABELS_VALID.name(name), records.label, labels, stack, progress),
        )


@dataclass(frozen=True)
class RowSource:
    """Events and labels in files, or in data frames; of some commands the labels may be left out."""

    events: Path | Frame
    labels: Path | Frame | None = None

    def rows(self, pipeline: Pipeline, progress: Progress | None = None) -> tuple[Rows, Rows]:
        """Return events and labels, each in order of its time. Raises SettingsError where a file can't be read."""
        events = history.messages(self.events, pipeline.events, progress)
        if not events:
            raise SettingsError(f"{self.events} has no rows: give events")
        return events, history.messages(self.labels, pipeline.labels, progress) if self.labels else []

    def histories(
        self, pipeline: Pipeline, stack: ExitStack, progress: Progress | None = None
    ) -> tuple[LogHistory, LogHistory]:
        """Return events and labels, each in order of its time."""
        del stack
        events, labels = self.rows(pipeline, progress)
        return LogHistory(iter(events), count=len(events)), LogHistory(iter(labels), count=len(labels))


@dataclass(frozen=True)
class FileSource(RowSource):
    """Files of events and labels."""

    events: Path
    labels: Path | None = None


@dataclass(frozen=True)
class ArchiveSource:
    """An archive of one pipeline's predictions and examples, at a URL."""

    url: str

    def rows(
        self, pipeline: Pipeline, *, labelled: bool, wanted: Callable[[str], bool] = lambda _: True
    ) -> Iterator[dict[str, Any]]:
        """Return the rows of the examples, or of all predictions; of days that are not `wanted`, nothing is read.

        Raises SettingsError where it holds nothing of this pipeline, or was written by another declaration of it.
        """
        files = Files(self.url, "archive_url", "archive", create=False)
        rows: Iterator[dict[str, Any]] = self._archive_rows().read(pipeline, files, labelled=labelled, wanted=wanted)
        return rows

    def vectors_and_labels(self, pipeline: Pipeline) -> tuple[list[Features], list[KnownLabel]]:
        """Return all vectors in order of event time, and all labels in order of label time."""
        vectors = map(self._archive_rows().features_of, self.rows(pipeline, labelled=False))
        in_order = sorted(vectors, key=lambda features: features["event_time"])
        labels = (
            KnownLabel(row["event_id"], row["label"], row["label_time"]) for row in self.rows(pipeline, labelled=True)
        )
        return in_order, sorted(labels, key=lambda label: label.label_time)

    def _archive_rows(self) -> ModuleType:
        try:
            from tidemill.wire import archive_rows
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"--archive {self.url}: reading it needs {error.name}: pip install 'tidemill[parquet]'"
            ) from None
        return archive_rows


#: Between two rows of metrics: the longest of these of which the history has a dozen.
STEPS = ("1d", "6h", "1h", "15m", "5m", "1m")


@dataclass(frozen=True)
class Past:
    """What a backtest runs over: `times` of its events, or of an archive's vectors, in ms, sorted; and how it runs."""

    times: Sequence[int]
    run: Callable[[Backtest, Progress | None], BacktestReport]

    def step_ms(self, every: str | None) -> int:
        """Return the event time between two rows of metrics, in ms: `every`, else what gives a dozen rows or a day.

        Raises ValueError where `every` is no duration.
        """
        if every:
            return milliseconds(every)
        span = self.times[-1] - self.times[0] if self.times else 0
        return next((step for step in map(milliseconds, STEPS) if span >= 12 * step), milliseconds(STEPS[-1]))


def past_of(source: RowSource | ArchiveSource, pipeline: Pipeline, progress: Progress | None = None) -> Past:
    """Return what a source holds. Raises SettingsError where it can't be read."""
    if isinstance(source, ArchiveSource):
        vectors, known_labels = source.vectors_and_labels(pipeline)
        return Past(
            [vector["event_time"] for vector in vectors],
            lambda backtest, advance: backtest.replay(vectors, known_labels, advance),
        )
    events, labels = source.rows(pipeline, progress)
    return Past(
        [event.time for event in events],
        lambda backtest, advance: two_processes.run(backtest, events, labels, advance),
    )


Source = KafkaSource | FileSource | ArchiveSource


def source_of(
    archive: str | None, events: Path | None, labels: Path | None, *, may_lack_labels: bool = False
) -> ArchiveSource | FileSource | None:
    """Return the source that --archive, or --events and --labels, name; None where none of them is given: Kafka.

    Raises SettingsError where they name two sources, or half of one.
    """
    if archive is not None:
        if events is not None or labels is not None:
            raise SettingsError("history comes from --archive, or from --events and --labels: name the one, or the two")
        return ArchiveSource(archive)
    if events is None and labels is not None and may_lack_labels:
        raise SettingsError("--labels goes with --events: name both, or --events alone, or neither")
    if (events is None) != (labels is None) and not may_lack_labels:
        raise SettingsError("--events and --labels go together: name both, or neither")
    return None if events is None else FileSource(events, labels)
