"""Python types of the JSON that producers may send, by its JSON schema: a type checker then checks their clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PLAIN = {"null": "None", "boolean": "bool", "integer": "int", "number": "float", "string": "str"}


def module(schemas: Mapping[str, Mapping[str, Any]], doc: str) -> str:
    """Return the source of a Python module with a TypedDict for each JSON schema of an object, by its name.

    A record within one is called as where it is, as `EventAddress`.
    """
    types: dict[str, str] = {}
    for name, schema in schemas.items():
        _type(schema, name, types)
    return "\n".join([f'"""{doc}"""\n', "from typing import Literal, NotRequired, TypedDict\n", *types.values()])


def _type(schema: Mapping[str, Any], name: str, types: dict[str, str]) -> str:
    """Return the type of a schema's values; adds those of its objects."""
    if "anyOf" in schema:
        several = [_type(one, name, types) for one in schema["anyOf"]]
        return " | ".join(dict.fromkeys(several))
    if "enum" in schema:
        return f"Literal[{', '.join(map(repr, schema['enum']))}]"
    kind = schema["type"]
    if kind == "array":
        return f"list[{_type(schema['items'], name, types)}]"
    if kind == "object" and "properties" not in schema:
        return f"dict[str, {_type(schema['additionalProperties'], name, types)}]"
    if kind == "object":
        return _record(schema, name, types)
    return " | ".join(_PLAIN[one] for one in ([kind] if isinstance(kind, str) else kind))


def _record(schema: Mapping[str, Any], name: str, types: dict[str, str]) -> str:
    while name in types:  # two fields may make one name
        name += "_"
    types[name] = ""
    lines = []
    for field, one in schema["properties"].items():
        type_ = _type(one, name + "".join(part[:1].upper() + part[1:] for part in field.split("_")), types)
        lines.append(f"        {field!r}: {type_ if field in schema['required'] else f'NotRequired[{type_}]'},")
    # Called as a function, so that a field may be called as a word of Python; what it is made of comes before it.
    del types[name]
    types[name] = "\n".join([f"{name} = TypedDict(", f"    {name!r},", "    {", *lines, "    },", ")\n"])
    return name
