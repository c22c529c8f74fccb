"""What a declaration runs, as `tidemill check` reports it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.features.views import schema
from tidemill.wire import topics
from tidemill.wire.records import Records


@dataclass(frozen=True)
class CheckReport:
    """What a pipeline runs, by its declaration."""

    pipeline: Pipeline

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs."""
        pipeline = self.pipeline
        records = Records(pipeline)
        return {
            "name": pipeline.name,
            "task": pipeline.task,
            "entity": pipeline.entity,
            "champion": pipeline.champion,
            "models": {name: pipeline.stable_repr(name) for name in pipeline.model_names},
            "seeded": {name: list(dict.fromkeys(pipeline.unseeded(name))) for name in pipeline.model_names},
            "hashed": pipeline.hashed(),
            "search": {
                name: {of: values.description for of, values in one.over.items()}
                for name, one in pipeline.search.items()
            },
            "vector": pipeline.vector,
            "views": [schema(pipeline, view) for view in pipeline.views],
            "tables": [{"table": t.name, "key": t.key, "rows": len(t), "sha256": t.sha256} for t in pipeline.tables],
            "rules": [
                {"rule": rule.name, "field": rule.field, "expects": rule.description}
                for rule in (*pipeline.event_checks, *pipeline.label_checks)
            ],
            "monitor": dataclasses.asdict(pipeline.monitor),
            "protect": dataclasses.asdict(pipeline.protect) if pipeline.protect else None,
            "streams": {
                name: {"id": stream.id, "time": stream.time, "by_default": list(stream.chosen)}
                for name, stream in (("events", pipeline.events), ("labels", pipeline.labels))
            },
            "schema_sources": {
                "event": pipeline.events.schema_source,
                "label": pipeline.labels.schema_source,
            },
            "schema_ids": {
                "event": records.sent_event.id,
                "label": records.sent_label.id,
                "features": records.features.id,
                "prediction": records.prediction.id,
                "prediction-log": records.prediction_log.id,
                "example": records.example.id,
                "correction": records.correction.id,
                "manifest": records.manifest.id,
                "update": records.update.id,
                "window": records.window.id,
                "alert": records.alert.id,
                "redrive": records.redrive.id,
            },
            "topics": [
                {
                    "name": t.name(pipeline),
                    "partitions": t.partitions or pipeline.partitions,
                    "key": t.key,
                    "record": t.record,
                    "retention_ms": t.kept_ms(pipeline),
                    "writers": t.writers,
                    "readers": t.readers,
                }
                for t in topics.TOPICS
            ],
        }
