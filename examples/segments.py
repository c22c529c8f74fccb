"""Multiclass: brick, sky, grass? 2,310 regions of photographs, River's ImageSegments, and its softmax regression.

python -m examples.data segments data
tidemill backtest examples/segments.py --events data/events.csv --labels data/labels.csv
"""

from river import linear_model, preprocessing

from tidemill import Pipeline, Stream, rules

FEATURES = (
    "region_centroid_col", "region_centroid_row", "short_line_density_5", "short_line_density_2", "vedge_mean", "vegde_sd",
    "hedge_mean", "hedge_sd", "intensity_mean", "rawred_mean", "rawblue_mean", "rawgreen_mean", "exred_mean", "exblue_mean",
    "exgreen_mean", "value_mean", "saturation_mean", "hue_mean",
)  # fmt: skip

segments = Pipeline(
    name="segments",
    events=Stream("segments/region.v1.avsc", id="region_id", time="seen_at", key="region_id"),
    labels=Stream("segments/name.v1.avsc", id="region_id", time="known_at", value="category"),
    task="multiclass",
    label_rules=[rules.one_of("category", ["brickface", "sky", "foliage", "cement", "window", "path", "grass"])],
    request={name: name for name in FEATURES},
    models={"softmax": preprocessing.StandardScaler() | linear_model.SoftmaxRegression()},
    champion="softmax",
    label_timeout="7d",
)
