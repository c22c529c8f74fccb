"""What every rule promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tidemill.declare.stream import Stream
from tidemill.errors import Reject
from tidemill.rules.base import Rule
from tidemill.stages.validator.rule_check import RuleState, compile_rules


def check_rule(
    rule: Rule,
    stream: Stream,
    record: Mapping[str, Any],
    passing: Sequence[Mapping[str, Any]],
    failing: Sequence[Mapping[str, Any]],
    now: float = 0,
) -> None:
    """Check that a rule passes what it should, refuses the rest, only warns where declared so, and changes nothing.

    Parameters
    ----------
    rule, stream
        The rule, and the stream that it would be declared for.
    record
        A record of `stream` that passes.
    passing, failing
        Changes of it, one record each, in the order in which they come: all of `passing` first.
    now
        The wall clock, in ms.

    Raises AssertionError.

    Examples
    --------
    >>> from tidemill import Stream, rules
    >>> labels = Stream("flights/arrival.v1.avsc", id="flight_id", time="landed_at", value="arr_delay")
    >>> landed = {"flight_id": "a", "landed_at": 0, "arr_delay": 5.0}
    >>> check_rule(rules.between("arr_delay", -60, 600), labels, landed, [{"arr_delay": 600.0}], [{"arr_delay": 601.0}])
    """
    assert rule.description, "a rule says what it is"
    assert rule.expected, "a rule says what it expects"
    for one in (replace(rule, warn=False), replace(rule, warn=True)):
        check, state = compile_rules(stream, [one]), RuleState(stream, [one])
        for offset, changes in enumerate((*passing, *failing)):
            given = {**record, **changes}
            before, refused, warnings = dict(given), None, []
            try:
                warnings = [*(check(given, now) or ()), *(state.check(given, offset) or ())]
            except Reject as reject:
                refused = reject
            assert given == before, f"{changes}: a record is never changed"
            is_broken = offset >= len(passing)
            assert (refused is not None) == (is_broken and not one.warn), f"{changes}: {refused or 'it passes'}"
            assert [warning.rule for warning in warnings] == [one] * (is_broken and one.warn), changes
            if refused is not None:
                assert (refused.rule, refused.reason, refused.field) == (rule.name, rule.reason, rule.field)
                assert repr(rule.field) in str(refused), "the message names the field"
