"""Messages that must not get in, each with the reason it must be refused for, made so that the reason is known beforehand."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill import limits
from tidemill.encoding import avro_codegen
from tidemill.encoding.codec import HEADER, Codec
from tidemill.wire.records import Records

FLOATS = ("distance", "sched_minutes", "dep_delay", "temp", "dewp", "wind_speed", "precip", "visib")
INTS = ("flight", "sched_hour", "flight_date")
TEXTS = ("flight_id", "carrier", "origin", "dest")
BEYOND = 1e15


@dataclass(frozen=True)
class Bad:
    """A message, and why it must be refused; any of several words where which comes first is nobody's business."""

    data: bytes | None
    reasons: tuple[str, ...]
    kind: str


Make = Callable[[random.Random], tuple[bytes | None, tuple[str, ...]]]


class Poison:
    """Makes bad events and labels out of good ones."""

    def __init__(self, records: Records, events: list[dict[str, Any]], labels: list[dict[str, Any]]) -> None:
        self.codec, self.labels_codec = records.event, records.label
        self.events, self.labels = events, labels
        self.ways: Mapping[str, Make] = {
            name[1:]: getattr(self, name) for name in dir(self) if name.startswith("_") and not name.startswith("__")
        }

    def made(self, many: int, seed: int) -> Iterator[Bad]:
        """Yield this many, every kind as often as any other."""
        chance, names = random.Random(seed), sorted(self.ways)
        for number in range(many):
            name = names[number % len(names)]
            data, reasons = self.ways[name](chance)
            yield Bad(data, reasons, name)

    def event(self, chance: random.Random, **changes: Any) -> dict[str, Any]:
        return {**chance.choice(self.events), **changes}

    def avro(self, chance: random.Random, **changes: Any) -> bytes:
        return self.codec.encode(self.event(chance, **changes))

    def json(self, chance: random.Random, **changes: Any) -> bytes:
        return json.dumps(self.event(chance, **changes)).encode()

    def json_with(self, chance: random.Random, name: str, raw: str) -> bytes:
        """Return JSON with one field's text as it is given."""
        rest = json.dumps({k: v for k, v in self.event(chance).items() if k != name})
        return f'{rest[:-1]}, "{name}": {raw}}}'.encode()

    # What is no message at all.

    def _bad_magic(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        first = chance.choice([b for b in range(1, 256) if bytes([b]) not in b"{ \t\r\n"])
        return bytes([first]) + self.avro(chance)[1:], ("bad_magic",)

    def _nothing(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        return chance.choice([b"", None]), ("empty",)

    def _noise(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        data = bytes([chance.randrange(1, 9)]) + chance.randbytes(chance.randrange(400))
        return data, ("bad_magic",)

    def _too_large(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        if chance.random() > 0.05:  # a few are enough: a megabyte each
            return self._bad_magic(chance)
        return self.avro(chance) + b"x" * limits.MESSAGE_BYTES.max, ("too_large",)

    # Avro that is none.

    def _truncated(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        whole = self.avro(chance)
        return whole[: chance.randrange(1, len(whole))], ("truncated",)

    def _trailing(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        return self.avro(chance) + chance.randbytes(chance.randrange(1, 40)), ("trailing_bytes",)

    def _unknown_schema(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        other = chance.choice([0, 1, 2**32 - 1, chance.randrange(2**32)])
        assert other != self.codec.id
        return b"\0" + other.to_bytes(4, "big") + self.avro(chance)[HEADER:], ("unknown_schema",)

    def _another_record(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        return self.labels_codec.encode(chance.choice(self.labels)), ("unknown_schema",)

    def _text_that_is_none(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        data = bytearray(self.avro(chance))
        data[HEADER + 2] = 0xFF  # within the id, the first field: no byte of UTF-8
        return bytes(data), ("undecodable",)

    def _length_below_zero(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        below = avro_codegen.varint(-chance.choice([1, 2, 63, 64, 10**6, 2**62]))
        return self.codec.header + below + self.avro(chance)[HEADER + 1 :], ("undecodable",)

    def _length_beyond_all(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        beyond = avro_codegen.varint(chance.choice([10**4, 2**31, 2**40, 2**62]))
        # The text that would end too late is no text: either is true.
        return self.codec.header + beyond + self.avro(chance)[HEADER + 1 :], ("truncated", "undecodable")

    def _number_without_end(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        return self.codec.header + b"\xff" * chance.randrange(11, 60) + self.avro(chance)[HEADER:], ("undecodable",)

    def _int_beyond_32_bits(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        marked = self.avro(chance, flight=1_234_567)
        beyond = avro_codegen.varint(chance.choice([2**31, -(2**31) - 1, 2**50]))
        return marked.replace(avro_codegen.varint(1_234_567), beyond), ("undecodable",)

    def _branch_that_is_none(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        marked = self.avro(chance, tailnum="N-MARKED")
        branch = avro_codegen.varint(chance.choice([2, -1, 63, 10**9]))
        return marked.replace(b"\x02\x10N-MARKED", branch + b"\x10N-MARKED"), ("undecodable",)

    # JSON that is none, or another object.

    def _json_broken(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        whole = self.json(chance)
        return whole[: chance.randrange(1, len(whole))], ("not_json",)

    def _json_deep(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        depth = chance.choice([10, 900, 5_000, 100_000])
        opening, closing = chance.choice(["[]", ("{" + '"a":', "}")])
        return self.json_with(chance, "carrier", opening * depth + "1" + closing * depth), ("not_json", "wrong_type")

    def _json_twice(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        return self.json(chance) + self.json(chance), ("not_json",)

    def _missing_field(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        event = self.event(chance)
        del event[chance.choice([*TEXTS, "asked_at", "flight", "sched_hour", "distance"])]
        return json.dumps(event).encode(), ("missing_field",)

    def _unexpected_field(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        name = chance.choice(["gate", "Carrier", "", "<script>", "x" * 5000, "\\ud800"])
        return self.json(chance, **{name: chance.choice([1, None, "x", [1]])}), ("unexpected_field",)

    def _wrong_type(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        name = chance.choice([*FLOATS, *INTS, *TEXTS, "asked_at"])
        wrong: list[Any] = [[], {}, [1], True, {"float": 1.0}]
        wrong += ["12", "NaN"] if name not in TEXTS else [12, 1.5]
        if name in INTS or name == "asked_at":
            wrong += [7.5, 7.0, 2**63, -(2**64)]
        return self.json(chance, **{name: chance.choice(wrong)}), ("wrong_type",)

    def _null_where_none_may_be(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        return self.json(chance, **{chance.choice([*TEXTS, "flight", "distance", "asked_at"]): None}), ("wrong_type",)

    def _half_a_surrogate(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        return self.json_with(chance, chance.choice(TEXTS), '"\\ud800"'), ("wrong_type",)

    # Values.

    def _not_finite(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        name, value = chance.choice(FLOATS), chance.choice([math.nan, math.inf, -math.inf])
        return chance.choice((self.avro, self.json))(chance, **{name: value}), ("not_finite",)

    def _signalling_nan(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        marked = self.avro(chance, distance=1234.5678)
        raw = struct.pack("<Q", chance.choice([0x7FF0000000000001, 0xFFF8000000000000, 0x7FFFFFFFFFFFFFFF]))
        return marked.replace(struct.pack("<d", 1234.5678), raw), ("not_finite",)

    def _too_much(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        value = chance.choice([1e308, -1e308, BEYOND * 1.01, -1e16])
        return chance.choice((self.avro, self.json))(chance, **{chance.choice(FLOATS): value}), ("out_of_range",)

    def _hour_of_77(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        value = chance.choice([77, 24, -1, 2**31 - 1, -(2**31)])
        return chance.choice((self.avro, self.json))(chance, sched_hour=value), ("out_of_range",)

    def _distance(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        return chance.choice((self.avro, self.json))(chance, distance=chance.choice([0.0, -5.0, 12_500.1])), (
            "out_of_range",
        )

    def _carrier(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        value = chance.choice(["ZZ", "", "ua", "UA ", "<b>", "U\0A", "é" * 300, "x" * 100_000])
        return chance.choice((self.avro, self.json))(chance, carrier=value), ("not_allowed", "too_long")

    def _from_the_future(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        value = chance.choice([2**53, 2**63 - 1, 4_102_444_800_000])
        return chance.choice((self.avro, self.json))(chance, asked_at=value), ("in_the_future",)

    def _without_an_id(self, chance: random.Random) -> tuple[bytes | None, tuple[str, ...]]:
        return chance.choice((self.avro, self.json))(chance, flight_id=""), ("missing_value",)


def is_event(codec: Codec, data: bytes) -> bool:
    """Whether fastavro reads an event from these bytes; a second opinion about bytes that were changed at random."""
    import io

    import fastavro

    stream = io.BytesIO(data[HEADER:])
    try:
        fastavro.schemaless_reader(stream, codec.parsed, None)
    except Exception:
        return False
    return data.startswith(codec.header) and stream.tell() == len(data) - HEADER
