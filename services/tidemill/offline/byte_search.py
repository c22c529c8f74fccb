"""A search for ids in bytes, whatever format they have: Avro, JSON, keys, headers, pickles.

A text counts where it stands by itself: behind its length as Avro writes it, or between bytes that are neither letters
nor digits. So N12 is not found in N123. A text of fewer than four bytes is not looked for: it may stand anywhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

MIN_BYTES = 4
_BETWEEN = b"\0\0\0\0"


class ByteSearch:
    """Looks for any of many texts at once; `too_short` are those that it does not look for."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = {text.encode() for text in texts}
        self.too_short = sorted(text.decode() for text in encoded if len(text) < MIN_BYTES)
        self._lengths: dict[int, set[int]] = {}
        self._texts = {text for text in encoded if len(text) >= MIN_BYTES}
        for text in self._texts:
            self._lengths.setdefault(int.from_bytes(text[:MIN_BYTES], "little"), set()).add(len(text))
        self._begins = np.array(sorted(self._lengths), dtype="<u4")

    def places(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield where a text stands in `data`, and which."""
        for shift in range(min(MIN_BYTES, len(data)) if self._texts else 0):
            words = np.frombuffer(data, "<u4", (len(data) - shift) // MIN_BYTES, shift)
            for index in np.nonzero(np.isin(words, self._begins))[0].tolist():
                at = index * MIN_BYTES + shift
                for length in self._lengths[int(words[index])]:
                    text = data[at : at + length]
                    if text in self._texts and _stands_alone(data, at, length):
                        yield at, text

    def holds(self, data: bytes) -> bool:
        """Whether a text stands in `data`."""
        return next(self.places(data), None) is not None

    def among(self, items: Sequence[bytes]) -> list[int]:
        """Return the indexes of the items that hold a text, in order."""
        begins, at = [], 0
        for item in items:
            begins.append(at)
            at += len(item) + len(_BETWEEN)
        hits = {bisect_right(begins, place) - 1 for place, _ in self.places(_BETWEEN.join(items))}
        return sorted(hits)


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
