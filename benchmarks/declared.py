"""The benchmark's pipeline: five rules, ten aggregates on one entity, a scaled logistic regression on numbers."""

import os

from river import compose, linear_model, optim, preprocessing

from tidemill import Pipeline, Stream, View, aggregates, number
from tidemill.demo.flights import DEPARTURES, RULES

bench = Pipeline(
    name=os.environ.get("BENCH_NAME", "bench"),
    events=DEPARTURES,
    labels=Stream("flights/arrival.v1.avsc", id="flight_id", time="landed_at", value=lambda a: a["arr_delay"] > 15),
    task="binary",
    rules=RULES,
    request={"distance": number("distance"), "hour": number("sched_hour"), "sched_minutes": number("sched_minutes")},
    views=[
        View(
            "origin",
            every="5m",
            aggregates=[
                aggregates.count("1h", "3h"),
                aggregates.sum("precip", "3h"),
                aggregates.mean("distance", "1h", "3h"),
                aggregates.std("distance", "3h"),
                aggregates.min("visib", "3h"),
                aggregates.max("wind_speed", "3h"),
                aggregates.last("temp", "1h"),
                aggregates.time_since_last("3h"),
            ],
        )
    ],
    models={
        "logreg": compose.SelectType(float)
        | preprocessing.StandardScaler()
        | linear_model.LogisticRegression(optim.SGD(0.003))
    },
    champion="logreg",
    label_timeout="48h",
    partitions=int(os.environ.get("BENCH_PARTITIONS", "4")),
)
