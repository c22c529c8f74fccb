"""What the signed topics hold beyond alerts: records that are refused, versions that nobody serves, late requests.

The monitor reads them as every reader does. So it refuses what they refuse, and sees it however they are restarted.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.keys import Keyring, RefusedError
from tidemill.registry.alerts import alerts
from tidemill.registry.decisions import commands, decisions
from tidemill.registry.forgetting import Forgetting, forgetting_codec
from tidemill.registry.latest import restore_latest
from tidemill.registry.manifests import Manifest, manifest_codec
from tidemill.registry.signing import Chains
from tidemill.stream.api import Broker, Record, TopicPartition
from tidemill.watch.monitor.alerts import FORGETTING, FORGETTING_LATE, REFUSED, UNSERVED
from tidemill.watch.monitor.figures import FigureKey
from tidemill.wire.records import Score, newness

#: For how long a record that was refused counts.
REFUSED_SECONDS = 3600.0
#: Latest records of each topic with which reading begins; the newest of each chain as well, wherever it is.
MAX_START_RECORDS = 5_000
#: Refused records that are remembered of a topic and reason, and versions of a model that nobody serves yet.
MAX_REMEMBERED = 1_000

#: A model's life and version.
Newness = tuple[int, int]


class Trust:
    """Refused records by topic and reason, how long each model has answered with an older version, and open requests.

    All times are s, wall clock.
    """

    def __init__(self, pipeline: Pipeline, keys: Keyring | None) -> None:
        self.pipeline = pipeline
        codecs: tuple[Any, ...] = (
            manifest_codec(pipeline, keys),
            decisions(pipeline, keys),
            commands(pipeline, keys),
            alerts(pipeline, keys),
        )
        if pipeline.forgetting is not None:
            codecs += (forgetting_codec(pipeline, keys),)
            self._forgetting_seconds = milliseconds(pipeline.forgetting.within) / 1000
        self._chains: dict[str, Chains[Any]] = {codec.topic: Chains(codec, self._refuse) for codec in codecs}
        self._next: dict[str, int] = {}
        self._now: float | None = None
        self._refused: dict[tuple[str, str], deque[float]] = {}
        self._unserved: dict[str, deque[tuple[Newness, float]]] = {}
        self._answered_at: dict[str, float] = {}
        self._served: dict[str, Newness] = {}
        #: Requests to forget, by id: since when one is open, in s; 0: it is done, which resolves its alerts.
        self._open_requests: dict[str, float] = {}

    def read(self, broker: Broker, now: float) -> None:
        """Read what has come to the signed topics. Raises BrokerError."""
        for topic, chains in self._chains.items():
            if topic not in self._next and not broker.partitions(topic):  # that of requests is younger than others
                continue
            partition = TopicPartition(topic, 0)
            high = broker.offset_range(partition)[1]
            begin = self._next.get(topic)
            is_start = begin is None or begin > high  # cut, or created again
            self._now = None if is_start else now
            if begin is None or is_start:
                contents, high = restore_latest(self.pipeline, broker, topic, chains, MAX_START_RECORDS)
                self._publish(contents, now)
            else:
                batches = broker.read({partition: (begin, high)}) if high > begin else ()
                records = (record for batch in batches for record in batch)
                self._publish((content for record in records if (content := chains.take(record)) is not None), now)
            self._next[topic] = high

    def _refuse(self, record: Record, error: RefusedError) -> None:
        # What was refused before this process began counts by when it was written.
        at = record.timestamp()[1] / 1000 if self._now is None else self._now
        key = (record.topic().removeprefix(f"{self.pipeline.name}."), error.reason)
        self._refused.setdefault(key, deque(maxlen=MAX_REMEMBERED)).append(at)

    def _publish(self, contents: Iterable[Any], now: float) -> None:
        for manifest in contents:
            if isinstance(manifest, Forgetting):
                self._request(manifest)
            if isinstance(manifest, Manifest) and manifest.model in self.pipeline.model_names:
                unserved = self._unserved.setdefault(manifest.model, deque())
                # Of very many that wait the oldest count, and a newer one that is served covers them.
                if manifest.newness > self._served.get(manifest.model, (0, 0)) and len(unserved) < MAX_REMEMBERED:
                    unserved.append((manifest.newness, now))

    def _request(self, one: Forgetting) -> None:
        if one.state in ("asked", "waiting"):
            self._open_requests.setdefault(one.id, one.time / 1000)
        elif one.state == "done":
            done = (one.id, *json.loads(one.content).get("requests", ()))
            self._open_requests |= dict.fromkeys(done, 0.0)

    def answered(self, scores: Iterable[Score], now: float) -> None:
        """Take the scores of one prediction that was made just now."""
        for score in scores:
            model = score["model"]
            self._answered_at[model] = now
            self._served[model] = max(newness(score), self._served.get(model, (0, 0)))

    def levels(self, now: float) -> Mapping[FigureKey, tuple[float, float]]:
        """Return the figures of this moment, each with since when it is so."""
        levels = {}
        for (topic, reason), times in self._refused.items():
            while times and times[0] <= now - REFUSED_SECONDS:
                times.popleft()
            key = REFUSED._replace(segment=f"{topic}:{reason}")
            levels[key] = (float(len(times)), times[0] if times else now)
        for model, unserved in self._unserved.items():
            while unserved and unserved[0][0] <= self._served.get(model, (0, 0)):
                unserved.popleft()
            published = unserved[0][1] if unserved else now
            # Without predictions nobody can tell what would answer.
            seconds = max(0.0, self._answered_at.get(model, published) - published)
            levels[UNSERVED._replace(model=model)] = (seconds, published)
        for id_, asked in self._open_requests.items():
            seconds = now - asked if asked else 0.0
            levels[FORGETTING._replace(segment=id_)] = (seconds / self._forgetting_seconds, asked or now)
            late = max(0.0, seconds - self._forgetting_seconds)
            levels[FORGETTING_LATE._replace(segment=id_)] = (late, asked + self._forgetting_seconds if late else now)
        self._open_requests = {id_: asked for id_, asked in self._open_requests.items() if asked}
        return levels
