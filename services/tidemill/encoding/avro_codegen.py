"""Avro codecs compiled to Python source, for the shapes that records on the data plane have.

fastavro walks the schema for every record: 17 fields, half of them nullable, cost it 9 µs to read and 11 µs to write,
which was half of what the whole pipeline spent on an event (docs/design.md has the measurement). The code made here
knows the schema: runs of numbers are read and written by one `struct` call. What it writes is byte for byte what
fastavro writes, and it reads what fastavro reads, only more strictly: a length below zero, a varint without end, a
branch that does not exist or a record that ends too early is an error. Schemas of other shapes stay with fastavro.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from operator import itemgetter
from types import CodeType
from typing import Any

#: record -> its Avro bytes.
Encode = Callable[[Mapping[str, Any]], bytes]

#: (bytes, where the record begins) -> (record, where it ends).
Decode = Callable[[bytes, int], "tuple[Any, int]"]


#: How many ways of missing numbers a reader remembers, and how many of them it tries: of January's vectors with views,
#: 36% lack what the one before lacked, and 84% what one of the four before did.
MAX_LAYOUTS, MAX_RECENT_LAYOUTS = 64, 4
#: How many keys of maps, of so many bytes, a codec remembers, and how many large numbers: others' records have any.
MAX_KEYS, MAX_KEY_BYTES = 1024, 256


class UnsupportedError(Exception):
    """The schema has a shape that is left to fastavro."""


@lru_cache(maxsize=MAX_KEYS, typed=True)  # a record's time is written again in all that is made of the record
def varint(value: int) -> bytes:
    """Return an Avro int or long: zig-zag, 7 bits a byte, the lowest first."""
    rest = (value << 1) ^ (value >> 63)
    if rest < 0 or rest >> 64:
        raise ValueError(f"{value} is no 64-bit integer")
    out = bytearray()
    while rest > 127:
        out.append((rest & 127) | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)


#: What a first byte says by itself; None where more belong to it.
_ZIG_ZAG = (*((n >> 1) ^ -(n & 1) for n in range(128)), *[None] * 128)
_SMALL = tuple(varint(n) for n in range(1024))


class _Lengths(dict[int, bytes]):
    """How long a text is, as it is written; most are short."""

    def __missing__(self, length: int) -> bytes:
        return varint(length)


class _Keys(dict[str, bytes]):
    """The keys of maps as they are written: names that a pipeline declares, the same in every record."""

    def __missing__(self, key: str) -> bytes:
        made = _write_text(key)
        if len(self) < MAX_KEYS and len(made) <= MAX_KEY_BYTES:
            self[key] = made
        return made


class _Names(dict[bytes, str]):
    """The keys of maps as they are read."""

    def __missing__(self, data: bytes) -> str:
        made = data.decode()
        if len(self) < MAX_KEYS and len(data) <= MAX_KEY_BYTES:
            self[data] = made
        return made


_LENGTHS = _Lengths(enumerate(_SMALL))


def _write_text(value: str) -> bytes:
    data = value.encode()
    return _LENGTHS[len(data)] + data


def _write_long(value: int) -> bytes:
    return _SMALL[value] if 0 <= value < 1024 else varint(value)


def _write_int(value: int) -> bytes:
    if 0 <= value < 1024:
        return _SMALL[value]
    _check_int(value)
    return varint(value)


def _check_int(value: int) -> None:
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{value} is no 32-bit integer")


class _HighBits(dict[bytes, int]):
    """What the last three of six bytes say, less the flags of the three before them.

    Times of our days have six bytes, of which these change every 17 minutes.
    """

    def __missing__(self, last: bytes) -> int:
        value = 0
        if len(last) == 3 and last[0] > 127 < last[1] and last[2] < 128:
            value = ((last[0] & 127) << 21 | (last[1] & 127) << 28 | last[2] << 35) - 0x204080
            if len(self) >= MAX_KEYS:
                self.clear()
            self[last] = value
        return value


_HIGH_BITS = _HighBits()


def _read_long(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at + 1
    second = data[at + 1]
    if second < 128:
        value = byte + (second << 7) - 128
        return (value >> 1) ^ -(value & 1), at + 2
    third = data[at + 2]
    if third > 127 and data[at + 3] > 127 and (high := _HIGH_BITS[data[at + 3 : at + 6]]):
        value = high + byte + (second << 7) + (third << 14)
        return (value >> 1) ^ -(value & 1), at + 6
    value, shift, at = (byte & 127) | (second & 127) << 7, 14, at + 2
    byte = second
    while byte > 127:
        if shift > 63:
            raise ValueError("an integer has more than 10 bytes")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
    if value >> 64:
        raise ValueError("an integer has more than 64 bits")
    return (value >> 1) ^ -(value & 1), at


def _read_int(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_long(data, at)
    _check_int(value)
    return value, at


def _read_size(data: bytes, at: int) -> tuple[int, int]:
    size, at = _read_long(data, at)
    if size < 0:
        raise ValueError(f"a length is {size}")
    return size, at


def _picker(places: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return what takes these places out of a tuple, as a tuple; one of them or none as well."""
    if len(places) < 2:
        return lambda values: tuple([values[place] for place in places])
    return itemgetter(*places)


class _Layout:
    """A run of doubles whose missing ones are known: one call of struct reads it, and says whether it is so."""

    def __init__(self, tags: tuple[int | None, ...], missing: tuple[bool, ...]) -> None:
        form, flags, flagged, values, at = "<", [], [], [], 0
        for tag, gone in zip(tags, missing, strict=True):
            if tag is not None:
                form += "b"
                flags.append(2 - tag if gone else tag)
                flagged.append(at)
                at += 1
            values.append(-1 if gone else at)
            if not gone:
                form += "d"
                at += 1
        made = struct.Struct(form)
        self.unpack, self.size = made.unpack_from, made.size
        self.flags, self.flagged, self.values = tuple(flags), _picker(flagged), _picker(values)
        self.lacks = any(missing)


class _Run:
    """Neighbouring doubles, plain or nullable, handled by one call of struct."""

    def __init__(self, tags: list[int | None]) -> None:
        self.tags = tuple(tags)
        self._all_given = _Layout(self.tags, (False,) * len(tags))
        self._pack = struct.Struct("<" + "".join("d" if tag is None else "bd" for tag in tags)).pack
        tagged = [(place,) if tag is None else (len(tags) + tag // 2, place) for place, tag in enumerate(tags)]
        #: Takes the values and the tags 0 and 2; returns what is packed.
        self._tagged = _picker([place for places in tagged for place in places])
        self._all_plain = not self._all_given.flags
        self._layouts: dict[tuple[bool, ...], _Layout] = {}
        #: The latest first: what is missing is mostly what was missing in one of the records before.
        self._recent = [self._all_given]

    def write(self, values: tuple[Any, ...]) -> bytes:
        if self._all_plain:
            return self._pack(*values)
        if None not in values:
            return self._pack(*self._tagged((*values, 0, 2)))
        return b"".join(
            [
                _DOUBLE.pack(value) if tag is None else (_NULL[tag] if value is None else _TAGGED.pack(tag, value))
                for tag, value in zip(self.tags, values, strict=True)
            ]
        )

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        recent, room = self._recent, len(data) - at
        for place, layout in enumerate(recent):
            if room >= layout.size:
                values = layout.unpack(data, at)
                if layout.flagged(values) == layout.flags:
                    if place:
                        recent.insert(0, recent.pop(place))
                    return layout.values((*values, None) if layout.lacks else values), at + layout.size
        return self._walk(data, at)

    def _walk(self, data: bytes, at: int) -> tuple[Any, int]:
        values: list[float | None] = []
        for tag in self.tags:
            if tag is not None:
                branch, at = _read_long(data, at)
                if branch not in (0, 1):
                    raise ValueError(f"a union has no branch {branch}")
                if branch * 2 != tag:
                    values.append(None)
                    continue
            if at + 8 > len(data):
                raise EOFError("the record ends inside a number")
            values.append(_DOUBLE.unpack_from(data, at)[0])
            at += 8
        missing = tuple([value is None for value in values])
        layout = self._layouts.get(missing)
        if layout is None and len(self._layouts) < MAX_LAYOUTS:
            layout = self._layouts[missing] = _Layout(self.tags, missing)
        if layout is not None:
            self._recent = [layout, *self._recent[: MAX_RECENT_LAYOUTS - 1]]
        return values, at


_DOUBLE, _TAGGED = struct.Struct("<d"), struct.Struct("<bd")
_NULL = {2: b"\0", 0: b"\2"}  # by the tag of the other branch


class _Maker:
    """Makes the source of one schema's functions."""

    def __init__(self, named: dict[str, Any]) -> None:
        self.named = named
        self.write: list[str] = []
        self.parts: list[str] = []
        self.read: list[str] = []
        self.names: dict[str, Any] = {
            "_W": _write_long,
            "_S": _LENGTHS,
            "_T": _write_text,
            "_V": _write_int,
            "_R": _read_long,
            "_I": _read_int,
            "_Z": _ZIG_ZAG,
            "_N": _read_size,
            "_D": _DOUBLE.pack,
            "_U": _DOUBLE.unpack_from,
        }
        self._count = 0

    def name(self, value: Any = None) -> str:
        self._count += 1
        name = f"_{self._count}"
        if value is not None:
            self.names[name] = value
        return name

    def record(self, avro: Mapping[str, Any], source: str) -> str:
        """Add a record whose value is the expression `source`; returns the expression of what was read."""
        self.named[avro["name"]] = avro
        fields, read = list(avro["fields"]), []
        while fields:
            run = self._run(fields)
            if len(run) > 1:
                maker = self.name(_Run([tag for _, tag in run]))
                self.parts.append(f"{maker}.write(({', '.join(f'{source}[{name!r}]' for name, _ in run)},))")
                value = self.name()
                self.read.append(f"{value}, at = {maker}.read(data, at)")
                read += [f"{name!r}: {value}[{i}]" for i, (name, _) in enumerate(run)]
                del fields[: len(run)]
            else:
                field = fields.pop(0)
                read.append(f"{field['name']!r}: {self.value(field['type'], source + '[' + repr(field['name']) + ']')}")
        return "{" + ", ".join(read) + "}"

    @staticmethod
    def _run(fields: list[Any]) -> list[tuple[str, int | None]]:
        run: list[tuple[str, int | None]] = []
        for field in fields:
            kind = field["type"]
            if kind == "double":
                run.append((field["name"], None))
            elif kind in (["null", "double"], ["double", "null"]):
                run.append((field["name"], 2 * kind.index("double")))
            else:
                break
        return run

    def value(self, avro: Any, source: str) -> str:
        """Add one value; returns the expression of what was read."""
        if isinstance(avro, str):
            avro = self.named.get(avro, avro)
        if isinstance(avro, list):
            return self._nullable(avro, source)
        if isinstance(avro, dict):
            if avro["type"] == "record":
                inner, value = self.name(), self.name()
                self.write.append(f"{inner} = {source}")
                made = self.record(avro, inner)
                self.read.append(f"{value} = {made}")
                return value
            if avro["type"] in ("array", "map"):
                return self._blocks(avro, source)
            raise UnsupportedError(avro["type"])
        if avro not in _WRITE:
            raise UnsupportedError(avro)
        value = self.name()
        if avro in ("string", "bytes"):
            text = self.name()
            self.write.append(f"{text} = {source}.encode()" if avro == "string" else f"{text} = {source}")
            self.parts += [f"_S[len({text})]", text]
        else:
            self.parts.append(_WRITE[avro].format(source))
        self.read += [line.format(value) for line in _READ[avro]]
        return value

    def _nullable(self, avro: list[Any], source: str) -> str:
        others = [branch for branch in avro if branch != "null"]
        if len(avro) != 2 or len(others) != 1 or not isinstance(others[0], str) or others[0] not in _WRITE:
            raise UnsupportedError(str(avro))
        (kind,) = others
        tag, value, given, branch = avro.index(kind), self.name(), self.name(), self.name()
        some, none = bytes([2 * tag]), bytes([2 * (1 - tag)])
        written = "_S[len({0})] + {0}" if kind in ("string", "bytes") else _WRITE[kind]
        made = f"{given}.encode()" if kind == "string" else given
        text = self.name()
        self.write += [f"{given} = {source}", f"{text} = None if {given} is None else {made}"]
        self.parts.append(f"({none!r} if {given} is None else {some!r} + {written.format(text)})")
        self.read += [
            *(line.format(branch) for line in _READ_LONG),
            f"if {branch} == {tag}:",
            *("    " + line.format(value) for line in _READ[kind]),
            f"elif {branch} == {1 - tag}: {value} = None",
            f"else: raise ValueError(f'a union has no branch {{{branch}}}')",
        ]
        return value

    def _blocks(self, avro: Mapping[str, Any], source: str) -> str:
        """Arrays and maps: one block when written; any number, with or without sizes, when read."""
        is_map = avro["type"] == "map"
        kind, value, many = avro["values" if is_map else "items"], self.name(), self.name()
        if isinstance(kind, str) and kind in _WRITE_ONE:
            e, read = _WRITE_ONE[kind], [line.format("v") for line in _READ[kind]]
        else:
            encode, decode = make(kind, self.named)
            e, read = self.name(encode), [f"v, at = {self.name(decode)}(data, at)"]
        if is_map:
            items = f"[{self.name(_Keys())}[k] + {e}(v) for k, v in {source}.items()]"
            names = self.name(_Names())
            step = [*(line.format("k") for line in _READ_BYTES), *read, f"{value}[{names}[k]] = v"]
        else:
            items = f"[{e}(v) for v in {source}]"
            step = [*read, f"{value}.append(v)"]
        self.parts.append(f"(_S[len({source})] + b''.join({items}) + b'\\0' if {source} else b'\\0')")
        self.read += [
            f"{value} = {'{}' if is_map else '[]'}",
            *(line.format(many) for line in _READ_LONG),
            f"while {many}:",
            f"    if {many} < 0: {many}, (_, at) = -{many}, _R(data, at)",
            f"    for _ in range({many}):",
            *(f"        {line}" for line in step),
            *(f"    {line.format(many)}" for line in _READ_LONG),
        ]
        return value


_WRITE = {
    "int": "_V({0})",
    "long": "_W({0})",
    "double": "_D({0})",
    "boolean": "(b'\\1' if {0} else b'\\0')",
    "string": "",
    "bytes": "",
}
#: What writes one value by one call.
_WRITE_ONE = {"int": "_V", "long": "_W", "double": "_D", "string": "_T"}
_READ_LONG = [  # most take one byte
    "{0} = _Z[data[at]]",
    "if {0} is None: {0}, at = _R(data, at)",
    "else: at += 1",
]
_READ_BYTES = [  # a slice that ends too early is noticed by who reads on, or at the end
    "end = _Z[data[at]]",
    "if end is None or end < 0: end, at = _N(data, at)",
    "else: at += 1",
    "end += at",
    "{0}, at = data[at:end], end",
]
_READ = {
    "int": ["{0} = _Z[data[at]]", "if {0} is None: {0}, at = _I(data, at)", "else: at += 1"],
    "long": _READ_LONG,
    "double": [
        "if at + 8 > len(data): raise EOFError('the record ends inside a number')",
        "({0},) = _U(data, at)",
        "at += 8",
    ],
    "boolean": ["{0} = data[at] != 0", "at += 1"],
    "bytes": _READ_BYTES,
    "string": [*_READ_BYTES[:-1], "{0}, at = data[at:end].decode(), end"],
}


@lru_cache(maxsize=256)  # validator, gateway and lookups have the same schemas
def _compiled(source: str) -> CodeType:
    return compile(source, "<avro codec>", "exec")


def make(avro: Any, named: dict[str, Any] | None = None) -> tuple[Callable[[Any], bytes], Decode]:
    """Return (encode, decode) for a schema without logical types; `named` holds records that it refers to by name.

    Raises UnsupportedError where the schema has another shape than records, numbers, texts, booleans, those with null,
    arrays and maps. `encode` raises KeyError, TypeError, ValueError, AttributeError or struct.error for a record that
    does not fit; `decode` raises EOFError, IndexError, ValueError or struct.error for bytes that are none.
    """
    maker = _Maker({} if named is None else named)
    avro = maker.named.get(avro, avro) if isinstance(avro, str) else avro
    try:
        made = (
            maker.record(avro, "r")
            if isinstance(avro, dict) and avro.get("type") == "record"
            else maker.value(avro, "r")
        )
    except KeyError as error:
        raise UnsupportedError(str(error)) from error
    if not maker.parts:
        raise UnsupportedError("a record without fields")
    lines = [
        "def encode(r):",
        *("    " + line for line in maker.write),
        f"    return b''.join(({', '.join(maker.parts)},))",
    ]
    lines += [
        "def decode(data, at):",
        *("    " + line for line in maker.read),
        "    if at > len(data): raise EOFError('the record ends inside a text')",
        f"    return {made}, at",
    ]
    # The source is made from a schema, and its names are repr'd.
    exec(_compiled("\n".join(lines)), maker.names)  # noqa: S102
    return maker.names["encode"], maker.names["decode"]
