"""Regression: what will the day's estimate be? 1,001 days of polls, River's TrumpApproval, and its linear regression.

python -m examples.data approval data
tidemill backtest examples/approval.py --events data/events.csv --labels data/labels.csv
"""

from river import linear_model, preprocessing

from tidemill import Pipeline, Stream, rules

POLLSTERS = ("gallup", "ipsos", "morning_consult", "rasmussen", "you_gov")

approval = Pipeline(
    name="approval",
    events=Stream("approval/polls.v1.avsc", id="day", time="asked_at", key="day"),
    labels=Stream("approval/estimate.v1.avsc", id="day", time="known_at", value="five_thirty_eight"),
    task="regression",
    rules=[rules.between(name, 0, 100) for name in POLLSTERS],
    label_rules=[rules.between("five_thirty_eight", 0, 100)],
    request={name: name for name in ("ordinal_date", *POLLSTERS)},
    models={"linear": preprocessing.StandardScaler() | linear_model.LinearRegression(intercept_lr=0.1)},
    champion="linear",
    label_timeout="30d",
)
