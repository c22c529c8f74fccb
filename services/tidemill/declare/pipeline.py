"""The declaration: what an ML engineer writes, in one Python file, and the checks made when it is loaded.

    flights = Pipeline(
        name="flights",
        events=Stream("flights/departure.v1.avsc", id="flight_id", time="scheduled_at", key="origin"),
        labels=Stream("flights/arrival.v1.avsc", id="flight_id", time="landed_at", value=lambda e: e["arr_delay"] > 15),
        task="binary",
        rules=[rules.between("sched_hour", 0, 23)],
        request={"carrier": "carrier", "dow": number(lambda e: (e["flight_date"] + 3) % 7)},
        views=[View("origin", every="1m", aggregates=[aggregates.count("1h"), aggregates.mean("distance", "3h")])],
        models={"logreg": StandardScaler() | LogisticRegression()},
        champion="logreg",
        label_timeout="48h",
    )

Nothing here does I/O but reading schema files (and `Table` its own); operations (brokers, Redis, secrets) come from the
settings.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from tidemill.declare.checks import Duration, Fail, FeatureName, Is, Metric, Name, check_fields
from tidemill.declare.feature import Feature, as_feature, goes_by_hash
from tidemill.declare.forgetting import Forgetting
from tidemill.declare.fuse import Fuse
from tidemill.declare.gate import Gate
from tidemill.declare.kinds import AVRO_KINDS, KINDS, Source
from tidemill.declare.monitor import Monitor
from tidemill.declare.protect import Protect
from tidemill.declare.retention import Retention
from tidemill.declare.scorecard import metric_names
from tidemill.declare.search import Search
from tidemill.declare.seeding import seed
from tidemill.declare.stable_repr import stable_repr
from tidemill.declare.stream import Stream, with_defaults
from tidemill.declare.tasks import TASKS, Task
from tidemill.declare.training import Training
from tidemill.declare.view import View
from tidemill.durations import duration, milliseconds
from tidemill.encoding import times
from tidemill.errors import described
from tidemill.rules import FUTURE_TOLERANCE, PLAUSIBLE_TIMES, Rule, not_after_now, plausible
from tidemill.rules.plausible import no_seconds
from tidemill.stream.topic import TOPIC_NAME
from tidemill.tables import Lookup, Table
from tidemill.watermark import SLACK_PART, join_memory

_Rules = Sequence[Annotated[Is[Rule], Field(description="a rule of tidemill.rules")]]
_REQUEST = "the name of an event field or a function of the event, as in number('distance'),"
_SEARCH = "a Search(function, {parameter: range})"


@dataclass(frozen=True)
class Pipeline:
    """A complete pipeline: its streams, rules, features, models and how they are judged.

    Parameters
    ----------
    name
        The pipeline's name: small letters, digits, - and _. Its topics begin with it.
    events, labels
        What asks the questions, and what answers them later.
    task
        "binary", "multiclass", "regression" or "anomaly".
    request
        Features of the event itself, by name: a field, a function of the event, or a table's look-up.
    models
        The models by name, each as it is before it has learned anything.
    champion
        The model that serves until the gate, or a person, decides otherwise.
    rules, label_rules
        What the values of events and of labels must be.
    views
        Features of the past, by entity.
    metrics
        River's metrics, or ones of the same kind; the task's by default. The first one ranks models.
    baseline
        A model that the others must beat; by default the task's do-nothing model.
    label_timeout
        How long after its event, in event time, a label still counts: 24 hours, where it is not declared. What comes
        later is not learned; `tidemill check --events F --labels F` shows how late labels come.
    partitions
        Partitions of each topic that is not in one order: the most instances that a service can have.
    predictions_encoding
        How consumers get predictions: "avro" behind Confluent's header, or "json", an object with the same fields.
    predictions_headers
        "cloudevents": each prediction is a CloudEvent by its headers (`ce_id`, `ce_source`, ...).
    monitor, fuse, gate, training, protect
        How it is watched, when the validator stops, what is promoted, when candidates are trained, what one source may
        teach; see each.
    retention
        Which versions' artifacts stay in the store; None: the services delete none.
    forgetting
        That single entities can be forgotten; None: their records stay as long as all others.
    shares
        The share of the entities that a challenger serves, by its name.
    search
        What `tidemill tune` searches, by name.

    Raises DeclarationError, which names the field, its value and the fix, where the parts do not fit together.
    """

    name: Name
    events: Is[Stream]
    labels: Is[Stream]
    task: str
    request: Annotated[
        Mapping[FeatureName, Annotated[Is[Feature] | Source, Field(description=_REQUEST)]],
        Field(examples=[{"distance": "distance"}]),
    ]
    models: Annotated[Mapping[Name, Any], Field(examples=[{"name": "..."}])]
    champion: str
    rules: _Rules = ()
    label_rules: _Rules = ()
    views: Sequence[Is[View]] = ()
    metrics: Sequence[Metric] = ()
    baseline: Any = None
    label_timeout: Duration = "24h"
    partitions: Annotated[int, Field(ge=1, le=10_000)] = 4
    predictions_encoding: Literal["avro", "json"] = "avro"
    predictions_headers: Literal["", "cloudevents"] = ""
    monitor: Is[Monitor] = field(default_factory=Monitor)
    fuse: Is[Fuse] = field(default_factory=Fuse)
    gate: Is[Gate] | None = None
    training: Is[Training] | None = None
    retention: Is[Retention] | None = field(default_factory=Retention)
    forgetting: Is[Forgetting] | None = None
    shares: Annotated[Mapping[str, Annotated[float, Field(ge=0, le=1)]], Field(examples=[{"slow": 0.1}])] = field(
        default_factory=dict
    )
    protect: Is[Protect] | None = None
    search: Mapping[Name, Annotated[Is[Search], Field(description=_SEARCH)]] = field(default_factory=dict)
    #: Names of the models as they run: the declared ones and "baseline", the task's do-nothing model.
    model_names: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        fail = Fail(self.name)
        check_fields(self, "", fail)
        if self.task not in TASKS:
            fail("task", f"{self.task!r} is not a task: expected one of {', '.join(TASKS)}")
        self._check_inputs(fail)
        self._check_features(fail)
        self._check_guards("rules", self.rules, self.events, fail)
        self._check_guards("label_rules", self.label_rules, self.labels, fail)
        self._check_models(fail)
        views, metrics = [view.label for view in self.views], self._metric_names(fail)
        self.monitor.check(self.vector, views, metrics, fail)
        self.fuse.check(fail)
        if self.gate is not None:
            self.gate.check(self.kind, self.vector, fail)
        if self.training is not None:
            self.training.check(self.models, fail)
            if self.training.corrected and not self.labels.corrections:
                fail(
                    "training.corrected",
                    f"{self.training.corrected:g} where labels=Stream(...) declares no corrections",
                )
        segments = {"monitor": self.monitor.segments, "gate": (self.gate and self.gate.segments) or ()}
        for where, features in segments.items():
            for name in features:
                if name in self.personal_features and isinstance(self.request_features[name].source, str):
                    fail(f"{where}.segments", f"{name!r} is personal, and a segment's values are shown to everybody")
        if self.retention is not None:
            self.retention.check(self.join_memory_ms, [name for name, own in self.raw_topics.items() if own], fail)
        if self.forgetting is not None:
            self.forgetting.check(self.events.types, fail)
        if self.protect is not None:
            self.protect.check(self.vector, self.entity, fail)
        names = tuple(self.models)
        if self._baseline is not None and "baseline" not in names:
            names += ("baseline",)
        object.__setattr__(self, "model_names", names)

    @property
    def raw_topics(self) -> Mapping[str, str]:
        """The topics of producers that were there before the pipeline, by what its own would be called."""
        return {"events": self.events.topic, "labels": self.labels.topic}

    def _check_inputs(self, fail: Fail) -> None:
        self.events.check_schema("events", fail)
        self.labels.check_schema("labels", fail)
        events, labels = with_defaults(self.events, self.labels, fail)
        object.__setattr__(self, "events", events)
        object.__setattr__(self, "labels", labels)
        self.events.check("events", fail)
        self.events.check_key("events", fail)
        self.labels.check("labels", fail)
        self.labels.check_value("labels", self.kind.label_type, fail)
        if self.events.value and self.events.value != self.labels.value:  # one stream may be both
            fail("events.value", f"{self.events.value!r}: labels have a value, not events; move it there")
        if self.labels.key and self.labels.key != self.events.key:
            fail(
                "labels.key",
                f"{self.labels.key!r}: events have a key, not labels, which meet them by id; move it there",
            )
        if self.events.corrections:
            fail("events.corrections", f"{self.events.corrections!r}: labels are corrected, not events; move it there")
        for stream, topic in self.raw_topics.items():
            if topic and not TOPIC_NAME.fullmatch(topic):
                fail(f"{stream}.topic", f"{topic!r} is no topic's name: letters, digits, '.', '_' and '-', at most 249")
            if topic.startswith(f"{self.name}.") and topic != f"{self.name}.{stream}":
                fail(f"{stream}.topic", f"{topic!r} is called as topics of this pipeline are: give it another name=...")
        if self.events.topic and self.events.topic == self.labels.topic:
            fail("labels.topic", f"{self.labels.topic!r} is the topic of the events, too: labels come on another one")
        self.events.check_rules("rules", self.rules, fail)
        self.labels.check_rules("label_rules", self.label_rules, fail)

    def _check_features(self, fail: Fail) -> None:
        """Check the request features, the views, and that no two features or views have the same name."""
        known_later: dict[str, str] = {name: feature.kind for name, feature in self.request_features.items()}
        known_later |= {name: str(AVRO_KINDS.get(type_) or type_) for name, type_ in self.labels.types.items()}
        known_later["label"] = {"double": "number", "boolean": "flag"}.get(self.kind.label_type, "category")
        for view in self.views:
            view.check(f"views[{view.label!r}]", self.events, known_later, fail)
        views = Counter(view.label for view in self.views)
        features = Counter([*self.request, *(name for view in self.views for name in view.features)])
        for view in self.views:
            where = f"views[{view.label!r}]"
            for name in view.features:
                if features[name] > 1:
                    fail(where, f"the feature {name!r} is declared twice")
            if views[view.label] > 1:
                fail(where, f"two views are called {view.label!r}: give one of them name=...")
        if not self.vector:
            fail("request", "the vector is empty: declare at least one request feature or view")

    def _check_models(self, fail: Fail) -> None:
        if not self.models:
            fail("models", "declare at least one, as in models={'logreg': StandardScaler() | LogisticRegression()}")
        for name, model in self.models.items():
            self.kind.check_model(f"models[{name!r}]", model, fail)
        if self.baseline is not None:
            self.kind.check_model("baseline", self.baseline, fail)
        if self.champion not in self.models:
            fail("champion", f"{self.champion!r} is not one of the models: {', '.join(self.models)}")
        for name in self.shares:
            if name not in self.models:
                fail("shares", f"{name!r} is not one of the models: {', '.join(self.models)}")
        if sum(self.shares.values()) > 1:
            fail("shares", f"together they are {sum(self.shares.values()):g}, where at most 1 was expected")
        for name, search in self.search.items():
            where = f"search[{name!r}]"
            self.kind.check_model(where, search.check(where, fail), fail)

    def _metric_names(self, fail: Fail) -> tuple[str, ...]:
        """Check that each metric can judge this task's predictions; return what they are called."""
        for index, metric in enumerate(self.metrics):  # the task's own are known to fit, and to ask them takes SciPy
            self.kind.check_metric(f"metrics[{index}]", metric, fail)
        names = metric_names(self.metric())
        for index, name in enumerate(names):
            if names.count(name) > 1:
                fail(f"metrics[{index}]", f"two metrics are called {name}: leave one of them out")
        return names

    @property
    def kind(self) -> Task:
        """How a model of this task predicts, learns and is measured."""
        return TASKS[self.task]

    @property
    def entity(self) -> str:
        """The event field that names the entity; empty where none is declared, and events are keyed by their id."""
        return "" if "key" in self.events.chosen else self.events.key

    @property
    def forgettable(self) -> tuple[str, ...]:
        """The event fields that name entities which can be forgotten; empty where that is not declared."""
        if self.forgetting is None:
            return ()
        views = (view.entity for view in self.views)
        return tuple(dict.fromkeys(filter(None, (self.entity, *views, *self.forgetting.fields))))

    @property
    def label_timeout_ms(self) -> int:
        """How long after its event, in event time, a label still counts; milliseconds."""
        return milliseconds(self.label_timeout)

    @property
    def corrections_ms(self) -> int:
        """How long after an event's first label, in event time, another one corrects it; milliseconds, 0 for never."""
        return milliseconds(self.labels.corrections) if self.labels.corrections else 0

    @property
    def join_memory_ms(self) -> int:
        """How far back, in event time, the joiner knows what it has joined; milliseconds."""
        return join_memory(self.label_timeout_ms, self.corrections_ms)

    @property
    def kept_ms(self) -> Mapping[str, int]:
        """For how long topics keep their records where that is declared, by suffix; milliseconds."""
        topics = self.retention.topics if self.retention else {}
        return {name: milliseconds(text) for name, text in topics.items()}

    @property
    def _baseline(self) -> Any:
        return self.baseline if self.baseline is not None else self.kind.baseline()

    @property
    def event_checks(self) -> tuple[Rule, ...]:
        """The rules for events: the declared ones, and those for their time that the declaration does not have."""
        return self._guarded(self.rules, self.events)

    @property
    def label_checks(self) -> tuple[Rule, ...]:
        """The rules for labels: the declared ones, and those for their time that the declaration does not have."""
        return self._guarded(self.label_rules, self.labels)

    @cached_property
    def future_tolerance(self) -> str:
        """How far the times of events and labels may lie ahead of this machine's clock, where no rule says less.

        It is a tenth of the shortest of the views' windows, their `expires` and the label timeout, an hour at most:
        what is ahead by less ends nothing early by more than a tenth.
        """
        ends = [self.label_timeout_ms, *(a.window_ms for view in self.views for a in view.flat)]
        ends += [milliseconds(view.expires) for view in self.views if view.expires]
        return duration(max(1, min(milliseconds(FUTURE_TOLERANCE), min(ends) // SLACK_PART)))

    def _guarded(self, declared: Sequence[Rule], stream: Stream) -> tuple[Rule, ...]:
        defaults = [] if _guards(declared, stream.time) else [not_after_now(stream.time, self.future_tolerance)]
        names = {rule.name for rule in declared if rule.field == stream.time}
        if names & {"plausible", "not_before"} or stream.unit == times.TEXT:
            return (*declared, *defaults)
        if stream.is_time_plain:
            defaults.insert(0, plausible(stream.time, *PLAUSIBLE_TIMES))
        else:
            is_millis = stream.unit == "millis"
            defaults.append(no_seconds(stream.time) if is_millis else plausible(stream.time, *PLAUSIBLE_TIMES))
        return (*declared, *defaults)

    def _check_guards(self, where: str, declared: Sequence[Rule], stream: Stream, fail: Fail) -> None:
        """Check that no rule lets times pass that are further ahead of the clock than the pipeline bears."""
        for rule in _guards(declared, stream.time):
            if rule.names["slack"] > milliseconds(self.future_tolerance):
                fail(
                    f"{where}: not_after_now",
                    f"{stream.time!r} may be {duration(rule.names['slack'])} ahead of the clock, where at most "
                    f"{self.future_tolerance} was expected: a tenth of the shortest window or of label_timeout, an "
                    f"hour at most. Declare not_after_now({stream.time!r}, {self.future_tolerance!r}), longer windows, "
                    f"or a longer label_timeout",
                )

    @staticmethod
    def parts(name: str) -> tuple[str, int]:
        """Return the declared model of a name, and the first example it learns: a candidate is called model~example."""
        model, begin, *_ = (*name.split("~"), "0")
        return model, int(begin or 0)

    @staticmethod
    def corrected_before(name: str) -> int:
        """Return before which offset the corrections of labels lie that a model of this name learns; 0: it learns none.

        Such a candidate is called model~example~offset.
        """
        _, _, before = (*name.split("~"), "0", "0")[:3]
        return int(before)

    def knows(self, name: str) -> bool:
        """Whether a model of this name, or the one that a candidate is made of, is declared."""
        model, *numbers = name.split("~")
        are_numbers = len(numbers) <= 2 and all(one.isascii() and one.isdecimal() for one in numbers)
        return model in self.model_names and are_numbers

    def role(self, model: str, champion: str = "") -> str:
        """Return a model's role; `champion` names the champion where it is not the declared one."""
        if model == (champion or self.champion):
            return "champion"
        if model not in self.model_names:
            return "candidate" if self.knows(model) else "not declared"
        return "baseline" if model == "baseline" else "challenger"

    def model(self, name: str) -> Any:
        """Return a fresh copy of the declared model `name`, or of that of a candidate, which has learned nothing.

        What draws at random in it without a seed has one of ours: see `unseeded`.
        """
        model = self._declared(name)
        seed(model, self.name, self.parts(name)[0], self.stable_repr(name))
        return model

    def _declared(self, name: str) -> Any:
        declared = self.parts(name)[0]
        try:
            return copy.deepcopy(self.models.get(declared, self._baseline))
        except Exception as error:  # a model's own code
            Fail(self.name)(f"models[{declared!r}]", f"it can't be copied, as each use needs: {described(error)}")

    def unseeded(self, name: str) -> list[str]:
        """Return the classes of the model's parts that draw at random and are declared without a seed."""
        return seed(self._declared(name))

    def hashed(self) -> list[str]:
        """Return the request features, and `label`, whose functions go by Python's `hash`."""
        functions = {name: feature.source for name, feature in self.request_features.items()}
        return [name for name, function in (functions | {"label": self.labels.value}).items() if goes_by_hash(function)]

    def metric(self) -> list[Any]:
        """Return fresh metrics: the declared ones, or the task's."""
        return [m.clone() for m in self.metrics] if self.metrics else list(self.kind.metrics())

    @cached_property
    def request_features(self) -> dict[str, Feature]:
        """Request features by name, each with its kind."""
        fail = Fail(self.name)
        return {
            name: as_feature(f"request[{name!r}]", source, self.events, fail) for name, source in self.request.items()
        }

    @cached_property
    def personal_features(self) -> frozenset[str]:
        """Features that are made of a personal field: taken or looked up by it, or aggregated over it.

        Of a function nobody knows what it looks at: where events have such fields, what it makes counts as personal.
        """
        fields = self.events.personal_fields
        if not fields | self.labels.personal_fields:
            return frozenset()
        names = set()
        for name, feature in self.request_features.items():
            source = feature.source.by if isinstance(feature.source, Lookup) else feature.source
            if fields and (source in fields or not isinstance(source, str)):
                names.add(name)
        later = names | self.labels.personal_fields
        if self.labels.value in self.labels.personal_fields:
            later = later | {"label"}
        for view in self.views:
            known = fields if view.source == "events" else later
            names |= {
                feature for feature, one in zip(view.features, view.flat, strict=True)
                if known & {*one.fields, *(part_field for part in one.parts for part_field in part.fields)}
            }  # fmt: skip
        return frozenset(names)

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables that request features look up, in declared order."""
        sources = (feature.source for feature in self.request_features.values())
        return tuple(dict.fromkeys(source.table for source in sources if isinstance(source, Lookup)))

    @cached_property
    def inline_views(self) -> tuple[View, ...]:
        """Views that the featurizer keeps as it goes: of the events' key, from events."""
        return tuple(v for v in self.views if v.source == "events" and v.entity == self.events.key)

    @cached_property
    def remote_views(self) -> tuple[View, ...]:
        """Views that the materializer keeps: of other entities, or from examples."""
        return tuple(view for view in self.views if view not in self.inline_views)

    @cached_property
    def vector(self) -> dict[str, str]:
        """The vector: kind of each feature by name, in the order in which a model sees them."""
        kinds: dict[str, str] = {name: feature.kind for name, feature in self.request_features.items()}
        return kinds | {name: "number" for view in self.views for name in view.features}

    @cached_property
    def vector_schema(self) -> dict[str, Any]:
        """Avro record of the vector; every feature may be missing (null)."""
        return {
            "type": "record",
            "name": f"tidemill.{self.name.replace('-', '_')}.Vector",
            "doc": f"What a model of the pipeline {self.name} is given.",
            "fields": [
                {"name": name, "type": ["null", KINDS[kind]], "default": None} for name, kind in self.vector.items()
            ],
        }

    def stable_repr(self, model: str) -> str:
        """Return the model as River prints it, with its hyperparameters."""
        return stable_repr(self._declared(model))

    def declaration_hash(self, model: str) -> str:
        """SHA-256 of what a version of `model` depends on: model, vector, task, and `protect` where declared."""
        label = repr(self.labels.value) if isinstance(self.labels.value, str) else "function"
        content = [self.name, self.task, self.vector_schema, model, self.stable_repr(model), label]
        if self.protect is not None:
            content.append(dataclasses.asdict(self.protect))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def label_value(self) -> Callable[[Mapping[str, Any]], Any]:
        """Return the function that takes a label record and returns the label."""
        source = self.labels.value
        if callable(source):
            return lambda record: source(MappingProxyType(record))  # it can't change what is passed on
        return lambda record: record[source]


def _guards(rules: Sequence[Rule], time: str) -> list[Rule]:
    """Return the rules that refuse what is ahead of the clock; one that only warns guards nothing."""
    return [rule for rule in rules if rule.name == "not_after_now" and rule.field == time and not rule.warn]
