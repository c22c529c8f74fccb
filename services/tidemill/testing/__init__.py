"""For pipelines, rules, aggregates, models and metrics of your own: try one on a few records, check it as ours are.

`Pipeline` runs events and labels through all services in memory.
`try_rule` and `try_aggregates` show what one says. The checks raise AssertionError where one breaks a promise that the
services rely on; call them in a test. `check_aggregate` makes its events up with Hypothesis:
`pip install 'tidemill[testing]'`.
"""

from tidemill.testing.aggregates import check_aggregate
from tidemill.testing.models import check_metric, check_model
from tidemill.testing.pipelines import Outcome, Pipeline
from tidemill.testing.rules import check_rule
from tidemill.testing.tries import try_aggregates, try_rule

__all__ = [
    "Outcome",
    "Pipeline",
    "check_aggregate",
    "check_metric",
    "check_model",
    "check_rule",
    "try_aggregates",
    "try_rule",
]
