"""What each service says of itself: its /readyz and /metrics, read every so often."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

EVERY_SECONDS = 1.0
PATIENCE_SECONDS = 2.0
RATE_SECONDS = 3.0
"""Over how long rates are."""
BEHIND_RECORDS = 10_000
"""A lag above this is worth a word."""


@dataclass
class Instance:
    """What one process said last."""

    name: str
    instance: str
    url: str
    state: str = "down"
    why: str = "has not answered yet"
    values: dict[str, dict[tuple[tuple[str, str], ...], float]] = field(default_factory=dict)
    course: list[tuple[float, float, float, float]] = field(default_factory=list)

    def total(self, name: str) -> float | None:
        """Return a metric summed over its labels; None where there is none."""
        found = self.values.get(name)
        return sum(found.values()) if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return a metric by the values of one label."""
        found: dict[str, float] = {}
        for labels, value in self.values.get(name, {}).items():
            key = dict(labels).get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found

    def note(self, now: float) -> None:
        """Note the counters as they are at `now`, in s, for what is told by the second."""
        said = [
            self.total(f"tidemill_{name}") or 0.0
            for name in ("records_total", "delay_seconds_sum", "delay_seconds_count")
        ]
        if self.course and said[0] < self.course[-1][1]:
            self.course.clear()  # started anew
        self.course.append((now, said[0], said[1], said[2]))
        while len(self.course) > 2 and now - self.course[0][0] > RATE_SECONDS:
            self.course.pop(0)

    @property
    def rate(self) -> float | None:
        """Records a second over the last seconds."""
        if len(self.course) < 2:
            return None
        first, last = self.course[0], self.course[-1]
        return (last[1] - first[1]) / (last[0] - first[0])

    @property
    def delay(self) -> float | None:
        """Mean delay, in s, of the batches of the last seconds; None without any."""
        if len(self.course) < 2 or self.course[-1][3] <= self.course[0][3]:
            return None
        first, last = self.course[0], self.course[-1]
        return (last[2] - first[2]) / (last[3] - first[3])

    def told(self) -> dict[str, Any]:
        """Return what people are shown."""
        heartbeat = max(self.values.get("tidemill_heartbeat_seconds", {}).values(), default=None)
        return {
            "name": self.name,
            "instance": self.instance,
            "state": self.state,
            "why": self.why,
            "rate": self.rate,
            "lag": self.total("tidemill_lag_records"),
            "delay": self.delay,
            "records": self.total("tidemill_records_total"),
            "retries": self.total("tidemill_retries_total") or 0,
            "heartbeat_age": None if heartbeat is None else max(0.0, time.time() - heartbeat),
        }


def places(url: str) -> Iterable[tuple[str, str]]:
    """Yield (instance, url) of each address behind a name: a headless Kubernetes service has one a pod."""
    parts = urlsplit(url)
    try:
        found = sorted({str(info[4][0]) for info in socket.getaddrinfo(parts.hostname, parts.port, socket.AF_INET)})
    except OSError:
        found = []
    if len(found) < 2:
        yield "0", url
        return
    for address in found:
        yield address, f"{parts.scheme}://{address}:{parts.port}"


class Scraper(threading.Thread):
    """Asks every service, again and again, in a thread of its own.

    Parameters
    ----------
    services
        Base URL of each by its name.
    """

    def __init__(self, services: Mapping[str, str]) -> None:
        super().__init__(name="scraper", daemon=True)
        self.services = services
        self._instances: dict[tuple[str, str], Instance] = {}
        self._ending = threading.Event()

    @property
    def instances(self) -> list[Instance]:
        """What every process said last, in the order in which services are declared."""
        order = list(self.services)
        return sorted(dict(self._instances).values(), key=lambda i: (order.index(i.name), i.instance))

    @property
    def event_time(self) -> int | None:
        """Event time, in ms, of the newest event that any view holds; None before one has said so."""
        name = "tidemill_view_event_time_seconds"
        newest = max((time for i in self.instances for time in i.values.get(name, {}).values()), default=None)
        return None if newest is None else round(newest * 1000)

    def run(self) -> None:
        """Ask until `stop`."""
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="scrape") as pool:
            while not self._ending.is_set():
                began = time.monotonic()
                wanted = [(name, i, url) for name, base in self.services.items() for i, url in places(base)]
                for key in set(self._instances) - {(name, i) for name, i, _ in wanted}:
                    del self._instances[key]
                list(pool.map(self._ask, wanted))
                self._ending.wait(max(0.05, EVERY_SECONDS - (time.monotonic() - began)))

    def stop(self) -> None:
        """Ask nobody any more."""
        self._ending.set()
        if self.is_alive():
            self.join(2 * PATIENCE_SECONDS)

    def _ask(self, place: tuple[str, str, str]) -> None:
        name, number, url = place
        instance = self._instances.setdefault((name, number), Instance(name, number, url))
        status, said = fetch(f"{url}/readyz")
        if status == 0:
            instance.state, instance.why = "down", f"does not answer at {url}: {said}"
            instance.course.clear()
            return
        code, text = fetch(f"{url}/metrics")
        with contextlib.suppress(ValueError):  # an answer that was cut off: the last one stays
            if code == 200:
                instance.values = parse(text)
                instance.note(time.monotonic())
        instance.state, instance.why = self._judge(instance, status, said)

    @staticmethod
    def _judge(instance: Instance, status: int, said: str) -> tuple[str, str]:
        if status != 200:
            return "starting", said.strip()
        behind = [view for view, value in instance.by("tidemill_view_behind", "view").items() if value]
        if behind:
            return "behind", f"the online store can't be written: {', '.join(behind)}"
        lag = instance.total("tidemill_lag_records")
        if lag is not None and lag > BEHIND_RECORDS:
            return "behind", f"{lag:,.0f} records behind"
        return "ok", ""


def fetch(url: str) -> tuple[int, str]:
    """Return status and body; (0, why) where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310  addresses are from settings
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as error:  # killed in the middle of its answer, for one
        return 0, str(getattr(error, "reason", "") or error or type(error).__name__)


def parse(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return our metrics of one answer of /metrics: value by labels, by the sample's name. Raises ValueError for what is none."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    ours = "\n".join(line for line in text.splitlines() if "tidemill_" in line) + "\n"
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found
