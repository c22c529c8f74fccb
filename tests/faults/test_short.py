"""The short form of the fault suite: everything at once, on a broker and a Redis of its own; `make faults` is the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cases import Bench, short
from real_kafka import RealKafka

from tidemill.local.servers import Redis

SEED = int(os.environ.get("TIDEMILL_FAULTS_SEED", "4"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_little_of_everything_loses_and_doubles_nothing(kafka, tmp_path: Path) -> None:
    del kafka  # only its being there is asked for: this broker is killed, and the session's is not
    broker, redis = RealKafka(tmp_path), Redis(tmp_path)
    try:
        row = short(Bench(broker, redis, tmp_path, SEED), rate=100.0)  # other tests run beside it
    finally:
        broker.stop()
        redis.stop()
    print(row)
    assert row.kept, str(row)
