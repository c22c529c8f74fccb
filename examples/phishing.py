"""Binary: is this page after your password? 1,250 pages of River's Phishing, and its logistic regression.

python -m examples.data phishing data
tidemill backtest examples/phishing.py --events data/events.csv --labels data/labels.csv
tidemill tune examples/phishing.py --events data/events.csv --labels data/labels.csv
"""

from river import compose, linear_model, optim, preprocessing

from tidemill import Pipeline, Search, Stream, ranges, rules

FEATURES = (
    "empty_server_form_handler", "popup_window", "https", "request_from_other_domain", "anchor_from_other_domain", "is_popular",
    "long_url", "age_of_domain", "ip_in_url",
)  # fmt: skip


def logreg(rate: float, l2: float = 0.0) -> compose.Pipeline:
    """Return a logistic regression that learns at this rate."""
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(rate), l2=l2)


SEARCH = {"logreg": Search(logreg, {"rate": ranges.log_uniform(0.001, 1.0), "l2": ranges.choice(0.0, 1e-4, 1e-3)})}

phishing = Pipeline(
    name="phishing",
    events=Stream("phishing/page.v1.avsc", id="page_id", time="seen_at", key="page_id"),
    labels=Stream("phishing/verdict.v1.avsc", id="page_id", time="known_at", value="is_phishing"),
    task="binary",
    rules=[rules.between(name, 0, 1) for name in FEATURES],
    request={name: name for name in FEATURES},
    models={"logreg": logreg(0.1)},
    champion="logreg",
    label_timeout="7d",
    search=SEARCH,
)
