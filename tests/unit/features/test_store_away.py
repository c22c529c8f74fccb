"""A store that is away when a service starts, or gets a partition, stops nothing: the log has all that it takes."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import small

from tidemill import View, aggregates, load
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import StoreError
from tidemill.features import views
from tidemill.features.memory import MemoryView
from tidemill.stages.featurizer import service as featurizer
from tidemill.stages.materializer import service as materializer
from tidemill.stream.api import TopicPartition
from tidemill.stream.group import Service
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records

FIRST = TopicPartition("small.events.valid", 0)
BEHIND = ("view_behind", "origin")


class AwayView(MemoryView):
    """A store that answers while it is not away."""

    is_away = False
    tries = 0

    def _answer(self) -> None:
        self.tries += 1
        if self.is_away:
            raise StoreError("no Redis at nowhere")

    def load(self, partition: int) -> Any:
        self._answer()
        return super().load(partition)

    def reset(self, partition: int) -> None:
        self._answer()
        super().reset(partition)

    def note(self, partition: int) -> str:
        self._answer()
        return super().note(partition)

    def write(self, *arguments: Any) -> str:
        self._answer()
        return super().write(*arguments)


def declared(**changes: Any) -> Pipeline:
    kept = [aggregates.count("5m"), aggregates.last("dep_delay", "5m"), aggregates.sum("distance", "2m")]
    return small.make(views=[View("origin", every="1m", aggregates=kept, expires="10m", **changes)])


class Line:
    """The valid events and the featurizers over them, each with the same store."""

    def __init__(self, pipeline: Pipeline | None = None) -> None:
        self.pipeline = pipeline or declared()
        self.records = Records(self.pipeline)
        self.broker = MemoryBroker({topic.name("small"): 2 for topic in topics.TOPICS})
        self.store = AwayView()
        self.loops: dict[str, Loop] = {}
        self.sent = 0

    def send(self, rng: random.Random, many: int, origins: str = "abcde") -> None:
        for _ in range(many):
            self.sent += 1
            origin = rng.choice(origins)
            event = small.event(
                f"e{self.sent}", self.sent * 25_000 - rng.choice((0, 0, 90_000)), origin, rng.uniform(-9, 9),
                dep_delay=rng.choice((None, 1.5)),
            )  # fmt: skip
            self.broker.append(FIRST.topic, self.records.event.encode(event), origin.encode(), self.sent)

    def start(self, instance: str = "0", pipeline: Pipeline | None = None) -> None:
        """Start a featurizer; one that ran as this instance is left as a kill would leave it."""
        service = featurizer.build(pipeline or self.pipeline, {"origin": self.store})
        self.loops[instance] = loop(service, self.broker, instance)

    def run(self, *instances: str) -> None:
        """Run featurizers until nothing comes any more."""
        run(*[self.loops[name] for name in instances or self.loops])

    def behind(self, instance: str = "0") -> float:
        return self.loops[instance].processor.gauges()[BEHIND]

    @property
    def vectors(self) -> list[dict[str, Any]]:
        decode = self.records.features.decode
        return [decode(record.value() or b"") for record in self.broker.records("small.features")]

    @property
    def held(self) -> tuple[Any, ...]:
        return self.store.features, {p: t for p, t in self.store.tiles.items() if t}, self.store.offsets


class Turning(Loop):
    """A loop with its consumer and producer, to be turned by hand."""

    def join(self) -> None:
        self.producer = self.broker.producer(self.instance)
        self.consumer = self.broker.consumer(self.service.group, self.service.topics, self.instance)

    def turn(self) -> int:
        return self.run_once(self.consumer, self.producer)


def loop(service: Service, broker: MemoryBroker, instance: str = "0") -> Turning:
    made = Turning(service, broker, instance=instance, max_delay=0.0, max_batch=5, sleep=lambda _: None)
    made.processor.views.clock = itertools.count().__next__  # whatever takes time takes one tick
    made.join()
    return made


def run(*loops: Any) -> None:
    quiet = 0
    while quiet < 4:
        quiet = quiet + 1 if not sum([one.turn() for one in loops]) else 0


@pytest.fixture(autouse=True)
def asked_at_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "RECHECK_SECONDS", 0.0)


def undisturbed(line: Line) -> Line:
    """Return a line over the same log whose store was never away."""
    other = Line(line.pipeline)
    for record in line.broker.records(FIRST.topic):
        other.broker.append(record.topic(), record.value(), record.key(), 1, None, record.partition())
    other.start()
    other.run()
    return other


def by_id(vectors: list[dict[str, Any]]) -> dict[str, Any]:
    assert len({v["event_id"] for v in vectors}) == len(vectors), "no vector twice"
    return {v["event_id"]: v for v in vectors}


def test_a_featurizer_that_starts_while_its_store_is_away_serves_what_it_would_have_served() -> None:
    line, rng = Line(), random.Random(1)
    line.send(rng, 40)
    line.start()
    line.run()
    before = line.held
    line.store.is_away = True
    line.send(rng, 20)
    line.start()
    line.run()
    assert len(line.vectors) == 60, "predictions go on"
    assert line.loops["0"].ready
    assert line.behind() == 1
    assert line.held == before
    line.store.is_away = False
    line.run()
    assert line.behind() == 0
    whole = undisturbed(line)
    assert by_id(line.vectors) == by_id(whole.vectors)
    assert line.held == whole.held, "the store is that of a replay"


@pytest.mark.slow
def test_whatever_is_away_killed_and_moved_the_vectors_and_the_store_are_those_of_a_replay() -> None:
    starts_without = 0
    for seed in range(40):
        rng = random.Random(seed)
        line = Line()
        line.start()
        for _ in range(12):
            line.send(rng, rng.randrange(8), rng.choice(("a", "abc", "abcde")))
            what = rng.choice(("away", "away", "back", "kill", "kill", "join", "leave", "run", "emptied"))
            if what in ("away", "back"):
                line.store.is_away = what == "away"
            elif what == "kill":
                starts_without += line.store.is_away
                line.start(rng.choice(list(line.loops)))
            elif what == "join" and len(line.loops) == 1:
                line.start("1")
            elif what == "leave" and len(line.loops) == 2:
                line.loops.pop("1").consumer.close()
            elif what == "emptied":
                for part in (line.store.features, line.store.tiles, line.store.offsets, line.store.notes):
                    part.clear()
            for _ in range(rng.randrange(4)):
                for one in list(line.loops.values()):
                    one.turn()
        line.store.is_away = False
        line.run()
        whole = undisturbed(line)
        assert by_id(line.vectors) == by_id(whole.vectors), f"seed {seed}"
        assert line.held == whole.held, f"seed {seed}"
    assert starts_without > 25


def test_a_partition_that_moves_while_the_store_is_away_stops_nobody() -> None:
    line, rng = Line(), random.Random(2)
    line.send(rng, 20)
    line.start()
    line.run()
    line.store.is_away = True
    line.start("1")
    line.send(rng, 20)
    line.run()
    assert len(line.vectors) == 40
    assert line.loops["0"].ready
    assert line.loops["1"].ready


def test_entities_that_expired_meanwhile_are_gone_from_the_store_that_is_back() -> None:
    line, rng = Line(), random.Random(3)
    line.send(rng, 10, "x")
    line.start()
    line.run()
    assert "x" in line.store.features
    line.store.is_away = True
    line.start()
    line.send(rng, 60, "ab")  # 25 minutes
    line.run()
    line.store.is_away = False
    line.run()
    assert set(line.store.features) == {"a", "b"} | ({"x"} & set(undisturbed(line).store.features))
    assert line.held == undisturbed(line).held


def truncated(line: Line, keep: int) -> None:
    for partition in range(2):
        one = TopicPartition(FIRST.topic, partition)
        line.broker.truncate(one, max(0, len(line.broker.log[one]) - keep))


def test_where_the_log_was_cut_the_store_that_is_back_is_loaded_and_not_overwritten() -> None:
    line, rng = Line(), random.Random(4)
    line.send(rng, 40, "abc")
    line.start()
    line.run()
    truncated(line, 2)
    line.store.is_away = True
    line.start()
    line.send(rng, 4, "abc")
    line.run()
    assert all(v["partial"] for v in line.vectors[-1:]), "it says that its windows lack what the log has lost"
    line.store.is_away = False
    line.run()
    line.send(rng, 6, "abc")
    line.run()
    whole = undisturbed(line)
    last = {f"e{n}" for n in range(45, 51)}
    assert {k: v for k, v in by_id(line.vectors).items() if k in last} == {
        k: v for k, v in by_id(whole.vectors).items() if k in last
    }, "what the store held is served again, and nothing of it is partial"
    assert line.held == whole.held


def test_a_view_declared_differently_while_its_store_was_away_is_rebuilt_in_it() -> None:
    line, rng = Line(), random.Random(5)
    line.send(rng, 20)
    line.start()
    line.run()
    line.store.is_away = True
    other = small.make(views=[View("origin", every="30s", aggregates=[aggregates.mean("distance", "5m")])])
    line.pipeline = other
    line.start(pipeline=other)
    line.run()
    line.store.is_away = False
    line.run()
    whole = Line(other)
    for record in line.broker.records(FIRST.topic):
        whole.broker.append(record.topic(), record.value(), record.key(), 1, None, record.partition())
    whole.start()
    whole.run()
    assert line.held == whole.held
    assert line.store.notes == whole.store.notes


def test_a_store_that_is_further_on_than_a_late_process_is_left_as_it_is() -> None:
    line, rng = Line(), random.Random(6)
    line.send(rng, 20)
    line.start()
    line.run()
    line.store.is_away = True
    late = featurizer.build(line.pipeline, {"origin": line.store}).processor
    for partition in range(2):
        late.assign(TopicPartition(FIRST.topic, partition), late_position(line, partition))
    line.store.is_away = False
    line.send(rng, 20)
    line.run()
    before = line.held, dict(line.store.notes)
    with pytest.raises(views.Retry, match="further on"):
        late.committed()
    assert (line.held, line.store.notes) == before


def late_position(line: Line, partition: int) -> Any:
    committed = line.broker.committed("small.featurizer", [TopicPartition(FIRST.topic, partition)])
    (position,) = committed.values()
    assert position is not None
    return position


def test_a_store_that_hangs_is_waited_for_half_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "RECHECK_SECONDS", 1.0)
    now, waited = [0.0], [0.0]

    class HangingView(MemoryView):
        def _hang(self, *_: Any) -> Any:
            now[0] += 5.0
            waited[0] += 5.0
            raise StoreError("timed out")

        load: Callable[..., Any] = _hang
        write: Callable[..., Any] = _hang

    kept = views.Views([views.Plan(view) for view in declared().inline_views] * 3, {"origin": HangingView()}, Counter())
    kept.clock = lambda: now[0]
    for partition in range(8):
        assert kept.assign(partition, 100) == 0, "all is rebuilt from the log"
    assert waited[0] == 5.0, "one answer is waited for, not one a partition and view"
    while now[0] < 1000.0:
        kept.committed()
        now[0] += 0.1
    assert waited[0] <= 505.0
    assert waited[0] >= 400.0, "it is asked again"


def test_a_materializer_that_starts_while_its_store_is_away_fills_it_when_it_is_back() -> None:
    pipeline = load("flights")
    codec = Records(pipeline).update
    name = topics.UPDATES.name(pipeline.name)
    broker = MemoryBroker({name: 1, topics.FEATURES.name(pipeline.name): 1})
    stores = {view.label: AwayView() for view in pipeline.remote_views}

    def send(n: int) -> MemoryRecord:
        update = {
            "source": "events", "entity": "dest", "entity_id": f"d{n % 3}", "time": n * 60_000, "event_id": f"e{n}",
            "control": "", "numbers": {}, "texts": {},
        }  # fmt: skip
        return broker.append(name, codec.encode(update), b"k", 1, None, 0)

    for n in range(10):
        send(n)
    run(loop(materializer.build(pipeline, stores), broker))
    for store in stores.values():
        store.is_away = True
    late = loop(materializer.build(pipeline, stores), broker)
    for n in range(10, 20):
        send(n)
    run(late)
    assert late.ready
    assert late.processor.gauges()["view_behind", "dest"] == 1
    for store in stores.values():
        store.is_away = False
    run(late)
    assert late.processor.gauges()["view_behind", "dest"] == 0
    fresh = {view.label: MemoryView() for view in pipeline.remote_views}
    again = MemoryBroker({name: 1, topics.FEATURES.name(pipeline.name): 1})
    for record in broker.records(name):
        again.append(name, record.value(), record.key(), 1, None, 0)
    run(loop(materializer.build(pipeline, fresh), again))
    assert {n: (s.features, s.tiles, s.offsets) for n, s in stores.items()} == {
        n: (s.features, s.tiles, s.offsets) for n, s in fresh.items()
    }
