"""The archive as tables, beside a real Kafka: an archiver that is killed -9 writes each record once all the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from running import until, worker

from tidemill.client import Client
from tidemill.demo import data
from tidemill.errors import SettingsError
from tidemill.offline.source import ArchiveSource
from tidemill.stream.api import TopicPartition
from tidemill.tokens import new_token
from tidemill.wire import topics


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_each_record_is_in_the_table_once_though_the_archiver_is_killed(running, kind: str) -> None:
    key = new_token()
    run = running("plain", partitions=2, gateway_key=key, archive_format=kind, archive_seconds=0.2)
    for role in ("validator+featurizer+scorer", "gateway", "archiver"):
        run.stack.start(role)
    run.stack.wait_ready()
    archive = ArchiveSource(str(Path(run.stack.env["TIDEMILL_ARCHIVE_URL"])))
    name = run.name(topics.PREDICTION_LOG)

    def rows() -> list[tuple[int, int]]:
        try:
            return sorted((row["partition"], row["offset"]) for row in archive.rows(run.pipeline, labelled=False))
        except SettingsError:
            return []  # no table yet

    events = [flight.event for flight in data.flights((1,), days=1)[:300]]
    with Client(f"http://127.0.0.1:{run.stack.ports['gateway']}", key) as client:
        for begin in range(0, 300, 100):
            client.send(events[begin : begin + 100])
            until(lambda least=begin: len(rows()) > least, "the archive does not grow", 60, run.stack.check)
            os.kill(worker(run.stack.processes["archiver"]), signal.SIGKILL)  # its parent starts it again
    until(lambda: len(rows()) >= 300, "rows are missing", 60, run.stack.check)
    ranges = {place: run.broker.offset_range(place) for place in (TopicPartition(name, 0), TopicPartition(name, 1))}
    sent = sorted((r.partition(), r.offset()) for batch in run.broker.read(ranges) for r in batch)
    assert rows() == sent
