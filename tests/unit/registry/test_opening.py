"""How a snapshot is opened: its opcodes are walked, calls are tried, and what they have made is used once."""

from __future__ import annotations

import pickletools
import random
import struct
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import ArtifactError
from tidemill.registry import pickles, snapshots
from tidemill.registry.parts import Parts

#: Opcodes with nothing after them, with so many bytes, and with a size of so many bytes before what it says.
BARE = b"(}]\x8f)\x85\x86\x87t\x91\x94ueas\x90bR\x81\x93N\x88\x89"
FIXED = {b"h": 1, b"j": 4, b"K": 1, b"M": 2, b"J": 4, b"G": 8, b"\x95": 8}
SIZED = {b"\x8c": "<B", b"X": "<I", b"\x8d": "<Q", b"C": "<B", b"B": "<I", b"\x8e": "<Q", b"\x8a": "<B", b"\x8b": "<I"}


def _is_walked(data: bytes) -> bool:
    """The same walk, one opcode at a time."""
    position = 2
    while (opcode := data[position : position + 1]) not in (b".", b""):
        position += 1
        if opcode in SIZED:
            end = position + struct.calcsize(SIZED[opcode])
            position = end + int.from_bytes(data[position:end], "little")
        elif opcode in FIXED:
            position += FIXED[opcode]
        elif opcode not in BARE:
            return False
    return data[position:] == b"."


def _token(opcode: bytes, inside: bytes) -> bytes:
    if opcode in SIZED:
        return opcode + struct.pack(SIZED[opcode], len(inside)) + inside
    return opcode + inside[: FIXED.get(opcode, 0)].ljust(FIXED.get(opcode, 0), b"\0")


TOKENS = st.builds(
    _token,
    st.sampled_from([*(bytes([one]) for one in BARE), *FIXED, *SIZED]),
    st.binary(max_size=12) | st.binary(min_size=40, max_size=70),
)
#: Tokens as they come in models: the same few again and again, which the expression takes together.
RUNS = st.builds(lambda few, times: b"".join(few) * times, st.lists(TOKENS, min_size=1, max_size=3), st.integers(1, 9))


@pytest.mark.slow
@given(st.lists(TOKENS | RUNS, max_size=12), st.none() | st.integers(0, 400), st.none() | st.integers(0, 255))
def test_opcodes_are_walked_together_as_they_are_one_by_one(
    tokens: list[bytes], place: int | None, other: int | None
) -> None:
    data = bytearray(b"\x80\x04" + b"".join(tokens) + b".")
    if place is not None and len(data) > 2:
        place = 2 + place % (len(data) - 2)
        data[place : place + 1] = b"" if other is None else bytes([other])
    try:
        pickles.check_opcodes(bytes(data))
    except ArtifactError:
        assert not _is_walked(bytes(data))
    else:
        assert _is_walked(bytes(data))


def test_the_walk_knows_how_long_each_opcode_is() -> None:
    sizes = {one.code.encode("latin-1"): one.arg for one in pickletools.opcodes}
    assert all(sizes[bytes([one])] is None for one in BARE)
    assert all(sizes[one].n == size for one, size in FIXED.items())
    assert {one: struct.calcsize(size) for one, size in SIZED.items()} == {
        one: {-3: 4, -2: 1, -4: 4, -5: 8}[sizes[one].n] for one in SIZED
    }


class _Opens:
    """A class of a pipeline that keeps a snapshot, and opens it when it is opened itself."""

    def __init__(self, *inside: Any) -> None:
        self.before, self.inside, self.after = np.array([1.0]), list(inside), np.array([2.0])

    def __getstate__(self) -> tuple[Any, ...]:
        return self.before, snapshots.dump(self.inside), self.after

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.before, inside, self.after = state
        self.inside = snapshots.load(inside, parts=OWN)


OWN = Parts({(_Opens.__module__, _Opens.__qualname__): _Opens})


def _values(seed: int) -> list[Any]:
    rng = np.random.RandomState(seed)
    made = [rng.rand(3), random.Random(seed), rng, np.float32(seed), np.arange(seed), random.Random(seed + 1)]
    return [*made, made[0], made[1]]


def _shown(made: list[Any]) -> list[str]:
    return [repr(one.random() if hasattr(one, "random") else one) for one in made]


def test_what_calls_make_is_found_at_its_place_whatever_is_opened_meanwhile() -> None:
    model = [_values(3), _Opens(_values(4), _Opens(_values(5))), _values(6)]
    opened = snapshots.load(snapshots.dump(model), parts=OWN)
    for mine, other in (
        (opened[0], _values(3)),
        (opened[1].inside[0], _values(4)),
        (opened[1].inside[1].inside[0], _values(5)),
        (opened[2], _values(6)),
    ):
        assert mine[0] is mine[-2], "one array is one array afterwards"
        assert _shown(mine) == _shown(other)
    assert (opened[1].before[0], opened[1].after[0]) == (1.0, 2.0)


def test_threads_do_not_take_what_others_have_made() -> None:
    other = snapshots.dump(_values(20))
    opened: list[Any] = []

    def meanwhile(_: float) -> None:
        thread = threading.Thread(target=lambda: opened.append(snapshots.load(other)))
        thread.start()
        thread.join()

    data = snapshots.dump([_values(10), "x" * 100_000, _values(11), "y" * 100_000, _values(12)])
    mine = snapshots.load(data, pause=1.0, sleep=meanwhile)
    assert len(opened) > 4, "another one is opened before, in and after the trial"
    for made, seed in ((mine[0], 10), (mine[2], 11), (mine[4], 12), *((one, 20) for one in opened)):
        assert _shown(made) == _shown(_values(seed))


def test_what_a_refused_snapshot_has_made_is_let_go_of() -> None:
    data = snapshots.dump([np.zeros(3)])
    with pytest.raises(ArtifactError):
        snapshots.load(data[:-2] + b"h\xffe.")
    assert not hasattr(pickles._load, "made")
    assert snapshots.load(data)[0].sum() == 0
    assert pickles._load.replay is None, "and of what an opened one has"
