"""An audit names what was decided, commanded and forged, and finds every changed byte of what is signed."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from river_in_memory import River, drive
from signing_keys import KEY

from tidemill import Forgetting as Declared
from tidemill import load
from tidemill.errors import SettingsError
from tidemill.keys import Keyring
from tidemill.offline import audit_files
from tidemill.offline.audit import Audit, AuditRequest, is_in_order, summary_of
from tidemill.registry.alerts import alerts
from tidemill.registry.decisions import NOBODY, Command, ModelRef, commands, decisions
from tidemill.registry.forgetting import CHAIN, Forgetting, forgetting_codec
from tidemill.registry.signing import Head, LogWriter
from tidemill.report import audit_page
from tidemill.stages.learner import service as learner
from tidemill.stream.api import TopicPartition
from tidemill.wire import topics

pytestmark = pytest.mark.slow

ROUND = 30
SIGNED = (topics.MODELS, topics.PROMOTIONS, topics.COMMANDS, topics.ALERTS)
DECLARATION = """
import small
from river import compose
from tidemill import Monitor
models = {name: compose.Discard("carrier") | small.linear(rate) for name, rate in (("linear", 0.001), ("slow", 0.0001))}
pipeline = small.with_category(monitor=Monitor(segments=["carrier"]), models=models)
"""


def ask(river: River, kind: str, target: str, by: str, why: str) -> None:
    writer = LogWriter(commands(river.pipeline, KEY), river.broker, "status-0")
    writer.begin()
    ref = ModelRef.of(target) if target else NOBODY
    command = Command(f"{kind}-{target or 'back'}-1", kind, ref, 1, 0, by, why, int(time.time() * 1000))
    river.broker.append(writer.topic, writer.sign(command), command.id.encode())


def alert(river: River, state: str, kind: str, by: str = "monitor") -> None:
    writer = LogWriter(alerts(river.pipeline, KEY), river.broker, "monitor" if kind == "alert" else "status-0")
    writer.begin()
    record = {
        "id": "drift:distance", "state": state, "by": by, "kind": "drift", "model": "", "segment": "", "feature": "distance",
        "figure": "psi", "value": 0.5, "limit": 0.25, "since": 1, "start": 1, "end": 2, "opened_at": 3,
        "message": "distance has moved", "look_at": "its source", "evidence": {"psi": 0.5}, "signature": {},
    }  # fmt: skip
    river.broker.append(writer.topic, writer.sign(record, kind), b"drift:distance")


def play(river: River, begin: int) -> None:
    """Have one round of events, some of them refused, and labels for most."""
    for number in range(begin, begin + ROUND):
        event = small.event(f"e{number}", number * 10_000, ("JFK", "EWR")[number % 2], float(number % 11) * 50)
        river.event(event | ({"sched_hour": 99} if number % 10 == 9 else {}), timestamp=int(time.time() * 1000))
    for number in range(begin, begin + ROUND - 5):
        if number % 10 != 9:
            label = small.label(f"e{number}", number * 10_000 + 5, number * 7 % 13 - 6.0)
            river.label(label, timestamp=int(time.time() * 1000))
    river.run()
    assert river.registry
    drive(
        learner.build(river.pipeline, "slow", river.registry, river.broker, every_examples=100, every_seconds=1e-9),
        river.broker,
    )
    river.run()  # what the gate decided is served


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> River:
    """A river in which ann promoted a model, and bob rolled that back; the first version's artifact was rebuilt."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "audited.py").write_text(DECLARATION)
    river = River(load(str(folder / "audited.py")), folder / "artifacts")
    play(river, 0)
    ask(river, "promote", "slow", "ann", "it learns slowly, and that is better")
    play(river, ROUND)
    ask(river, "rollback", "", "bob", "no, it is not")
    alert(river, "opened", "alert")
    alert(river, "acknowledged", "acknowledgement", "ann")
    play(river, 2 * ROUND)
    return river


@pytest.fixture
def river(played: River) -> River:
    return played.copy()


def request(**changes: Any) -> AuditRequest:
    now = int(time.time() * 1000)
    return AuditRequest(**{"begin": now - 3_600_000, "end": now + 1000, "sample": 20, "seed": 7, **changes})


def audited(river: River, **changes: Any) -> dict[str, Any]:
    assert river.registry
    return Audit(river.pipeline, river.broker, river.registry, request(**changes)).run()


def change(river: River, topic: str, offset: int, data: bytes) -> None:
    entries = river.broker.log[TopicPartition(topic, 0)]
    fake = copy.copy(entries[offset])
    fake._value = data
    entries[offset] = fake


def test_who_served_when_and_by_whose_word(river: River) -> None:
    content = audited(river)
    assert [(turn["champion"], turn["kind"], turn["by"]) for turn in content["serving"]] == [
        ("linear", "declared", "declaration"), ("slow", "promoted", "ann"), ("linear", "rolled_back", "bob"),
    ]  # fmt: skip
    begins = [turn["from"] for turn in content["serving"]]
    assert begins[0] == content["from"]
    assert [turn["to"] for turn in content["serving"]] == [*begins[1:], content["to"]]
    assert [(one["by"], one["kind"], one["outcome"]) for one in content["commands"]] == [
        ("ann", "promote", "promoted"), ("bob", "rollback", "rolled_back"),
    ]  # fmt: skip
    answers = content["answers"]
    assert answers["as_decided"] + answers["changing"] == len(river.of(topics.PREDICTION_LOG))
    assert answers["otherwise"] == 0
    assert {line["model"] for line in answers["models"]} == {"linear", "slow"}


def test_all_that_the_log_holds_is_counted(river: River) -> None:
    content = audited(river)
    by_topic = {one["topic"]: one["records"] for one in content["coverage"]}
    letters = river.letters()
    assert by_topic["events"] == 3 * ROUND
    assert by_topic["events.valid"] + by_topic["dlq"] == 3 * ROUND
    assert by_topic["prediction-log"] == by_topic["events.valid"]
    assert by_topic["examples"] == len(river.of(topics.EXAMPLES)) > 0
    assert not any(one["is_cut"] for one in content["coverage"])
    (kind,) = content["dead_letters"]["kinds"]
    assert (kind["field"], kind["letters"]) == ("sched_hour", len(letters))
    performance = content["performance"]
    assert performance["why"] == ""
    assert performance["questions"] == by_topic["examples"]
    assert performance["predictions"] == by_topic["prediction-log"]
    assert performance["unlabelled"] == by_topic["prediction-log"] - by_topic["examples"]
    assert {line["field"] for line in performance["lines"]} == {"", "carrier"}
    assert [one["state"] for one in content["alerts"]] == ["opened", "acknowledged"]
    assert all(one["declared"] for one in content["schemas"]["written"])


def test_predictions_are_drawn_by_the_seed_and_made_again(river: River) -> None:
    first, again, other = audited(river), audited(river), audited(river, seed=8)
    replay = first["replay"]
    assert (replay["seed"], len(replay["predictions"])) == (7, 20)
    assert replay["equal"] == replay["scores"]
    assert replay["different"] == 0
    assert is_in_order(first)
    drawn = [[one["event_id"] for one in content["replay"]["predictions"]] for content in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert "20 predictions replayed (seed 7)" in "\n".join(summary_of(first))


def test_only_the_period_is_audited(river: River) -> None:
    begin = river.of(topics.PREDICTION_LOG)[0].timestamp()[1]
    content = audited(river, begin=begin - 7_200_000, end=begin - 3_600_000)
    assert all(not one["records"] for one in content["coverage"])
    assert content["decisions"] == content["commands"] == []
    assert [turn["champion"] for turn in content["serving"]] == ["linear"]
    assert "holds no prediction" in content["replay"]["why"]
    later = audited(river, begin=int(time.time() * 1000) + 500, end=int(time.time() * 1000) + 900)
    (turn,) = later["serving"]
    assert (turn["champion"], turn["by"]) == ("linear", "bob"), "by the last decision before it"
    with pytest.raises(SettingsError, match="--from is not before --to"):
        request(begin=5, end=5)


def test_a_score_that_the_log_has_changed_is_named(river: River) -> None:
    codec, topic = river.records.prediction_log, topics.PREDICTION_LOG.name("small")
    for slot, entries in river.broker.log.items():
        if slot.topic != topic:
            continue
        for index, record in enumerate(entries):
            log = codec.decode(record.value() or b"")
            log["champion"]["score"] += 1.0
            fake = copy.copy(record)
            fake._value = codec.encode(log)
            entries[index] = fake
    content = audited(river)
    assert content["replay"]["different"] >= 20
    assert not is_in_order(content)


def test_predictions_by_a_model_that_nobody_decided_are_wrong(river: River) -> None:
    """The decisions are gone, and with them the reason why another model answered."""
    river.broker.log[TopicPartition(topics.PROMOTIONS.name("small"), 0)] = []
    content = audited(river)
    assert content["answers"]["otherwise"] > 0
    assert any("by another model than the decisions say" in one["text"] for one in content["findings"])
    assert any(one["outcome"] == "" for one in content["commands"])


def test_who_asked_is_counted_and_who_was_refused_is_listed(river: River) -> None:
    asked: dict[str, Any] = {
        "time": int(time.time() * 1000), "service": "status", "instance": "0", "request_id": "r1", "by": "ann", "role": "viewer",
        "method": "GET", "route": "/api/entities/{entity_id:path}", "subject": "JFK", "status": 200, "dropped": 0,
    }  # fmt: skip
    for one in (asked, {**asked, "dropped": 3}, {**asked, "by": "bob", "status": 403, "request_id": "r2"}):
        river.broker.append("small.access", river.records.access.encode(one), one["by"].encode())
    river.broker.append("small.access", b"noise", b"x")
    content = audited(river, sample=0)
    access = content["access"]
    assert [(one["by"], one["status"], one["requests"]) for one in access["counts"]] == [
        ("ann", 200, 2),
        ("bob", 403, 1),
    ]
    assert [(one["by"], one["subject"], one["request_id"]) for one in access["refused"]] == [("bob", "JFK", "r2")]
    assert access["dropped"] == 3
    assert any("3 records of the access log were lost" in one["text"] for one in content["findings"])
    html = audit_page.render(content, "")
    assert "r2" in html
    hidden = River(dataclasses.replace(river.pipeline, events=dataclasses.replace(small.EVENTS, personal=["origin"])))
    hidden.broker, hidden.registry = river.broker, river.registry
    assert [one["subject"] for one in audited(hidden, sample=0)["access"]["refused"]] == ["(personal)"]


def forget(river: River, *, days: int = 0, is_done: bool = True, carried: tuple[str, ...] = ()) -> None:
    """Write what `tidemill forget` writes, and take out the manifest that it erases."""
    writer = LogWriter(forgetting_codec(river.pipeline, KEY), river.broker, CHAIN)
    now = int(time.time() * 1000) - days * 86_400_000
    content = {"first_example": 3, "models": {"linear": [0, 60], "slow": [0, 60]}}
    asked = Forgetting("request1", "asked", "ann", "letter 4711", now, ["ab" * 32], b"8 bytes.of event")
    certificate = {
        "requests": carried,
        "erased": {"small.events.valid": 2},
        "models": [{"model": "linear"}],
        "kept": {"events": None},
    }
    states = {"asked": content, "erasing": {"manifests": [["linear", 2]]}, "done": certificate}
    for state in ("asked", "erasing", *["done"] * is_done):
        writer.begin()
        record = writer.sign(dataclasses.replace(asked, state=state, content=json.dumps(states[state])))
        river.broker.append(writer.topic, record, b"request1", partition=0)


def wait(river: River, *, days: int) -> None:
    """Write a request that waits, which the other one carries out."""
    writer = LogWriter(forgetting_codec(river.pipeline, KEY), river.broker, CHAIN)
    now = int(time.time() * 1000) - days * 86_400_000
    writer.begin()
    record = writer.sign(Forgetting("waiting1", "waiting", "bob", "letter 8", now, ["cd" * 32], content='{"ids": ""}'))
    river.broker.append(writer.topic, record, b"waiting1", partition=0)


def take_out(river: River, topic: str, place: int) -> None:
    entries = river.broker.log[TopicPartition(topic, 0)]
    kept = [*entries[:place], *entries[place + 1 :]]
    for offset, record in enumerate(kept):
        kept[offset] = copy.copy(record)
        kept[offset]._offset = offset
    river.broker.log[TopicPartition(topic, 0)] = kept


def second_manifest(river: River) -> int:
    assert river.registry
    models = [river.registry.codec.parse(record.value() or b"") for record in river.of(topics.MODELS)]
    return next(n for n, one in enumerate(models) if one.model == "linear" and one.signature.sequence == 2)


class TestForgotten:
    def test_what_was_forgotten_is_listed_and_what_went_with_it_is_no_gap(self, river: River) -> None:
        earlier = audited(river, sample=0)
        take_out(river, "small.models", second_manifest(river))
        assert not is_in_order(audited(river, sample=0)), "else nothing would be seen below"
        forget(river)
        content = audited(river, rebuild=True, earlier=earlier)
        assert [one["text"] for one in content["findings"] if one["level"] == "wrong"] == []
        (one,) = content["forgotten"]
        assert (one["request"], one["by"], one["entities"], one["events"], one["manifests"]) == (
            "request1", "ann", 1, 2, 1,
        )  # fmt: skip
        assert one["done_at"] >= one["asked_at"]
        assert one["certificate"]["erased"] == {"small.events.valid": 2}
        signed = next(topic for topic in content["signed"] if topic["topic"] == "small.forgotten")
        assert signed["valid"] == 3
        whys = {score["why"] for one in content["replay"]["predictions"] for score in one["scores"]}
        assert any("what it had learned was forgotten on" in why and "request request1" in why for why in whys)
        assert content["replay"]["different"] == 0
        html = audit_page.render(content, "")
        assert all(text in html for text in ("Request request1: done", "letter 4711", "Left to retention: events"))
        assert "1 requests to forget, 1 of them done" in "\n".join(summary_of(content))

    def test_a_forged_request_explains_nothing(self, river: River) -> None:
        take_out(river, "small.models", second_manifest(river))
        forget(river)
        entries = river.broker.log[TopicPartition("small.forgotten", 0)]
        data = bytearray(entries[1].value() or b"")
        data[data.index(b"linear")] ^= 1
        change(river, "small.forgotten", 1, bytes(data))
        texts = [one["text"] for one in audited(river, sample=0)["findings"] if one["level"] == "wrong"]
        assert any("small.forgotten: 1 signed record is refused" in text for text in texts)
        assert any("models: missing of chain 'linear': record 2" in text for text in texts)

    @pytest.mark.parametrize(("is_done", "what"), [(True, "was done on"), (False, "is open")])
    def test_a_request_that_is_late_is_not_in_order(self, river: River, *, is_done: bool, what: str) -> None:
        river.pipeline = dataclasses.replace(river.pipeline, forgetting=Declared(within="2d"))
        forget(river, days=1, is_done=False)
        take_out(river, "small.models", second_manifest(river))
        assert is_in_order(audited(river, sample=0))
        forget(river, days=3, is_done=False)
        if is_done:
            forget(river)
        content = audited(river, sample=0)
        assert not is_in_order(content)
        assert any(what in one["text"] for one in content["findings"])

    def test_one_that_waits_has_its_own_deadline_and_names_what_carried_it_out(self, river: River) -> None:
        river.pipeline = dataclasses.replace(river.pipeline, forgetting=Declared(within="2d"))
        wait(river, days=1)
        (one,) = audited(river, sample=0)["forgotten"]
        assert (one["request"], one["by"], one["done_at"], one["with"]) == ("waiting1", "bob", None, None)
        take_out(river, "small.models", second_manifest(river))
        forget(river, carried=("waiting1",))
        content = audited(river, sample=0)
        assert is_in_order(content)
        assert [(one["request"], one["with"]) for one in content["forgotten"]] == [
            ("waiting1", "request1"), ("request1", None),
        ]  # fmt: skip
        html = audit_page.render(content, "")
        assert all(text in html for text in ("letter 8", "carried out with request request1"))

    @pytest.mark.parametrize("is_done", [True, False])
    def test_one_that_waited_for_too_long_is_not_in_order(self, river: River, *, is_done: bool) -> None:
        river.pipeline = dataclasses.replace(river.pipeline, forgetting=Declared(within="2d"))
        wait(river, days=3)
        if is_done:
            take_out(river, "small.models", second_manifest(river))
            forget(river, carried=("waiting1",))
        wrong = [one["text"] for one in audited(river, sample=0)["findings"] if one["level"] == "wrong"]
        assert len(wrong) == 1
        assert "request waiting1 to forget had to be done until" in wrong[0]


class TestForgeries:
    def reasons(self, river: River) -> set[tuple[str, int, str]]:
        assert river.registry
        refused = Audit(river.pipeline, river.broker, river.registry, request()).refused()
        return {(one.topic.removeprefix("small."), one.offset, one.reason) for one in refused}

    def test_an_old_a_foreign_a_forged_and_a_forked_record_are_each_named(self, river: River) -> None:
        log, name = river.broker.log, "small"
        assert self.reasons(river) == set()
        promotions = log[TopicPartition(topics.PROMOTIONS.name(name), 0)]
        end = len(promotions)
        river.broker.append(promotions[0].topic(), promotions[0].value(), promotions[0].key())
        codec = decisions(river.pipeline, KEY)
        genuine = codec.parse(promotions[0].value() or b"")
        stolen = dataclasses.replace(genuine, by="mallory", id="x")
        forged = decisions(river.pipeline, Keyring.generate()).sign(stolen, codec.head(genuine), chain="gate")
        river.broker.append(promotions[0].topic(), forged, b"x")
        river.broker.append(promotions[0].topic(), codec.sign(stolen, codec.head(genuine), chain="gate"), b"x")
        models = log[TopicPartition(topics.MODELS.name(name), 0)]
        river.broker.append(promotions[0].topic(), models[0].value(), b"x")
        asked = log[TopicPartition(topics.COMMANDS.name(name), 0)]
        change(river, asked[0].topic(), 0, asked[0].value() or b"")
        asked[0]._key = b"another-command"
        reasons = self.reasons(river)
        assert {
            ("promotions", end, "old"),
            ("promotions", end + 1, "forged"),
            ("promotions", end + 2, "forked"),
        } <= reasons
        assert {("promotions", end + 3, "damaged"), ("commands", 0, "foreign")} <= reasons
        content = audited(river)
        claims = {one["claims"] for one in content["refused"]}
        assert any("by mallory" in claim for claim in claims)
        assert not is_in_order(content)

    def test_a_record_that_was_taken_out_is_missed(self, river: River) -> None:
        for topic, place in ((topics.PROMOTIONS, 0), (topics.MODELS, second_manifest(river))):
            take_out(river, topic.name("small"), place)
        content = audited(river, sample=0)
        text = " ".join(one["text"] for one in content["findings"])
        assert "promotions: missing of chain 'gate': record 1" in text
        assert "models: missing of chain 'linear': record 2" in text

    def test_what_an_earlier_audit_had_last_must_still_be_there(self, river: River) -> None:
        earlier = audited(river, sample=0)
        play(river, 3 * ROUND)
        ask(river, "promote", "slow", "ann", "after all")
        assert is_in_order(audited(river, sample=0, earlier=earlier))
        asked = river.broker.log[TopicPartition(topics.COMMANDS.name("small"), 0)]
        del asked[1:]
        river.broker.log[TopicPartition(topics.ALERTS.name("small"), 0)] = []
        texts = [one["text"] for one in audited(river, sample=0, earlier=earlier)["findings"]]
        assert (
            "small.commands: record 2 of chain 'status-0', the newest in the earlier audit, is not in the log" in texts
        )
        assert sum("small.alerts: record 1 of chain" in text for text in texts) == 2

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_a_changed_byte_of_any_signed_record_is_found(self, played: River, data: st.DataObject) -> None:
        own = played.copy()
        topic = data.draw(st.sampled_from(SIGNED)).name("small")
        entries = own.broker.log[TopicPartition(topic, 0)]
        offset = data.draw(st.integers(0, len(entries) - 1))
        value = bytearray(entries[offset].value() or b"")
        value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
        change(own, topic, offset, bytes(value))
        places = {(one, place) for one, place, _ in self.reasons(own)}
        assert (topic.removeprefix("small."), offset) in places

    def test_every_kind_that_the_log_may_have_is_among_them(self, played: River) -> None:
        codecs = [decisions(played.pipeline, None), commands(played.pipeline, None), alerts(played.pipeline, None)]
        kinds = {"manifest"} if played.of(topics.MODELS) else set()
        for codec in codecs:
            for record in played.broker.records(codec.topic):
                kinds.add(codec.signature_of(codec.parse(record.value() or b"")).kind)
        assert kinds == {"manifest", "decision", "command", "alert", "acknowledgement"}

    def test_a_changed_byte_of_a_replacement_is_found(self, river: River) -> None:
        registry = river.registry
        assert registry
        manifest = registry.codec.parse(river.of(topics.MODELS)[0].value() or b"")
        own = registry.codec.head(manifest)
        copy_ = registry._replacements.sign(manifest, Head(own.sequence - 1, own.sha256), chain=manifest.model)
        registry.store.put_note(manifest.sha256, copy_)
        try:
            assert self.reasons(river) == set()
            for place in range(0, len(copy_), 41):
                changed = bytearray(copy_)
                changed[place] ^= 1
                registry.store.put_note(manifest.sha256, bytes(changed))
                assert len(self.reasons(river)) == 1, place
        finally:
            (Path(registry.store.url) / f"{registry.store.path(manifest.sha256)}.again").unlink()


class TestFiles:
    @pytest.fixture
    def content(self, played: River) -> dict[str, Any]:
        return audited(played)

    @pytest.fixture
    def folder(self, content: dict[str, Any], tmp_path: Path) -> Path:
        audit_files.write(tmp_path / "audit", content, audit_page.render(content, KEY.signs_with), KEY)
        return tmp_path / "audit"

    def test_as_it_was_written_it_is_in_order(self, folder: Path, content: dict[str, Any]) -> None:
        known, problems = audit_files.verify(folder, KEY.verifier())
        assert problems == []
        assert {name: known[name] for name in content} == content
        html = (folder / "audit.html").read_text()
        assert all(word in html for word in ("ann", "bob", "no, it is not", "drift:distance", "<b>7</b>"))
        assert not re.search(r"""<script|(src|href)=["']https?:""", html), "nothing is loaded from elsewhere"

    def test_a_changed_byte_of_either_file_is_found(self, folder: Path) -> None:
        for name in ("audit.json", "audit.html"):
            path = folder / name
            data = path.read_bytes()
            for place, bit in itertools.product(range(0, len(data), max(1, len(data) // 40)), (1, 128)):
                changed = bytearray(data)
                changed[place] ^= bit
                path.write_bytes(changed)
                assert name in audit_files.verify(folder, KEY)[1][0], place
            path.write_bytes(data + b" ")
            assert name in audit_files.verify(folder, KEY)[1][0]
            path.write_bytes(data)
        assert audit_files.verify(folder, KEY)[1] == []
        (folder / "audit.html").unlink()
        assert "audit.html can't be read" in audit_files.verify(folder, KEY)[1][0]

    def test_one_that_nobody_or_somebody_else_signed_does_not_count(
        self, folder: Path, content: dict[str, Any], tmp_path: Path
    ) -> None:
        assert "was changed, or is not signed" in audit_files.verify(folder, Keyring.generate())[1][0]
        others = Keyring.generate("command")
        audit_files.write(tmp_path / "other", content, "", others)
        assert "may sign command, and not a audit" in audit_files.verify(tmp_path / "other", others)[1][0]
        audit_files.write(tmp_path / "none", content, "", None)
        assert "it is not signed" in audit_files.verify(tmp_path / "none", KEY)[1][0]
        with pytest.raises(SettingsError, match=r"audit\.json can't be read"):
            audit_files.verify(tmp_path, KEY)

    def test_text_of_others_is_text_on_the_page(self, content: dict[str, Any]) -> None:
        hostile = json.loads(json.dumps(content).replace("no, it is not", "<img src=x onerror=alert(1)>"))
        html = audit_page.render(hostile, "")
        assert "&lt;img src=x" in html
        assert "<img" not in html
        assert "It is not signed" in html
