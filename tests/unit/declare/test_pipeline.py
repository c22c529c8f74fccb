"""A declaration is checked when it is loaded, and what is wrong is said in one line that names the field and the fix."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from river import compose, linear_model, preprocessing

from tidemill import Monitor, Pipeline, Stream, View, aggregates, category, load, number, rules
from tidemill.cli.text.declaration import pipeline_text
from tidemill.errors import DeclarationError
from tidemill.offline.backtest import Backtest
from tidemill.offline.model_trial import check_models
from tidemill.wire.topics import TOPICS

GOOD = load("flights")
AGG = aggregates.count("1h")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "Flights!"}, ["name", "Flights!", "small letters"]),
        ({"task": "clustering"}, ["task", "clustering", "binary"]),
        ({"partitions": 0}, ["partitions", "0"]),
        ({"partitions": 10**9}, ["partitions", "10000"]),
        ({"label_timeout": "soon"}, ["label_timeout", "soon", "5m"]),
        ({"events": replace(GOOD.events, schema="flights/nothing.avsc")}, ["events.schema", "flights/nothing.avsc"]),
        ({"events": replace(GOOD.events, id="nothing")}, ["events.id", "nothing", "flight_id"]),
        ({"events": replace(GOOD.events, id="distance")}, ["events.id", "distance", "double"]),
        ({"events": replace(GOOD.events, time="carrier")}, ["events.time", "carrier", "long"]),
        ({"events": replace(GOOD.events, key="nothing")}, ["events.key", "nothing", "origin"]),
        ({"events": replace(GOOD.events, key="tailnum")}, ["tailnum", "null"]),
        ({"events": "departures"}, ["events", "Stream"]),
        ({"events": replace(GOOD.events, topic="a topic")}, ["events.topic", "'a topic'", "letters, digits"]),
        ({"events": replace(GOOD.events, topic="..")}, ["events.topic", "'..'"]),
        ({"events": replace(GOOD.events, topic="x" * 250)}, ["events.topic", "249"]),
        ({"labels": replace(GOOD.labels, topic="flights.events.valid")}, ["labels.topic", "flights.events.valid", "name="]),
        ({"events": replace(GOOD.events, topic="t"), "labels": replace(GOOD.labels, topic="t")}, ["labels.topic", "'t'"]),
        ({"labels": replace(GOOD.labels, value="")}, ["labels.value"]),
        ({"labels": replace(GOOD.labels, value="arr_delay")}, ["labels.value", "arr_delay", "boolean"]),
        ({"rules": ["between 0 and 23"]}, ["rules", "tidemill.rules"]),
        ({"rules": [rules.between("hour", 0, 23)]}, ["between", "hour", "sched_hour"]),
        ({"rules": [rules.between("carrier", 0, 23)]}, ["between", "carrier", "not a number"]),
        ({"rules": [rules.matches("distance", "x")]}, ["matches", "distance", "not text"]),
        ({"request": {"x": "nothing"}}, ["request['x']", "nothing"]),
        ({"request": {"x": lambda e: 1}}, ["request['x']", "number(...)"]),
        ({"request": {"x": 7}}, ["request['x']", "7"]),
        ({"request": {"x y": "carrier"}}, ["request['x y']"]),
        ({"request": {"x": number("carrier")}}, ["request['x']", "category('carrier')"]),
        ({"request": {}, "views": []}, ["request", "empty"]),
        ({"views": [View("gate", every="1m", aggregates=[AGG])]}, ["views['gate']", "'gate'", "origin"]),
        ({"views": [View("distance", every="1m", aggregates=[AGG])]}, ["views['distance']", "double", "string"]),
        ({"views": [View("dest", every="1m", aggregates=[AGG], source="labels")]}, ["source", "labels", "examples"]),
        ({"views": [View("dest", every="1m", aggregates=[AGG], expires="soon")]}, ["views['dest'].expires", "soon"]),
        ({"views": [View("dest", every="1m", aggregates=[aggregates.mean("gate", "1h")], source="examples")]},
         ["views['dest_outcome']", "'gate'", "label", "arr_delay", "distance"]),
        ({"views": [View("dest", every="1m", aggregates=[aggregates.mean("carrier", "1h")], source="examples")]},
         ["views['dest_outcome']", "'carrier'", "category"]),
        ({"views": [View("origin", every="7m", aggregates=[AGG])]}, ["1h", "multiple", "7m"]),
        ({"views": [View("origin", every="x", aggregates=[AGG])]}, ["views['origin'].every"]),
        ({"views": [View("origin", every="1m", aggregates=[])]}, ["views['origin']", "at least one"]),
        ({"views": [View("origin", every="1m", aggregates=[aggregates.mean("carrier", "1h")])]}, ["mean", "carrier", "string"]),
        ({"views": [View("origin", every="1m", aggregates=[AGG])] * 2}, ["origin", "twice"]),
        ({"models": {}}, ["models", "at least one"]),
        ({"models": {"Log Reg": GOOD.models["logreg"]}}, ["models", "Log Reg"]),
        ({"models": {"logreg": linear_model.LinearRegression()}}, ["models['logreg']", "LinearRegression", "predict_proba_one"]),
        ({"champion": "best"}, ["champion", "best", "logreg"]),
    ],
)  # fmt: skip
def test_a_broken_declaration_names_field_value_and_mend(change: dict, words: list[str]) -> None:
    with pytest.raises(DeclarationError) as caught:
        replace(GOOD, **change)
    for word in [*words, repr(change.get("name", "flights"))]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = (", ["line 1", "SyntaxError"]),
        ("import nothing_of_that_name", ["line 1", "nothing_of_that_name"]),
        ("a = 1\nb = a / 0\n", ["line 2", "ZeroDivisionError"]),
        ("raise SystemExit(3)", ["SystemExit"]),
        ("x = 1", ["declares no pipeline"]),
        ("from tidemill.demo.flights import flights, delays", ["flights, delays", "choose one"]),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why(tmp_path: Path, content: str, words: list[str]) -> None:
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(DeclarationError) as caught:
        load(str(tmp_path / "mine.py"))
    for word in ["mine.py", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "reference", ["nothing", "tidemill.demo.flights:nothing", "no/such/file.py", "flights.nothing"]
)
def test_a_pipeline_that_does_not_exist_is_said_so(reference: str) -> None:
    with pytest.raises(DeclarationError):
        load(reference)


def test_a_file_may_choose_by_name_and_bring_its_own_schemas(tmp_path: Path) -> None:
    (tmp_path / "tick.avsc").write_text(
        '{"type": "record", "name": "mine.Tick", "fields": [{"name": "id", "type": "string"}, {"name": "at", "type": "long"},'
        ' {"name": "who", "type": "string"}, {"name": "x", "type": "double"}]}'
    )
    (tmp_path / "mine.py").write_text(
        "from river import linear_model\nfrom tidemill import Pipeline, Stream\n"
        "ticks = Stream('tick.avsc', id='id', time='at', key='who', value='x')\n"
        "one = Pipeline(name='one', events=ticks, labels=ticks, task='regression', request={'x': 'x'},\n"
        "               models={'m': linear_model.LinearRegression()}, champion='m')\n"
        "from tidemill.demo.flights import flights\n"
    )
    one = load(f"{tmp_path / 'mine.py'}:one")
    assert one.vector == {"x": "number"}
    assert one.events.schema_source == str(tmp_path / "tick.avsc")


def test_a_stream_knows_its_schemas_where_it_was_loaded_from_also_with_fields_that_were_chosen(tmp_path: Path) -> None:
    time = '{"type": "long", "logicalType": "timestamp-millis"}'
    for name in ("tick", "old"):
        (tmp_path / f"{name}.avsc").write_text(
            '{"type": "record", "name": "mine.Tick", "fields": [{"name": "id", "type": "string"},'
            f' {{"name": "at", "type": {time}}}, {{"name": "x", "type": "double"}}]}}'
        )
    (tmp_path / "mine.py").write_text(
        "from river import linear_model\nfrom tidemill import Pipeline, Stream\n"
        "ticks = Stream('tick.avsc', value='x', accepts=['old.avsc'])\n"
        "one = Pipeline(name='one', events=ticks, labels=ticks, task='regression', request={'x': 'x'},\n"
        "               models={'m': linear_model.LinearRegression()}, champion='m')\n"
    )
    one = load(str(tmp_path / "mine.py"))
    for stream in (one.events, one.labels):
        assert stream.chosen
        assert (stream.schema_source, list(stream.others)) == (str(tmp_path / "tick.avsc"), ["old.avsc"])
    assert f"their schemas: {tmp_path / 'tick.avsc'}" in pipeline_text(one)


def test_the_vector_is_in_declared_order_and_every_feature_may_be_missing() -> None:
    assert list(GOOD.vector)[:4] == ["carrier", "origin", "dest", "distance"]
    assert list(GOOD.vector)[-1] == "tailnum_outcome_mean_label_12h"
    fields = {f["name"]: f["type"] for f in GOOD.vector_schema["fields"]}
    assert list(fields) == list(GOOD.vector)
    assert fields["carrier"] == ["null", "string"]
    assert fields["origin_count_1h"] == ["null", "double"]


def test_every_pipeline_has_a_model_that_does_nothing() -> None:
    assert GOOD.model_names == ("logreg", "slow", "baseline")
    assert load("delays").model_names == ("linear", "baseline")


def test_a_model_is_handed_out_fresh_each_time() -> None:
    model = GOOD.model("baseline")
    model.learn_one({}, True)
    assert GOOD.model("baseline").predict_proba_one({}) != model.predict_proba_one({})


def test_a_function_says_its_kind_by_its_return_type() -> None:
    def weekend(event) -> bool:
        return event["flight_date"] % 7 > 4

    pipeline = replace(
        GOOD, request={"weekend": weekend, "carrier": category(lambda e: e["carrier"].lower())}, views=[],
        monitor=Monitor(),
    )  # fmt: skip
    assert pipeline.vector == {"weekend": "flag", "carrier": "category"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("every hour", ["monitor", "every hour"]),
        (Monitor(window="1x"), ["monitor.window", "1x"]),
        (Monitor(window="1d", reference="2d"), ["monitor.reference", "2d", "three windows"]),
        (Monitor(lateness="soon"), ["monitor.lateness", "soon"]),
        (Monitor(least=0), ["monitor.least", "0"]),
        (Monitor(most=10), ["monitor.most", "10"]),
        (Monitor(windows=True), ["monitor.windows", "True"]),
        (Monitor(segments=["distance"]), ["monitor.segments", "distance", "carrier"]),
        (Monitor(segments="carrier"), ["monitor.segments", "list"]),
        (Monitor(limits={"pis": 0.2}), ["monitor.limits", "pis", "psi"]),
        (Monitor(limits={"psi:distanze": 0.2}), ["monitor.limits", "distanze"]),
        (Monitor(limits={"psi": "high"}), ["monitor.limits", "high"]),
        (Monitor(limits={"psi": float("nan")}), ["monitor.limits", "nan"]),
    ],
)
def test_a_wrong_monitor_is_named(wrong, words: list[str]) -> None:
    with pytest.raises(DeclarationError) as error:
        replace(GOOD, monitor=wrong)
    for word in words:
        assert word in str(error.value)


def test_check_finds_a_model_that_cannot_be_saved() -> None:
    model = compose.FuncTransformer(lambda x: x) | preprocessing.StandardScaler() | linear_model.LogisticRegression()
    with pytest.raises(DeclarationError, match=r"models\['logreg'\]"):
        check_models(replace(GOOD, models={"logreg": model}))


def test_what_check_prints_names_topics_vector_and_models() -> None:
    text = pipeline_text(GOOD)
    for word in ("flights.events.valid", "origin_count_1h", "logreg", "champion", "0 to 23"):
        assert word in text


def test_streams_are_values() -> None:
    assert Stream("a", id="b", time="c") == Stream("a", id="b", time="c")
    assert isinstance(GOOD, Pipeline)


def test_only_the_topics_that_producers_write_can_be_called_otherwise() -> None:
    pipeline = replace(GOOD, events=replace(GOOD.events, topic="airport.departures-v2"))
    names = {topic.suffix: topic.name(pipeline) for topic in TOPICS}
    assert names.pop("events") == "airport.departures-v2"
    assert names == {topic.suffix: f"flights.{topic.suffix}" for topic in TOPICS if topic.suffix != "events"}


def _bucket(event: dict) -> str:
    return str(hash(event["carrier"]) % 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "is_hashed"),
    [
        (lambda event: hash(event["carrier"]) % 8, True),
        (lambda event: _bucket(event), True),
        (lambda event: sum(hash(event[name]) % 2 for name in ("carrier", "origin")), True),
        (lambda event: zlib.crc32(event["carrier"].encode()) % 8, False),
        (lambda event: len(event["hash"]), False),
        (abs, False),
    ],
)
def test_a_function_that_is_another_in_each_process_is_named_by_check(function: Any, *, is_hashed: bool) -> None:
    pipeline = small.make(request={"distance": number("distance"), "bucket": number(function)})
    assert pipeline.hashed() == (["bucket"] if is_hashed else [])
    assert ("bucket: a function that calls hash()" in " ".join(pipeline_text(pipeline).split())) == is_hashed


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["Way", "shop.Way", ["null", "Way"], ["shop.Way", "null"]])
@pytest.mark.parametrize("name", [{"name": "Way"}, {"name": "shop.Way"}, {"name": "Way", "namespace": "shop"}])
def test_a_field_whose_type_is_a_name_is_what_that_names(tmp_path: Path, reference: Any, name: dict[str, str]) -> None:
    kinds = {
        "id": "string", "at": {"type": "long", "logicalType": "timestamp-millis"},
        "before": {"type": "enum", "symbols": ["CARD", "CASH"], **name}, "now": reference,
    }  # fmt: skip
    fields = [{"name": field, "type": type_} for field, type_ in kinds.items()]
    avro = {"type": "record", "name": "Event", "namespace": "shop", "fields": fields}
    (tmp_path / "event.avsc").write_text(json.dumps(avro))
    events = Stream(str(tmp_path / "event.avsc"), id="id", time="at", key="before")
    pipeline = small.make(
        events=events, request={"before": "before", "now": "now"}, views=[], rules=[rules.one_of("now", ["CARD", "CASH"])],
        models={"m": preprocessing.OneHotEncoder() | linear_model.LinearRegression()}, champion="m",
    )  # fmt: skip
    assert pipeline.vector == {"before": "category", "now": "category"}
    rows = [{"id": f"f{at}", "at": at * small.MINUTE, "before": "CARD", "now": "CASH"} for at in range(5)]
    report = Backtest(pipeline).run(rows, [small.label(row["id"], row["at"] + 1) for row in rows])
    assert (report.joined, report.dead_letters) == (5, {})
