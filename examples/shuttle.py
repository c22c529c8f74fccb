"""Anomaly: is something wrong aboard? The first 10,000 readings of River's Shuttle, and half-space trees.

The model learns from every example and never sees its label; labels only judge the scores.

python -m examples.data shuttle data
tidemill backtest examples/shuttle.py --events data/events.csv --labels data/labels.csv
"""

from river import anomaly, metrics, preprocessing

from tidemill import Pipeline, Stream

shuttle = Pipeline(
    name="shuttle",
    events=Stream("shuttle/reading.v1.avsc", id="reading_id", time="read_at", key="reading_id"),
    labels=Stream("shuttle/finding.v1.avsc", id="reading_id", time="known_at", value="anomaly"),
    task="anomaly",
    request={name: name for name in ("f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9")},
    models={"trees": preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=42)},
    champion="trees",
    # By rank, so scores on any scale will do; the task's own ROCAUC looks at thresholds from 0 to 1.
    metrics=[metrics.ROCAUC(), metrics.RollingROCAUC(window_size=10_000)],
    label_timeout="7d",
)
