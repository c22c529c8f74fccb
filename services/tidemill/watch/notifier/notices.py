"""Notices: what receivers are told, made of the records of alerts, decisions and warnings."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.keys import Keyring
from tidemill.registry.alerts import alerts
from tidemill.registry.decisions import Decision, decisions
from tidemill.registry.signing import Chains, Past
from tidemill.stream.api import Record
from tidemill.wire import topics
from tidemill.wire.records import Records

#: States of an alert of which nobody is told: it is as it was.
UNCHANGED = ("continuing",)


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told: its kind as `alert.opened`, when it happened in ms, a text for people, and the record.

    The id is the same however often it is sent.
    """

    id: str
    kind: str
    time: int
    title: str
    text: str
    pipeline: str
    data: Mapping[str, Any]

    @property
    def body(self) -> bytes:
        """The JSON that is sent, and signed."""
        when = datetime.fromtimestamp(self.time / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        notice = {
            "type": self.kind,
            "timestamp": when,
            "id": self.id,
            "pipeline": self.pipeline,
            "title": self.title,
            "text": self.text,
            "data": self.data,
        }
        return json.dumps(notice, separators=(",", ":")).encode()


#: A notice's kind, title, text and data.
_Content = tuple[str, str, str, Mapping[str, Any]]


class Notices:
    """Makes notices of a pipeline's records. Of what is signed it makes none where other readers refuse it.

    Without keys signatures are not verified.
    """

    def __init__(self, pipeline: Pipeline, keys: Keyring | None) -> None:
        self.pipeline, self._records = pipeline.name, Records(pipeline)
        self._warnings = topics.WARNINGS.name(pipeline)
        self._signed: Mapping[str, tuple[Chains[Any], Callable[[Any], _Content | None]]] = {
            topics.ALERTS.name(pipeline): (Chains(alerts(pipeline, keys)), _alert),
            topics.PROMOTIONS.name(pipeline): (Chains(decisions(pipeline, keys)), _decision),
        }

    def restore(self, topic: str, past: Past, end: int) -> None:
        """Go on at the offset `end` of a topic: what is before it is not told."""
        if topic in self._signed:
            self._signed[topic][0].restore_before(past, end)

    def of(self, record: Record) -> Notice | None:
        """Return the notice of a record; None where nobody is told of it, or it is refused."""
        topic = record.topic()
        if topic == self._warnings:
            content = self._circuit_breaker(record.value() or b"")
        else:
            chains, make = self._signed[topic]
            signed = chains.take(record)
            content = make(signed) if signed is not None else None
        if content is None:
            return None
        kind, title, text, data = content
        # With its time, so that a topic that was created again does not repeat the ids of the one before it.
        time = max(0, record.timestamp()[1])
        place = f"{topic.replace('.', '-')}-{record.partition()}-{record.offset()}-{time:x}"
        return Notice(place, kind, time, f"{self.pipeline}: {title}", text, self.pipeline, data)

    def test(self, now: float) -> Notice:
        """Return a notice that says nothing, to try receivers with."""
        text = "Nothing has happened: somebody tries whether notices arrive."
        title = f"{self.pipeline}: a test"
        return Notice(
            f"{self.pipeline}-test-{uuid.uuid4().hex}", "test", int(now * 1000), title, text, self.pipeline, {}
        )

    def _circuit_breaker(self, value: bytes) -> _Content | None:
        warnings = self._records.warnings.of(value)
        if not warnings or not warnings["stopped"]:
            return None
        stream, why = warnings["stream"], warnings["stopped"]
        text = f"{why}. What comes after them waits. Look at: tidemill dlq list {self.pipeline}"
        data = {"stream": stream, "why": why, "time": warnings["time"]}
        return "circuit_breaker.opened", f"the validator has stopped, too much is refused of {stream}", text, data


def _alert(alert: Mapping[str, Any]) -> _Content | None:
    if alert["state"] in UNCHANGED:
        return None
    data = {name: value for name, value in alert.items() if name != "signature"}
    text = alert["message"]
    if alert["look_at"]:
        text += (
            f"; {alert['figure']} is {alert['value']:.4g}, the limit {alert['limit']:.4g}. Look at: {alert['look_at']}"
        )
    return f"alert.{alert['state']}", f"alert {alert['id']} {alert['state']}", text, data


def _decision(decision: Decision) -> _Content:
    subject = f" {decision.subject}" if decision.subject else ""
    title = f"{decision.kind.replace('_', ' ')}{subject}; {decision.champion or 'nobody'} serves"
    return f"decision.{decision.kind}", title, f"{decision.why} (by {decision.by})", decision.as_dict()
