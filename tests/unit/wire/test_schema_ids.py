"""Records between services are of the schemas that services which run already write and read."""

from __future__ import annotations

import small

from tidemill.encoding.codec import Codec
from tidemill.wire.records import Records

IDS = {
    "access": 498528458, "alert": 1014855919, "command": 1069709706, "correction": 1060651274, "decision": 66509183,
    "example": 238124425, "features": 342363955, "forgetting": 1424671685, "head": 1353168484, "manifest": 777390296,
    "outcome": 1882830659, "prediction": 1005019912, "prediction_log": 328911508, "redrive": 697747135, "scores": 237512754,
    "update": 622165347, "vector": 1389582115, "warnings": 1714927742, "window": 314226743,
}  # fmt: skip
OF_PRODUCERS = {"event", "label", "sent_event", "sent_label"}


def test_no_schema_changes_unnoticed() -> None:
    """Services of two versions run at once in an upgrade, and a record of an unknown schema is a dead letter or is skipped.

    So where a schema changes, its codec has to read the earlier one as well (`Codec(others=...)`), a version before
    anybody writes the new one; or CHANGELOG.md says that a pipeline is drained before it is upgraded. Then change the id.
    """
    records = Records(small.make())
    codecs = {name: getattr(records, name) for name in dir(records) if not name.startswith("_")}
    assert {name: one.id for name, one in codecs.items() if isinstance(one, Codec) and name not in OF_PRODUCERS} == IDS
