"""The health and metrics of each service, read from its /readyz and /metrics once a second."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from prometheus_client.parser import text_string_to_metric_families

from tidemill.limits import SCRAPE_BYTES, SCRAPE_SECONDS

EVERY_SECONDS = 1.0
#: Rates are means over this long.
RATE_SECONDS = 3.0
#: A service is shown as behind above this lag.
MAX_LAG_RECORDS = 10_000

#: What is asked of /metrics, by prometheus_client's own parameter: all of it costs a service of many features 10 ms.
NAMES = (
    "tidemill_records_total", "tidemill_delay_seconds_sum", "tidemill_delay_seconds_count", "tidemill_lag_records",
    "tidemill_retries_total", "tidemill_heartbeat_seconds", "tidemill_view_behind", "tidemill_view_event_time_seconds",
)  # fmt: skip
QUERY = urlencode([("name[]", name) for name in NAMES])

#: Value by labels, by the metric's name.
Values = dict[str, dict[tuple[tuple[str, str], ...], float]]


class Sample(NamedTuple):
    """The counters that rates are made of, at a time in s."""

    at: float
    records: float
    delay_sum: float
    delay_count: float


@dataclass
class Instance:
    """One process, as it answered last."""

    name: str
    instance: str
    url: str
    state: str = "down"
    why: str = "has not answered yet"
    values: Values = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def total(self, name: str) -> float | None:
        """Return a metric summed over its labels; None where there is none."""
        values = self.values.get(name)
        return sum(values.values()) if values else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return a metric by the values of one label."""
        sums: dict[str, float] = {}
        for labels, value in self.values.get(name, {}).items():
            key = dict(labels).get(label, "")
            sums[key] = sums.get(key, 0.0) + value
        return sums

    def sample(self, now: float) -> None:
        """Keep the counters as they are at `now`, in s, for the rate and the delay."""
        names = ("records_total", "delay_seconds_sum", "delay_seconds_count")
        sample = Sample(now, *(self.total(f"tidemill_{name}") or 0.0 for name in names))
        if self.samples and sample.records < self.samples[-1].records:
            self.samples.clear()  # the process was restarted
        self.samples.append(sample)
        while len(self.samples) > 2 and now - self.samples[0].at > RATE_SECONDS:
            self.samples.pop(0)

    @property
    def rate(self) -> float | None:
        """Records a second over the last seconds."""
        if len(self.samples) < 2:
            return None
        first, last = self.samples[0], self.samples[-1]
        return (last.records - first.records) / (last.at - first.at)

    @property
    def delay(self) -> float | None:
        """Mean delay, in s, of the batches of the last seconds; None without any."""
        if len(self.samples) < 2 or self.samples[-1].delay_count <= self.samples[0].delay_count:
            return None
        first, last = self.samples[0], self.samples[-1]
        return (last.delay_sum - first.delay_sum) / (last.delay_count - first.delay_count)

    def as_dict(self) -> dict[str, Any]:
        """Return it for the page."""
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


def addresses(url: str) -> Iterable[tuple[str, str]]:
    """Yield (instance, url) of each address behind a name: a headless Kubernetes service has one for each pod."""
    parts = urlsplit(url)
    try:
        hosts = sorted({str(info[4][0]) for info in socket.getaddrinfo(parts.hostname, parts.port, socket.AF_INET)})
    except OSError:
        hosts = []
    if len(hosts) < 2:
        yield "0", url
        return
    for address in hosts:
        yield address, f"{parts.scheme}://{address}:{parts.port}"


class Scraper(threading.Thread):
    """Scrapes every service once a second, in a thread of its own.

    Parameters
    ----------
    services
        Base URL of each by its name.
    tls
        What those at https:// are known by.
    """

    def __init__(self, services: Mapping[str, str], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(name="scraper", daemon=True)
        self.services, self.tls = services, tls
        self._instances: dict[tuple[str, str], Instance] = {}
        self._ending = threading.Event()

    @property
    def instances(self) -> list[Instance]:
        """Every process as it answered last, in the order in which services are declared."""
        order = list(self.services)
        return sorted(dict(self._instances).values(), key=lambda i: (order.index(i.name), i.instance))

    @property
    def event_time(self) -> int | None:
        """Event time, in ms, of the newest event that any view holds; None before the first answer with one."""
        name = "tidemill_view_event_time_seconds"
        newest = max((time for i in self.instances for time in i.values.get(name, {}).values()), default=None)
        return None if newest is None else round(newest * 1000)

    def run(self) -> None:
        """Scrape until `stop`."""
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="scrape") as pool:
            while not self._ending.is_set():
                began = time.monotonic()
                targets = [(name, i, url) for name, base in self.services.items() for i, url in addresses(base)]
                for key in set(self._instances) - {(name, i) for name, i, _ in targets}:
                    del self._instances[key]
                list(pool.map(self._scrape, targets))
                self._ending.wait(max(0.05, EVERY_SECONDS - (time.monotonic() - began)))

    def stop(self) -> None:
        """Stop scraping."""
        self._ending.set()
        if self.is_alive():
            self.join(2 * SCRAPE_SECONDS.max)

    def _scrape(self, target: tuple[str, str, str]) -> None:
        name, number, url = target
        host = urlsplit(self.services[name]).hostname or ""
        instance = self._instances.setdefault((name, number), Instance(name, number, url))
        status, answer = fetch(f"{url}/readyz", self.tls, host)
        if status == 0:
            instance.state, instance.why = "down", f"does not answer at {url}: {answer}"
            instance.samples.clear()
            return
        code, text = fetch(f"{url}/metrics?{QUERY}", self.tls, host)
        with contextlib.suppress(ValueError):  # a truncated answer: the values of the last one stay
            if code == 200:
                instance.values = parse(text)
                instance.sample(time.monotonic())
        instance.state, instance.why = _state_of(instance, status, answer)


def _state_of(instance: Instance, status: int, answer: str) -> tuple[str, str]:
    if status != 200:
        return "starting", answer.strip()
    behind = [view for view, value in instance.by("tidemill_view_behind", "view").items() if value]
    if behind:
        return "behind", f"the online store can't be written: {', '.join(behind)}"
    lag = instance.total("tidemill_lag_records")
    if lag is not None and lag > MAX_LAG_RECORDS:
        return "behind", f"{lag:,.0f} records behind"
    return "ok", ""


class _Named(http.client.HTTPSConnection):
    """A connection to one of the addresses of a name, for which the certificate has to be."""

    def __init__(self, *arguments: Any, name: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._name = name

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)  # type: ignore[attr-defined]


class _ByName(urllib.request.HTTPSHandler):
    def __init__(self, tls: ssl.SSLContext, name: str) -> None:
        super().__init__(context=tls)
        self._connection = partial(_Named, name=name)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, request, context=self._context)  # type: ignore[attr-defined]


@cache
def _opener(tls: ssl.SSLContext | None, name: str) -> urllib.request.OpenerDirector:
    """Return what opens URLs: to make one takes longer than to be answered."""
    return urllib.request.build_opener(*([_ByName(tls, name)] if tls else []))


def fetch(url: str, tls: ssl.SSLContext | None = None, name: str = "") -> tuple[int, str]:
    """Return status and body; (0, why) without an answer. At https:// a certificate for `name` is expected."""
    opener = _opener(tls, name) if tls and url.startswith("https:") else _opener(None, "")
    try:
        try:
            with opener.open(url, timeout=SCRAPE_SECONDS.max) as answer:
                return answer.status, _body(answer)
        except urllib.error.HTTPError as error:
            return error.code, _body(error)  # type: ignore[arg-type]  # it reads as one
    except (
        OSError,
        ValueError,
        http.client.HTTPException,
    ) as error:  # such as a process that was killed during its answer
        return 0, str(getattr(error, "reason", "") or error or type(error).__name__)


def _body(answer: http.client.HTTPResponse) -> str:
    """Return the body of an answer. Raises ValueError where it is too long, or is not all there in time."""
    body, length, until = bytearray(), answer.length, time.monotonic() + SCRAPE_SECONDS.max
    while more := answer.read1(65_536):
        body += more
        if len(body) > SCRAPE_BYTES.max:
            raise ValueError(SCRAPE_BYTES.excess(len(body)))
        if time.monotonic() > until:
            raise ValueError(f"{SCRAPE_SECONDS.subject} takes more than {SCRAPE_SECONDS.max} seconds")
    if length is not None and len(body) < length:
        raise http.client.IncompleteRead(bytes(body), length - len(body))
    return body.decode(errors="replace")


def parse(text: str) -> Values:
    """Return Tidemill's own metrics in an answer of /metrics. Raises ValueError for malformed text."""
    values: Values = {}
    ours = "\n".join(line for line in text.splitlines() if "tidemill_" in line) + "\n"
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            values.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return values
