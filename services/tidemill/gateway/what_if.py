"""What would be predicted of an event, without sending it: its vector as of now, and what each model in use answers.

reads   Redis; the registry (<pipeline>.models, <pipeline>.promotions, the artifact store), once the first asks
writes  nothing
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import Reject
from tidemill.features.store import Store
from tidemill.stages.featurizer.service import Featurizer
from tidemill.wire.records import vector_to_x

if TYPE_CHECKING:
    from tidemill.stages.scorer.feed import Ready
    from tidemill.stages.scorer.service import Scorer


class Models(Protocol):
    """Follows the registry, and opens what is in use, as the scorer's feed does."""

    def start(self) -> None: ...
    def take(self) -> Sequence[Ready]: ...


class WhatIf:
    """Makes vectors by the featurizer's functions and the stored views, and asks the models as the scorer does.

    Parameters
    ----------
    open_models
        Returns what follows the registry; called when somebody asks for the first time.
    """

    def __init__(self, pipeline: Pipeline, store: Store, open_models: Callable[[], Models]) -> None:
        self.pipeline, self.store, self._open_models = pipeline, store, open_models
        self._featurizer = Featurizer(pipeline)
        self._turn = threading.Lock()
        self._scorer: Scorer | None = None

    def ask(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return the vector of a valid event, and every model's score, the serving one's first.

        Raises Reject where its dead letter would have it, Retry while store, registry or the serving model is away, and
        SettingsError without keys.
        """
        events = self.pipeline.events
        vector, as_of, stale = self._vector(event)
        with self._turn:
            if self._scorer is None:
                from tidemill.stages.scorer.service import Scorer  # with River, which only this needs

                models = self._open_models()
                models.start()
                self._scorer = Scorer(self.pipeline, models.take)
            scores = self._scorer.answers(str(event[events.key or events.id]), vector_to_x(vector))
        return {
            "event_id": str(event[events.id]),
            "entity_id": str(event[events.key or events.id]),
            "event_time": event[events.time],
            "vector": vector,
            "as_of": as_of,
            "stale": stale,
            "scores": scores,
        }

    def _vector(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int], list[str]]:
        """Return the vector, by view the time of the latest event that it holds, and the views that it lacks."""
        features: dict[str, Any] = {}
        name = ""
        try:
            for name, take in self._featurizer.extract:
                features[name] = take(event)
        except Exception as error:  # the declaration's own functions may raise anything
            message = f"request feature {name!r} raised {type(error).__name__}: {error}"
            raise Reject("request_feature", message, rule="request") from error
        views = self.pipeline.views
        named = {v.entity: (str(event[v.entity]),) for v in views if self._featurizer.names_entity(event[v.entity])}
        known = self.store.get_many(named, event[self.pipeline.events.time])
        by_view = {one.view: one for several in known.values() for one in several}
        as_of: dict[str, int] = {}
        stale: list[str] = []
        for view in views:
            one = by_view.get(view.label)
            if one is None or not one.whole:
                features |= dict.fromkeys(view.features)
                stale += [view.label] if one else []
            else:
                features |= one.features
                if one.event_time is not None:
                    as_of[view.label] = one.event_time
        return {name: features[name] for name in self.pipeline.vector}, as_of, stale
