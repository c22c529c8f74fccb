"""What reads and writes what, for catalogues of data: OpenLineage's events, by its own variables (OPENLINEAGE_*).

Each service is a job, and each time it runs a run: it starts, completes when it is asked to stop, and fails where it
ends by an error. Topics, models, views and the archive are datasets. A version that a learner has published is an event
of its run. A run that was killed has no end; the next one begins.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tidemill import __version__
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError, TidemillError
from tidemill.settings import Settings
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import Records
from tidemill.wire.services import group

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent

log = logging.getLogger(__name__)

PRODUCER = f"https://pypi.org/project/tidemill/{__version__}"
#: Events that wait for who takes them; more are dropped, for no service waits for a catalogue.
MAX_WAITING = 1_000
#: How long a service that ends waits until its last events are sent.
LAST_EVENTS_SECONDS = 3.0
Dataset = TypeVar("Dataset")
#: Takes a model and the version of it that is published.
Published = Callable[[str, int], None]


def is_asked_for(variables: Mapping[str, str]) -> bool:
    """Return whether the variables say where events go."""
    if variables.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    names = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
    return any(variables.get(name) for name in names) or any(
        one.startswith("OPENLINEAGE__TRANSPORT") for one in variables
    )


@contextmanager
def lineage(pipeline: Pipeline, services: Sequence[str], settings: Settings, model: str | None) -> Iterator[Published]:
    """Tell of a run of some services of one process; yields what is called with versions that are published.

    Raises SettingsError where a variable is wrong, or a package is missing.
    """
    if not is_asked_for(os.environ):
        yield lambda _model, _version: None
        return
    try:
        from openlineage.client import OpenLineageClient

        client = OpenLineageClient()
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"OPENLINEAGE_* variables ask for lineage, which needs {error.name}: pip install 'tidemill[lineage]', or "
            f"set OPENLINEAGE_DISABLED=true"
        ) from error
    except Exception as error:  # what it makes of its variables
        raise SettingsError(f"OPENLINEAGE_* can't be used: {error}") from error
    sender, datasets = _Sender(client), Datasets(pipeline, settings)
    runs = [
        _Run.of(pipeline, service, each, datasets, sender)
        for service in services
        for each in (pipeline.model_names if service == "learner" and model is None else [model])
    ]

    def published(name: str, version: int) -> None:
        for run in runs:
            if run.model == name.partition("~")[0]:  # a candidate is learned beside the model that it is a copy of
                run.tell("RUNNING", outputs=[datasets.model(name, version)])

    try:
        for run in runs:
            run.tell("START")
        yield published
    except BaseException as error:
        is_failure = not isinstance(error, SystemExit) or bool(error.code)  # Faust ends by SystemExit(0)
        why = str(error) if isinstance(error, TidemillError) else type(error).__name__
        for run in runs:
            run.tell("FAIL", why=why) if is_failure else run.tell("COMPLETE")
        raise
    else:
        for run in runs:
            run.tell("COMPLETE")
    finally:
        sender.close()


@dataclass(frozen=True)
class _Run:
    """One run of one service; `model` is a learner's."""

    id: str
    namespace: str
    job: str
    doc: str
    model: str
    inputs: Sequence[InputDataset]
    outputs: Sequence[OutputDataset]
    sender: _Sender

    @staticmethod
    def of(pipeline: Pipeline, service: str, model: str | None, datasets: Datasets, sender: _Sender) -> _Run:
        from openlineage.client.uuid import generate_new_uuid

        learned = model or pipeline.champion if service == "learner" else ""
        return _Run(
            str(generate_new_uuid()),
            os.environ.get("OPENLINEAGE_NAMESPACE", "tidemill"),
            group(service, pipeline.name, learned),
            f"The {service} of the pipeline {pipeline.name}",
            learned,
            datasets.inputs(service),
            datasets.outputs(service, learned),
            sender,
        )

    def tell(self, state: str, *, outputs: Sequence[OutputDataset] | None = None, why: str = "") -> None:
        """Send an event of this run."""
        from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
        from openlineage.client.generated.documentation_job import DocumentationJobFacet
        from openlineage.client.generated.error_message_run import ErrorMessageRunFacet
        from openlineage.client.generated.job_type_job import JobTypeJobFacet
        from openlineage.client.generated.processing_engine_run import ProcessingEngineRunFacet

        facets: dict[str, Any] = {"processing_engine": ProcessingEngineRunFacet(__version__, "tidemill")}
        if why:
            facets["errorMessage"] = ErrorMessageRunFacet(why, "PYTHON")
        about = {
            "jobType": JobTypeJobFacet("STREAMING", "TIDEMILL", "SERVICE"),
            "documentation": DocumentationJobFacet(self.doc),
        }
        event = RunEvent(
            eventTime=datetime.now(UTC).isoformat(),
            producer=PRODUCER,
            run=Run(self.id, facets),
            job=Job(self.namespace, self.job, about),
            eventType=RunState[state],
            inputs=list(self.inputs),
            outputs=list(self.outputs if outputs is None else outputs),
        )
        self.sender.send(event)


class Datasets:
    """What services read and write, as datasets: by their places, without users and passwords."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self.pipeline, self.settings, self._records = pipeline, settings, Records(pipeline)

    def inputs(self, service: str) -> list[InputDataset]:
        """Return what a service reads."""
        from openlineage.client.event_v2 import InputDataset

        read = [
            _dataset(InputDataset, *self._topic(topic))
            for topic in topics.reads(service)
            if topic is not topics.PROGRESS
        ]
        if service == "scorer":
            read += [_dataset(InputDataset, *self._model(model)) for model in self.pipeline.models]
        return read

    def outputs(self, service: str, model: str = "") -> list[OutputDataset]:
        """Return what a service writes; `model` is a learner's."""
        from openlineage.client.event_v2 import OutputDataset

        places = [self._topic(topic) for topic in topics.writes(service) if topic is not topics.PROGRESS]
        views = {"featurizer": self.pipeline.inline_views, "materializer": self.pipeline.remote_views}.get(service, ())
        redis = urlsplit(self.settings.redis_url.get_secret_value())
        store = f"redis://{redis.hostname}:{redis.port or 6379}" if redis.hostname else "redis"
        places += [(store, f"{self.pipeline.name}:{view.label}", {}) for view in views]
        if service == "learner":
            places.append(self._model(model))
        if service == "archiver":
            places.append((*_place(self.settings.archive_url, self.pipeline.name), {}))
        return [_dataset(OutputDataset, *place) for place in places]

    def model(self, model: str, version: int) -> OutputDataset:
        """Return one version of a model."""
        from openlineage.client.event_v2 import OutputDataset
        from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet

        namespace, name, facets = self._model(model)
        return _dataset(OutputDataset, namespace, name, facets | {"version": DatasetVersionDatasetFacet(str(version))})

    def _model(self, model: str) -> tuple[str, str, dict[str, Any]]:
        return (*_place(self.settings.store_url, f"{self.pipeline.name}/{model}"), {})

    def _topic(self, topic: Topic) -> tuple[str, str, dict[str, Any]]:
        from openlineage.client.generated.schema_dataset import SchemaDatasetFacet, SchemaDatasetFacetFields

        facets: dict[str, Any] = {}
        if codec := self._records.of_topic(topic):
            fields = codec.avro["fields"]
            facets["schema"] = SchemaDatasetFacet(
                [SchemaDatasetFacetFields(one["name"], _type_name(one["type"]), one.get("doc")) for one in fields]
            )
        return f"kafka://{self.settings.brokers.partition(',')[0]}", topic.name(self.pipeline), facets


def _dataset(kind: Callable[..., Dataset], namespace: str, name: str, facets: Mapping[str, Any]) -> Dataset:
    return kind(namespace, name, facets=facets)


def _place(url: str, below: str) -> tuple[str, str]:
    """Return the namespace of a store of files, and the name of what is below it there."""
    parts = urlsplit(url)
    if not parts.netloc:
        return "file", str(Path(parts.path or url).absolute() / below)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}", f"{parts.path.strip('/')}/{below}".lstrip("/")


def _type_name(avro: Any) -> str:
    if isinstance(avro, list):
        return " | ".join(map(_type_name, avro))
    return str(avro.get("logicalType") or avro.get("name") or avro["type"]) if isinstance(avro, dict) else str(avro)


class _Sender:
    """Sends events in a thread of its own: who takes them may be slow, or away."""

    def __init__(self, client: OpenLineageClient) -> None:
        self._client, self._is_well = client, True
        self._waiting: queue.Queue[RunEvent | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="lineage", daemon=True)
        self._thread.start()

    def send(self, event: RunEvent) -> None:
        """Have an event sent."""
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self._failed("too many wait")

    def close(self) -> None:
        """Wait until the last events are sent; what can't be sent in time is given up, for the service ends."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(LAST_EVENTS_SECONDS)

    def _run(self) -> None:
        while (event := self._waiting.get()) is not None:
            try:
                self._client.emit(event)
                self._is_well = True
            except Exception as error:  # a transport may raise anything; no service ends for a catalogue
                self._failed(str(error))

    def _failed(self, why: str) -> None:
        if self._is_well:
            log.warning("events of lineage can't be sent, and are dropped", extra={"cause": why})
        self._is_well = False
