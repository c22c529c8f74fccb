"""Pairs of Avro schemas, a writer's and a reader's that can read it: names in namespaces, references, aliases, defaults."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

PRIMITIVES: dict[str, Any] = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "string": st.text(max_size=4),
    "bytes": st.binary(max_size=4),
}
#: What a reader may read a type as, with a default of each.
WIDER = {"int": ("long", "float", "double"), "long": ("float", "double"), "float": ("double",)}
DEFAULTS: dict[str, Any] = {
    "boolean": True, "int": -3, "long": 5, "float": 0.5, "double": 1e300, "string": "é", "bytes": "\u00ff",
}  # fmt: skip
NAMESPACES = ("n", "n.m", "o")


class _Types:
    """Types of one schema. Their short names come again in several namespaces, where they are other types."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.known: dict[str, Any] = {}
        self.taken = set[str]()

    def new_name(self) -> dict[str, str] | None:
        name, space = self.draw(st.sampled_from("AB")), self.draw(st.sampled_from(NAMESPACES))
        if f"{space}.{name}" in self.taken:
            return None
        self.taken.add(f"{space}.{name}")
        return {"name": name, "namespace": space}

    def type(self, depth: int, within: str) -> tuple[Any, Any]:
        """Return a type and its values; `within` is the namespace of the record that it is in."""
        draw = self.draw
        kind = draw(st.sampled_from(["plain", "plain", "nullable", "known", "enum", "fixed", "array", "map", "record"]))
        if kind == "known" and self.known:
            name = draw(st.sampled_from(sorted(self.known)))
            space, _, short = name.rpartition(".")
            return short if space == within and draw(st.booleans()) else name, self.known[name]
        head = self.new_name() if kind in ("enum", "fixed", "record") and depth < 3 else None
        if kind == "enum" and head:
            symbols = draw(st.lists(st.sampled_from("XYZ"), min_size=1, max_size=3, unique=True))
            return self._keep(head, within, {"type": "enum", "symbols": symbols}, st.sampled_from(symbols))
        if kind == "fixed" and head:
            size = draw(st.integers(1, 3))
            return self._keep(head, within, {"type": "fixed", "size": size}, st.binary(min_size=size, max_size=size))
        if kind == "record" and head:
            return self._keep(head, within, *self.record(head, depth + 1))
        if kind in ("array", "map") and depth < 3:
            inner, values = self.type(depth + 1, within)
            if kind == "array":
                return {"type": "array", "items": inner}, st.lists(values, max_size=2)
            return {"type": "map", "values": inner}, st.dictionaries(st.text(max_size=2), values, max_size=2)
        plain = draw(st.sampled_from(sorted(PRIMITIVES)))
        if kind == "nullable":
            return draw(st.sampled_from((["null", plain], [plain, "null"]))), st.none() | PRIMITIVES[plain]
        return plain, PRIMITIVES[plain]

    def _keep(self, head: dict[str, str], within: str, avro: dict[str, Any], values: Any) -> tuple[Any, Any]:
        """Keep a type for others to refer to; its name may be written in full, or be that of its surroundings."""
        full = f"{head['namespace']}.{head['name']}"
        self.known[full] = values
        ways = [head, {"name": full}, *([{"name": head["name"]}] if head["namespace"] == within else [])]
        rest = {key: value for key, value in avro.items() if key not in head}
        return {**rest, **self.draw(st.sampled_from(ways))}, values

    def record(self, head: dict[str, str], depth: int) -> tuple[dict[str, Any], Any]:
        names = self.draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
        made = {name: self.type(depth, head["namespace"]) for name in names}
        fields = [{"name": name, "type": avro} for name, (avro, _) in made.items()]
        values = st.fixed_dictionaries({name: values for name, (_, values) in made.items()})
        return {"type": "record", **head, "fields": fields}, values


def _read(draw: Any, avro: Any) -> Any:
    """Return a type that can read this one."""
    if isinstance(avro, str):
        return draw(st.sampled_from((avro, *WIDER.get(avro, ()))))
    if isinstance(avro, list):
        return avro
    if avro["type"] in ("array", "map"):
        part = "items" if avro["type"] == "array" else "values"
        return {**avro, part: _read(draw, avro[part])}
    return _read_record(draw, avro) if avro["type"] == "record" else avro


def _read_record(draw: Any, avro: dict[str, Any]) -> dict[str, Any]:
    fields = []
    for one in avro["fields"]:
        what = draw(st.sampled_from(("keep", "widen", "rename", "nullable")))
        if what == "rename":
            fields.append({"name": f"{one['name']}_new", "aliases": [one["name"]], "type": one["type"]})
        elif what == "nullable" and one["type"] in list(PRIMITIVES):
            fields.append({**one, "type": ["null", one["type"]], "default": None})
        else:
            fields.append({**one, "type": _read(draw, one["type"]) if what == "widen" else one["type"]})
    for number in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(sorted(DEFAULTS)))
        more: dict[str, Any] = {"type": kind, "default": DEFAULTS[kind]}
        if draw(st.booleans()):
            more = {"type": {"type": "array", "items": kind}, "default": [DEFAULTS[kind]]}
        fields.append({"name": f"more{number}", **more})
    return {**avro, "fields": draw(st.permutations(fields))}


@st.composite
def schema_pairs(draw: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """A writer's schema, a reader's, and a strategy for the writer's records."""
    types = _Types(draw)
    head = {"name": "R", "namespace": draw(st.sampled_from(NAMESPACES))}
    avro, values = types.record(head, 0)
    reader = _read_record(draw, avro)
    if draw(st.booleans()):
        reader |= {"name": "R2", "aliases": [f"{head['namespace']}.R"]}
    return avro, reader, values
