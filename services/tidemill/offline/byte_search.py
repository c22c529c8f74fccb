"""A search for ids and vectors in bytes, whatever format they have: Avro, JSON, keys, headers, pickles, arrays.

A text counts where it stands by itself: behind its length as Avro writes it, or between bytes that are neither letters
nor digits. So N12 is not found in N123. A text of fewer than four bytes is not looked for: it may stand anywhere.

A vector counts where all its numbers stand near each other: as doubles, whichever end is first, or as JSON's text.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

MIN_BYTES = 4
_BETWEEN = b"\0\0\0\0"
#: Between two numbers of a vector lie so many bytes at most: JSON and pickles have each feature's name there.
REACH_BYTES = 100
#: Fewer numbers but 0 could stand side by side by chance.
MIN_NUMBERS = 3
_ENCODINGS: tuple[Callable[[float], bytes | str], ...] = (
    struct.Struct("<d").pack,
    struct.Struct(">d").pack,
    lambda x: repr(x).removesuffix(".0"),
)
_NUMBER = re.compile(rb"[-+.0-9eE]*[0-9]")


class _Needles:
    """Finds any of many byte strings of at least four bytes."""

    def __init__(self, needles: Iterable[bytes]) -> None:
        self._needles = frozenset(needles)
        lengths: dict[int, set[int]] = {}
        for needle in self._needles:
            lengths.setdefault(int.from_bytes(needle[:MIN_BYTES], "little"), set()).add(len(needle))
        self._lengths = lengths
        self._begins = np.array(sorted(lengths), dtype="<u4")

    def places(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield where one stands in `data`, and which."""
        for shift in range(min(MIN_BYTES, len(data)) if self._needles else 0):
            words = np.frombuffer(data, "<u4", (len(data) - shift) // MIN_BYTES, shift)
            for index in np.nonzero(np.isin(words, self._begins))[0].tolist():
                at = index * MIN_BYTES + shift
                for length in self._lengths[int(words[index])]:
                    needle = data[at : at + length]
                    if needle in self._needles:
                        yield at, needle


class ByteSearch:
    """Looks for any of many texts at once; `too_short` are those that it does not look for."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = {text.encode() for text in texts}
        self.too_short = sorted(text.decode() for text in encoded if len(text) < MIN_BYTES)
        self._needles = _Needles(text for text in encoded if len(text) >= MIN_BYTES)

    def places(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield where a text stands in `data`, and which."""
        return ((at, text) for at, text in self._needles.places(data) if _stands_alone(data, at, len(text)))

    def holds(self, data: bytes) -> bool:
        """Whether a text stands in `data`."""
        return next(self.places(data), None) is not None

    def among(self, items: Sequence[bytes]) -> list[int]:
        """Return the indexes of the items that hold a text, in order."""
        begins, data = _joined(items)
        return sorted({bisect_right(begins, place) - 1 for place, _ in self.places(data)})


def _holds(data: bytes, parts: Sequence[Any]) -> bool:
    """Whether `data` has all of these numbers: doubles as bytes, or texts, which must not be the begin of others."""
    if isinstance(parts[0], bytes):
        return all(part in data for part in parts)
    return {text.decode().removesuffix(".0") for text in _NUMBER.findall(data)}.issuperset(parts)


class VectorSearch:
    """Looks for vectors, each given by its numbers.

    Of a vector one number is looked for, and the others near it. It must be one that few have. A vector that has no
    such number, as one of small whole numbers, is looked for as a whole: as Avro writes it, where `bodies` say how, and
    as doubles in a row. `too_plain` counts those of which nothing is looked for: they have fewer than three but 0.
    """

    def __init__(self, vectors: Iterable[Sequence[float]], bodies: Sequence[bytes] = ()) -> None:
        self.too_plain = 0
        self._parts: dict[bytes, list[tuple[int, list[bytes | str]]]] = {}
        for index, numbers in enumerate(vectors):
            rarest = max(numbers, key=lambda x: sum(map(bool, struct.pack("<d", x))), default=0.0)
            if not all(struct.pack("<d", rarest)[:MIN_BYTES]):
                if sum(map(bool, numbers)) < MIN_NUMBERS:
                    self.too_plain += 1
                    continue
                rows = (struct.pack(f"{end}{len(numbers)}d", *numbers) for end in "<>")
                for row in {*bodies[index : index + 1], *rows}:
                    # From where fewest other bytes begin alike, to the end: few vectors have that in common.
                    at = max(range(len(row) // 2), key=lambda at: sum(map(bool, row[at : at + MIN_BYTES])))
                    self._parts.setdefault(row[at:], []).append((index, [row]))
                continue
            for encode in _ENCODINGS:
                needle = encode(rarest)
                needle = needle if isinstance(needle, bytes) else needle.encode()
                self._parts.setdefault(needle, []).append((index, [encode(x) for x in numbers]))
        self._needles = _Needles(self._parts)

    def among(self, items: Sequence[bytes]) -> set[tuple[int, int]]:
        """Return the indexes of items, each with that of a vector which stands in it."""
        begins, data = _joined(items)
        hits = set[tuple[int, int]]()
        for at, needle in self._needles.places(data):
            index = bisect_right(begins, at) - 1
            end = begins[index] + len(items[index])
            for vector, parts in self._parts[needle]:
                reach = REACH_BYTES * len(parts) + max(map(len, parts))
                near = data[max(begins[index], at - reach) : min(end, at + reach)]
                if (index, vector) not in hits and _holds(near, parts):
                    hits.add((index, vector))
        return hits


def _joined(items: Sequence[bytes]) -> tuple[list[int], bytes]:
    """Return where each item begins in all of them, and those."""
    begins, at = [], 0
    for item in items:
        begins.append(at)
        at += len(item) + len(_BETWEEN)
    return begins, _BETWEEN.join(items)


def _stands_alone(data: bytes, at: int, length: int) -> bool:
    size, before = length << 1, b""
    while size >= 0x80:
        before, size = before + bytes((size & 0x7F | 0x80,)), size >> 7
    before += bytes((size,))
    if data[max(0, at - len(before)) : at] == before:
        return True
    return not (_is_word(data[at - 1 : at] if at else b"") or _is_word(data[at + length : at + length + 1]))


def _is_word(byte: bytes) -> bool:
    return byte.isalnum() or byte == b"_"
