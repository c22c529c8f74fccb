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

Nothing here does I/O but reading schema files (and `Table` its own); operations (brokers, Redis, secrets) come from the settings.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from tidemill.aggregates.base import Aggregate, columns_of
from tidemill.declare.feature import AVRO_KINDS, KINDS, Feature, Source
from tidemill.declare.fuse import Fuse
from tidemill.declare.gate import Gate, Training
from tidemill.declare.monitor import ALERTS, BY_VIEW, LIMITS, Monitor
from tidemill.declare.protect import MOST_REMEMBERED, Protect
from tidemill.declare.search import Search
from tidemill.declare.stable_repr import stable_repr
from tidemill.declare.stream import Stream
from tidemill.declare.tasks import TASKS, Task
from tidemill.declare.view import View
from tidemill.durations import milliseconds
from tidemill.encoding import schema_files as schemas
from tidemill.encoding.resolution import unreadable
from tidemill.encoding.schema_limits import unsafe
from tidemill.errors import DeclarationError
from tidemill.ranges import Range
from tidemill.rules import FUTURE_TOLERANCE, Rule, not_after_now
from tidemill.rules.base import NUMBERS, TEXTS
from tidemill.tables import Lookup, Table

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_FEATURE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Pipeline:
    """A whole pipeline: its streams, rules, features, models and how they are judged.

    Raises DeclarationError, naming the field and the mend, where the parts do not fit together.
    """

    name: str
    events: Stream
    labels: Stream
    task: str
    request: Mapping[str, Feature | Source]
    models: Mapping[str, Any]
    champion: str
    rules: Sequence[Rule] = ()
    label_rules: Sequence[Rule] = ()
    views: Sequence[View] = ()
    metrics: Sequence[Any] = ()
    baseline: Any = None
    label_timeout: str = "24h"
    partitions: int = 4
    monitor: Monitor = field(default_factory=Monitor)
    fuse: Fuse = field(default_factory=Fuse)
    gate: Gate | None = None
    training: Training | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    protect: Protect | None = None
    search: Mapping[str, Search] = field(default_factory=dict)
    #: Names of the models as they run: the declared ones and "baseline", the task's do-nothing model.
    model_names: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        _Checker(self).check()
        names = tuple(self.models)
        if self._baseline is not None and "baseline" not in names:
            names += ("baseline",)
        object.__setattr__(self, "model_names", names)

    @property
    def kind(self) -> Task:
        """The task's ways of asking, teaching and measuring a model."""
        return TASKS[self.task]

    @property
    def label_timeout_ms(self) -> int:
        """How long after its event, in event time, a label still counts; milliseconds."""
        return milliseconds(self.label_timeout)

    @property
    def _baseline(self) -> Any:
        return self.baseline if self.baseline is not None else self.kind.baseline()

    @property
    def event_checks(self) -> tuple[Rule, ...]:
        """The rules that events are held to: the declared ones, and one for their time where none is declared."""
        return _guarded(self.rules, self.events.time)

    @property
    def label_checks(self) -> tuple[Rule, ...]:
        """The rules that labels are held to: the declared ones, and one for their time where none is declared."""
        return _guarded(self.label_rules, self.labels.time)

    @staticmethod
    def parts(name: str) -> tuple[str, int]:
        """Return the declared model of a name, and the first example that it learns: a candidate is called model~example."""
        model, _, begin = name.partition("~")
        return model, int(begin or 0)

    def knows(self, name: str) -> bool:
        """Whether a model of this name, or the one that a candidate is made of, is declared."""
        model, mark, begin = name.partition("~")
        return model in self.model_names and (not mark or (begin.isascii() and begin.isdecimal()))

    def role(self, model: str, champion: str = "") -> str:
        """Return a model's role; `champion` names the champion where it is not the declared one."""
        if model == (champion or self.champion):
            return "champion"
        if model not in self.model_names:
            return "candidate" if self.knows(model) else "not declared"
        return "baseline" if model == "baseline" else "challenger"

    def model(self, name: str) -> Any:
        """Return a fresh copy of the declared model `name`, or of that of a candidate, which has learned nothing."""
        return copy.deepcopy(self.models.get(self.parts(name)[0], self._baseline))

    def metric(self) -> list[Any]:
        """Return fresh metrics: the declared ones, or the task's."""
        return [m.clone() for m in self.metrics] if self.metrics else list(self.kind.metrics())

    @cached_property
    def request_features(self) -> dict[str, Feature]:
        """Request features by name, each with its kind."""
        return {name: _feature(self, name, source) for name, source in self.request.items()}

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
        kinds = {name: feature.kind for name, feature in self.request_features.items()}
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
        """Return the model as River prints it: what a version's hyperparameters are known by."""
        return stable_repr(self.model(model))

    def declaration_hash(self, model: str) -> str:
        """SHA-256 of what a version of `model` depends on: the model itself, the vector, the task; what protects it, if anything."""
        said = [self.name, self.task, self.vector_schema, model, self.stable_repr(model), repr(self.labels.value)
                if isinstance(self.labels.value, str) else "function"]  # fmt: skip
        if self.protect is not None:
            said.append(dataclasses.asdict(self.protect))
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def label_value(self) -> Callable[[Mapping[str, Any]], Any]:
        """Return the function that takes a label record and returns the label."""
        source = self.labels.value
        if callable(source):
            return source
        return lambda record: record[source]


def _guarded(declared: Sequence[Rule], time: str) -> tuple[Rule, ...]:
    if any(rule.name == "not_after_now" and rule.field == time for rule in declared):
        return tuple(declared)
    return (*declared, not_after_now(time, FUTURE_TOLERANCE))


def _feature(pipeline: Pipeline, name: str, source: Feature | Source) -> Feature:
    if isinstance(source, Feature):
        return source
    if isinstance(source, str):
        return Feature(AVRO_KINDS[pipeline.events.types[source]], source)
    if isinstance(source, Lookup):
        return Feature(source.kind, source)
    returns = getattr(source, "__annotations__", {}).get("return")
    kind = {float: "number", int: "number", str: "category", bool: "flag"}.get(returns)  # type: ignore[arg-type]
    kind = kind or {"float": "number", "int": "number", "str": "category", "bool": "flag"}.get(str(returns))
    if kind is None:
        raise DeclarationError(
            f"pipeline {pipeline.name!r}: request[{name!r}] is a function that does not say what it returns: "
            f"wrap it as number(...), category(...) or flag(...)"
        )
    return Feature(kind, source)


class _Checker:
    """All checks of one declaration; the first that fails raises."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.p = pipeline

    def fail(self, where: str, message: str) -> NoReturn:
        raise DeclarationError(f"pipeline {self.p.name!r}: {where}: {' '.join(message.split())}")

    def check(self) -> None:
        p = self.p
        if not isinstance(p.name, str) or not _NAME.fullmatch(p.name):
            self.fail("name", f"{p.name!r} is no name: use small letters, digits, - and _, a letter first")
        self.shapes()
        if p.task not in TASKS:
            self.fail("task", f"{p.task!r} is not a task: expected one of {', '.join(TASKS)}")
        if type(p.partitions) is not int or p.partitions < 1:
            self.fail("partitions", f"{p.partitions!r} where a whole number from 1 up was expected")
        try:
            milliseconds(p.label_timeout)
        except ValueError as error:
            self.fail("label_timeout", str(error))
        self.stream("events", p.events)
        self.stream("labels", p.labels)
        self.label()
        self.rules("rules", p.rules, p.events)
        self.rules("label_rules", p.label_rules, p.labels)
        self.request()
        for view in p.views:
            self.view(view)
        if not p.vector:
            self.fail("request", "the vector is empty: declare at least one request feature or view")
        self.models()
        self.monitor()
        self.fuse()
        self.gate()
        self.training()
        self.shares()
        self.protect()
        self.search()

    def shapes(self) -> None:
        """Check what Python would only stumble over later: each part is of the kind that it is declared as."""
        p: Any = self.p
        for name in ("task", "champion", "label_timeout"):
            if not isinstance(getattr(p, name), str):
                self.fail(name, f"{getattr(p, name)!r} where text was expected")
        for name in ("models", "request", "search"):
            value = getattr(p, name)
            if not isinstance(value, Mapping):
                self.fail(name, f"{value!r} where a mapping of names was expected, as in {name}={{'name': ...}}")
            for key in value:
                if not isinstance(key, str):
                    self.fail(name, f"the name {key!r} is no text")
        for name in ("rules", "label_rules", "views", "metrics"):
            if not isinstance(getattr(p, name), (list, tuple)):
                self.fail(name, f"{getattr(p, name)!r} where a list was expected")
        for view in p.views:
            if not isinstance(view, View):
                self.fail("views", f"{view!r} where a View(...) was expected")
            for item in view.flat:
                if not isinstance(item, Aggregate):
                    self.fail(
                        f"views[{view.label!r}]", f"{item!r} where an aggregate of tidemill.aggregates was expected"
                    )
        for metric in p.metrics:
            if isinstance(metric, type) or not hasattr(metric, "update") or not hasattr(metric, "clone"):
                self.fail("metrics", f"{metric!r} where one of River's metrics was expected, as in metrics.ROCAUC()")

    def field(self, where: str, name: Any, stream: Stream, *allowed: str) -> None:
        if name not in stream.types:
            self.fail(where, f"{name!r} is not a field of {stream.schema}: it has {', '.join(stream.types)}")
        if allowed and stream.types[name] not in allowed:
            self.fail(where, f"field {name!r} is {stream.types[name]}; expected {' or '.join(allowed)}")

    def stream(self, where: str, stream: Any) -> None:
        if not isinstance(stream, Stream):
            self.fail(where, f"{stream!r} where a Stream(...) was expected")
        try:
            _ = stream.types  # reads the file
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.fail(f"{where}.schema", str(error))
        else:
            self.schemas(where, stream)
            self.field(f"{where}.id", stream.id, stream, "string", "int", "long")
            self.field(f"{where}.time", stream.time, stream, "long")
            if where == "events":
                if not stream.key:
                    self.fail("events.key", "name the field that is the entity, as in key='origin'")
                self.field("events.key", stream.key, stream, "string", "int", "long", "enum")
            for name in (stream.id, stream.time, *([stream.key] if stream.key else [])):
                if schemas.nullable(next(f["type"] for f in stream.avro["fields"] if f["name"] == name)):
                    self.fail(
                        where, f"field {name!r} may be null in {stream.schema}; id, time and key must always be there"
                    )

    def schemas(self, where: str, stream: Stream) -> None:
        """Check what producers may send: that it is safe to decode, and that the declared schema can read it."""
        if stream.encoding not in ("", "avro", "json"):
            self.fail(
                f"{where}.encoding", f"{stream.encoding!r} where 'avro' or 'json' was expected, or nothing for both"
            )
        why = unsafe(stream.avro)
        if why:
            self.fail(f"{where}.schema", f"{stream.schema} can't be decoded safely: {why}")
        if isinstance(stream.accepts, str) or not all(isinstance(name, str) for name in stream.accepts):
            self.fail(f"{where}.accepts", f"{stream.accepts!r} where a list of schema files was expected")
        try:
            others = stream.others
        except (OSError, ValueError) as error:
            self.fail(f"{where}.accepts", str(error))
        for name, avro in others.items():
            why = unsafe(avro) or schemas.malformed(avro)
            if why:
                self.fail(f"{where}.accepts", f"{name} can't be decoded safely: {why}")
            mismatch = unreadable(avro, stream.avro)
            if mismatch:
                self.fail(f"{where}.accepts", f"{stream.schema} can't read {name}: {mismatch}")

    def label(self) -> None:
        value: Any = self.p.labels.value
        if not value or not (isinstance(value, str) or callable(value)):
            self.fail("labels.value", "name the field that is the label, or give a function of the label record")
        if isinstance(value, str):
            fits = {"boolean": ("boolean",), "double": ("double", "float", "int", "long"), "string": ("string", "enum")}
            self.field("labels.value", value, self.p.labels, *fits[self.p.kind.label_type])

    def rules(self, where: str, rules: Sequence[Any], stream: Stream) -> None:
        for rule in rules:
            if not isinstance(rule, Rule):
                self.fail(where, f"{rule!r} where a rule of tidemill.rules was expected")
            for name in (rule.field, *rule.also):
                self.field(f"{where}: {rule.name}", name, stream)
            kind = stream.types[rule.field]
            if rule.types and kind not in rule.types:
                wanted = (
                    "a number" if rule.types == NUMBERS else "text" if rule.types == TEXTS else " or ".join(rule.types)
                )
                self.fail(f"{where}: {rule.name}", f"field {rule.field!r} is {kind}, not {wanted}")
            if kind not in AVRO_KINDS:
                self.fail(f"{where}: {rule.name}", f"field {rule.field!r} is {kind}; rules are for plain values")

    def request(self) -> None:
        for name, source in self.p.request.items():
            where = f"request[{name!r}]"
            if not _FEATURE.fullmatch(name):
                self.fail(where, "a feature's name is made of letters, digits and _")
            given: Any = source.source if isinstance(source, Feature) else source
            if isinstance(given, str):
                self.field(where, given, self.p.events)
                kind = self.p.events.types[given]
                if kind not in AVRO_KINDS:
                    self.fail(
                        where, f"field {given!r} is {kind}: give a function that makes a number or a category of it"
                    )
                if isinstance(source, Feature) and source.kind == "number" and AVRO_KINDS[kind] == "category":
                    self.fail(where, f"field {given!r} is {kind}, not a number: use category({given!r})")
            elif isinstance(given, Lookup):
                self.lookup(where, given, source)
            elif not callable(given):
                self.fail(where, f"{given!r} where the name of an event field or a function of the event was expected")
            _feature(self.p, name, source)

    def lookup(self, where: str, given: Lookup, source: Feature | Source) -> None:
        self.field(f"{where}: by", given.by, self.p.events, "string", "enum", "int", "long")
        kind = source.kind if isinstance(source, Feature) else given.kind
        if given.kind == "category" and kind != "category":
            self.fail(where, f"column {given.column!r} of {given.table.name} is text, not a {kind}: use category(...)")

    def view(self, view: View) -> None:
        where = f"views[{view.label!r}]"
        if view.source not in ("events", "examples"):
            self.fail(f"{where}.source", f"{view.source!r} where 'events' or 'examples' was expected")
        self.field(where, view.entity, self.p.events, "string", "enum", "int", "long")
        if not _FEATURE.fullmatch(view.label):
            self.fail(where, "a view's name is made of letters, digits and _")
        try:
            every = milliseconds(view.every)
        except ValueError as error:
            self.fail(f"{where}.every", str(error))
        else:
            if not view.flat:
                self.fail(where, "it keeps nothing: declare at least one aggregate")
            for aggregate in view.flat:
                for part in aggregate.parts or (aggregate,):
                    for name in part.fields:
                        self.aggregated(f"{where}: {part.kind}", view, name, text=part.text)
                if aggregate.window_ms % every:
                    self.fail(
                        f"{where}: {aggregate.name}",
                        f"window {aggregate.window} is not a multiple of every={view.every}",
                    )
        for name in ("expires", "fresh"):
            try:
                milliseconds(getattr(view, name) or "1s")
            except ValueError as error:
                self.fail(f"{where}.{name}", str(error))
            try:
                columns_of(view.flat)
            except ValueError as error:
                self.fail(where, str(error))
        names = [name for v in self.p.views for name in v.features] + list(self.p.request)
        for name in view.features:
            if not _FEATURE.fullmatch(name):
                self.fail(where, f"the feature's name {name!r} is not made of letters, digits and _")
            if names.count(name) > 1:
                self.fail(where, f"the feature {name!r} is declared twice")
        if [v.label for v in self.p.views].count(view.label) > 1:
            self.fail(where, f"two views are called {view.label!r}: give one of them name=...")

    def aggregated(self, where: str, view: View, name: str, *, text: bool) -> None:
        """Check a field that an aggregate looks at; `text`: whether it may be a category."""
        if view.source == "events":
            self.field(where, name, self.p.events, *(AVRO_KINDS if text else NUMBERS))
            return
        kinds = {of: feature.kind for of, feature in self.p.request_features.items()}
        kinds |= {of: AVRO_KINDS.get(type_, type_) for of, type_ in self.p.labels.types.items()}
        kinds["label"] = {"double": "number", "boolean": "flag"}.get(self.p.kind.label_type, "category")
        if name not in kinds:
            self.fail(where, f"{name!r} is neither 'label' nor a field of the label nor a request feature: "
                             f"there are {', '.join(kinds)}")  # fmt: skip
        if kinds[name] not in KINDS or (kinds[name] == "category" and not text):
            self.fail(where, f"{name!r} is {kinds[name]}, not a number")

    def models(self) -> None:
        p = self.p
        if not p.models:
            self.fail(
                "models", "declare at least one, as in models={'logreg': StandardScaler() | LogisticRegression()}"
            )
        for name, model in p.models.items():
            if not _NAME.fullmatch(name):
                self.fail("models", f"{name!r} is no name: use small letters, digits, - and _, a letter first")
            self.model(f"models[{name!r}]", model)
        if p.baseline is not None:
            self.model("baseline", p.baseline)
        if p.champion not in p.models:
            self.fail("champion", f"{p.champion!r} is not one of the models: {', '.join(p.models)}")

    def monitor(self) -> None:
        given: Any = self.p.monitor
        if not isinstance(given, Monitor):
            self.fail("monitor", f"{given!r} where a Monitor(...) was expected")
        spans = {}
        for name in ("window", "reference", "lateness"):
            try:
                spans[name] = milliseconds(getattr(given, name))
            except ValueError as error:
                self.fail(f"monitor.{name}", str(error))
        if spans["reference"] < 3 * spans["window"]:
            self.fail("monitor.reference", f"{given.reference} is shorter than three windows of {given.window}: "
                                           f"what is usual can't be told from less")  # fmt: skip
        for name, least in (("least", 2), ("most", 100), ("windows", 1)):
            value = getattr(given, name)
            if type(value) is not int or value < least:
                self.fail(f"monitor.{name}", f"{value!r} where a whole number from {least} up was expected")
        self.segments("monitor.segments", given.segments)
        self.limits(given.limits)

    def fuse(self) -> None:
        given: Any = self.p.fuse
        if not isinstance(given, Fuse):
            self.fail("fuse", f"{given!r} where a Fuse(...) was expected")
        for name, least in (("run", 0), ("of", 1)):
            value = getattr(given, name)
            if type(value) is not int or value < least:
                self.fail(f"fuse.{name}", f"{value!r} where a whole number from {least} up was expected")
        share: Any = given.share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            self.fail("fuse.share", f"{share!r} where a share from 0 (no limit) to below 1 was expected")

    def gate(self) -> None:
        given: Any = self.p.gate
        if given is None:
            return
        if not isinstance(given, Gate):
            self.fail("gate", f"{given!r} where a Gate(...) was expected, or nothing: then people alone decide")
        if self.p.task == "anomaly":
            self.fail("gate", "an anomaly's score is right or wrong only beside others', so none is better by its loss: "
                              "leave it out, and promote by `tidemill models promote`")  # fmt: skip
        for name in ("margin", "worse", "metric_margin"):
            self.share(f"gate.{name}", getattr(given, name), 0.0, float("inf"))
        self.share("gate.rate", given.rate, 1e-9, 0.5)
        for name, least in (("examples", 200), ("least", 1), ("watch", 1_000), ("round", 1_000)):
            value = getattr(given, name)
            if type(value) is not int or value < least or (least == 1_000 and value % 100):
                also = ", a multiple of 100," if least == 1_000 else ""
                self.fail(f"gate.{name}", f"{value!r} where a whole number{also} from {least:,} up was expected")
        if type(given.automatic) is not bool:
            self.fail("gate.automatic", f"{given.automatic!r} where True or False was expected")
        if given.metric is not None and (
            isinstance(given.metric, type) or not hasattr(given.metric, "bigger_is_better")
        ):
            self.fail(
                "gate.metric", f"{given.metric!r} where one of River's metrics was expected, as in metrics.ROCAUC()"
            )
        if given.segments is not None:
            self.segments("gate.segments", given.segments)

    def training(self) -> None:
        given: Any = self.p.training
        if given is None:
            return
        if not isinstance(given, Training):
            self.fail("training", f"{given!r} where a Training(...) was expected")
        if given.model not in self.p.models:
            self.fail("training.model", f"{given.model!r} is not one of the models: {', '.join(self.p.models)}")
        for name in ("examples", "pause"):
            value = getattr(given, name)
            if type(value) is not int or value < 0:
                self.fail(f"training.{name}", f"{value!r} where a whole number from 0 up was expected")
        if isinstance(given.on, str) or not all(kind in ALERTS for kind in given.on):
            self.fail("training.on", f"{given.on!r} where kinds of alert were expected, of {', '.join(ALERTS)}")

    def shares(self) -> None:
        given: Any = self.p.shares
        if not isinstance(given, Mapping):
            self.fail("shares", f"{given!r} where a mapping was expected, as in shares={{'slow': 0.1}}")
        for name, share in given.items():
            if name not in self.p.models:
                self.fail("shares", f"{name!r} is not one of the models: {', '.join(self.p.models)}")
            self.share(f"shares[{name!r}]", share, 0.0, 1.0)
        if sum(given.values()) > 1:
            self.fail("shares", f"together they are {sum(given.values()):g}, where at most 1 was expected")

    def share(self, where: str, value: Any, least: float, most: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            self.fail(where, f"{value!r} where a number from {least:g} to {most:g} was expected")

    def segments(self, where: str, given: Any) -> None:
        if not isinstance(given, (list, tuple)):
            self.fail(where, f"{given!r} where a list of features was expected")
        for name in given:
            if self.p.vector.get(name) not in ("category", "flag"):
                names = [n for n, kind in self.p.vector.items() if kind != "number"]
                self.fail(where, f"{name!r} is no category of the vector: it has {', '.join(names) or 'none'}")

    def protect(self) -> None:
        given: Any = self.p.protect
        if given is None:
            return
        if not isinstance(given, Protect):
            self.fail("protect", f"{given!r} where a Protect(...) was expected, or None for no protection")
        categories = [name for name, kind in self.p.vector.items() if kind == "category"]
        sources = list(dict.fromkeys([*categories, self.p.events.key]))
        if given.source not in sources:
            self.fail("protect.source", f"{given.source!r} is neither a category of the vector nor the events' key: "
                                        f"there are {', '.join(sources)}")  # fmt: skip
        share: Any = given.share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            self.fail("protect.share", f"{share!r} where a share above 0 and below 1 was expected")
        if type(given.of) is not int or not 1 <= given.of <= MOST_REMEMBERED:
            self.fail("protect.of", f"{given.of!r} where a whole number from 1 to {MOST_REMEMBERED} was expected")

    def search(self) -> None:
        for name, search in self.p.search.items():
            where = f"search[{name!r}]"
            if not _NAME.fullmatch(name):
                self.fail("search", f"{name!r} is no name: use small letters, digits, - and _, a letter first")
            if not isinstance(search, Search) or not callable(search.make) or not isinstance(search.over, Mapping):
                self.fail(where, f"{search!r} where a Search(function, {{parameter: range}}) was expected")
            for parameter, values in search.over.items():
                if not isinstance(values, Range):
                    self.fail(
                        f"{where}: {parameter}", f"{values!r} where a range was expected, as in ranges.uniform(0, 1)"
                    )
            try:
                made = search.make(**search.draw(random.Random(0)))  # noqa: S311  it hides nothing
            except Exception as error:  # the declaration's own function
                self.fail(where, f"its function raised {type(error).__name__}: {error}")
            self.model(where, made)

    def limits(self, limits: Any) -> None:
        if not isinstance(limits, Mapping):
            self.fail("monitor.limits", f"{limits!r} where a mapping was expected, as in limits={{'psi': 0.3}}")
        views = [view.label for view in self.p.views]
        known = {*LIMITS, *BY_VIEW, "label_mean", *(type(metric).__name__ for metric in self.p.metric())}
        for name, limit in limits.items():
            figure, _, feature = str(name).partition(":")
            if figure not in known:
                self.fail(
                    "monitor.limits",
                    f"{name!r} is no figure that can alert: expected one of {', '.join(sorted(known))}",
                )
            if feature and figure in BY_VIEW:
                if feature not in views:
                    self.fail(
                        "monitor.limits", f"{name!r}: {feature!r} is no view: there are {', '.join(views) or 'none'}"
                    )
            elif feature and feature not in self.p.vector:
                self.fail(
                    "monitor.limits", f"{name!r}: {feature!r} is no feature: the vector has {', '.join(self.p.vector)}"
                )
            if figure == "label_mean" and limit is not None:
                self.fail(
                    "monitor.limits", "'label_mean' is held to what is usual, not to a limit: give None for no alert"
                )
            if figure == "freshness_p99" and limit is not None:
                self.fail(
                    "monitor.limits", f"{name!r} is held to its view's fresh=..., declare that; give None for no alert"
                )
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit != limit):
                self.fail("monitor.limits", f"{name!r} is {limit!r} where a number, or None for no alert, was expected")

    def model(self, where: str, model: Any) -> None:
        if isinstance(model, type):
            self.fail(where, f"{model.__name__} is a class: make one of it, as in {model.__name__}()")
        for method in self.p.kind.needs:
            if not hasattr(model, method):
                self.fail(where, f"{type(model).__name__} has no {method}, which task={self.p.task!r} needs")
