"""What a declaration checks itself with: pydantic for types and ranges, our own words for what is wrong.

A field's annotation says all that it may be, as in `Annotated[int, Field(ge=200)]`; `check_fields` holds the values to
it. The values stay as they were given. What depends on other parts of the pipeline is checked by the `check` of each
declaration.
"""

from __future__ import annotations

import dataclasses
import re
from collections import UserList
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

from pydantic import Field, GetCoreSchemaHandler, PlainValidator, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema, core_schema

from tidemill.durations import milliseconds
from tidemill.errors import DeclarationError
from tidemill.limits import NAME_CHARACTERS

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_FEATURE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Fail:
    """Raises the DeclarationError of one pipeline: where it is wrong, and what was expected there."""

    pipeline: Any

    def __call__(self, where: str, message: str) -> NoReturn:
        raise DeclarationError(f"pipeline {self.pipeline!r}: {where}: {' '.join(message.split())}")


def _duration(value: Any) -> Any:
    milliseconds(value)
    return value


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no name: use small letters, digits, - and _, a letter first")
    if len(value) > NAME_CHARACTERS.max:
        raise ValueError(NAME_CHARACTERS.excess(len(value), f"{value[:20]}..."))
    return value


def feature_name(value: Any) -> Any:
    """Return the name of a feature or view. Raises ValueError where it is none."""
    if not isinstance(value, str) or not _FEATURE.fullmatch(value):
        raise ValueError(f"{value!r} is no name of a feature: it is made of letters, digits and _")
    return value


def river_metric(value: Any, *more: str) -> Any:
    """Return a metric that has what we need, and `more`. Raises ValueError where it has not."""
    if isinstance(value, UserList):
        raise ValueError(
            f"{' + '.join(type(one).__name__ for one in value.data)} where one metric was expected: list each"
        )
    if isinstance(value, type) or not all(hasattr(value, name) for name in ("update", "clone", *more)):
        raise ValueError(f"{value!r} where one of River's metrics was expected, as in metrics.ROCAUC()")
    return value


class _Instance:
    """The annotated class itself, whose fields are its own to check."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(source)


T = TypeVar("T")
Is = Annotated[T, _Instance()]
Duration = Annotated[str, PlainValidator(_duration)]
OptionalDuration = Annotated[str, PlainValidator(lambda value: value if value == "" else _duration(value))]
Name = Annotated[str, PlainValidator(_name)]
FeatureName = Annotated[str, PlainValidator(feature_name)]
Metric = Annotated[Any, PlainValidator(river_metric)]
Segments = Annotated[Sequence[str], Field(description="a list of features")]


def check_fields(declaration: Any, where: str, fail: Fail) -> None:
    """Hold every field of a declaration to its annotation; `where` is what the pipeline calls the declaration."""
    for name, adapter in _adapters(declaration.__class__).items():
        value = getattr(declaration, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place, message = _sentence(first, name, value, adapter.json_schema(schema_generator=_Words))
            fail(f"{where}.{place}" if where else place, message)


@cache
def _adapters(declaration: Any) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(declaration, include_extras=True)
    names = [field.name for field in dataclasses.fields(declaration) if field.init]
    return {name: TypeAdapter(hints[name]) for name in names}


class _Words(GenerateJsonSchema):
    """The JSON schema of an annotation, with words for what JSON has no type for."""

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> dict[str, Any]:
        return {"description": f"a {schema['cls'].__name__}(...)"}

    def callable_schema(self, schema: core_schema.CallableSchema) -> dict[str, Any]:  # noqa: ARG002
        return {"description": "a function"}


def _sentence(error: Mapping[str, Any], place: str, value: Any, schema: Any) -> tuple[str, str]:
    """Return where in a field an error is, and what it says; a part with a description stands for all that is in it."""
    field, name = place, ""
    for part in error["loc"]:
        kind = schema.get("type")
        if "description" in schema or kind not in ("array", "object"):
            break
        place += f"[{part!r}]"
        if kind == "object" and part not in value:
            break
        value = value[part]
        schema = schema["items" if kind == "array" else "additionalProperties"]
        schema = schema if isinstance(schema, Mapping) else {}
        name = part
    if error["loc"][-1:] == ("[key]",):
        value, schema = name, {"type": "string"}
    if error["type"] == "value_error":
        return place, str(error["ctx"]["error"])
    example = f", as in {field}={schema['examples'][0]!r}" if "examples" in schema else ""
    return place, f"{value!r} where {_expected(schema)} was expected{example}"


def _expected(schema: Mapping[str, Any]) -> str:
    if "description" in schema:
        return str(schema["description"])
    if "anyOf" in schema:
        return " or ".join(map(_expected, schema["anyOf"]))
    if "enum" in schema:
        *others, last = map(repr, schema["enum"])
        return f"{', '.join(others)} or {last}" if others else last
    kind = schema.get("type", "")
    if kind == "array":
        return "a list"
    if kind not in ("integer", "number"):
        words = {"string": "text", "boolean": "True or False", "object": "a mapping", "null": "None"}
        return words.get(kind, "something else")
    multiple = f", a multiple of {schema['multipleOf']:,}," if "multipleOf" in schema else ""
    return f"{'a whole number' if kind == 'integer' else 'a number'}{multiple}{_range(schema)}"


def _range(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "and below"}
    parts = [f" {word} {schema[key]:,}" for key, word in words.items() if key in schema]
    return "".join(parts) + (" up" if list(parts) and "aximum" not in "".join(schema) else "")


def check_segments(where: str, names: Iterable[str], vector: Mapping[str, str], fail: Fail) -> None:
    """Check that each of these is a category, or a flag, of the vector."""
    for name in names:
        if vector.get(name) not in ("category", "flag"):
            others = [other for other, kind in vector.items() if kind != "number"]
            fail(where, f"{name!r} is no category of the vector: it has {', '.join(others) or 'none'}")
