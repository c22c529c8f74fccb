"""What is shown of a pipeline's records to who may not see personal data: `Mask`, which all that shows records uses.

Personal are the fields that the streams declare so, and the features that are made of one. What quotes a record in free
text, as the reason of a dead letter does, is masked as a whole where it may quote such a field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import Reject
from tidemill.wire.dead_letters import DeadLetter

#: What is shown in place of a value.
HIDDEN = "(personal)"
#: The rule that a record breaks which is not as its schema says.
SCHEMA_RULE = "schema"


class Mask:
    """Masks one pipeline's records; of a pipeline without personal fields it changes nothing."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._events, self._labels = pipeline.events.personal_fields, pipeline.labels.personal_fields
        self._fields = self._events | self._labels

    @property
    def is_on(self) -> bool:
        """Whether anything is personal."""
        return bool(self._fields)

    @cached_property
    def _plain(self) -> frozenset[str]:
        """Fields and features of which anybody may see the value."""
        pipeline = self.pipeline
        known = {*pipeline.events.types, *pipeline.labels.types, *pipeline.vector}
        return frozenset(known - self._fields - pipeline.personal_features)

    def hides_entity(self, field: str) -> bool:
        """Whether the ids of the entities that an event field names are personal."""
        return field in self._events

    @property
    def hides_key(self) -> bool:
        """Whether the key of the pipeline's events is personal."""
        return self.hides_entity(self.pipeline.events.key)

    # Records ----------------------------------------------------------------------------------------------------------

    def event(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return an event, as it was sent or as it passed."""
        return _masked(record, self._events)

    def label(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record of a label."""
        return _masked(record, self._labels)

    def vector(self, vector: Mapping[str, Any]) -> dict[str, Any]:
        """Return a vector, or some features by name."""
        return _masked(vector, self.pipeline.personal_features)

    def named(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Return whatever has `entity_id`, and perhaps `entities`, `views`, `vector`, `event`, `outcome`, `label`."""
        shown = dict(known)
        if not self.is_on:
            return shown
        if shown.get("entity_id") and any(map(self.hides_entity, self._named_by(known))):
            shown["entity_id"] = HIDDEN
        if "entities" in shown:
            shown["entities"] = _masked(shown["entities"], self._events)
        if "views" in shown:
            shown["views"] = [self._view(view) for view in shown["views"]]
        if "vector" in shown:
            shown["vector"] = self.vector(shown["vector"])
        if (event := shown.get("event")) and event.get("record"):
            shown["event"] = {**event, "record": self.event(event["record"])}
        if self.hides_label:
            if shown.get("label") is not None:
                shown["label"] = HIDDEN
            if (outcome := shown.get("outcome")) and outcome.get("label") is not None:
                shown["outcome"] = {**outcome, "label": HIDDEN}
        return shown

    def _named_by(self, known: Mapping[str, Any]) -> set[str]:
        """Return the fields that may name the entity of something; of one that was looked up by its id alone, any."""
        if "entity" in known:
            return {str(known["entity"])}
        key = self.pipeline.events.key
        return {key} if "event_id" in known else {key, *(view.entity for view in self.pipeline.views)}

    @property
    def hides_label(self) -> bool:
        """Whether the label is a personal field."""
        return self.pipeline.labels.value in self._labels

    def _view(self, view: Mapping[str, Any]) -> dict[str, Any]:
        shown = dict(view)
        if shown.get("entity_id") and self.hides_entity(str(shown.get("entity", ""))):
            shown["entity_id"] = HIDDEN
        if "features" in shown:
            shown["features"] = self.vector(shown["features"])
        if "key" in shown and self.is_on:  # as it is in Redis: its end is the entity's id
            shown["key"] = f"{self.pipeline.name}:{shown['view']}:{HIDDEN}"
        return shown

    # Why something was refused ----------------------------------------------------------------------------------------

    def reject(self, reject: Reject) -> Reject:
        """Return a refusal whose words quote nothing that is personal."""
        is_plain = self._is_plain(reject.field, reject.rule)
        if not self.is_on or (is_plain and not (reject.entity and self.hides_key)):
            return reject
        return Reject(
            reject.reason,
            str(reject) if is_plain else self._why(reject.field, reject.rule or reject.reason),
            rule=reject.rule,
            field=self._field(reject.field),
            value=reject.value if is_plain else HIDDEN,
            entity=HIDDEN if reject.entity else "",
        )

    def error(self, error: Exception) -> str:
        """Return what a model or a function of the declaration raised on a record: it may quote that."""
        return type(error).__name__ if self.is_on else repr(error)

    def message(self, field: str, rule: str, message: str) -> str:
        """Return what a rule says of a field's value."""
        return message if not self.is_on or self._is_plain(field, rule) else self._why(field, rule)

    def _is_plain(self, field: str, rule: str) -> bool:
        """Whether anybody may see the value that a rule has refused; one of another type may be another field's."""
        return field in self._plain and rule not in ("", SCHEMA_RULE)

    def _field(self, name: str) -> str:
        """Return a field's name, unless only its producer knows it: then it may be anything."""
        return name if not name or name in self._plain or name in self._fields else HIDDEN

    def _why(self, field: str, rule: str) -> str:
        what = f"field {field!r} was refused" if field in self._fields else "it was refused"
        return f"{what} ({rule}); what it quotes is not shown: it may be personal"

    def letter(self, letter: DeadLetter) -> DeadLetter:
        """Return a dead letter: its key and its entity are not shown, nor what may quote a personal field."""
        if not self.is_on:
            return letter
        is_plain = self._is_plain(letter.field, letter.rule)
        return dataclasses.replace(
            letter,
            key=HIDDEN if letter.key else "",
            entity=HIDDEN if letter.entity and self.hides_key else letter.entity,
            field=self._field(letter.field),
            value=letter.value if is_plain or not letter.value else HIDDEN,
            message=letter.message if is_plain else self._why(letter.field, letter.rule or letter.reason),
        )


def _masked(record: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: HIDDEN if name in names and value is not None else value for name, value in record.items()}
