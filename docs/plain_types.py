"""Types of the declaration as people write them: `Annotated[str, ...]` is shown as `str` (an extension of griffe)."""

from __future__ import annotations

from typing import Any

import griffe


def plain(given: Any) -> Any:
    """Return an annotation without what checks the value: `Annotated[T, ...]` and `Is[T]` are T."""
    if isinstance(given, griffe.ExprSubscript):
        if given.canonical_name == "Annotated" and isinstance(given.slice, griffe.ExprTuple):
            return plain(given.slice.elements[0])
        if given.canonical_name == "Is":
            return plain(given.slice)
        return griffe.ExprSubscript(given.left, plain(given.slice))
    if isinstance(given, griffe.ExprTuple):
        return griffe.ExprTuple([plain(element) for element in given.elements], given.implicit)
    if isinstance(given, griffe.ExprBinOp):
        return griffe.ExprBinOp(plain(given.left), given.operator, plain(given.right))
    return given


class PlainTypes(griffe.Extension):
    """Makes the annotations of all fields plain."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Make one field's annotation plain."""
        attr.annotation = plain(attr.annotation)
