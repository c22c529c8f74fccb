"""The demo's pipelines, as an ML engineer would declare them: will this flight be late, and by how much?"""

from __future__ import annotations

from dataclasses import replace

from river import compose, linear_model, optim, preprocessing

from tidemill import Gate, Monitor, Pipeline, Search, Stream, View, aggregates, category, number, ranges, rules

CARRIERS = ("9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV")
ORIGINS = ("EWR", "JFK", "LGA")

DEPARTURES = Stream("flights/departure.v1.avsc", id="flight_id", time="asked_at", key="origin")
RULES = [
    rules.between("sched_hour", 0, 23),
    rules.one_of("carrier", CARRIERS),
    rules.one_of("origin", ORIGINS),
    rules.between("distance", 1, 12_500),
    rules.not_after_now("asked_at", "5m"),
]
REQUEST = {
    "carrier": category("carrier"),
    "origin": category("origin"),
    "dest": category("dest"),
    "distance": number("distance"),
    "hour": number("sched_hour"),
    "dow": number(lambda event: (event["flight_date"] + 3) % 7),  # 1970-01-01 was a Thursday, day 3 of its week
    "sched_minutes": number("sched_minutes"),
}
WEATHER = {name: number(name) for name in ("temp", "dewp", "wind_speed", "precip", "visib")}

VIEWS = [
    View(
        "origin",
        every="5m",
        aggregates=[
            aggregates.count("1h"),
            aggregates.mean("wind_speed", "3h"),
            aggregates.min("visib", "3h"),
            aggregates.sum("precip", "3h"),
        ],
        # Of the days of January the largest p99 is 31 min; three first flights of a morning are 8 h, and fewer than one
        # in 100.
        fresh="2h",
    ),
    View("dest", every="5m", aggregates=[aggregates.count("3h")]),
    # How flights that have landed by now did: of the same carrier, from the same airport, to the same one, with this
    # plane.
    View("carrier", source="examples", every="5m", aggregates=[aggregates.mean("label", "3h", "24h")]),
    View(
        "origin",
        source="examples",
        every="5m",
        aggregates=[aggregates.mean("label", "1h", "3h"), aggregates.mean("arr_delay", "3h")],
    ),
    View("dest", source="examples", every="15m", aggregates=[aggregates.mean("label", "6h", "3d")]),
    View(
        "tailnum",
        source="examples",
        every="15m",
        aggregates=[aggregates.last("arr_delay", "12h"), aggregates.mean("label", "12h")],
        expires="3d",
    ),
]


def _classifier(learner: object) -> compose.Pipeline:
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder()
    numbers = compose.SelectType(float) | preprocessing.StandardScaler()
    return (categories + numbers) | learner


def logreg(rate: float, by: str = "SGD", l2: float = 0.0) -> compose.Pipeline:
    """Return a logistic regression that learns at this rate, by an optimizer of this name."""
    return _classifier(linear_model.LogisticRegression(getattr(optim, by)(rate), l2=l2))


#: What `tidemill tune flights` searches.
SEARCH = {
    "logreg": Search(
        logreg,
        {
            "rate": ranges.log_uniform(1e-4, 0.1),
            "by": ranges.choice("SGD", "Adam", "AdaGrad"),
            "l2": ranges.choice(0.0, 1e-5, 1e-4, 1e-3),
        },
    )
}


def _late(name: str, *, views: bool) -> Pipeline:
    return Pipeline(
        name=name,
        events=DEPARTURES,
        labels=Stream(
            "flights/arrival.v1.avsc", id="flight_id", time="landed_at", value=lambda arrival: arrival["arr_delay"] > 15
        ),
        task="binary",
        rules=RULES,
        label_rules=[rules.between("arr_delay", -180, 2880)],
        request={**REQUEST, **WEATHER},
        views=VIEWS if views else [],
        models={"logreg": logreg(0.003), "slow": logreg(0.001)}
        if views
        else {"logreg": _classifier(linear_model.LogisticRegression())},
        champion="logreg",
        label_timeout="48h",
        monitor=Monitor(window="1d", reference="10d", lateness="6h", segments=["carrier", "origin"]),
        # In the Brier score, of which logreg has 0.15: a carrier with few flights is not to be given up for the others.
        gate=Gate(segments=["carrier"], worse=0.02) if views else None,
        search=SEARCH,
    )


#: Late by more than 15 minutes? Asked at the scheduled departure, from the flight's plan, the weather and the airport.
flights = _late("flights", views=True)

#: The same question from the flight's plan and the weather alone.
plain = _late("plain", views=False)

#: The same question when the plane has left, and its departure delay is known, which only the challenger is given: what
#: the demo runs. Its days have about 850 examples, and the shortest demo has two.
departures = replace(
    flights,
    name="departures",
    request={**REQUEST, **WEATHER, "dep_delay": number("dep_delay")},
    models={"scheduled": compose.Discard("dep_delay") | logreg(0.003), "departed": logreg(0.005)},
    champion="scheduled",
    gate=Gate(segments=["carrier"], worse=0.02, examples=600, watch=2_000),
)

#: How many minutes late? Asked when the plane has left, which is when its departure delay is known.
delays = Pipeline(
    name="delays",
    events=DEPARTURES,
    labels=Stream("flights/arrival.v1.avsc", id="flight_id", time="landed_at", value="arr_delay"),
    task="regression",
    rules=RULES,
    label_rules=[rules.between("arr_delay", -180, 2880)],
    request={**REQUEST, "dep_delay": number("dep_delay")},
    models={
        "linear": compose.SelectType(float)
        | preprocessing.StandardScaler()
        | linear_model.LinearRegression(optim.SGD(0.001))
    },
    champion="linear",
    label_timeout="48h",
    monitor=Monitor(window="1d", reference="10d", lateness="6h", segments=["carrier", "origin"]),
)
