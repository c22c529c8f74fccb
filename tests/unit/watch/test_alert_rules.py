"""Each alert rule is opened by its cause and is gone when what its runbook says is done: services' own metrics, our own rules.

A scenario makes its cause with a service's own code, then says `yield`: first while all is well, then when the alert is to
be open. What it does after that is the remedy. Prometheus is `alerting.py`, whose numbers `promtool` makes, too.
"""

from __future__ import annotations

import itertools
import random
import shutil
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small
import yaml
from alerting import RULES, Alerting, forget_metrics
from commits import FailingCommits
from river import metrics as river_metrics
from test_archiver import SLOT as PREDICTIONS
from test_archiver import Run, record
from test_freshness import Away, featurizer, valid
from test_monitor_trust import World as Signed
from test_notifier import Book
from test_notifier import River as Notices
from test_protection import capped
from test_stopped_models import Learning, exploding, with_labels
from test_store_away import Line, Turning
from test_versions_never_go_back import ScorerProcess, World

from tidemill import Forgetting as Declared
from tidemill import metrics
from tidemill.errors import StoreError
from tidemill.metrics import LoopMetrics, MonitorMetrics
from tidemill.probes import Health, serve
from tidemill.registry.decisions import decisions
from tidemill.registry.signing import Chains
from tidemill.runtime.run import topic_table
from tidemill.stages.joiner import service as joiner
from tidemill.stages.validator import service as validator
from tidemill.stream.api import discard
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.watch.notifier.delivery import DeliveryError
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

Scenario = Iterator[None]
SCENARIOS: dict[str, Callable[..., Scenario]] = {}
PIPELINE = small.make()
RECORDS = Records(PIPELINE)
EVENTS, EXAMPLES = "small.events", "small.examples"


def causes(name: str) -> Callable[[Callable[..., Scenario]], Callable[..., Scenario]]:
    def noted(scenario: Callable[..., Scenario]) -> Callable[..., Scenario]:
        SCENARIOS[name] = scenario
        return scenario

    return noted


@pytest.fixture
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alerting]:
    forget_metrics()
    made = Alerting()
    monkeypatch.setattr(metrics, "time", SimpleNamespace(time=lambda: made.now))  # heartbeats are of its time
    yield made
    forget_metrics()


def test_of_two_pipelines_each_is_judged_by_itself(prometheus: Alerting) -> None:
    """One pipeline archives its predictions, and the other does not."""
    both = Alerting(lambda: "", {})

    def scrape(archived: dict[str, int]) -> None:
        both.now += 60
        values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for space, rows in archived.items():
            target = {"job": "tidemill", "namespace": space}
            values["tidemill_records_total", frozenset({**target, "service": "scorer"}.items())] = both.now
            values["tidemill_archived_rows_total", frozenset({**target, "topic": "x"}.items())] = rows
        both.series.add(both.now, values)
        both.judge()

    for minute in range(40):
        scrape({"well": minute * 100, "ill": 7})
    assert both.firing["TidemillArchiveNotWritten"] == [frozenset({("namespace", "ill")})]


# Services that are away, late, or go back.


class Well(Health):
    def alive(self) -> str | None:
        return None

    def ready(self) -> str | None:
        return None


@causes("TidemillServiceDown")
def service_down(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    def scraped() -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return None

    prometheus.scraped = scraped
    server = serve(0, Well())
    port = server.server_port
    prometheus.wait(2)
    yield
    server.shutdown()
    server.server_close()
    prometheus.wait(2)
    yield
    server = serve(port, Well())
    prometheus.wait(1)
    server.shutdown()
    server.server_close()


def turning(broker: MemoryBroker, clock: Callable[[], float], batch: int = 10) -> Turning:
    loop = Turning(
        validator.build(PIPELINE, fuse=False), broker, max_delay=0.0, max_batch=batch, clock=clock, sleep=lambda _: None
    )
    loop.join()
    return loop


def topics() -> MemoryBroker:
    return MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})


def send(broker: MemoryBroker, many: int, *, good: bool = True) -> None:
    value = RECORDS.event.encode(small.event()) if good else b"{}"
    for _ in range(many):
        broker.append(EVENTS, value, b"JFK", 1)


def drain(loop: Turning) -> None:
    while loop.turn():
        pass
    loop.turn()


@causes("TidemillNotTurning")
def not_turning(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    loop = turning(topics(), lambda: prometheus.now)
    prometheus.wait(5, loop.turn)
    yield
    prometheus.wait(1.5)  # a call hangs: it does not turn
    yield
    loop.turn()
    prometheus.scrape()


@causes("TidemillLagHigh")
def lag_high(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    broker = topics()
    loop = turning(broker, lambda: prometheus.now)
    send(broker, 100)
    prometheus.wait(6, loop.turn)
    yield
    send(broker, 10_500)
    prometheus.wait(6, loop.turn)
    yield
    drain(loop)  # with another instance, or more CPU
    prometheus.scrape()


@causes("TidemillLagGrowing")
def lag_growing(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    broker = topics()
    loop = turning(broker, lambda: prometheus.now)
    prometheus.wait(40, lambda: (send(broker, 5), loop.turn()), every_seconds=60)
    yield
    prometheus.wait(60, lambda: (send(broker, 100), loop.turn()), every_seconds=60)
    yield
    drain(loop)
    prometheus.scrape()


@causes("TidemillRetries")
def retries(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    broker = topics()
    loop = turning(broker, lambda: prometheus.now)
    send(broker, 20)
    prometheus.wait(10, loop.turn)
    yield
    send(broker, 20)
    FailingCommits(monkeypatch, loop.producer, 8)
    prometheus.wait(8, loop.turn)
    yield
    prometheus.wait(12, loop.turn)


@causes("TidemillRecordsLost")
def records_lost(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    broker = topics()
    loop = turning(broker, lambda: prometheus.now)
    send(broker, 20)
    drain(loop)
    prometheus.scrape()
    yield
    send(broker, 50)
    for partition in [one for one in broker.log if one.topic == EVENTS]:  # by retention, while it stood still
        end = len(broker.log[partition])
        broker.first[partition] = max(broker.first.get(partition, 0), end - 5)
    drain(turning(broker, lambda: prometheus.now))
    prometheus.scrape()
    yield
    forget_metrics()  # a new process
    prometheus.scrape()


@causes("TidemillDeadLetterShare")
def dead_letter_share(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    broker = topics()
    loop = turning(broker, lambda: prometheus.now)
    prometheus.wait(25, lambda: (send(broker, 9), loop.turn()))
    yield
    prometheus.wait(25, lambda: (send(broker, 8), send(broker, 1, good=False), loop.turn()))
    yield
    prometheus.wait(15, lambda: (send(broker, 9), loop.turn()))  # its producer is right again


@causes("TidemillLabelsWait")
def labels_wait(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    broker, numbers = topics(), itertools.count()
    loop = Turning(
        joiner.build(PIPELINE), broker, max_delay=0.0, max_batch=100, clock=lambda: prometheus.now, sleep=lambda _: None
    )
    loop.join()

    def ask(many: int, prefix: str) -> None:
        """Events are predicted, and their labels come, with ids of a prefix."""
        for n in itertools.islice(numbers, many):
            log = {"features": small.features(PIPELINE, f"e{n}", n), "champion": small.score(), "challengers": []}
            broker.append("small.prediction-log", RECORDS.prediction_log.encode(log), f"e{n}".encode())
            label = RECORDS.label.encode(small.label(f"{prefix}{n}", n))
            broker.append("small.labels.valid", label, f"{prefix}{n}".encode())
        drain(loop)

    prometheus.wait(20, lambda: ask(20, "e"))
    yield
    prometheus.wait(30, lambda: ask(20, "E"), every_seconds=60)
    yield
    # Its producer is right again; what waits becomes less than a tenth of all, or expires.
    prometheus.wait(90, lambda: ask(150, "e"), every_seconds=60)


# Views.


@causes("TidemillViewBehind")
def view_behind(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    monkeypatch.setattr("tidemill.features.views.RECHECK_SECONDS", 0.0)
    line, rng = Line(), random.Random(7)
    line.start()

    def step() -> None:
        line.send(rng, 5)
        line.run()

    prometheus.wait(3, step)
    yield
    line.store.is_away = True
    prometheus.wait(3, step)
    yield
    line.store.is_away = False
    prometheus.wait(0.5, step)


def show(service: str, step: Any) -> None:
    """Have the metrics of a step that runs without its loop, as the loop publishes them."""
    watch = LoopMetrics(service)
    watch.counts(step.counts)
    step.counts.clear()
    watch.gauges(step.gauges())


@causes("TidemillStaleVectors")
def stale_vectors(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    step, sent = featurizer(Away()), 0

    def serve_some() -> None:
        nonlocal sent
        step.process(valid([sent + n for n in range(3)], begin=sent), small.Emitted())
        sent += 3
        show("featurizer", step)

    prometheus.wait(1)
    yield
    prometheus.wait(4, serve_some)
    yield
    prometheus.wait(6)  # Redis is back


# Models.


@causes("TidemillVersionsNotStored")
def versions_not_stored(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    live = Learning(PIPELINE, folder)
    records = small.example_records(PIPELINE, 600)

    def learn() -> None:
        live.feed(records[:10])
        del records[:10]
        show("learner-linear", live.step)

    prometheus.wait(5, learn)
    yield
    with monkeypatch.context() as full:
        full.setattr(live.registry.store, "put", _refuse)
        prometheus.wait(8, learn)
    yield
    prometheus.wait(11, learn)


def _refuse(*_: object) -> Any:
    raise StoreError("no space is left")


@causes("TidemillModelStopped")
def model_stopped(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    live = Learning(exploding(), folder)
    show("learner-linear", live.step)
    prometheus.scrape()
    yield
    live.feed(small.example_records(live.pipeline, 300))
    show("learner-linear", live.step)
    prometheus.scrape()
    yield
    forget_metrics()  # another process, of a changed model under a new name
    show("learner-linear", Learning(PIPELINE, folder / "other").step)
    prometheus.scrape()


@causes("TidemillMetricWithoutNumber")
def metric_without_number(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    live = Learning(small.make(metrics=[river_metrics.RMSLE(), river_metrics.MAE()]), folder)
    records = with_labels(live.pipeline, [float(at % 5) for at in range(30)] + [-5.0] * 10)  # which has no logarithm
    live.feed(records[:30])
    show("learner-linear", live.step)
    prometheus.wait(11)
    yield
    live.feed(records[30:])
    show("learner-linear", live.step)
    prometheus.wait(11)
    yield
    live.pipeline = small.make(metrics=[river_metrics.MAE()])  # it is taken out of the declaration
    live.begin()
    show("learner-linear", live.step)
    prometheus.scrape()


@causes("TidemillOverShare")
def over_share(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    pipeline = capped()
    live, watch, learned = Learning(pipeline, folder), LoopMetrics("learner-linear"), 0

    def learn(*carriers: str) -> None:
        nonlocal learned
        for _ in range(10):
            value = small.example(
                pipeline, f"e{learned}", 1.0, learned, distance=5.0, carrier=carriers[learned % len(carriers)]
            )
            live.feed([MemoryRecord(EXAMPLES, Records(pipeline).example.encode(value), offset=learned)])
            learned += 1
        watch.records(10)
        show("learner-linear", live.step)

    prometheus.wait(25, lambda: learn("UA", "AA", "B6", "DL", "EV"))
    yield
    prometheus.wait(25, lambda: learn("UA", "UA", "UA", "UA", "AA", "B6", "DL", "EV"))
    yield
    prometheus.wait(15, lambda: learn("UA", "AA", "B6", "DL", "EV"))


@causes("TidemillModelUnopened")
def model_unopened(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    world = World(folder / "store")
    world.learn(60)
    scorer = ScorerProcess(world)
    show("scorer", scorer.step)
    prometheus.wait(2)
    yield
    shutil.rmtree(world.folder)
    scorer = ScorerProcess(world)
    scorer.serve()
    show("scorer", scorer.step)
    prometheus.wait(2)
    yield
    world.learn()  # the runbook: the learner stores the newest again
    scorer.look(60)
    assert scorer.serve() == (0, 60)
    show("scorer", scorer.step)
    prometheus.scrape()


@causes("TidemillVersionRefused")
def version_refused(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    world = World(folder / "store")
    world.learn(60)
    scorer = ScorerProcess(world)
    scorer.serve()
    show("scorer", scorer.step)
    prometheus.wait(1)
    yield
    world.learn(10)
    path = world.folder / world.manifest().uri
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    scorer.look()
    scorer.serve()
    show("scorer", scorer.step)
    prometheus.scrape()
    yield
    path.unlink()
    world.learn()
    forget_metrics()
    again = ScorerProcess(world)
    assert again.serve() == (0, 70)
    show("scorer", again.step)
    prometheus.scrape()


@causes("TidemillOlderVersionServes")
def older_version_serves(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    world = World(folder / "store")
    world.learn(60)
    gate = Chains(decisions(world.pipeline, world.key))
    scorer = ScorerProcess(world)

    def serve() -> tuple[int, int] | None:
        scorer.look(60)
        served = scorer.serve()
        show("scorer", scorer.step)
        return served

    assert serve() == (0, 60)
    prometheus.wait(15)
    yield
    world.decide("pinned", "linear@30", chains=gate)
    assert serve() == (0, 30)
    prometheus.wait(2)
    yield
    world.decide("unpinned", "linear", chains=gate)
    assert serve() == (0, 60)
    prometheus.wait(1)


@causes("TidemillSignedRecordRefused")
def signed_record_refused(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    world = World(folder / "store")
    world.learn(20)
    scorer = ScorerProcess(world)
    prometheus.scrape()
    yield
    world.append("small.models", b"somebody else wrote this", b"linear")
    scorer.look()
    prometheus.scrape()
    yield
    forget_metrics()
    prometheus.scrape()


@causes("TidemillForeignRecord")
def foreign_record(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    live = Learning(PIPELINE, folder)
    live.feed(small.example_records(PIPELINE, 10))
    show("learner-linear", live.step)
    prometheus.scrape()
    yield
    live.feed([MemoryRecord(EXAMPLES, RECORDS.example.header + b"somebody else wrote this", offset=10)])
    show("learner-linear", live.step)
    prometheus.scrape()
    yield
    forget_metrics()
    prometheus.scrape()


# What looks on.


def show_alerts(watch: MonitorMetrics, world: Signed) -> None:
    open_ = (alert.key for alert in world.core.alerts.open)
    watch.alerts(Counter((key.kind, key.model, key.feature) for key in open_))


@causes("TidemillAlertOpen")
def alert_open(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    world, watch = Signed(folder), MonitorMetrics()
    world.publish(1)
    world.alerts()
    show_alerts(watch, world)
    prometheus.scrape()
    yield
    world.append(b"somebody else wrote this", "linear")
    world.alerts()
    show_alerts(watch, world)
    prometheus.scrape()
    yield
    world.now += 7200
    world.alerts()
    show_alerts(watch, world)
    prometheus.scrape()


@causes("TidemillForgettingLate")
def forgetting_late(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    world, watch = Signed(folder, Declared(within="10d", every="2d")), MonitorMetrics()
    world.request("r1", "waiting")
    world.alerts()
    show_alerts(watch, world)
    prometheus.scrape()
    yield
    world.now += 9 * 86_400
    world.alerts()
    show_alerts(watch, world)
    prometheus.scrape()
    yield
    world.request("r2", "done", '{"requests": ["r1"]}')
    world.alerts()
    show_alerts(watch, world)
    prometheus.scrape()


@causes("TidemillNoWindowClosed")
def no_window_closed(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    watch, hour = MonitorMetrics(), 0

    def step(closes: bool) -> None:
        nonlocal hour
        hour += 1
        watch.records(100)
        if closes and not hour % 24:
            watch.window("predictions", hour * 3_600_000, 0, complete=True)

    prometheus.wait(80 * 60, lambda: step(closes=True), every_seconds=600)
    yield
    prometheus.wait(62 * 60, lambda: step(closes=False), every_seconds=600)
    yield
    hour = 24 * 1000 - 1
    prometheus.wait(30, lambda: step(closes=True), every_seconds=600)


@causes("TidemillNoticesUndelivered")
def notices_undelivered(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    river = Notices(ops=Book(why=DeliveryError("it answered 500")))
    river.alert("opened")
    river.run(3)
    prometheus.wait(5)
    yield
    river.now += 25 * 3600
    river.run(3)
    prometheus.wait(2)
    yield
    river.books["ops"].why = None
    river.alert("resolved")
    river.run(5)
    prometheus.wait(61)


@causes("TidemillNoticesWait")
def notices_wait(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    river = Notices(ops=Book())
    river.alert("opened")
    river.run()
    prometheus.wait(5)
    yield
    river.books["ops"].why = DeliveryError("it answered 500")
    river.alert("resolved")
    prometheus.wait(35, lambda: river.run(3, step=1.0))
    yield
    river.books["ops"].why = None
    river.run(60, step=60.0)
    prometheus.scrape()


@causes("TidemillArchiveNotWritten")
def archive_not_written(prometheus: Alerting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    run, scorer, sent = Run(folder / "archive"), LoopMetrics("scorer"), 0
    run.start(PREDICTIONS, 0, [])

    def step() -> None:
        nonlocal sent
        scorer.records(5)
        try:
            run.step.process([record(sent + n) for n in range(5)], discard)
            run.flush()
            sent += 5
        except StoreError:
            pass
        show("archiver", run.step)

    prometheus.wait(20, step)
    yield
    with monkeypatch.context() as full:
        full.setattr(run.step.files, "write", _refuse)
        prometheus.wait(35, step)
    yield
    prometheus.wait(3, step)


def test_each_rule_has_a_scenario() -> None:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    assert SCENARIOS.keys() == {rule["alert"] for group in groups for rule in group["rules"]}


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_a_rule_is_opened_by_its_cause_and_resolved(
    name: str, prometheus: Alerting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SCENARIOS[name](prometheus, tmp_path, monkeypatch)
    next(scenario)
    assert name not in prometheus.firing
    next(scenario)
    assert name in prometheus.firing, sorted(prometheus.firing)
    assert next(scenario, "done") == "done"
    assert name not in prometheus.firing
