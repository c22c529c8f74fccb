"""A version is opened and freed piece by piece, beside the thread that scores, and never in it."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import small
from signing_keys import KEY

from tidemill.models.fold import Fold
from tidemill.registry import snapshots
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stages.scorer.feed import ModelFeed
from tidemill.stages.scorer.release import PIECE_OBJECTS, release
from tidemill.stages.scorer.service import Scorer
from tidemill.stream.memory import MemoryBroker
from tidemill.wire import topics
from tidemill.wire.records import Records

PIPELINE = small.make()


class Feeding:
    """A feed whose thread is not started: what it does is called."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(PIPELINE, ArtifactStore(str(folder)), KEY)
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})
        self.feed = ModelFeed(self.registry, self.broker)
        self.scorer = Scorer(PIPELINE, self.feed.take)
        self.fold, self.codec = Fold(PIPELINE, "linear"), Records(PIPELINE).example
        self.examples = small.example_records(PIPELINE, 60)

    def publish(self) -> Manifest:
        for record in self.examples[self.fold.version : self.fold.version + 10]:
            self.fold.learn(self.codec.decode(record.value() or b""), record.offset())
        manifest = self.registry.publish("linear", self.fold.snapshot(), tuple(self.fold.vectors))
        self.broker.append(topics.MODELS.name("small"), self.registry.encode(manifest), b"linear")
        return manifest

    def swap(self) -> Any:
        """Publish a version, have the scorer take it; returns a weak reference to what it uses now."""
        self.publish()
        self.feed._catch_up()
        self.scorer.swap()
        return weakref.ref(self.scorer.models["linear"].model)


@pytest.fixture(autouse=True)
def _by_reference_counts_alone() -> Any:
    gc.disable()
    yield
    gc.enable()


def test_the_old_version_is_not_freed_by_the_scorer_but_by_the_feed(tmp_path: Path) -> None:
    here = Feeding(tmp_path)
    first, freed_in = here.swap(), []
    weakref.finalize(first(), lambda: freed_in.append(threading.current_thread().name))
    here.swap()
    here.scorer.swap()
    here.feed._free()
    assert first() is not None, "it is what answers where the newer one can't"
    last = here.swap()
    here.feed._free()
    assert first() is not None, "the scorer may still be in the batch that it began with it"
    here.scorer.swap()
    here.scorer.swap()
    assert first() is not None, "not in the scorer's thread"
    thread = threading.Thread(target=here.feed._free, name="models")
    thread.start()
    thread.join()
    assert first() is None
    assert freed_in == ["models"]
    assert last() is here.scorer.models["linear"].model
    assert here.scorer.models["linear"].version == 30


def test_a_version_that_somebody_still_holds_stays_whole(tmp_path: Path) -> None:
    here = Feeding(tmp_path)
    here.swap()
    held = here.scorer.models["linear"].model
    before = held.predict_one({"distance": 100.0, "hour": 3.0})
    here.swap()
    here.scorer.swap()
    here.feed._free()
    assert held.predict_one({"distance": 100.0, "hour": 3.0}) == before


class Node:
    def __init__(self, *inside: Any) -> None:
        self.inside = list(inside)


def test_what_is_let_go_of_frees_itself_object_by_object() -> None:
    nodes = [Node()]
    for _ in range(4 * PIECE_OBJECTS):
        nodes.append(Node(nodes[-1], {"a": [nodes[-1]]}))
    alive = weakref.WeakSet(nodes)
    parts, counts = [nodes.pop()], []
    nodes.clear()
    whole = len(alive)
    release(parts, 0.5, lambda pause: counts.append((pause, len(alive))))
    assert parts == []
    assert len(alive) == 0
    assert {pause for pause, _ in counts} == {0.5}
    left = [count for _, count in counts]
    assert left[0] == whole
    assert sorted(set(left), reverse=True) == sorted(set(left))[::-1] == list(dict.fromkeys(left)), "it only falls"
    assert max(a - b for a, b in itertools.pairwise(left)) <= PIECE_OBJECTS, "never many at once"


def test_what_others_hold_is_left_alone() -> None:
    shared = Node(Node())
    parts = [Node(shared, Node, release, gc)]
    release(parts, 0.0)
    assert isinstance(shared.inside[0], Node)


@pytest.mark.slow
def test_a_version_is_read_in_pieces_with_a_pause_before_each() -> None:
    model = {f"key {n}": [float(n), str(n)] for n in range(20_000)}
    data, pauses = snapshots.dump(model), []
    assert snapshots.load(data, 0.25, pauses.append) == model
    assert set(pauses) == {0.25}
    assert len(data) / 70_000 < len(pauses) < len(data) / 30_000
    pauses.clear()
    assert snapshots.load(data, 0.0, pauses.append) == model
    assert pauses == []


def test_the_feed_opens_with_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, given = Feeding(tmp_path), []
    load = snapshots.load
    monkeypatch.setattr(snapshots, "load", lambda data, pause=0.0, **named: given.append(pause) or load(data, **named))
    here.swap()
    assert len(given) == 1
    assert given[0] > 0
