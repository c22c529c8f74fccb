"""State on disk: what was saved is there, what was not is not, whatever ends the process; what can't be right is made again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import load
from tidemill.errors import Retry, SettingsError
from tidemill.stages.joiner.join import Outcomes
from tidemill.stages.joiner.service import Joiner
from tidemill.stages.joiner.stored_join import StoredJoin
from tidemill.stream import lmdb_state
from tidemill.stream.api import Position, Start, TopicPartition
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.lmdb_state import LmdbState, open_in
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.restore import mark


def test_what_was_saved_is_there_again_and_what_was_not_is_gone(tmp_path: Path) -> None:
    state = LmdbState(tmp_path / "0")
    state.table("a").put(b"k", b"saved")
    state.save()
    state.table("a").put(b"k", b"not saved")
    state.table("b").put(b"k", b"not saved")
    state.close()
    state = LmdbState(tmp_path / "0")
    assert (state.table("a").get(b"k"), state.table("b").get(b"k")) == (b"saved", None)
    state.clear()
    state.close()
    assert LmdbState(tmp_path / "0").table("a").get(b"k") is None


def test_two_at_once_are_refused_with_the_folder_and_what_to_do(tmp_path: Path) -> None:
    state = LmdbState(tmp_path / "0")
    with pytest.raises(Retry, match=r"0: another process has this state: give each instance a name of its own"):
        LmdbState(tmp_path / "0")
    state.close()
    LmdbState(tmp_path / "0").close()


def test_the_state_of_a_process_that_hangs_stops_nobody_and_what_is_left_of_it_is_dropped(tmp_path: Path) -> None:
    """One that is stopped, and was replaced under its name, keeps what it holds until it ends."""
    open_partition = open_in(tmp_path)
    hanging = open_partition(0)
    hanging.table("a").put(b"k", b"of before")
    hanging.save()
    replacing = open_partition(0)
    assert replacing.table("a").get(b"k") is None
    replacing.table("a").put(b"k", b"now")
    replacing.save()
    others = [open_partition(0), open_partition(0)]
    with pytest.raises(Retry, match="give each instance a name of its own"):
        open_partition(0)
    for state in (hanging, replacing, *others):
        state.close()
    again = open_partition(0)
    assert again.table("a").get(b"k") == b"of before", "the offsets beside it say how old it is"
    again.close()
    for number in range(1, lmdb_state.PLACES):
        assert LmdbState(tmp_path / f"0.{number}").table("a").get(b"k") is None


def test_state_from_before_the_machine_went_down_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = LmdbState(tmp_path / "0")
    state.table("a").put(b"k", b"v")
    state.save()
    state.close()
    monkeypatch.setattr(lmdb_state, "BOOT_ID", tmp_path / "no such file")
    assert LmdbState(tmp_path / "0").table("a").get(b"k") is None


@pytest.mark.parametrize("damage", [b"", b"x" * 5000])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes) -> None:
    state = LmdbState(tmp_path / "0")
    state.table("a").put(b"k", b"v")
    state.save()
    state.close()
    (tmp_path / "0" / "data.mdb").write_bytes(damage)
    try:
        state = LmdbState(tmp_path / "0")
    except Retry:
        state = LmdbState(tmp_path / "0")
    assert state.table("a").get(b"k") is None


#: A process of its own: what reads beyond the end of a file is killed.
DAMAGE = """
import random, sys
from pathlib import Path
from tidemill.errors import Retry
from tidemill.stream.lmdb_state import LmdbState
folder, kind, chance = Path(sys.argv[1]), sys.argv[2], random.Random(7)
KEYS = [n.to_bytes(8, "big") for n in range(3000)]
state = LmdbState(folder)
for table in (state.table("a"), state.table("b")):
    for key in KEYS:
        table.put(key, chance.randbytes(chance.randrange(900)))
state.save()
state.close()
sound, refused, made_again = (folder / "data.mdb").read_bytes(), 0, 0
pages = len(sound) // 4096
for _ in range(20):
    data, page = bytearray(sound), chance.randrange(2, pages) * 4096
    if kind == "cut":
        del data[page:]
    else:
        data[page:] = (bytes if kind == "zeros" else chance.randbytes)(len(data) - page)
    (folder / "data.mdb").write_bytes(data)
    for attempt in range(5):
        try:
            state = LmdbState(folder)
            for table in (state.table("a"), state.table("b")):
                table.first(), table.last_until(KEYS[-1])
                for key in KEYS:
                    table.get(key)
                for key in KEYS[::2]:
                    table.delete(key), table.put(key, b"new")
            state.save()
        except Retry as error:
            refused += "it is made again" in str(error) or "MDB" in str(error)
            state.close()
            continue
        break
    else:
        raise SystemExit("it is never usable again")
    made_again += state.table("a").get(KEYS[1]) is None
    state.close()
print(refused, made_again)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "zeros", "noise"])
def test_a_file_that_is_damaged_in_the_middle_is_made_again_and_ends_no_process(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(tmp_path / "0"), kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    refused, made_again = map(int, done.stdout.split())
    assert refused >= made_again > 10


def test_what_finds_no_room_is_told_and_what_was_saved_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_state, "MAP_BYTES", 256 * 1024)
    state = LmdbState(tmp_path / "0")
    table = state.table("a")
    table.put(b"k", b"saved")
    state.save()
    with pytest.raises(Retry, match="can't be written"):
        [table.put(b"%d" % n, b"x" * 300) for n in range(10_000)]
    state.close()
    state = LmdbState(tmp_path / "0")
    assert state.rows() == {"a": 1}
    assert state.table("a").get(b"k") == b"saved"


def test_a_folder_that_can_t_be_made_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"setting state_dir \('.*file/joiner'\): .*TIDEMILL_STATE_DIR"):
        open_in(tmp_path / "file" / "joiner")


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=3))), st.binary(min_size=1, max_size=3))
def test_a_table_is_an_ordered_dictionary(tmp_path_factory: pytest.TempPathFactory, steps: list, probe: bytes) -> None:
    state = LmdbState(tmp_path_factory.mktemp("state"))
    table, expected = state.table("a"), {}
    for is_put, key in steps:
        if is_put:
            table.put(key, key)
            expected[key] = key
        else:
            table.delete(key)
            expected.pop(key, None)
    assert table.first() == min(expected, default=None)
    assert table.last_until(probe) == max((key for key in expected if key <= probe), default=None)
    assert table.get(probe) == expected.get(probe)
    state.close()


WRITER = """
import sys
from pathlib import Path
from tidemill.stream.lmdb_state import LmdbState
state = LmdbState(Path(sys.argv[1]))
one, other = state.table("one"), state.table("other")
for n in range(10**9):
    one.put(b"%09d" % (n % 1000), b"%d" % n)
    other.put(b"n", b"%d" % n)
    if n % 7 == 0:
        state.save()
        print(n, flush=True)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_what_it_has_saved(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "0")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        seen = [int(writer.stdout.readline()) for _ in range(300)][-1]
        writer.send_signal(signal.SIGKILL)
        seen = [seen, *map(int, writer.stdout.read().split())][-1]
    state = LmdbState(tmp_path / "0")
    saved = int(state.table("other").get(b"n") or b"")
    assert saved in (seen, seen + 7), "the last save, or one that was not printed any more"
    assert state.table("one").get(b"%09d" % (saved % 1000)) == b"%d" % saved
    assert state.table("one").get(b"%09d" % ((saved + 1) % 1000)) != b"%d" % (saved + 1)


# The joiner takes saved state only where it is that of what is committed ----------------------------------------------

LOG, LABELS = TopicPartition("delays.prediction-log", 0), TopicPartition("delays.labels.valid", 0)


def position(offset: int, rebuild_from: int | None = 0, topic_id: str = "a") -> Position:
    return mark(CommitMetadata(rebuild_from), offset, topic_id)


def saved(folder: Path, log: int, labels: int) -> None:
    """Save a joiner's state at these offsets."""
    joiner = Joiner(load("delays"), open_state=open_in(folder))
    joiner.assign(LOG, position(log))
    joiner.assign(LABELS, position(labels))
    joiner._next = {LOG: log, LABELS: labels}
    joiner.joins[0].save(lambda: joiner._positions(0), now=True)
    joiner.revoke([LOG, LABELS])


def test_a_joiner_goes_on_where_its_state_was_saved(tmp_path: Path) -> None:
    saved(tmp_path, 100, 40)
    joiner = Joiner(load("delays"), open_state=open_in(tmp_path))
    assert joiner.assign(LOG, position(120)) == Start(100, 120)
    assert joiner.assign(LABELS, position(40)) == Start(40, 40)


@pytest.mark.parametrize(
    ("log", "labels"),
    [
        pytest.param(position(99), position(40), id="committed before what was saved"),
        pytest.param(position(100, 100, "b"), position(40, 40, "b"), id="of a topic that was made again"),
        pytest.param(position(100, None), position(40, None), id="a person has set the offsets"),
        pytest.param(position(900, 101), position(400, 41), id="another instance has gone on for long"),
        pytest.param(Position(0), Position(0), id="the group is new"),
    ],
)
def test_state_that_is_not_that_of_what_is_committed_is_made_again(
    tmp_path: Path, log: Position, labels: Position
) -> None:
    saved(tmp_path, 100, 40)
    joiner = Joiner(load("delays"), open_state=open_in(tmp_path))
    begin = CommitMetadata.decode(log.metadata).rebuild_from
    assert joiner.assign(LOG, log) == Start(log.offset if begin is None else begin, log.offset)
    assert joiner.assign(LABELS, labels).live_from == labels.offset
    assert joiner.joins[0].saved == {}


def test_where_one_topic_has_taken_the_state_and_the_other_can_t_both_begin_anew(tmp_path: Path) -> None:
    saved(tmp_path, 100, 40)
    joiner = Joiner(load("delays"), open_state=open_in(tmp_path))
    assert joiner.assign(LOG, position(120)) == Start(100, 120)
    with pytest.raises(Retry, match="the state of partition 0 is made again"):
        joiner.assign(LABELS, position(39))
    joiner.revoke([LOG, LABELS])
    assert joiner.assign(LOG, position(120)) == Start(0, 120)
    assert joiner.assign(LABELS, position(39)) == Start(0, 39)


@pytest.mark.parametrize("schema", ["prediction_log", "label", ""])
def test_state_of_another_declaration_is_made_again(tmp_path: Path, schema: str) -> None:
    saved(tmp_path, 100, 40)
    joiner = Joiner(load("delays"), open_state=open_in(tmp_path))
    if schema:
        getattr(joiner.records, schema).header = b"\0\0\0\0\x07"
    else:
        joiner.timeout += 1
    with pytest.raises(Retry, match="another declaration"):
        joiner.assign(LOG, position(120))
    assert joiner.assign(LOG, position(120)) == Start(0, 120)


@pytest.mark.parametrize("damage", [None, b"", b"no row"])
def test_tables_that_contradict_each_other_are_made_again(tmp_path: Path, damage: bytes | None) -> None:
    outcomes = Outcomes(*[lambda *_: None] * 4)
    join = StoredJoin(1000, outcomes, LmdbState(tmp_path))
    join.add_event("a", 5, 0, b"value")
    if damage is None:
        join._events.delete(bytes(8))
    else:
        join._events.put(bytes(8), damage)
    join.save(lambda: {"log": (1, "")}, now=True)
    with pytest.raises(Retry, match=r"lacks the row 0000000000000000, or has another there: it is made again"):
        join.add_event("a", 6, 1, b"value")
    join.close()
    again = StoredJoin(1000, outcomes, LmdbState(tmp_path))
    assert (again.saved, again.pending) == ({}, 0)
    assert again.add_event("a", 6, 1, b"value")


def test_a_mark_that_can_not_be_read_is_made_again(tmp_path: Path) -> None:
    join = StoredJoin(1000, Outcomes(*[lambda *_: None] * 4), LmdbState(tmp_path))
    join.add_event("a", 5, 0, b"value")
    join.kept_events._marks.put(bytes(8), b"\xc1")  # type: ignore[attr-defined]
    with pytest.raises(Retry, match="or has another there: it is made again"):
        join.kept_events.begin(1, join.log)


@pytest.mark.slow
def test_marks_do_not_gather_where_nothing_is_kept(tmp_path: Path) -> None:
    state = LmdbState(tmp_path)
    join = StoredJoin(1000, Outcomes(*[lambda *_: None] * 4), state)
    for number in range(20_000):
        join.add_event(f"e{number}", number * 1000, number, b"value")
        record = MemoryRecord("labels", b"l", partition=0, offset=number)
        join.add_label("nobody", number * 1000 - 50_000, True, number, record)  # too late for all: nothing is kept
        if number % 100 == 99:
            join.kept_labels.begin(number + 1, join.labels)
    assert join.waiting_labels == 0
    assert state.rows()["label_marks"] < 10
