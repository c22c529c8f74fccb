"""An audit of a pipeline over a period: who served and why, whether the log proves it, and how good the answers were.

reads   every topic that says something of the period, Redis not at all; the artifacts of the versions that are named
period  by when a record was written (its timestamp in Kafka); of decisions and commands the time that they are signed
        with. Producers' own records have the times that producers gave them
memory  all decisions, commands and alerts; the manifests since the period began; the predictions that are drawn
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

import tidemill
from tidemill.declare.monitor import LIMITS
from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds, minute
from tidemill.encoding.codec import HEADER
from tidemill.errors import ArtifactError, SettingsError, StoreError
from tidemill.keys import RefusedError
from tidemill.models.corrections import Corrections, read_corrections
from tidemill.offline.compare import CHAMPION, Comparison, ComparisonRequest
from tidemill.offline.dead_letters import DeadLetters, LetterFilter
from tidemill.offline.replay import Replay, ReplayedScore, ShowProgress
from tidemill.offline.signed_log import RefusedRecord, SignedTopic, claims, read_signed, refused_record
from tidemill.offline.unlabelled import Unlabelled
from tidemill.registry.alerts import alerts
from tidemill.registry.decisions import Command, Decision, ModelRef, commands, decisions, kept_versions
from tidemill.registry.forgetting import Requests, forgetting_codec, split
from tidemill.registry.latest import versions
from tidemill.registry.manifests import SCHEMA_KINDS, Manifest, Registry
from tidemill.registry.signing import FIRST_READ_OFFSETS, sha256
from tidemill.stream.api import Broker, Progress, Record, TopicPartition
from tidemill.stream.origin import MAX_AHEAD_MS
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.personal import HIDDEN
from tidemill.wire.records import Records

#: How long after a decision predictions may still be made by who served before: services follow the log.
CHANGE_MS = 60_000
#: The topics whose records are counted, along the river.
COUNTED = (
    topics.EVENTS, topics.EVENTS_VALID, topics.LABELS, topics.LABELS_VALID, topics.DLQ, topics.PREDICTION_LOG,
    topics.EXAMPLES, topics.EXPIRED,
)  # fmt: skip
#: Requests that were refused for who sent them, listed one by one at most.
MAX_REFUSED_REQUESTS = 1_000
#: Figures of windows that say how far something has moved.
DRIFT = ("psi", "score_psi", "label_psi")
#: In these fields of a manifest it shows that something else was running.
BUILT_WITH = ("declaration", "tidemill", "river", "python")


@dataclass(frozen=True)
class AuditRequest:
    """What is audited: the time [begin, end) in ms since the epoch, and how many predictions are replayed.

    `seed` None draws one. `rebuild`: versions are folded again instead of loaded. `earlier`: an earlier audit's
    content: what was newest in each chain then must still be in the log.
    """

    begin: int
    end: int
    sample: int = 100
    seed: int | None = None
    rebuild: bool = False
    earlier: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.begin >= self.end:
            raise SettingsError("--from is not before --to: no time is between them; --to is not included")

    def covers(self, time_: int) -> bool:
        """Whether something of this time is meant."""
        return self.begin <= time_ < self.end


@dataclass
class _Count:
    """Records of a topic in the period; `is_cut`: the log may have had more of it, which is gone."""

    records: int = 0
    first: int = 0
    last: int = 0
    is_cut: bool = False
    schemas: dict[int, dict[str, int]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        now = record.timestamp()[1]
        self.first = min(self.first, now) if self.records else now
        self.last = max(self.last, now)
        self.records += 1
        value = record.value() or b""
        if len(value) >= HEADER and not value[0]:
            id_ = int.from_bytes(value[1:HEADER], "big")
            own = self.schemas.setdefault(id_, {"records": 0, "first": now, "last": now})
            own |= {"records": own["records"] + 1, "first": min(own["first"], now), "last": max(own["last"], now)}


class Audit:
    """Puts an audit together. Reads, and writes nothing. The registry's keys verify what is signed."""

    def __init__(self, pipeline: Pipeline, broker: Broker, registry: Registry, request: AuditRequest) -> None:
        self.pipeline, self.broker, self.registry, self.request = pipeline, broker, registry, request
        self.records = Records(pipeline)
        self.findings: list[dict[str, str]] = []

    def run(
        self, progress: ShowProgress = lambda _what, _total: contextlib.nullcontext(), now: float | None = None
    ) -> dict[str, Any]:
        """Return the audit for programs: JSON's own types, times in ms since the epoch."""
        request = self.request
        with progress("signed records", None):
            refused = self.refused()
            decided, commanded = self._decisions(), self._commands()
            serving = self._serving()
        with progress("records", self._total()) as advance:
            counts, answers, performance = self._log(serving, advance)
        body = {
            "pipeline": self.pipeline.name,
            "task": self.pipeline.task,
            "from": request.begin,
            "to": request.end,
            "made_at": int((time.time() if now is None else now) * 1000),
            "tidemill": tidemill.__version__,
            "declarations": {name: self.pipeline.declaration_hash(name) for name in self.pipeline.model_names},
            "signed": [one.as_dict() for one in self.signed],
            "refused": [vars(one) for one in refused],
            "serving": serving,
            "decisions": decided,
            "commands": commanded,
            "forgotten": self._forgotten(),
            "answers": answers,
            "artifacts": self._artifacts(),
            "replay": self._replay(progress),
            "coverage": self._coverage(counts),
            "performance": performance,
            "drift": self._drift(),
            "alerts": self._alerts(),
            "access": self._access(),
            "dead_letters": self._dead_letters(),
            "schemas": self._schemas(counts),
        }
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode({"findings": self.findings, **body}))
        return plain

    def _find(self, level: str, text: str) -> None:
        """Note what a reader should look at: "wrong" is what can't be where everything is in order."""
        self.findings.append({"level": level, "text": text})

    # What is signed ---------------------------------------------------------------------------------------------------

    @cached_property
    def _models(self) -> SignedTopic:
        topic = topics.MODELS.name(self.pipeline.name)
        partition = TopicPartition(topic, 0)
        begin = self.broker.offsets_at([partition], self.request.begin)[partition]
        begin = max(0, begin - FIRST_READ_OFFSETS)
        return read_signed(self.broker, self.registry.codec, begin, self._requests.erased)

    @cached_property
    def _promotions(self) -> SignedTopic:
        return read_signed(self.broker, decisions(self.pipeline, self.registry.keys))

    @cached_property
    def _asked(self) -> SignedTopic:
        return read_signed(self.broker, commands(self.pipeline, self.registry.keys))

    @cached_property
    def _alerted(self) -> SignedTopic:
        return read_signed(self.broker, alerts(self.pipeline, self.registry.keys))

    @cached_property
    def _requests(self) -> Requests:
        return Requests(self.pipeline, self.broker, self.registry.keys)

    @cached_property
    def signed(self) -> tuple[SignedTopic, ...]:
        """The signed topics, as they were read."""
        codec = forgetting_codec(self.pipeline, self.registry.keys)
        forgotten = [read_signed(self.broker, codec)] if self.broker.partitions(codec.topic) else []
        return self._promotions, self._asked, self._models, self._alerted, *forgotten

    def refused(self) -> list[RefusedRecord]:
        """Verify all that is signed; return what is refused, and note that and what is missing as findings."""
        refused = [*(one for topic in self.signed for one in topic.refused), *self._replacements()]
        for (place, reason), count in sorted(Counter((one.topic, one.reason) for one in refused).items()):
            self._find("wrong", f"{place}: {_records(count, 'is', 'are')} refused: {reason}")
        for signed in self.signed:
            for chain in signed.chains:
                for first, last in chain.missing:
                    gap = f"records {first} to {last}" if first < last else f"record {first}"
                    self._find("wrong", f"{signed.topic}: missing of chain {chain.chain!r}: {gap}")
        for topic, name, sequence in self._cut_off():
            text = f"{topic}: record {sequence} of chain {name!r}, the newest in the earlier audit, is not in the log"
            self._find("wrong", text)
        return refused

    def _cut_off(self) -> Iterator[tuple[str, str, int]]:
        """Yield the records that were the newest of their chains in the earlier audit, and are there no more."""
        signed = {one.topic: one for one in self.signed}
        erased = self._requests.erased
        for before in self.request.earlier.get("signed", ()):
            if (now := signed.get(before["topic"])) is None:
                yield from ((before["topic"], chain["chain"], chain["last"]) for chain in before["chains"])
                continue
            begins = {chain.chain: chain.first for chain in now.chains}
            hashes = {sha256(record.value() or b"") for record, _ in now.valid} if now.valid else set()
            for chain in before["chains"]:
                name, last = chain["chain"], chain["last"]
                # What lies before the part of the log that was read may be there, or may have been kept long enough.
                is_read = not now.begin or last >= begins.get(name, 0)
                is_erased = now is self._models and (name, last) in erased
                if is_read and not is_erased and chain["sha256"] not in hashes:
                    yield now.topic, name, last

    def _replacements(self) -> Iterator[RefusedRecord]:
        """Verify the signed copies that stand in for artifacts that were lost."""
        try:
            noted = self.registry.store.noted()
        except StoreError as error:
            self._find("note", f"the artifact store is not examined: {error}")
            return
        for record, manifest in self._models.valid:
            if manifest.sha256 not in noted:
                continue
            place = f"{self.registry.store.url}/{manifest.uri}"
            try:
                self.registry.replacement(manifest)
            except RefusedError as error:
                yield refused_record(place, record.offset(), manifest.created_at, error, manifest)
            except (ArtifactError, StoreError) as error:
                yield refused_record(
                    place, record.offset(), manifest.created_at, RefusedError("foreign", str(error)), manifest
                )

    # Who served -------------------------------------------------------------------------------------------------------

    @property
    def _decided(self) -> list[Decision]:
        return [decision for _, decision in self._promotions.valid]

    def _serving(self) -> list[dict[str, Any]]:
        """Return who served, one period of one champion after the other; before the first decision the declared one."""
        request = self.request
        champion, pinned = ModelRef(self.pipeline.champion), False
        turns: list[dict[str, Any]] = [_turn(request.begin, champion, pinned)]
        for one in self._decided:
            if one.time >= request.end or (one.champion, one.pinned) == (champion, pinned):
                continue
            champion, pinned = one.champion, one.pinned
            turn = _turn(max(one.time, request.begin), champion, pinned, one)
            if turns[-1]["from"] >= turn["from"]:
                turns.pop()
            turns.append(turn)
        for turn, follower in zip(turns, [*turns[1:], {"from": request.end}], strict=True):
            turn["to"] = follower["from"]
        return turns

    def _decisions(self) -> list[dict[str, Any]]:
        asked = {command.id: command for _, command in self._asked.valid}
        listed = []
        for record, one in self._promotions.valid:
            if not self.request.covers(one.time):
                continue
            command = asked.get(one.command)
            if one.command and command is None and not self._asked.begin:
                text = f"decision {one.id} says that {one.by} commanded it: command {one.command!r} is not in the log"
                self._find("wrong", text)
            elif command is not None and command.by != one.by:
                self._find("wrong", f"decision {one.id} is by {one.by}, and its command was given by {command.by}")
            listed.append(
                one.as_dict()
                | {name: str(getattr(one, name)) for name in ("subject", "champion", "before", "on_probation_against")}
                | {"offset": record.offset(), "key_id": one.signature.key_id}
            )
        return listed

    def _commands(self) -> list[dict[str, Any]]:
        answers = {one.command: one for one in self._decided if one.command}
        listed = []
        for record, one in self._asked.valid:
            if not self.request.covers(one.time):
                continue
            answer = answers.get(one.id)
            if answer is None and one.time < self.request.end - CHANGE_MS:
                self._find("note", f"command {one.id} ({claims(one)}) led to no decision")
            listed.append(_command(record, one, answer))
        return listed

    def _forgotten(self) -> list[dict[str, Any]]:
        """Return the requests to forget that were open in the period, or made; and note those that are overdue."""
        requests, declared = self._requests, self.pipeline.forgetting
        erased = Counter(one.id for one in requests.erased.values())
        listed = []
        for one in requests.records:
            done = requests.done.get(one.id)
            is_one = one.state in ("asked", "waiting")
            if not is_one or one.time >= self.request.end or (done and done.time < self.request.begin):
                continue
            until = one.time + milliseconds(declared.within) if declared else None
            if until is not None and (done.time if done else self.request.end) > until:
                when = f"was done on {minute(done.time)}" if done else "is open"
                self._find("wrong", f"request {one.id} to forget had to be done until {minute(until)} UTC, and {when}")
            certificate = json.loads(done.content) if done else {}
            carrier = done.id if done and done.id != one.id else None
            listed.append(
                {"request": one.id, "asked_at": one.time, "by": one.by, "why": one.why, "until": until}
                | {"entities": len(one.entities), "events": len(split(one.events)), "manifests": erased[one.id]}
                | {"done_at": done.time if done else None, "certificate": certificate, "with": carrier}
                | {"key_id": (done or one).signature.key_id}
            )
        return listed

    def _artifacts(self) -> list[dict[str, Any]]:
        """Return whether the versions that decisions of the period name are stored, and intact."""
        decided = [one for one in self._decided if self.request.covers(one.time)]
        named = sorted(kept_versions(decided))
        manifests, refused = versions(self.broker, self.registry, named)
        states = []
        for model, version in named:
            manifest, why = manifests.get((model, version)), refused.get((model, version), "")
            state = "no manifest" if manifest is None else "stored"
            request = self._requests.of_version(model, version, manifest.epoch if manifest else None)
            if manifest is not None:
                try:
                    self.registry.artifact(manifest)
                except (ArtifactError, StoreError) as error:
                    state, why = "missing or damaged", str(error)
            if state != "stored" and request:
                state, why = "forgotten", request.why_gone
            if state != "stored":
                self._find("note", f"model {model!r} version {version}, which decisions name: {why or state}")
            states.append({"model": model, "version": version, "state": state, "why": why})
        return states

    # The log ----------------------------------------------------------------------------------------------------------

    def _ranges(self, topic: Topic, slack: int = MAX_AHEAD_MS) -> dict[TopicPartition, tuple[int, int]]:
        """Return the offsets with all records of the period; some of others, as clocks differ by up to `slack`."""
        name = topic.name(self.pipeline)
        partitions = [TopicPartition(name, number) for number in range(self.broker.partitions(name))]
        begins = self.broker.offsets_at(partitions, self.request.begin)
        ends = self.broker.offsets_at(partitions, self.request.end + slack)
        held = {partition: self.broker.offset_range(partition) for partition in partitions}
        return {
            partition: (max(low, begins[partition]), min(high, ends[partition]))
            for partition, (low, high) in held.items()
        }

    def _total(self) -> int:
        return sum(end - begin for topic in COUNTED for begin, end in self._ranges(topic).values())

    def _read(self, topic: Topic, count: _Count, progress: Progress | None) -> Iterator[Record]:
        """Yield the records of the period, counted."""
        ranges = self._ranges(topic)
        lows = {partition: self.broker.offset_range(partition)[0] for partition in ranges}
        count.is_cut = any(low and begin == low for low, (begin, _) in zip(lows.values(), ranges.values(), strict=True))
        for batch in self.broker.read(ranges):
            for record in batch:
                if self.request.covers(record.timestamp()[1]):
                    count.add(record)
                    yield record
            if progress:
                progress(len(batch))

    def _log(
        self, serving: Sequence[Mapping[str, Any]], progress: Progress | None
    ) -> tuple[dict[str, _Count], dict[str, Any], dict[str, Any]]:
        """Read the period's records once: how many, by whom predictions were made, and how good they were."""
        counts = {topic.suffix: _Count() for topic in COUNTED}
        corrections = read_corrections(self.pipeline, self.broker)
        answers, performance = _Answers(serving), _Performance(self.pipeline, corrections)
        for topic in COUNTED:
            for record in self._read(topic, counts[topic.suffix], progress):
                if topic is topics.PREDICTION_LOG:
                    answers.add(record, self.records.prediction_log.of(record.value()))
                    performance.unlabelled.predicted(record)
                elif topic is topics.EXAMPLES and not corrections.is_one(record):
                    performance.add(self.records.example.of(record.value()))
                    performance.unlabelled.joined(record)
        if answers.otherwise:
            text = f"{answers.otherwise:,} predictions were served by another model than the decisions say"
            self._find("wrong", text)
        return counts, answers.as_dict(), performance.as_dict()

    def _replay(self, progress: ShowProgress) -> dict[str, Any]:
        """Return a sample of the period's predictions, each made again."""
        request = self.request
        seed = random.randrange(2**32) if request.seed is None else request.seed  # noqa: S311  it hides nothing
        drawn = {"asked": request.sample, "seed": seed, "rebuilt": request.rebuild}
        if not request.sample:
            return drawn | {"why": "none was asked for", "predictions": []}
        replaying = Replay(self.pipeline, self.broker, self.registry)
        ranges = self._ranges(topics.PREDICTION_LOG, slack=0)
        try:
            report = replaying.report(
                sample=request.sample, seed=seed, ranges=ranges, rebuild=request.rebuild, progress=progress
            )
        except SettingsError as error:
            return drawn | {"why": str(error), "predictions": []}
        summary = report.summary
        if summary.different:
            self._find("wrong", f"{summary.different:,} of {summary.scores:,} replayed scores differ from the log's")
        if summary.gone:
            self._find("note", f"{summary.gone:,} of {summary.scores:,} scores of the sample can't be made again")
        predictions = [
            {
                "event_id": one.prediction.event_id,
                "partition": one.prediction.record.partition(),
                "offset": one.prediction.record.offset(),
                "time": one.prediction.record.timestamp()[1],
                "equal": one.is_equal,
                "scores": [_score(score) for score in one.scores],
            }
            for one in report.replayed
        ]
        known = dataclasses.asdict(summary)
        return drawn | {"why": ""} | {name: known[name] for name in _REPLAYED} | {"predictions": predictions}

    def _coverage(self, counts: Mapping[str, _Count]) -> list[dict[str, Any]]:
        for suffix, count in counts.items():
            if count.is_cut:
                self._find("note", f"{suffix}: the log does not reach back to the beginning: earlier records are gone")
        return [
            {"topic": suffix} | {name: getattr(count, name) for name in ("records", "first", "last", "is_cut")}
            for suffix, count in counts.items()
        ]

    # What was watched -------------------------------------------------------------------------------------------------

    def _drift(self) -> list[dict[str, Any]]:
        """Return how far features, scores and labels were from the reference at most, by the monitor's windows."""
        moved: dict[tuple[str, str, str], dict[str, Any]] = {}
        for record in self._read(topics.WINDOWS, _Count(), None):
            window = self.records.window.of(record.value())
            for figure in window["figures"] if window else ():
                name, model, feature = figure["name"], figure["model"], figure["feature"]
                if name not in DRIFT or figure["segment"] or figure["version"] != -1:
                    continue
                limit = self.pipeline.monitor.limit(name, feature) or LIMITS[name]
                empty = {"figure": name, "model": model, "feature": feature, "limit": limit, "windows": 0, "beyond": 0}
                line = moved.setdefault((name, model, feature), empty | {"largest": -1.0, "at": 0})
                line["windows"] += 1
                line["beyond"] += figure["value"] > limit
                if figure["value"] > line["largest"]:
                    line |= {"largest": figure["value"], "at": window["start"]}
        return sorted(moved.values(), key=lambda line: -line["largest"] / line["limit"])

    def _alerts(self) -> list[dict[str, Any]]:
        """Return what opened, resolved or acknowledged an alert."""
        names = ("id", "state", "by", "value", "limit", "message")
        return [
            {"time": record.timestamp()[1]} | {name: alert[name] for name in names}
            for record, alert in self._alerted.valid
            if self.request.covers(record.timestamp()[1]) and alert["state"] != "continuing"
        ]

    def _access(self) -> dict[str, Any]:
        """Return who read and commanded by the services with an interface, counted, and who was refused, one by one."""
        counts: dict[tuple[Any, ...], dict[str, Any]] = {}
        refused, dropped = list[dict[str, Any]](), 0
        for record in self._read(topics.ACCESS, _Count(), None):
            access = self.records.access.of(record.value())
            if access is None:
                continue
            own = {name: access[name] for name in _ACCESSED}
            line = counts.setdefault(tuple(own.values()), {**own, "requests": 0, "first": access["time"], "last": 0})
            line |= {"requests": line["requests"] + 1, "last": max(line["last"], access["time"])}
            dropped += access["dropped"]
            if access["status"] in (401, 403) and len(refused) < MAX_REFUSED_REQUESTS:
                mask = self.records.mask
                is_shown = not mask.is_on or "command" in access["route"]
                refused.append(access if is_shown else {**access, "subject": HIDDEN})
        if dropped:
            self._find("note", f"{dropped:,} records of the access log were lost while Kafka did not take them")
        lines = sorted(counts.values(), key=lambda line: (line["by"], line["first"]))
        return {"dropped": dropped, "counts": lines, "refused": refused}

    def _dead_letters(self) -> dict[str, Any]:
        wanted = LetterFilter(since=self.request.begin, until=self.request.end)
        return DeadLetters(self.pipeline, self.broker).stats(wanted).as_dict()

    def _schemas(self, counts: Mapping[str, _Count]) -> dict[str, Any]:
        """Return the schemas of what was written, and what changed from one version of a model to the next."""
        declared = {getattr(self.records, kind).id for kind in (*SCHEMA_KINDS, "prediction_log")}
        declared |= {self.records.sent_event.id, self.records.sent_label.id, self.records.correction.id}
        written = [
            {"topic": suffix, "id": id_, "declared": id_ in declared} | own
            for suffix, count in counts.items()
            if suffix != topics.DLQ.suffix
            for id_, own in count.schemas.items()
        ]
        before: dict[str, Mapping[str, Any]] = {}
        changes = []
        for _, manifest in self._models.valid:
            now = _built_with(manifest)
            known = before.get(manifest.model, now)
            if self.request.covers(manifest.created_at):
                line = {"time": manifest.created_at, "model": manifest.model, "version": manifest.version}
                changes += [
                    line | {"what": what, "before": known.get(what), "after": value}
                    for what, value in now.items()
                    if known.get(what) != value
                ]
            before[manifest.model] = now
        return {"written": written, "changes": changes}


#: By what the requests of the access log are counted.
_ACCESSED = ("by", "role", "service", "method", "route", "status")
#: What of a replay's summary is in an audit.
_REPLAYED = ("scores", "versions", "equal", "different", "gone", "skipped")


class _Answers:
    """By whom predictions were made, and whether decisions say so."""

    def __init__(self, serving: Sequence[Mapping[str, Any]]) -> None:
        self._turns, self._begins = serving, [turn["from"] for turn in serving]
        self.as_decided = self.changing = self.otherwise = self.undecodable = 0
        self._models: dict[tuple[str, int], dict[str, Any]] = {}
        self._versions: dict[tuple[str, int], set[int]] = {}

    def add(self, record: Record, log: Mapping[str, Any] | None) -> None:
        """Take a record of the prediction log; `log` None: it is of another declaration."""
        if log is None:
            self.undecodable += 1
            return
        now, answer = record.timestamp()[1], log["champion"]
        index = bisect.bisect_right(self._begins, now) - 1
        if _is_of(answer, self._turns[index]):
            self.as_decided += 1
        elif index and now - self._begins[index] < CHANGE_MS and _is_of(answer, self._turns[index - 1]):
            self.changing += 1
        else:
            self.otherwise += 1
        key = answer["model"], answer["epoch"]
        line = self._models.setdefault(key, {"predictions": 0, "first": now, "last": now})
        line |= {
            "predictions": line["predictions"] + 1,
            "first": min(line["first"], now),
            "last": max(line["last"], now),
        }
        self._versions.setdefault(key, set()).add(answer["version"])

    def as_dict(self) -> dict[str, Any]:
        """Return the counts for programs."""
        models = [
            {"model": model, "epoch": epoch, **line}
            | {"versions": len(own), "first_version": min(own), "last_version": max(own)}
            for (model, epoch), line in self._models.items()
            for own in (self._versions[model, epoch],)
        ]
        names = ("as_decided", "changing", "otherwise", "undecodable")
        return {name: getattr(self, name) for name in names} | {"models": models}


class _Performance:
    """How good the serving model was, beside the baseline, over the period's examples, by their labels of today."""

    def __init__(self, pipeline: Pipeline, corrections: Corrections) -> None:
        self._corrections = corrections
        gate = pipeline.gate.segments if pipeline.gate else None
        segments = tuple(dict.fromkeys((*pipeline.monitor.segments, *(gate or ()))))
        self._comparison = Comparison(pipeline, ComparisonRequest(CHAMPION, "baseline", segments=segments))
        #: Of the period's predictions, those that had no label when it ended.
        self.unlabelled = Unlabelled(self._comparison.records)

    def add(self, example: Any) -> None:
        """Take an example; None is one of another declaration."""
        if example is None:
            self._comparison.report.skipped += 1
        else:
            corrected = self._corrections.apply(example)
            self._comparison.take(corrected, is_corrected=corrected is not example)

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison for programs; `why` says why there is none."""
        self._comparison.count(self.unlabelled)
        try:
            report = self._comparison.finish()
        except SettingsError as error:
            return {"why": str(error), "lines": []}
        lines = [line.as_dict() | {"loss": line.loss._asdict() if line.loss else None} for line in report.lines]
        return {"why": ""} | report.as_dict() | {"lines": lines}


def _records(count: int, one: str, several: str) -> str:
    return f"1 signed record {one}" if count == 1 else f"{count:,} signed records {several}"


def _turn(begin: int, champion: ModelRef, pinned: bool, one: Decision | None = None) -> dict[str, Any]:
    return {
        "from": begin,
        "champion": str(champion),
        "model": champion.model,
        "version": champion.version,
        "pinned": pinned,
        "decision": one.id if one else "",
        "kind": one.kind if one else "declared",
        "by": one.by if one else "declaration",
        "why": one.why if one else "the declared champion serves until somebody decides",
        "decided_at": one.time if one else None,
    }


def _score(score: ReplayedScore) -> dict[str, Any]:
    now = None if score.now is None else score.now["score"]
    names = ("model", "version", "epoch", "score")
    known = {name: score.then[name] for name in names}  # type: ignore[literal-required]
    return known | {"role": score.role, "state": score.state, "why": score.why, "score_now": now}


def _is_of(answer: Mapping[str, Any], turn: Mapping[str, Any]) -> bool:
    return answer["model"] == turn["model"] and turn["version"] in (0, answer["version"])


def _command(record: Record, one: Command, answer: Decision | None) -> dict[str, Any]:
    names = ("id", "kind", "by", "why", "time", "steps", "begin")
    return {name: getattr(one, name) for name in names} | {
        "target": str(one.target),
        "offset": record.offset(),
        "key_id": one.signature.key_id,
        "decision": answer.id if answer else "",
        "outcome": answer.kind if answer else "",
        "answer": answer.why if answer else "",
    }


def _built_with(manifest: Manifest) -> dict[str, Any]:
    schemas = {f"schema of {kind}": id_ for kind, id_ in manifest.schemas.items()}
    return schemas | {name: getattr(manifest, name) for name in BUILT_WITH}


def summary_of(content: Mapping[str, Any]) -> Iterable[str]:
    """Yield in a few sentences what an audit says."""
    replay, answers = content["replay"], content["answers"]
    yield f"{content['pipeline']}, {minute(content['from'])} to {minute(content['to'])} UTC"
    valid = sum(one["valid"] for one in content["signed"])
    yield f"{valid:,} signed records are valid, {len(content['refused']):,} are refused"
    yield f"{len(content['decisions']):,} decisions, {len(content['commands']):,} commands"
    if requests := content["forgotten"]:
        done = sum(one["done_at"] is not None for one in requests)
        yield f"{len(requests):,} requests to forget, {done:,} of them done"
    made = answers["as_decided"] + answers["changing"] + answers["otherwise"]
    yield f"{made:,} predictions, {answers['as_decided']:,} of them by the model that was decided"
    if replay["why"]:
        yield f"no prediction was replayed: {replay['why']}"
    else:
        yield (
            f"{len(replay['predictions']):,} predictions replayed (seed {replay['seed']}): {replay['equal']:,} of "
            f"{replay['scores']:,} scores are equal"
        )


def is_in_order(content: Mapping[str, Any]) -> bool:
    """Whether nothing was found that can't be where everything is in order."""
    return all(finding["level"] != "wrong" for finding in content["findings"])
