"""What may come from outside, and how much of it: every limit in one table.

A limit bounds what one record, request, connection, schema or expression of somebody else's may cost. None of them is a
setting: they are far above what a pipeline needs. The reference page "Limits" is made of this table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """At most `max` of `unit` in one `subject`; `then` says what happens to one that has more."""

    subject: str
    max: int
    unit: str
    then: str

    def excess(self, value: int, name: str = "") -> str:
        """Return what is wrong with one that has `value`, which is more than `max`; `name` says which one it is."""
        shown = f"{self.subject} {name}" if name else self.subject
        return f"{shown} has {value:,} {self.unit} where at most {self.max:,} are allowed"


# Messages of producers.
MESSAGE_BYTES = Limit("message", 1_000_000, "bytes", "dead letter `too_large`, before it is decoded")

# Schemas that messages name, and those of a declaration.
SCHEMA_DEPTH = Limit("schema", 16, "nested records, arrays and maps", "its messages are dead letters, or `check` fails")
SCHEMA_FIELDS = Limit(
    "schema, with each named record written out where it is used,",
    10_000,
    "fields",
    "its messages are dead letters, or `check` fails",
)

# Rules.
PATTERN_BYTES = Limit("pattern of `rules.matches`", 8 << 20, "bytes of memory, compiled", "`check` fails")


def table() -> dict[str, Limit]:
    """Return every limit by its name."""
    return {name: value for name, value in globals().items() if isinstance(value, Limit)}
