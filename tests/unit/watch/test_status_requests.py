"""The status service's interface answers whatever is asked of it: requests made up from its own schema."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from site_by_hand import TOKEN, Site, alert, letter, predicted, window

from tidemill.wire import topics

pytestmark = pytest.mark.slow

_FUZZED = Site()
_FUZZED.tell(topics.ALERTS, alert())
_FUZZED.tell(topics.WINDOWS, window("examples", 0), window("prediction-log", 0))
_FUZZED.follower._letter(letter())
predicted(_FUZZED, "e1", label=True)
schema = schemathesis.openapi.from_asgi("/openapi.json", _FUZZED.app, headers={"Host": "localhost"}).exclude(
    path="/api/live"
)  # never ends


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_that_is_asked_makes_it_fail(case: schemathesis.Case) -> None:
    answer = case.call(headers={"Host": "localhost", "Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code < 500, answer.text
