"""The demo: everything on this machine, January's flights in about a minute, and a summary."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from tidemill.declare.load import load
from tidemill.declare.pipeline import Pipeline
from tidemill.demo import data, screen
from tidemill.demo.observer import Observer
from tidemill.demo.script import script
from tidemill.errors import TidemillError
from tidemill.keys import Keyring
from tidemill.local.processes import end
from tidemill.local.replay import Replay
from tidemill.local.servers import Redis, create_topics, embedded_settings, start_broker
from tidemill.local.stack import Stack
from tidemill.offline.replay import Replay as ReplayedPredictions
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.run import topic_table
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.tokens import new_token

#: About how many events are corrupted; at most one in 50, so that a short run shows each kind, too.
CORRUPTED_EVENTS = 40
#: The run has ended when no topic had a new record for this long.
QUIET_SECONDS = 1.5

#: The demo's pipeline, as commands take it.
PIPELINE = "departures"
#: Nothing more is sent while so many events and labels are on their way through the pipeline, or so many examples are
#: in no version of some model: models learn the same on a slow machine, where it only takes longer.
MAX_WAITING, MAX_UNLEARNED = 500, 1_000

#: How long the replay of 31 days takes, and that of fewer at least, where that is not chosen.
SECONDS_PER_MONTH, MIN_SECONDS = 60.0, 25.0


@dataclass(frozen=True)
class Options:
    """The demo's options; see `tidemill demo --help`."""

    days: int
    seconds_per_month: float | None
    headless: bool
    report: Path | None
    broker: str | None
    keep_running: bool


def speed(options: Options) -> float:
    """Return event time per time. Fewer days than a month take long enough for models to learn before the end."""
    if options.seconds_per_month is not None:
        return 31 * 86_400 / options.seconds_per_month
    return options.days * 86_400 / max(SECONDS_PER_MONTH * options.days / 31, MIN_SECONDS)


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: take everything down."""


def run(options: Options) -> dict[str, Any]:
    """Run the demo and return its report. Raises TidemillError where a process can't start or ends early."""
    console = Console(stderr=False, force_interactive=False if options.headless else None)

    def interrupt(*_: object) -> None:
        raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        with ExitStack() as stack:
            return _run(options, console, stack)
    except Interrupted:
        console.print("stopped; all processes ended")
        raise SystemExit(130) from None


def _run(options: Options, console: Console, cleanup: ExitStack) -> dict[str, Any]:
    began = time.monotonic()
    pipeline = load(PIPELINE)
    folder = Path(tempfile.mkdtemp(prefix="tidemill-demo-"))
    cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
    live = console.is_terminal and not options.headless

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.1f} s[/]  {text}", highlight=False)

    say(
        f"starting {'the embedded broker' if options.broker is None else f'on Kafka at {options.broker}'}, "
        f"Redis and the services"
    )
    redis = Redis(folder)
    cleanup.callback(redis.stop)
    settings = _broker(options, pipeline, cleanup)
    token = os.environ.get("TIDEMILL_STATUS_TOKEN") or new_token()
    stack = Stack(
        PIPELINE,
        pipeline,
        folder,
        {
            **settings,
            "redis_url": redis.url,
            "status_token": token,
            "snapshot_seconds": 0.25,
            "archive_seconds": 5,
            "log_level": "INFO",
        },
        forks=True,
    )
    cleanup.callback(stack.stop)
    stack.start_all(watched=True)
    flights = data.flights((1,), "departure", options.days)
    messages = script(pipeline, flights, max(50, len(flights) // CORRUPTED_EVENTS))
    stack.wait_ready()
    say(f"ready: {', '.join(stack.processes)}")
    page = f"http://localhost:{stack.ports['status']}/"
    say(f"watch it at [bold]{page}[/]")
    if options.keep_running:
        say("for commands from another terminal, as in docs/how-to/gate.md:")
        console.print(_exports(stack, page), highlight=False, markup=False, soft_wrap=True)

    broker = KafkaBroker(str(settings["brokers"]))
    broker.connect()
    observer = Observer(broker, pipeline)

    def has_room() -> bool:
        return observer.waiting(replay.events + replay.labels) < MAX_WAITING and observer.unlearned < MAX_UNLEARNED

    replay = Replay(broker.servers, messages, speed(options), has_room=has_room)
    cleanup.callback(replay.stop)
    cleanup.callback(observer.stop)
    observer.start()
    sent_at = time.time()
    replay.start()
    title = f"Tidemill: flights out of New York, January 2013, {options.days} days"
    view = screen.Screen(title, observer, replay, len(messages))
    wait = _watch if live else _wait_quietly
    wait(console, view, stack, lambda: _drained(replay, observer))
    report = _report(options, observer, replay)
    report["first_prediction_s"] = round(time.monotonic() - began - (time.time() - observer.first_prediction_at), 2)
    report["sent_to_first_prediction_ms"] = round((observer.first_prediction_at - sent_at) * 1000, 1)
    console.print(screen.summary(report, observer, title))
    _look_closer(console, observer, broker, stack)
    if options.report:
        options.report.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"report written to {options.report}", markup=False)
    _try_next(console, broker, redis, stack, keeps=options.keep_running)
    if options.keep_running:
        while True:
            stack.check()
            time.sleep(0.5)
    return report


def _broker(options: Options, pipeline: Pipeline, cleanup: ExitStack) -> dict[str, object]:
    """Start or ask the broker, in a fork: a client has threads, and services are forked after it."""
    if options.broker is None:
        process, servers = start_broker(pipeline)
        cleanup.callback(end, process)
        return embedded_settings(servers)
    created = create_topics(KafkaBroker(options.broker), pipeline)
    if created < len(topic_table(pipeline)):
        raise TidemillError(
            f"Kafka at {options.broker} has topics of the pipeline {pipeline.name!r} already; "
            f"the demo needs empty ones: delete them, or use another cluster"
        )
    return {"brokers": options.broker}


def _drained(replay: Replay, observer: Observer) -> bool:
    for failed in (replay.error, observer.error):
        if failed is not None:
            raise TidemillError(f"the demo failed: {failed}")
    if not replay.ended_at:
        return False
    return time.monotonic() - max(observer.last_change, replay.ended_at) > QUIET_SECONDS


def _watch(console: Console, view: screen.Screen, stack: Stack, finished: Callable[[], bool]) -> None:
    with Live(view.render(), console=console, refresh_per_second=8, transient=True) as live:
        while not finished():
            stack.check()
            _print_news(live.console, view)
            live.update(view.render("all sent; waiting for the last records" if view.replay.ended_at else ""))
            time.sleep(0.125)


def _wait_quietly(console: Console, view: screen.Screen, stack: Stack, finished: Callable[[], bool]) -> None:
    shown = time.monotonic()
    while not finished():
        stack.check()
        _print_news(console, view)
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            counts = view.observer.counts
            console.print(
                f"{screen.moment(view.replay.clock)}  events {view.replay.events:,}  "
                f"predictions {counts['predictions']:,}  "
                f"examples {counts['examples']:,}  dead letters {counts['dlq']:,}",
                highlight=False,
                soft_wrap=True,
            )
        time.sleep(0.1)


def _print_news(console: Console, view: screen.Screen) -> None:
    while view.observer.news:
        console.print(
            f"{screen.moment(view.replay.clock)}  {view.observer.news.popleft()}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _look_closer(console: Console, observer: Observer, broker: KafkaBroker, stack: Stack) -> None:
    """Look up what was refused last, and repeat a prediction: what anybody can do with what is logged."""
    if letter := observer.last_letter:
        event = f"{letter.key}, refused by the {letter.stage}: {letter.message}"
        console.print(
            f"a corrupted event {event} ($ tidemill dlq show {PIPELINE} {letter.place})", highlight=False, markup=False
        )
    keys = Keyring(stack.env["TIDEMILL_VERIFY_KEYS"])
    registry = Registry(observer.pipeline, ArtifactStore(stack.env["TIDEMILL_STORE_URL"]), keys)
    report = ReplayedPredictions(observer.pipeline, broker, registry).report(sample=1, seed=1)
    for replayed in report.replayed:
        score = replayed.scores[0]
        then, now = score.then, score.now
        again = "gone" if now is None else f"{now['score']:.6f}"
        console.print(
            f"a prediction      {replayed.prediction.event_id}: {then['model']}@{then['version']} answered "
            f"{then['score']:.6f}; repeated: {again}, {score.state} ($ tidemill replay {PIPELINE} "
            f"{replayed.prediction.event_id})",
            highlight=False,
            markup=False,
        )


def _report(options: Options, observer: Observer, replay: Replay) -> dict[str, Any]:
    counts, dead = observer.counts, observer.dead_letters
    by_joiner = sum(dead[reason] for reason in ("duplicate_label", "contradictory_label", "unmatched_label"))
    rejected = replay.labels - counts["labels.valid"] + by_joiner
    seconds = (replay.ended_at or time.monotonic()) - replay.started_at
    return {
        "pipeline": observer.pipeline.name,
        "days": options.days,
        "events": replay.events,
        "valid": counts["events.valid"],
        "events_rejected": replay.events - counts["events.valid"],
        "dead_letters": dict(sorted(dead.items())),
        "predictions": counts["predictions"],
        "labels": replay.labels,
        "labels_rejected": rejected,
        "joined": counts["examples"],
        "expired": counts["expired"],
        "pending": observer.pending,
        "waiting_labels": replay.labels - rejected - counts["examples"],
        "examples": counts["examples"],
        "metrics": observer.values(),
        "model_versions": {name: manifest["version"] for name, manifest in observer.latest.items()},
        "events_per_second": round(replay.events / seconds, 1) if seconds > 0 else 0.0,
        "latency_ms": {"p50": observer.delay_ms(0.5), "p99": observer.delay_ms(0.99)},
    }


def _exports(stack: Stack, page: str) -> str:
    """Return the exports that a shell needs for commands to this run; a token that the user has set is not printed."""
    needed = {"TIDEMILL_STATUS_URL": page} | {
        name: stack.env[name]
        for name in ("TIDEMILL_STATUS_TOKEN", "TIDEMILL_BROKERS", "TIDEMILL_STORE_URL", "TIDEMILL_VERIFY_KEYS")
        if stack.env[name] != os.environ.get(name)
    }
    return "\n".join(f"  export {name}={value}" for name, value in needed.items())


def _try_next(console: Console, broker: KafkaBroker, redis: Redis, stack: Stack, *, keeps: bool) -> None:
    if keeps:
        console.print(
            f"everything keeps running; Ctrl-C ends it. Kafka {broker.servers}, Redis port {redis.port}\n"
            f"  redis-cli -p {redis.port} HGETALL {PIPELINE}:origin:JFK\n"
            f"  curl -s localhost:{stack.ports['scorer']}/metrics | grep tidemill_",
            highlight=False,
        )
        return
    console.print(
        "try next: your own data, in five commands\n"
        "  tidemill init mine --from events.csv --labels labels.csv   a declaration, from what your files hold\n"
        "  tidemill backtest mine/pipeline.py --events events.csv --labels labels.csv\n"
        "  tidemill up mine/pipeline.py                               all of it, live, on this machine\n"
        "  tidemill send mine/pipeline.py events events.csv           from another terminal, in the same folder\n"
        "  tidemill tail mine/pipeline.py predictions\n"
        'or look into this one: make demo ARGS="--keep-running"',
        highlight=False,
        soft_wrap=True,
    )
    sys.stdout.flush()
