"""How long records gather: by what batches cost, within the longest delay; never where nothing is gained by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.runtime.run import pace
from tidemill.stream.api import Processor
from tidemill.stream.group import Service
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.stream.pace import BUSY_SHARE, Pace

SECONDS = st.floats(0, 10, allow_nan=False)
SHARES = st.floats(0.01, 1)


@pytest.mark.slow
@given(SECONDS, SHARES, st.lists(SECONDS))
def test_records_gather_no_longer_than_the_delay_allows(max_delay: float, share: float, costs: list[float]) -> None:
    paced = Pace(max_delay, share)
    assert paced.gather == 0
    for cost in costs:
        paced.took(cost)
        assert 0 <= paced.gather <= max_delay


@given(SECONDS, SHARES, st.lists(SECONDS, max_size=5), st.floats(0, 1))
def test_whatever_was_before_it_settles_at_what_batches_cost_now(
    max_delay: float, share: float, before: list[float], cost: float
) -> None:
    paced = Pace(max_delay, share)
    for earlier in before:
        paced.took(earlier)
    for _ in range(100):
        paced.took(cost)
    settled = paced.gather
    assert settled + cost <= max(max_delay, cost) + 1e-6, "within the longest delay, with the batch's own cost"
    # Batches take their share of the time, or more where the longest delay, or nothing, is left to wait.
    assert settled == pytest.approx(max(0.0, min(cost / share - cost, max_delay - cost)), abs=1e-6)


@given(st.floats(0.001, 1), st.floats(0.001, 0.3), SHARES)
def test_the_more_a_batch_costs_the_longer_records_gather(max_delay: float, part: float, share: float) -> None:
    cheap, dear = Pace(max_delay, share), Pace(max_delay, share)
    cheap.took(part * max_delay * share / 2)
    dear.took(part * max_delay * share)
    assert cheap.gather <= dear.gather


def test_a_batch_that_costs_more_than_the_delay_is_followed_at_once() -> None:
    paced = Pace(0.02)
    for _ in range(3):
        paced.took(0.05)
        assert paced.gather == 0
    for _ in range(30):
        paced.took(0.002)
    assert paced.gather == pytest.approx(0.002 / BUSY_SHARE - 0.002, rel=0.1)


class World:
    """A clock that goes on while the loop sleeps, polls and commits; an event comes every so often."""

    def __init__(self, every: float, commit: float, max_delay: float = 0.02) -> None:
        self.now, self.every, self.commit_takes = 100.0, every, commit
        self.next_event = self.now
        self.broker = MemoryBroker({"in": 1})
        self.arrived: list[float] = []
        self.waited: list[float] = []
        self.slept: list[float] = []
        self.step = Counting()
        service = Service("test", "group", ["in"], self.step)
        self.loop = Loop(service, self.broker, max_delay=max_delay, clock=lambda: self.now, sleep=self.sleep)
        self.producer = self.broker.producer("test")
        self.consumer = self.broker.consumer("group", ["in"], self.loop.instance)
        self.commits = 0
        commit_, poll = self.producer.commit, self.consumer.poll

        def commit_slowly(*arguments) -> None:
            self.go_on(self.commit_takes)
            commit_(*arguments)
            self.commits += 1
            self.waited += [self.now - at for at in self.arrived[len(self.waited) : self.step.records]]

        def poll_waiting(limit: int, timeout: float) -> list:
            records = poll(limit, timeout)
            if not records:
                self.go_on(max(0.0, min(timeout, self.next_event - self.now)))
                records = poll(limit, timeout)
            return records

        self.producer.commit, self.consumer.poll = commit_slowly, poll_waiting

    def go_on(self, seconds: float) -> None:
        self.now += seconds
        while self.next_event <= self.now:
            self.broker.append("in", b"x")
            self.arrived.append(self.next_event)
            self.next_event += self.every

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.go_on(seconds)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.loop.run_once(self.consumer, self.producer)


class Counting(Processor):
    records = 0

    def process(self, records, emit) -> bool:
        self.records += len(records)
        return True


def test_where_events_are_rare_each_is_committed_at_once() -> None:
    world = World(every=0.05, commit=0.004)
    world.run(3)
    assert len(world.waited) > 50
    assert max(world.waited) == pytest.approx(0.004)


def test_under_load_transactions_take_their_share_of_the_time_and_nothing_waits_longer_than_the_delay() -> None:
    world = World(every=0.001, commit=0.003)
    world.run(3)
    assert len(world.waited) > 2_900
    assert max(world.waited[100:]) <= 0.02
    busy = world.commits * 0.003 / 3
    assert busy == pytest.approx(BUSY_SHARE, rel=0.1)


def test_where_transactions_are_dear_they_follow_each_other_and_all_is_read() -> None:
    world = World(every=0.001, commit=0.05)
    world.run(5)
    assert world.commits == pytest.approx(100, abs=3)
    assert len(world.arrived) - len(world.waited) < 120, "no backlog grows"
    assert not world.slept[1:]


@pytest.mark.parametrize("max_delay", [0.001, 0.02, 0.1, 10.0])
def test_services_that_no_prediction_waits_for_gather_longer_up_to_a_bound(max_delay: float) -> None:
    for service in ("validator", "featurizer", "materializer", "scorer"):
        assert pace(service, max_delay, exactly_once=True) == (max_delay, BUSY_SHARE)
        longest, share = pace(service, max_delay, exactly_once=False)
        assert longest == max_delay
        assert share > BUSY_SHARE, "without transactions batches may be more frequent"
    for service in ("joiner", "learner-logreg", "gate", "archiver"):
        longest, share = pace(service, max_delay, exactly_once=True)
        assert share < BUSY_SHARE
        assert max_delay <= longest <= max(max_delay, 0.2)
