"""Alerts as signed records: the monitor's, which may begin a training, and people's acknowledgements of them."""

from __future__ import annotations

from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.keys import Keyring
from tidemill.registry.signing import SignedCodec
from tidemill.wire import topics
from tidemill.wire.records import Records

#: The one chain of the monitor's alerts.
MONITOR = "monitor"

Alert = dict[str, Any]


def alerts(pipeline: Pipeline, keys: Keyring | None) -> SignedCodec[Alert]:
    """Return the codec of a pipeline's alerts. Without keys it verifies nothing."""
    return SignedCodec(
        pipeline.name,
        topics.ALERTS.name(pipeline.name),
        ("alert", "acknowledgement"),
        Records(pipeline).alert,
        keys,
        _checked,
    )


def _checked(alert: Alert) -> Alert:
    """Return an alert. Raises ValueError where its state is not one that its kind of record may have."""
    if (alert["state"] == "acknowledged") != (alert["signature"]["kind"] == "acknowledgement"):
        raise ValueError(f"state {alert['state']!r} in a record of kind {alert['signature']['kind']!r}")
    return alert
