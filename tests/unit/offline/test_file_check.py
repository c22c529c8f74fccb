"""`tidemill check --events F --labels F`: what files hold is shown before anything runs on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small
from click.testing import CliRunner
from rich.cells import cell_len

from tidemill import Table, number, rules
from tidemill.cli.main import cli
from tidemill.cli.text.files import files_text
from tidemill.errors import SettingsError
from tidemill.offline import history
from tidemill.offline.file_check import FilesReport, check_files
from tidemill.offline.source import FileSource

pytestmark = pytest.mark.slow

DAY_ONE = 1_356_998_400_000
EVENTS = [small.event(f"f{n}", DAY_ONE + n * small.MINUTE, distance=100.0 + n) for n in range(100)]


def check(
    folder: Path, events: list[dict[str, Any]], labels: Any = None, form: str = "csv", **more: Any
) -> FilesReport:
    history.write(folder / f"events.{form}", events)
    history.write(folder / f"labels.{form}", labels or [small.label("f0", DAY_ONE)])
    return check_files(small.make(**more), FileSource(folder / f"events.{form}", folder / f"labels.{form}"))


def labels(delay: int) -> list[dict[str, Any]]:
    return [small.label(event["flight_id"], event["asked_at"] + delay) for event in EVENTS]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_good_files_have_no_warning_and_their_columns_are_shown(tmp_path: Path, form: str) -> None:
    report = check(tmp_path, [e | {"tailnum": "N1"} for e in EVENTS], labels(small.MINUTE), form)
    assert [warning for warning in report.warnings if "missing in every row" not in warning] == []
    events = report.streams[0]
    assert (events.rows, events.valid, events.first, events.last) == (100, 100, DAY_ONE, DAY_ONE + 99 * small.MINUTE)
    distance = next(column for column in events.columns if column.name == "distance")
    assert (distance.holds, distance.missing, distance.values) == ("numbers", 0, "100.0 to 199.0")
    assert report.delays
    assert report.delays.quantiles == dict.fromkeys((50, 90, 99, 100), small.MINUTE)


def test_what_is_refused_and_warned_of_is_in_the_report_for_programs(tmp_path: Path) -> None:
    rule = rules.between("distance", 0, 150, warn=True)
    events = [event | {"sched_hour": 77} if number < 7 else event for number, event in enumerate(EVENTS)]
    report = check(tmp_path, events, rules=[rules.between("sched_hour", 0, 23), rule])
    shown = json.loads(json.dumps(report.as_dict()))["streams"][0]
    assert (shown["dead_letters"], shown["warned"]) == ({"out_of_range": 7}, {"between:distance": 49})
    assert any("49 of 100 events pass, and between:distance warns" in warning for warning in report.warnings)


def test_late_labels_and_those_of_nobody_are_said_with_the_setting(tmp_path: Path) -> None:
    report = check(tmp_path, EVENTS, [*labels(2 * small.HOUR), small.label("nobody", DAY_ONE)])
    text = files_text(report)
    assert "100 labels came later than label_timeout='1h': declare a longer one" in text
    assert "1 labels match no event" in text
    assert "50% within 2h" in text


def test_what_would_be_refused_is_counted_with_the_first_of_each_reason(tmp_path: Path) -> None:
    events = [e | {"sched_hour": 77} if n % 10 == 0 else e for n, e in enumerate(EVENTS)]
    report = check(tmp_path, events)
    assert report.streams[0].valid == 90
    assert any(
        w.startswith("10 of 100 events are refused: out_of_range, the first: field 'sched_hour' is 77")
        for w in report.warnings
    )


def test_labels_of_events_that_are_refused_are_not_of_nobody(tmp_path: Path) -> None:
    events = [e | {"sched_hour": 77} if n % 10 == 0 else e for n, e in enumerate(EVENTS)]
    delays = check(tmp_path, events, [*labels(small.MINUTE), small.label("nobody", DAY_ONE)]).delays
    assert delays
    assert (delays.without_event, delays.events_without_label, delays.late) == (1, 0, 0)


def test_a_value_that_can_not_be_read_is_the_first_thing_said_and_the_columns_are_shown(tmp_path: Path) -> None:
    report = check(tmp_path, [e | {"distance": "1,5"} for e in EVENTS])
    assert report.warnings[0].startswith("nothing runs on this file: ")
    assert "row 1: column 'distance' is '1,5'" in report.warnings[0]
    assert report.streams[0].columns


def test_ids_that_come_twice_blanks_and_empty_entities_are_counted(tmp_path: Path) -> None:
    events = [*EVENTS, EVENTS[0], small.event("g", DAY_ONE, origin=" "), small.event("h", DAY_ONE, carrier=" UA")]
    text = files_text(check(tmp_path, events, form="jsonl"))
    assert "1 of 103 events have an id that came before" in text
    assert "1 events have an empty 'origin': it is no entity, unless Stream(..., empty_entities=True)" in text
    assert "events: 'carrier' has 1 with blanks around them" in text


def test_times_that_no_unit_explains_are_said(tmp_path: Path) -> None:
    report = check(tmp_path, [small.event("a", 1_700_000_000)])
    assert any("times of events lie outside 1971-01-01 to 2100-01-01" in warning for warning in report.warnings)


def test_how_many_events_name_a_row_of_a_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "airports.csv").write_text("faa,lat\n LAX ,1\nORD,2\n")
    request = {"lat": number(Table(tmp_path / "airports.csv", key="faa").get("lat", by="dest"))}
    report = check(tmp_path, [*EVENTS, small.event("x", DAY_ONE, dest="XXX")], request=request)
    (match,) = report.tables
    assert (match.values, match.matched, match.events, match.matched_events) == (2, 1, 101, 100)
    assert any("1 of 101 events name no row by 'dest', as 'XXX'" in warning for warning in report.warnings)


def test_columns_that_the_schema_lacks_or_the_file_lacks_are_noted(tmp_path: Path) -> None:
    events = [{k: v for k, v in e.items() if k != "temp"} | {"more": 1} for e in EVENTS]
    notes = {column.name: column.note for column in check(tmp_path, events).streams[0].columns}
    assert notes["more"] == "left out"
    assert notes["temp"].startswith("not in the file")


def test_a_file_that_can_not_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.csv"):
        check_files(small.make(), FileSource(tmp_path / "nothing.csv"))


PIPELINE = """
import sys
sys.path.insert(0, {support!r})
import small
mine = small.make()
"""


def test_the_command_prints_what_files_hold_and_fails_where_a_value_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PIPELINE.format(support=str(Path(small.__file__).parent)))
    history.write(tmp_path / "events.csv", EVENTS)
    arguments = ["check", str(tmp_path / "mine.py"), "--events", str(tmp_path / "events.csv")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "100 rows, 100 valid, from 2013-01-01 00:00 to 2013-01-01 01:39 UTC, times in millis" in result.output
    assert max(cell_len(line) for line in result.output.splitlines() if str(tmp_path) not in line) <= 118
    as_json = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)
    assert as_json["streams"][0]["rows"] == 100
    history.write(tmp_path / "events.csv", [e | {"distance": "x"} for e in EVENTS])
    assert CliRunner().invoke(cli, arguments).exit_code == 1
