"""How fast `tidemill send` sends a history: no faster than the pipeline follows, and never for ever waiting."""

from __future__ import annotations

from tidemill.offline.send import MAX_ON_THE_WAY, SILENCE_SECONDS, Pace


def sent_at_once(pace: Pace, on_the_way: int, now: float) -> int:
    """Return how many may be sent before something must be heard."""
    count = 0
    while pace.has_room(on_the_way + count, now):
        count += 1
    return count


def test_no_more_are_on_their_way_than_partitions_may_run_apart() -> None:
    pace = Pace()
    assert sent_at_once(pace, 0, 1.0) == MAX_ON_THE_WAY
    assert sent_at_once(pace, MAX_ON_THE_WAY - 20, 1.1) == 20  # 20 were heard of


def test_what_is_not_heard_of_does_not_stop_the_rest() -> None:
    """Labels that come before their events wait; the next ones are sent after a silence, as many again."""
    pace = Pace()
    waiting = sent_at_once(pace, 0, 1.0)
    assert not pace.has_room(waiting, 1.0 + SILENCE_SECONDS / 2)
    assert sent_at_once(pace, waiting, 1.1 + SILENCE_SECONDS) == MAX_ON_THE_WAY


def test_once_they_are_heard_of_after_all_there_are_no_more_than_before() -> None:
    pace = Pace()
    waiting = sent_at_once(pace, 0, 1.0)
    waiting += sent_at_once(pace, waiting, 1.1 + SILENCE_SECONDS)
    assert waiting == 2 * MAX_ON_THE_WAY
    assert sent_at_once(pace, 100, 3.0) == MAX_ON_THE_WAY
