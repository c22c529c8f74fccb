"""Value rules: what a field's value must be, one file each.

A missing (null) value passes every rule but `not_null`: the schema, or `not_null`, decides whether a field may be
missing. NaN, infinities and numbers beyond `LARGEST_NUMBER` need no rule: they are refused in every float field. The
time of a stream needs none either: unless it has a `not_after_now` of its own, it gets one of the pipeline's
`future_tolerance`, at most `FUTURE_TOLERANCE`, and where it is a plain number, `plausible` from 1971 to 2100. With
`warn=True` a rule refuses nothing: the record is accepted, marked and counted.
"""

from tidemill.limits import LARGEST_NUMBER
from tidemill.rules.base import FUTURE_TOLERANCE, PLAUSIBLE_TIMES, Memory, Rule
from tidemill.rules.between import between
from tidemill.rules.finite import finite
from tidemill.rules.holds import holds
from tidemill.rules.in_file import in_file
from tidemill.rules.matches import matches
from tidemill.rules.monotonic import monotonic
from tidemill.rules.not_after_now import not_after_now
from tidemill.rules.not_before import not_before
from tidemill.rules.not_null import not_null
from tidemill.rules.not_older_than import not_older_than
from tidemill.rules.one_of import one_of
from tidemill.rules.plausible import plausible
from tidemill.rules.unique import unique

__all__ = [
    "FUTURE_TOLERANCE",
    "LARGEST_NUMBER",
    "PLAUSIBLE_TIMES",
    "Memory",
    "Rule",
    "between",
    "finite",
    "holds",
    "in_file",
    "matches",
    "monotonic",
    "not_after_now",
    "not_before",
    "not_null",
    "not_older_than",
    "one_of",
    "plausible",
    "unique",
]
