"""A backtest in two processes gives the report of one, to the last digit; where it can't, one process gives it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

RUNS = """
import os, signal
from dataclasses import replace

from tidemill import load
from tidemill.demo import data
from tidemill.offline import history, two_processes
from tidemill.offline.backtest import Backtest
from tidemill.wire.records import Records

two_processes.MIN_EVENTS = 1
PIPELINE = load("departures")
flights = data.flights((1,), "departure", days=1)
events, labels = [f.event for f in flights], data.labels(flights)
events[100:100] = [events[3], {**events[99], "flight_id": "spoilt", "sched_hour": 77}, {**events[99], "carrier": "??"}]
labels[50:50] = [labels[3], {**labels[49], "flight_id": "of nobody"}, {**labels[49], "arr_delay": 9e9}]
labels = [{**flights[500].event, **labels[0], "flight_id": flights[500].event["flight_id"]}, *labels]
labels = [{name: label[name] for name in ("flight_id", "landed_at", "arr_delay")} for label in labels]
codecs = Records(PIPELINE)
events = history.in_order([
    (event["asked_at"], event["flight_id"], history.as_message(codecs.sent_event, event)) for event in events
])
labels = history.in_order([
    (label["landed_at"], label["flight_id"], history.as_message(codecs.sent_label, label)) for label in labels
])


def figures(report):
    figures = report.as_dict()
    for name in ("seconds", "events_per_second"):
        del figures[name]
    for decision in figures["decisions"]:
        for name in ("id", "time", "signature"):
            del decision[name]
    return repr({name: figures[name] for name in sorted(figures)})


class Raises:
    def learn_one(self, x, y=None): ...
    def predict_proba_one(self, x):
        if x["carrier"] == "HA":
            raise ValueError("no islands")
        return {True: 0.25, False: 0.75}
    def clone(self):
        return Raises()


class Dies(two_processes._Ahead):
    def hand_over(self):
        if self.report.events > 300:
            os.kill(os.getpid(), signal.SIGKILL)
        super().hand_over()


def compare(name, pipeline, **options):
    handed, done = [], []
    take = two_processes._Models.take
    two_processes._Models.take = lambda self, items: (handed.append(len(items)), take(self, items))
    two = two_processes.run(Backtest(pipeline, **options), events, labels, done.append)
    two_processes._Models.take = take
    one = Backtest(pipeline, **options).run(events, labels)
    print(name, figures(one) == figures(two), sum(done) == len(events), bool(handed), len(one.decisions), flush=True)
    return one

gate = replace(PIPELINE.gate, examples=200, watch=1_000)
unusual = replace(PIPELINE, label_timeout="4h", gate=gate)
one = compare("unusual", unusual, checkpoint_every_ms=3_600_000, model_delay_ms=600_000)
print(sorted(one.dead_letters), one.pending > 0, one.expired > 0)
models = {"raises": Raises(), "departed": PIPELINE.models["departed"]}
for champion in ("departed", "raises"):
    compare(champion, replace(PIPELINE, models=models, champion=champion, gate=None))
early, labels = labels, [history.Message(label.time, label.id, history.as_message(codecs.sent_label, {
    "flight_id": flight.event["flight_id"], "landed_at": label.time, "arr_delay": 1.0,
})) for flight, label in zip(flights, labels)]
print("label", compare("on time", PIPELINE).only_label, "", flush=True)
labels = early
two_processes._Ahead = Dies
compare("killed", PIPELINE)
two_processes._can_fork = lambda: False
compare("alone", PIPELINE)
"""


def test_two_processes_give_the_report_of_one_and_one_goes_on_where_they_can_not() -> None:
    ran = subprocess.run([sys.executable, "-c", RUNS], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    for reason in ("duplicate_event", "duplicate_label", "not_allowed", "out_of_range"):
        assert reason in lines[1]
    assert lines[1].endswith("] True True")
    assert [line.rsplit(" ", 1)[0] for line in lines[:1] + lines[2:]] == [
        "unusual True True True",
        "departed True True True",
        "raises True True True",
        "on time True True True",
        "label False",
        "killed True True True",
        "alone True True False",
    ]
    assert lines[0][-1] != "0", "the gate has decided"
