"""The price of asynchrony: how many vectors on Kafka differ from the backtest's, by how much, and why no more.

Views of other entities are read as they are at that moment; what is still on its way is not in them. In a backtest nothing is
ever on its way. The faster history is replayed, the more event time passes while a record does: at 3,600 times, an hour a
second, 40 ms are 2.4 minutes of the airports' time.

    python benchmarks/asynchrony.py --days 3 --speed 0 --speed 3600 --speed 600
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from real_kafka import RealKafka
from running import Running, until

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.replay import Replay
from tidemill.local.servers import Redis
from tidemill.offline.backtest import Backtest
from tidemill.wire import topics

IN_FLIGHT = 400
"""Most events under way at full speed."""


def served(
    kafka: RealKafka, redis: Redis, folder: Path, found: list[data.Flight], speed: float
) -> tuple[Running, dict, float]:
    """Return what four partitions serve at a speed (0: as fast as it goes), by event id, and events per second."""
    run = Running(kafka.servers, redis.url, folder, "flights", 4)
    messages = script(run.pipeline, found)
    vectors: dict[str, dict] = {}
    run.stack.start_all()
    try:
        run.stack.wait_ready()
        reader = run.reader(topics.FEATURES)
        replay = Replay(
            kafka.servers, messages, speed=speed or 1e12,
            has_room=lambda: bool(speed) or replay.events - len(vectors) < IN_FLIGHT,
        )  # fmt: skip
        replay.start()

        def is_done() -> bool:
            for record in reader.poll(timeout=0.05):
                features = run.records.features.decode(record.value())
                vectors[features["event_id"]] = features
            return bool(replay.ended_at) and len(vectors) == len(found)

        until(is_done, "vectors do not come", patience=3600, check=run.stack.check)
        reader.close()
        return run, vectors, len(found) / (replay.ended_at - replay.started_at)
    finally:
        run.stack.stop()


def main() -> None:
    """Print, for each speed, a table of the features that differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=3, help="days of January")
    parser.add_argument(
        "--speed", type=float, action="append", help="event time per wall time; 0: as fast as it goes; often"
    )
    options = parser.parse_args()
    found = data.flights((1,), days=options.days)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kafka, redis = RealKafka(folder), Redis(folder)
        try:
            for speed in options.speed or [0.0, 3600.0]:
                show(kafka, redis, folder, found, speed)
        finally:
            redis.stop()
            kafka.stop()


def show(kafka: RealKafka, redis: Redis, folder: Path, found: list[data.Flight], speed: float) -> None:
    """Run once, and print what differs."""
    run, vectors, rate = served(kafka, redis, folder, found, speed)
    expected: dict[str, dict] = {}
    backtest = Backtest(run.pipeline)
    backtest.predictions = lambda log: expected.update({log["features"]["event_id"]: dict(log["features"])})
    backtest.run([f.event for f in found], data.labels(found))
    names = [name for view in run.pipeline.remote_views for name in view.features]
    stale = sum(bool(v["stale"]) for v in vectors.values())
    event_time = (found[-1].event["asked_at"] - found[0].event["asked_at"]) / 1000
    times = event_time / (len(found) / rate)
    print(f"\n{'as fast as it goes' if not speed else f'{speed:g} times'}: {len(found):,} events, {rate:,.0f} a second, "
          f"{times:,.0f} times as it happened; {stale} stale")  # fmt: skip
    print(f"{'feature':<36}{'differ':>9}{'share':>9}{'mean |diff|':>13}{'of std':>9}")
    touched: set[str] = set()
    for name in names:
        wanted = [v["vector"][name] for v in expected.values() if v["vector"][name] is not None]
        mean = sum(wanted) / len(wanted)
        std = math.sqrt(sum((x - mean) ** 2 for x in wanted) / len(wanted))
        pairs = [(vectors[i]["vector"][name], expected[i]["vector"][name], i) for i in expected]
        touched |= {i for a, b, i in pairs if a != b}
        different = [(a, b) for a, b, _ in pairs if a != b]
        sizes = [abs(a - b) for a, b in different if a is not None and b is not None]
        size = sum(sizes) / len(sizes) if sizes else 0.0
        print(
            f"{name:<36}{len(different):>9,}{len(different) / len(pairs):>9.1%}{size:>13.4g}{size / std if std else 0:>9.2f}"
        )
    print(f"{'any of them':<36}{len(touched):>9,}{len(touched) / len(expected):>9.1%}", flush=True)


if __name__ == "__main__":
    main()
