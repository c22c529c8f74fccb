"""Sends events or labels as their producers would, and follows what becomes of each.

writes  <pipeline>.events or <pipeline>.labels
reads   from their present ends: <pipeline>.predictions and .dlq, or <pipeline>.labels.valid, .examples and .dlq
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.offline import history
from tidemill.offline.history import Message
from tidemill.offline.tail import follow
from tidemill.stream.api import Record
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.producer import Sender
from tidemill.wire import topics
from tidemill.wire.dead_letters import read_dead_letter
from tidemill.wire.records import Records

What = Literal["events", "labels"]
State = Literal["predicted", "dead letter", "joined", "corrected", "waits", "unknown", "not sent"]
#: States in which something went wrong, or is not known.
REFUSED: State = "dead letter"
UNKNOWN: State = "unknown"
NOT_SENT: State = "not sent"
#: So many messages may be on their way at once: days of history that were sent in one go would put partitions further
#: apart than `label_timeout`, and labels would expire.
MAX_ON_THE_WAY = 500
#: Where nothing was heard for so long, what is on its way is not waited for: labels may come before their events.
SILENCE_SECONDS = 1.0


@dataclass
class Outcome:
    """What became of one message.

    predicted    of an event: `score` is what `model` answered, of several classes with the `probabilities` of all;
                 unless it is `answered`, the model had no answer yet, and the score is the task's neutral one
    joined       of a label: it met its prediction; `score` is what the serving model had answered
    waits        of a label: it is valid, and its prediction has not come yet
    dead letter  `reason`, `message`, the service and where the letter is
    unknown      nothing was heard of it in time
    not sent     the broker did not take it; `message` says why
    """

    id: str
    state: State = "unknown"
    ms: float | None = None
    score: float | None = None
    probabilities: Mapping[str, float] | None = None
    model: str = ""
    version: int = 0
    answered: bool = True
    label: Any = None
    reason: str = ""
    message: str = ""
    service: str = ""
    letter: str = ""

    def take(self, champion: Mapping[str, Any]) -> None:
        """Take the answer of the serving model."""
        self.score, self.probabilities = champion.get("score"), champion.get("probabilities") or None
        self.model, self.version = champion.get("model", ""), champion.get("version", 0)
        self.answered = champion.get("answered", True)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it, without what it does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != ""}


def messages_of(pipeline: Pipeline, what: What, file: Path | None, texts: Sequence[str], stdin: bytes) -> list[Message]:
    """Return the messages of a file, of `stdin` where it is `-`, or of JSON texts.

    Raises SettingsError where they can't be read.
    """
    stream = pipeline.events if what == "events" else pipeline.labels
    if texts and file is not None:
        raise SettingsError("messages come from FILE or from --json: name the one or the other")
    if file is not None and str(file) != "-":
        return history.messages(file, stream)
    data = "\n".join(" ".join(text.splitlines()) for text in texts).encode() if texts else stdin
    with TemporaryDirectory() as folder:
        form = "jsonl" if texts or data.lstrip()[:1] in (b"{", b"[") else "csv"
        path = Path(folder) / f"given.{form}"
        path.write_bytes(data)
        try:
            return history.messages(path, stream)
        except SettingsError as error:
            raise SettingsError(str(error).replace(str(path), "--json" if texts else "standard input")) from None


class _Sent(NamedTuple):
    """One message, and when it was sent, in s."""

    outcome: Outcome
    data: bytes
    sent_at: float


class Pace:
    """When the next message may be sent."""

    def __init__(self) -> None:
        self._allowed = MAX_ON_THE_WAY
        self._on_the_way, self._changed_at = 0, 0.0

    def has_room(self, on_the_way: int, now: float) -> bool:
        """Return whether another may be sent, with so many on their way at this time in s."""
        if on_the_way != self._on_the_way:
            self._on_the_way, self._changed_at = on_the_way, now
        elif now - self._changed_at > SILENCE_SECONDS:
            self._allowed, self._changed_at = on_the_way + MAX_ON_THE_WAY, now
        if on_the_way + MAX_ON_THE_WAY < self._allowed:
            self._allowed = on_the_way + MAX_ON_THE_WAY
        return on_the_way < self._allowed


class Sending:
    """Sends messages, and collects what becomes of each."""

    def __init__(self, pipeline: Pipeline, broker: KafkaBroker, what: What) -> None:
        self.pipeline, self.broker, self.what, self.records = pipeline, broker, what, Records(pipeline)
        self.topic = topics.EVENTS if what == "events" else topics.LABELS
        results = (topics.PREDICTIONS,) if what == "events" else (topics.LABELS_VALID, topics.EXAMPLES)
        self._suffixes = {topic.name(pipeline): topic for topic in (*results, topics.DLQ)}
        self.outcomes: list[Outcome] = []
        self._open: dict[str, list[_Sent]] = {}
        self._on_the_way = 0
        self._failed: list[tuple[Outcome, str]] = []

    def run(self, messages: Sequence[Message], timeout: float) -> Iterator[Outcome]:
        """Send all; yield each outcome as it is known, and at the end those of which nothing was heard.

        With a timeout of 0 nothing is waited for, neither between messages nor at the end.
        """
        follower = follow(self.broker, list(self._suffixes))
        sender, pace = Sender(self.broker.servers, self.broker.common), Pace()
        try:
            for message in messages:
                while timeout and not pace.has_room(self._on_the_way, time.monotonic()):
                    for record in follower.poll():
                        yield from self._heard(record)
                outcome = Outcome(message.id)
                self._open.setdefault(message.id, []).append(_Sent(outcome, message.data, time.monotonic()))
                self._on_the_way += 1
                self.outcomes.append(outcome)
                self._send(sender, message, outcome)
                yield from self._not_sent()
            sender.flush()
            yield from self._not_sent()
            until = time.monotonic() + timeout
            while self._open and time.monotonic() < until:
                for record in follower.poll():
                    yield from self._heard(record)
        finally:
            follower.close()
        for waiting in self._open.values():
            for sent in waiting:
                yield sent.outcome

    def _send(self, sender: Sender, message: Message, outcome: Outcome) -> None:
        key = message.id.encode(errors="replace") or None

        def delivered(why: str) -> None:
            if why:
                self._failed.append((outcome, why))

        while not sender.try_send(self.topic.name(self.pipeline), message.data, key, [], delivered):
            sender.poll(0.05)

    def _not_sent(self) -> Iterator[Outcome]:
        """Take the messages that the broker did not take out of those that are waited for."""
        failed, self._failed = self._failed, []
        for outcome, why in failed:
            rest = [sent for sent in self._open.pop(outcome.id, ()) if sent.outcome is not outcome]
            self._open |= {outcome.id: rest} if rest else {}
            self._on_the_way -= 1
            outcome.state, outcome.message = NOT_SENT, why
            yield outcome

    def _heard(self, record: Record) -> Iterator[Outcome]:
        topic, value = self._suffixes[record.topic()], record.value() or b""
        if topic is topics.DLQ:
            yield from self._refused(record)
        elif topic is topics.PREDICTIONS:
            prediction = self.records.read_prediction(value)
            for outcome in self._close(prediction["event_id"] if prediction else ""):
                champion: Mapping[str, Any] = prediction["champion"] if prediction else {}
                outcome.state = "predicted"
                outcome.take(champion)
                yield outcome
        elif topic is topics.EXAMPLES:
            example, correction = self.records.example.of(value), self.records.correction.of(value)
            for outcome in self._close((record.key() or b"").decode(errors="replace")):
                if correction:
                    outcome.state, outcome.label = "corrected", correction["label"]
                else:
                    self._joined(outcome, example)
                yield outcome
        else:
            for sent in self._open.get((record.key() or b"").decode(errors="replace"), ()):
                sent.outcome.state = "waits"

    def _joined(self, outcome: Outcome, example: Mapping[str, Any] | None) -> None:
        outcome.state = "joined"
        if example:
            outcome.label = example["label"]
            outcome.take(example["prediction"]["champion"])

    def _refused(self, record: Record) -> Iterator[Outcome]:
        letter, value = read_dead_letter(record), record.value() or b""
        ids = [letter.key, *(id_ for id_, waiting in self._open.items() if any(sent.data == value for sent in waiting))]
        for outcome in self._close(next((id_ for id_ in ids if id_ in self._open), "")):
            outcome.state, outcome.reason, outcome.message = "dead letter", letter.reason, letter.message
            outcome.service, outcome.letter = letter.stage, str(letter.place)
            yield outcome

    def _close(self, id_: str) -> Iterator[Outcome]:
        """Take one message of this id out of those that are waited for."""
        waiting = self._open.get(id_)
        if waiting:
            outcome, _, sent_at = waiting.pop(0)
            self._on_the_way -= 1
            if not waiting:
                del self._open[id_]
            outcome.ms = round((time.monotonic() - sent_at) * 1000, 1)
            yield outcome
