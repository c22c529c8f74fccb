"""What views are worth: the same models on the demo's flights without views, with the airport's, and with outcomes.

By backtest, so that every vector has what was known at its event's time and nothing else. January takes a minute, the year
about twelve:

    python benchmarks/outcomes.py
    python benchmarks/outcomes.py --year
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from tidemill import load
from tidemill.demo import data
from tidemill.offline.backtest import Backtest


def main() -> None:
    """Print a table of metrics by views and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--year", action="store_true", help="all 336,776 flights of 2013, not January alone")
    options = parser.parse_args()
    flights, plain = load("flights"), load("plain")
    found = data.flights(tuple(range(1, 13)) if options.year else (1,))
    events, labels = [flight.event for flight in found], data.labels(found)
    models = {"logreg": flights.models["logreg"], "plain": plain.models["logreg"]}
    print(f"{'2013' if options.year else 'January'}: {len(events):,} questions, {len(labels):,} labels")
    print(f"{'views':<28}{'model':<10}{'ROCAUC':>10}{'LogLoss':>10}{'Accuracy':>10}{'seconds':>10}")
    for name, views in (
        ("none", ()),
        ("of the airport", flights.inline_views),
        ("and over outcomes", flights.views),
    ):
        begin = time.perf_counter()
        report = Backtest(replace(flights, views=list(views), models=models)).run(events, labels)
        seconds = time.perf_counter() - begin
        for model in models:
            value = report.metrics[model]
            print(
                f"{name:<28}{model:<10}{value['ROCAUC']:>10.4f}{value['LogLoss']:>10.4f}{value['Accuracy']:>10.4f}{seconds:>10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
