"""River alone: the vectors are made, and no Kafka is there. Predict, judge with three metrics, learn."""

from __future__ import annotations

import pickle
import sys

from benchmarks.peers import work


def main() -> None:
    """Run over what the parent has left: in order of time, (vector, id) is a question and (arrival delay, id) a label."""
    with open(sys.argv[3], "rb") as file:
        steps = pickle.load(file)
    watch, model = work.Stopwatch(), work.Model()
    pending = {}
    watch.start()
    for what, id_ in steps:
        if isinstance(what, dict):
            pending[id_] = what, model.predict(what)
        else:
            model.learn(*pending.pop(id_), what)
    watch.report(model)


if __name__ == "__main__":
    main()
