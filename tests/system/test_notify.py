"""The notifier beside a real Kafka: a notice that is sent three times is shown once, and a new process repeats nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from running import Running, until, worker
from test_notifier import alert
from webhook_receiver import OK, SECRET, WebhookReceiver, status

from tidemill.client import verify
from tidemill.keys import Keyring
from tidemill.registry.alerts import MONITOR, alerts
from tidemill.registry.signing import LogWriter
from tidemill.stream.kafka.producer import Sender
from tidemill.wire import topics


def test_a_webhook_that_is_sent_three_times_is_verified_and_shown_once(
    running: Callable[..., Running], tmp_path: Path
) -> None:
    with WebhookReceiver(status("500 No"), lambda connection: None, OK) as receiver:
        told = {
            "ops": {"url": receiver.url, "secret": SECRET},
            "nobody": {"url": "http://127.0.0.1:9/", "secret": SECRET},
        }
        run = running("plain", 1, notify=json.dumps(told))
        run.stack.start("notifier")
        run.stack.wait_ready()
        keys = Keyring(run.stack.env["TIDEMILL_VERIFY_KEYS"], str(tmp_path / "keys"), "monitor")
        writer, sender = LogWriter(alerts(run.pipeline, keys), run.broker, MONITOR), Sender(run.broker.servers, {})

        def raise_alert(**more: Any) -> None:
            writer.begin()
            sender.send(run.name(topics.ALERTS), writer.sign({**alert(), **more}), b"drift:distance", partition=0)
            sender.flush()

        raise_alert()
        until(lambda: len(receiver.requests) == 3, "it is not sent three times")
        shown = {}
        for request in receiver.requests:
            notice = verify(request.headers, request.body, SECRET)
            shown.setdefault(notice["id"], notice)
        (notice,) = shown.values()
        assert (notice["type"], notice["data"]["id"]) == ("alert.opened", "drift:distance")
        until(lambda: "tidemill_notices_total" in run.stack.fetch("notifier", "/metrics")[1], "it is not counted")
        raise_alert(state="resolved")
        until(lambda: len(receiver.requests) == 4, "the next is not sent")
        until(lambda: delivered(run) == 2, "it is not counted")
        os.kill(worker(run.stack.processes["notifier"]), signal.SIGKILL)
        raise_alert(state="opened")
        until(lambda: len(receiver.requests) == 5, "the new process does not go on")
        assert len({request.headers["webhook-id"] for request in receiver.requests}) == 3, (
            "what was taken is not repeated"
        )
        waiting = 'tidemill_notices_waiting{receiver="nobody",service="notifier"} 3.0'
        until(
            lambda: waiting in run.stack.fetch("notifier", "/metrics")[1], "what waits for another is not known again"
        )


def delivered(run: Running) -> float:
    lines = run.stack.fetch("notifier", "/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("tidemill_notices_total{"))
