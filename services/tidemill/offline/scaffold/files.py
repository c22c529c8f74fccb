"""The files of a project: declaration, schemas, data, test, README and docker-compose.yml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from tidemill.declare.load import load
from tidemill.declare.pipeline import Pipeline
from tidemill.encoding import schema_files
from tidemill.offline import history
from tidemill.offline.file_check import check_files
from tidemill.offline.scaffold import topic
from tidemill.offline.scaffold.columns import quoted
from tidemill.offline.scaffold.plan import SHRUNK_BY, WINDOWS, Part, Plan, typed
from tidemill.offline.source import FileSource
from tidemill.offline.suggest import profiles
from tidemill.offline.suggest.core import Suggestion, refusals_text, suggest
from tidemill.stream.api import Progress

#: Suggested rules are learned from at least as many rows, and refuse at most this share of rows to come.
MIN_RULE_ROWS, MAX_REFUSED_SHARE, MAX_REFUSED_SHARE_OF_FEW = 60, 0.001, 0.05

Parts = Sequence[Part]


def write(folder: Path, plan: Plan, progress: Progress | None = None) -> None:
    """Write a project into a folder, which is made. `progress` is called with rows as they are checked."""
    for name in ("schemas", "data"):
        (folder / name).mkdir(parents=True)
    for name, parts in (("event", plan.events), ("label", plan.labels)):
        (folder / "schemas" / f"{name}.avsc").write_text(schema(plan, name, parts), encoding="utf-8")
        values = zip(*(part.values for part in parts), strict=True)
        records = [dict(zip((part.name for part in parts), row, strict=True)) for row in values]
        history.write(folder / "data" / f"{name}s.{plan.suffix}", records)
    pipeline, noted = folder / "pipeline.py", len(plan.notes)
    plan.topics = {stream: sample.topic for stream, sample in plan.samples.items()}
    pipeline.write_text(declaration(plan), encoding="utf-8")
    for stream, sample in plan.samples.items():
        why_not = topic.why_not_live(load(str(pipeline)), stream, sample, folder / "data" / f"{stream}.{plan.suffix}")
        if not why_not:
            plan.notes.append(f"the pipeline reads its {stream} from topic {sample.topic}")
            continue
        del plan.topics[stream]
        plan.notes.append(
            f"the pipeline can't read topic {sample.topic} as it is, for {why_not}. Send its {stream} to "
            f"{plan.name}.{stream}, as they are in data/{stream}.{plan.suffix}"
        )
        pipeline.write_text(declaration(plan), encoding="utf-8")
    rules = {}
    for argument, stream, name in (("rules", "events", "events"), ("label_rules", "labels", "labels")):
        rules[argument] = suggested(load(str(pipeline)), argument, stream, folder / "data" / f"{name}.{plan.suffix}")
    pipeline.write_text(declaration(plan, **rules), encoding="utf-8")
    files_of = FileSource(*(folder / "data" / f"{name}.{plan.suffix}" for name in ("events", "labels")))
    warnings = check_files(load(str(pipeline)), files_of, progress).warnings
    # Times before 1971 are history here, and in no wrong unit: how they are read was decided from all of them.
    plan.notes[noted:noted] = [text for text in warnings if not text.startswith("times of ")]
    for name, text in (
        ("test_pipeline.py", _filled("test_pipeline.py", plan)),
        ("README.md", _filled("README.md", plan)),
        ("docker-compose.yml", compose(load(str(pipeline)))),
    ):
        (folder / name).write_text(text, encoding="utf-8")


def schema(plan: Plan, name: str, parts: Parts) -> str:
    """Return an Avro schema, a field a line."""
    sample = plan.samples.get(f"{name}s")
    written = {field["name"]: field for field in sample.schema["fields"]} if sample and sample.schema else {}
    fields = []
    for part in parts:
        field = {"name": part.name} | typed(part.avro) | ({"column": part.column} if part.column else {})
        if (as_written := written.get(part.name, {})).get("type") == part.avro and "default" in as_written:
            field["default"] = as_written["default"]  # of records that were written before the field was added
        fields.append(f"    {json.dumps(field, ensure_ascii=False)}")
    called = schema_files.full_name(sample.schema) if sample and sample.schema else ""
    called = called or f"{plan.name.replace('-', '_')}.{name.capitalize()}"
    head = json.dumps({"type": "record", "name": called})
    return f'{head[:-1]}, "fields": [\n' + ",\n".join(fields) + "\n]}\n"


def suggested(pipeline: Pipeline, argument: str, stream: str, path: Path) -> list[str]:
    """Return the lines of the rules that history suggests; what would refuse some of it is commented out."""
    declared = getattr(pipeline, stream)
    rows = history.read(path, declared)
    if len(rows) < MIN_RULE_ROWS:
        return []
    share = min(MAX_REFUSED_SHARE_OF_FEW, max(MAX_REFUSED_SHARE, 3 / len(rows)))
    made = suggest(pipeline, argument, profiles.of_rows(declared, (), rows), share)
    # Ids and times go on; and tomorrow there is a customer more.
    moving = {declared.id, declared.time, pipeline.events.key, *(view.entity for view in pipeline.views)}
    return [_rule(one) for one in made.missing if one.field not in moving]


def _rule(one: Suggestion) -> str:
    is_sure = not one.refused and not one.warn
    return f"        {one.code}," if is_sure else f"        # {one.code},  # {refusals_text(one)}"


def declaration(plan: Plan, rules: Sequence[str] = (), label_rules: Sequence[str] = ()) -> str:
    """Return pipeline.py."""
    parts = [
        f'"""{_question(plan)}\n\nWritten by `tidemill init`, from the data: all of it may be changed.\n"""\n\n',
        _imports(plan, [*rules, *label_rules]),
        "\n",
        _PREPARED,
        "\npipeline = Pipeline(\n",
        *_lines(plan, rules, label_rules),
        ")\n",
    ]
    return "".join(parts)


def _question(plan: Plan) -> str:
    words = {
        "binary": f"will {plan.label} be true?",
        "multiclass": f"which {plan.label} will it be?",
        "regression": f"how much will {plan.label} be?",
        "anomaly": "is this event unusual?",
    }
    return f"{plan.name}: {words[plan.task]}"


#: By task: the code of the champion and of the challenger. The gradient of a squared error has no bound: one number far
#: from all before it would have the weights overshoot, and grow with every further one.
_FAMILIES = {
    "binary": ("linear_model.LogisticRegression()", "tree.HoeffdingTreeClassifier()"),
    "multiclass": ("linear_model.SoftmaxRegression()", "tree.HoeffdingTreeClassifier()"),
    "regression": (
        "preprocessing.TargetStandardScaler(linear_model.LinearRegression(clip_gradient=1.0))",
        'tree.HoeffdingTreeRegressor(leaf_prediction="mean")',
    ),
}


def _imports(plan: Plan, rules: Sequence[str]) -> str:
    river = ["compose", "preprocessing"]
    river += ["anomaly"] if plan.task == "anomaly" else ["linear_model", "tree"]
    names = ["Monitor", "Pipeline", "Stream"]
    names += [] if plan.task == "anomaly" else ["Gate"]
    names += ["View", "aggregates"] if _views(plan) else []
    names += ["number"] if plan.calendar else []
    names += ["category"] if plan.codes else []
    names += ["rules"] if any(not line.lstrip().startswith("#") for line in rules) else []
    ordered = sorted(names, key=lambda name: (name[0].islower(), name))
    return f"from river import {', '.join(sorted(river))}\nfrom tidemill import {', '.join(ordered)}\n"


#: What models share.
_PREPARED = (
    "# What models are given: numbers on one scale, and a 0 or 1 for each category.\n"
    "NUMBERS = compose.SelectType(float, bool) | preprocessing.StandardScaler()\n"
    "CATEGORIES = compose.SelectType(str) | preprocessing.OneHotEncoder()\n"
)


def _lines(plan: Plan, rules: Sequence[str], label_rules: Sequence[str]) -> Iterable[str]:
    unit, known_unit = (f', time_unit="{one}"' if one else "" for one in (plan.time_unit, plan.label_time_unit))
    of_events, of_labels = (
        f", topic={quoted(plan.topics[one])}" if one in plan.topics else "" for one in ("events", "labels")
    )
    yield f"    name={quoted(plan.name)},\n"
    key, id_, time, known = map(quoted, (plan.entity, plan.id, plan.time, plan.label_time))
    yield "    # An event asks, a label with the same id answers it. Features of the past are kept by the key.\n"
    key = f", key={key}" if plan.entity else ""
    yield f'    events=Stream("event.avsc", id={id_}, time={time}{unit}{key}{of_events}),\n'
    label = f"id={quoted(plan.label_id)}, time={known}{known_unit}, value={plan.value}{of_labels}"
    yield f'    labels=Stream("label.avsc", {label}),\n'
    for stream in list(plan.topics)[:1]:
        yield f"    partitions={plan.samples[stream].partitions},  # as many as the topic of the {stream} has\n"
    yield f"    task={quoted(plan.task)},\n"
    for argument, lines, what in (("rules", rules, "an event"), ("label_rules", label_rules, "a label")):
        if lines:
            yield f"    # What {what} must be. A rule that is commented out would refuse some of the data.\n"
            yield f"    {argument}=[\n" + "\n".join(lines) + "\n    ],\n"
    yield from _request(plan)
    yield from _views(plan)
    yield from _chosen_models(plan)
    yield "    # How long a label is waited for; from the delays in the data.\n"
    yield f"    label_timeout={quoted(plan.label_timeout)},\n"
    segments = f", segments=[{', '.join(map(quoted, plan.segments))}]" if plan.segments else ""
    yield f"    monitor=Monitor(window={quoted(plan.monitor)}, reference={quoted(plan.reference)}{segments}),\n"
    if plan.task != "anomaly":
        examples = max(200, min(2_000, plan.rows // 5))
        yield "    # The challenger serves when it is shown to be better, on this many questions or more.\n"
        yield f"    gate=Gate(examples={examples}),\n"


def _request(plan: Plan) -> Iterable[str]:
    yield "    # Features of the event itself: numbers and flags as they are, categories as text.\n"
    yield "    request={\n"
    for name in (*plan.numbers, *plan.flags, *plan.categories):
        source = f"category({quoted(name)})" if name in plan.codes else quoted(name)
        yield f"        {quoted(request_name(name))}: {source},\n"
    at = f"event[{quoted(plan.time)}]"
    calendar = {
        "hour": f"number(lambda event: {at} // 3_600_000 % 24)",
        "weekday": f"number(lambda event: ({at} // 86_400_000 + 3) % 7)",
        "month": f"number(lambda event: {at} // 2_629_746_000 % 12)",
    }
    for name in plan.calendar:
        taken = {request_name(one) for one in (*plan.numbers, *plan.flags, *plan.categories)}
        yield f"        {quoted(f'{name}_of_event' if name in taken else name)}: {calendar[name]},\n"
    for name, why in plan.left_out.items():
        yield f"        # {name}: left out, {_one_line(why)}\n"
    yield "    },\n"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def request_name(name: str) -> str:
    """Return what the feature of a field is called: `label` is the label's own name."""
    return "label_" if name == "label" else name


def _views(plan: Plan) -> list[str]:
    is_number = plan.task != "multiclass"
    window, lines = plan.window, []
    tile = WINDOWS[window]
    mean = f'aggregates.shrunk_mean("label", {plan.prior!r}, {SHRUNK_BY}, "{window}")'
    if plan.entity:
        kept = [f'aggregates.count("{window}")']
        kept += [f'aggregates.mean({quoted(name)}, "{window}")' for name in plan.numbers[:2]]
        lines.append(_view(plan.entity, "past", "", tile, kept))
        lines += [_view(plan.entity, "outcome", '            source="examples",\n', tile, [mean])] if is_number else []
    lines += [_view(name, "outcome", '            source="examples",\n', tile, [mean]) for name in plan.means]
    if not lines:
        return []
    comment = (
        "    # Features of the past, by entity: how often, how much, and what came of it (drawn to the mean of all).\n"
    )
    return [comment, "    views=[\n", *lines, "    ],\n"]


def _view(entity: str, what: str, source: str, tile: str, kept: Sequence[str]) -> str:
    name = quoted(f"{entity}_{what}")
    head = f"        View(\n            {quoted(entity)},\n            name={name},\n"
    aggregates = "".join(f"                {one},\n" for one in kept)
    aggregates = (
        f"            aggregates=[\n{aggregates}            ],\n"
        if len(kept) > 1
        else f"            aggregates=[{kept[0]}],\n"
    )
    return f'{head}{source}            every="{tile}",\n{aggregates}        ),\n'


def _chosen_models(plan: Plan) -> Iterable[str]:
    if plan.task == "anomaly":
        yield "    # The champion serves; the challenger is measured beside it.\n"
        yield "    models={\n"
        trees = "preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=42)"
        yield f'        "trees": (NUMBERS + CATEGORIES) | {trees},\n'
        yield '        "svm": (NUMBERS + CATEGORIES) | anomaly.OneClassSVM(),\n'
        yield '    },\n    champion="trees",\n'
        return
    linear, tree = _FAMILIES[plan.task]
    yield "    # The champion serves; the challenger learns and is measured beside it.\n"
    yield "    models={\n"
    yield f'        "linear": (NUMBERS + CATEGORIES) | {linear},\n'
    yield f'        "tree": {tree},\n'
    yield '    },\n    champion="linear",\n'


def _template(name: str) -> str:
    return (files("tidemill.offline.scaffold") / "templates" / f"{name}.txt").read_text(encoding="utf-8")


def _filled(name: str, plan: Plan) -> str:
    text = _template(name)
    for key, value in {"NAME": plan.name, "SUFFIX": plan.suffix, "QUESTION": _question(plan)}.items():
        text = text.replace(f"@{key}@", value)
    return text


def compose(pipeline: Pipeline, target: str = "pipeline.py", *, http_tls: bool = False) -> str:
    """Return docker-compose.yml: the project's own for the shipped pipeline, made one for this pipeline.

    `target` names the pipeline as for `tidemill.load`; a file is one beside the docker-compose.yml. `http_tls`: each
    service's port is served by TLS.
    """
    made = [COMPOSE_HEAD + COMPOSE_TLS * http_tls]
    for block in shipped("docker-compose.yml").read_text(encoding="utf-8").split("\n\n")[1:]:
        name = block.strip().partition(":")[0]
        if name in ("prometheus", "grafana") or (name.startswith("learner-") and name != "learner-logreg"):
            continue
        if name == "learner-logreg":
            quoted_block = block.replace("--model, logreg]", '--model, "logreg"]')  # `null` is a name, too
            made += [quoted_block.replace("logreg", model) for model in pipeline.model_names]
        elif name == "volumes":
            made.append(
                "\n".join(line for line in block.splitlines() if line.strip() not in ("prometheus:", "grafana:"))
            )
        elif name == "status":
            made.append(with_learners(block, pipeline.model_names))
        else:
            made.append(block.replace("  build: .\n", ""))
    text = "\n\n".join(_own(block, target, http_tls=http_tls) for block in made).rstrip() + "\n"
    for name, port in (("STATUS", 8000), ("GATEWAY", 8001)):  # which another pipeline of this machine may have
        text = text.replace(f"127.0.0.1:{port}:", f"127.0.0.1:${{{name}_PORT:-{port}}}:")
    return text


COMPOSE_HEAD = """\
# This pipeline on a real Kafka and Redis, with Tidemill's image (in a clone of Tidemill: docker compose build):
#   docker compose up
# It makes the keys that records are signed with, in volumes. The status page is then at localhost:8000, the gateway at
# localhost:8001, or at the ports that STATUS_PORT and GATEWAY_PORT name."""
COMPOSE_TLS = """
# HTTP is by TLS: in ./tls, readable for user 10001, are tls.crt and tls.key, for the names of all services and
# localhost, and ca.crt, of whom has signed them."""
_OVER_TLS = (
    ("http://localhost:8080/readyz', timeout=2", "https://localhost:8080/readyz', timeout=2, context=s"),
    ("import urllib.request as u; ", "import ssl, urllib.request as u; s = ssl._create_unverified_context(); "),
    ('": "http://', '": "https://'),
    (
        '  TIDEMILL_HTTP_PORT: "8080"\n',
        '  TIDEMILL_HTTP_PORT: "8080"\n  TIDEMILL_HTTP_CERTIFICATE: /tls/tls.crt\n  TIDEMILL_HTTP_KEY: /tls/tls.key\n'
        "  TIDEMILL_HTTP_CA: /tls/ca.crt\n",
    ),
)


def _own(block: str, target: str, *, http_tls: bool) -> str:
    """Return a service, or what services share, with the pipeline named, and the folders mounted that it reads."""
    path = target.partition(":")[0]
    is_file = path.endswith(".py")
    named = json.dumps(f"/pipeline/{Path(path).name}{target[len(path) :]}" if is_file else target)
    block = re.sub(r"^(    command: \[.*)\bflights\b", lambda match: match[1] + named, block, flags=re.M)
    if http_tls:
        for plain, over_tls in _OVER_TLS:
            block = block.replace(plain, over_tls)
    mounts = '"./:/pipeline:ro", ' * is_file + '"./tls:/tls:ro", ' * http_tls
    if "image: tidemill" not in block and "*service" not in block:
        return block
    block = re.sub(r"^(  (?:  )?volumes: \[)", lambda match: match[1] + mounts, block, flags=re.M)
    return block.replace(", ]", "]")


def with_learners(block: str, models: Sequence[str]) -> str:
    """Return the block of the status service with the addresses of these models' learners."""
    lines = []
    for line in block.splitlines():
        if '"learner-' not in line:
            lines.append(line)
        elif "learner-logreg" in line:
            lines += [line.replace("logreg", model) for model in models]
    return "\n".join(lines)


def shipped(name: str) -> Path:
    """Return a file or folder that is shipped: inside the wheel, or in the repository."""
    inside = Path(__file__).parents[2] / name
    return inside if inside.exists() else Path(__file__).parents[4] / name
