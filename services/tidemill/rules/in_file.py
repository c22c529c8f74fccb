"""A value that a reference file has."""

from __future__ import annotations

from pathlib import Path

from tidemill.rules.base import TEXTS, Rule
from tidemill.tables import Table, plain_key


def in_file(field: str, file: str | Path, column: str, *, warn: bool = False) -> Rule:
    """The value is in `column` of `file`, read once when the pipeline is loaded (forms and places as `Table`).

    Values are compared as the keys of a `Table` are, so an event's 7 finds a file's 7, and its 7.0. Raises
    DeclarationError as `Table` does.

    Examples
    --------
    >>> from tidemill.testing import try_rule
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> folder = TemporaryDirectory()
    >>> file = Path(folder.name) / "carriers.csv"
    >>> _ = file.write_text("code,name\\nAA,American\\nUA,United\\n")
    >>> try_rule(in_file("carrier", file, "code"), {"carrier": "UA"}, {"carrier": "ZZ"})
    [True, False]
    """
    table = Table(file, key=column, repeats=True)
    keys = frozenset(table.keys)
    known = keys.union(map(plain_key, keys))
    return Rule(
        name="in_file",
        field=field,
        reason="not_in_file",
        condition="str(v) in known or plain_key(str(v)) in known",
        expected=f"one of the {len(keys):,} values of {column} in {table.name}",
        names={"known": known, "plain_key": plain_key, "str": str},
        warn=warn,
        types=("int", "long", *TEXTS),
    )
