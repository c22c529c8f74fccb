"""A prediction done again is the prediction; what differs, or can't be done any more, is told, and why."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from click.testing import CliRunner
from river import naive_bayes
from river_in_memory import River, drive
from signing_keys import KEY, SETTINGS

from tidemill import load
from tidemill.cli.main import cli
from tidemill.cli.text.predictions import prediction_text
from tidemill.encoding.codec import HEADER
from tidemill.errors import SettingsError
from tidemill.keys import Keyring
from tidemill.offline.prediction_reader import MAX_GAP_OFFSETS
from tidemill.offline.replay import Replay, Summary
from tidemill.registry.latest import models_partition
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.store import ArtifactStore
from tidemill.stages.learner import service as learner
from tidemill.stream.api import TopicPartition
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.wire import topics

pytestmark = pytest.mark.slow

DECLARATION = "import small\npipeline = small.make(models={'linear': small.linear(), 'slow': small.linear(0.0001)})\n"
LOG, EXAMPLES, MODELS = topics.PREDICTION_LOG, topics.EXAMPLES, topics.MODELS
ROUND = 30


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> River:
    """Four rounds of 30 events; 25 of each get labels, and every model publishes a version after each."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "declared.py").write_text(DECLARATION)
    river = River(load(str(folder / "declared.py")), folder / "artifacts")
    assert river.registry
    for begin in range(0, 4 * ROUND, ROUND):
        for number in range(begin, begin + ROUND):
            at = number * 10_000
            river.event(small.event(f"e{number}", at, ("JFK", "EWR")[number % 2], float(number % 11) * 50))
        for number in range(begin, begin + ROUND - 5):
            river.label(small.label(f"e{number}", number * 10_000 + 5, number * 7 % 13 - 6.0))
        river.run()
        for name in ("slow", "baseline"):
            drive(
                learner.build(
                    river.pipeline, name, river.registry, river.broker, every_examples=100, every_seconds=1e-9
                ),
                river.broker,
            )
    return river


@pytest.fixture
def river(learned: River) -> River:
    """One of its own for each test, to be spoilt; the artifacts are shared."""
    return learned.copy()


def of(river: River, registry: Registry | None = None) -> Replay:
    assert river.registry
    return Replay(river.pipeline, river.broker, registry or river.registry)


def states(done: Any) -> set[str]:
    return {again.state for one in done for again in one.scores}


def spoil(river: River, event_id: str, model: str, score: float) -> None:
    """Have the log say that a model gave another score."""
    codec = river.records.prediction_log
    for slot, entries in river.broker.log.items():
        for index, record in enumerate(entries):
            if slot.topic == LOG.name("small") and record.key() == event_id.encode():
                log = codec.decode(record.value() or b"")
                for each in (log["champion"], *log["challengers"]):
                    if each["model"] == model:
                        each["score"] = score
                fake = copy.copy(record)
                fake._value = codec.encode(log)
                entries[index] = fake


def manifests(river: River) -> list[Manifest]:
    assert river.registry
    return [river.registry.decode(record.value() or b"") for record in river.of(MODELS)]


@pytest.mark.parametrize("rebuild", [False, True])
def test_every_prediction_of_every_model_comes_out_as_it_was(river: River, rebuild: bool) -> None:
    there = of(river)
    found = there.log.draw(1000, 1)
    assert len({prediction.event_id for prediction in found}) == len(found) == 4 * ROUND
    assert {score["version"] for prediction in found for score in prediction.scores} == {0, 25, 50, 75}
    done = there.run(found, rebuild=rebuild)
    assert [len(one.scores) for one in done] == [3] * len(found)
    assert states(done) == {"equal"}
    summary = Summary()
    summary.add(done)
    assert (summary.scores, summary.versions, summary.equal, summary.is_equal) == (360, 12, 360, True)


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("model", ["linear", "slow", "baseline"])
def test_a_score_that_is_not_the_models_is_told(river: River, model: str, rebuild: bool) -> None:
    spoil(river, "e70", model, 0.125)
    there = of(river)
    done = there.run(there.log.draw(1000, 1), rebuild=rebuild)
    unequal = [(one, again) for one in done for again in one.scores if again.state != "equal"]
    ((one, again),) = unequal
    assert (one.prediction.event_id, again.then["model"], again.state) == ("e70", model, "different")
    assert again.then["score"] == 0.125 != again.now["score"]


def test_a_vector_that_was_changed_is_told(river: River) -> None:
    codec = river.records.prediction_log
    (record,) = [record for record in river.of(LOG) if record.key() == b"e80"]
    log = codec.decode(record.value() or b"")
    log["features"]["vector"]["distance"] += 1
    record._value, whole = codec.encode(log), record._value
    there = of(river)
    try:
        assert {again.then["model"] for again in there.run(there.log.find(["e80"]), rebuild=False)[0].scores
                if again.state == "different"} == {"linear", "slow"}  # fmt: skip
    finally:
        record._value = whole


def test_all_about_one_prediction(river: River) -> None:
    there = of(river)
    (told,) = there.details(there.run(there.log.find(["e70"]), rebuild=False))
    assert told["event"]["record"]["flight_id"] == "e70"
    assert told["event"]["schema_id"] == river.records.event.id
    assert told["event"]["topic"] == "small.events.valid"
    assert told["vector"]["distance"] == 70 % 11 * 50
    assert (told["outcome"]["state"], told["outcome"]["label"]) == ("joined", 70 * 7 % 13 - 6.0)
    assert [(score["model"], score["role"], score["version"], score["state"]) for score in told["scores"]] == [
        ("linear", "champion", 50, "equal"), ("slow", "challenger", 50, "equal"), ("baseline", "baseline", 50, "equal"),
    ]  # fmt: skip
    manifest = told["scores"][0]["manifest"]
    assert manifest["declaration"] == river.pipeline.declaration_hash("linear")
    assert manifest["hyperparameters"] == river.pipeline.stable_repr("linear")
    assert "signature" not in manifest
    json.dumps(told)
    waits = there.details(there.run(there.log.find(["e88", "e3"]), rebuild=False))
    assert [one["outcome"]["state"] for one in waits] == ["pending", "joined"]
    assert [score["manifest"] for score in waits[1]["scores"]] == [None] * 3, "it was scored before the first version"


def test_an_event_that_was_predicted_twice_has_both_shown(river: River) -> None:
    (record,) = [record for record in river.of(LOG) if record.key() == b"e70"]
    log = river.records.prediction_log.decode(record.value() or b"")
    log["features"]["offset"] += 1
    river.broker.append(LOG.name("small"), river.records.prediction_log.encode(log), b"e70")
    there = of(river)
    both = there.details(there.run(there.log.find(["e70"]), rebuild=False))
    assert [one["outcome"]["state"] for one in both] == ["joined", "other"]
    assert both[1]["event"]["why"] == "another event is at this offset: the topic was deleted and created again"


def test_an_event_that_nobody_knows(river: River) -> None:
    with pytest.raises(
        SettingsError, match=r"no prediction of event 'e999' in small.prediction-log: it holds 120 offsets"
    ):
        of(river).log.find(["e70", "e999"])
    river.broker.truncate(TopicPartition(LOG.name("small"), 1), 5)
    with pytest.raises(SettingsError, match=r"cut off \(\[1\] begins at 5\); the archive has it"):
        of(river).log.find(["e999"])


def test_the_event_is_cut_off_and_the_prediction_stands(river: River) -> None:
    for partition in range(2):
        river.broker.truncate(TopicPartition(topics.EVENTS_VALID.name("small"), partition), 60)
    there = of(river)
    (told,) = there.details(there.run(there.log.find(["e3"]), rebuild=False))
    assert told["event"]["why"] == "the log does not hold it any more"
    assert {score["state"] for score in told["scores"]} == {"equal"}


def test_an_artifact_that_was_pruned_or_damaged_is_folded_anew(river: River, tmp_path: Path) -> None:
    assert river.registry
    (manifest,) = [m for m in manifests(river) if (m.model, m.version) == ("slow", 50)]
    path = Path(river.registry.store.url) / manifest.uri
    whole = path.read_bytes()
    there = of(river)
    found = there.log.find(["e70"])
    try:
        for data, why in ((None, "is not in"), (whole[:-1], "is damaged")):
            path.unlink() if data is None else path.write_bytes(data)
            (done,) = there.run(found, rebuild=False)
            assert [again.state for again in done.scores] == ["equal", "gone", "equal"]
            assert why in done.scores[1].why
            assert done.scores[1].why.endswith("--rebuild folds it again from the examples")
            assert states(there.run(found, rebuild=True)) == {"equal"}
    finally:
        path.write_bytes(whole)


def test_a_version_whose_manifest_is_gone_or_forged_is_refused(river: River) -> None:
    assert river.registry
    slot = models_partition(river.registry)
    entries = river.broker.log[slot]
    at = next(i for i, m in enumerate(manifests(river)) if (m.model, m.version) == ("linear", 50))
    forged = copy.copy(entries[at])
    forged._value = river.registry.encode(replace(manifests(river)[at], sha256="0" * 64))
    whole = entries[at]
    entries[at] = forged
    there = of(river)
    (done,) = there.run(there.log.find(["e70"]), rebuild=False)
    assert done.scores[0].state == "gone"
    assert "'linear' version 50: it has a wrong signature by key" in done.scores[0].why
    assert states(there.run(there.log.find(["e70"]), rebuild=True)) == {"equal"}
    entries[at] = whole
    river.broker.append(slot.topic, forged.value(), b"linear", partition=0)
    river.broker.append(slot.topic, b"nothing that is Avro", b"linear", partition=0)
    assert states(there.run(there.log.find(["e70"]), rebuild=False)) == {"equal"}, "the sound one is still there"
    river.broker.truncate(slot, len(river.broker.log[slot]))
    (done,) = there.run(there.log.find(["e70"]), rebuild=False)
    assert "small.models has no manifest of model 'linear' version 50" in done.scores[0].why
    other = Registry(river.pipeline, ArtifactStore(river.registry.store.url), Keyring.generate())
    river.broker.first[slot] = 0
    assert states(of(river, other).run(there.log.find(["e70"]), rebuild=False)) == {"gone"}


def test_examples_that_are_cut_off_can_not_be_folded(river: River) -> None:
    river.broker.truncate(TopicPartition(EXAMPLES.name("small"), 0), 1)
    there = of(river)
    done = there.run(there.log.find(["e70", "e3"]), rebuild=True)
    assert [again.state for again in done[0].scores] == ["gone"] * 3
    assert "does not reach back to 0 any more, its first offset is 1; without --rebuild" in done[0].scores[0].why
    assert [again.state for again in done[1].scores] == ["equal"] * 3, "what has learned nothing needs none"
    river.broker.first.clear()
    river.broker.first.update(dict.fromkeys(river.broker.log, 0))
    examples = river.broker.log[TopicPartition(EXAMPLES.name("small"), 0)]
    later = examples[49]
    later._offset = 1000
    try:
        done = there.run(there.log.find(["e70"]), rebuild=True)
        assert "lies at 48 in small.examples, and it has learned the one at 49" in done[0].scores[0].why
    finally:
        later._offset = 49
    del examples[40:]
    done = there.run(there.log.find(["e70"]), rebuild=True)
    assert "small.examples ends at 40" in done[0].scores[0].why


def test_one_fold_serves_all_in_whatever_order_they_are_asked_for(river: River) -> None:
    there, read = of(river), []
    found = there.log.find(["e110", "e3", "e70", "e40", "e100"])
    whole = river.broker.read
    river.broker.read = lambda ranges: read.append(ranges) or whole(ranges)  # type: ignore[method-assign, func-returns-value]
    steps: list[int] = []
    done = there.run(found, rebuild=True, progress=steps.append)
    assert [one.prediction.event_id for one in done] == ["e110", "e3", "e70", "e40", "e100"]
    assert states(done) == {"equal"}
    slot = TopicPartition(EXAMPLES.name("small"), 0)
    assert [ranges[slot] for ranges in read if slot in ranges] == [(0, 75)], (
        "once, and no further than the last version"
    )
    assert sum(steps) == 75


@pytest.mark.slow
def test_probabilities_are_compared_class_by_class(tmp_path: Path) -> None:
    labels = replace(small.LABELS, value=lambda label: ("early", "well", "late")[int(label["arr_delay"]) % 3])
    declared = small.make(
        task="multiclass", labels=labels, models={"bayes": naive_bayes.GaussianNB()}, champion="bayes", views=[]
    )
    river = River(declared, tmp_path / "artifacts")
    for begin in (0, ROUND):
        for number in range(begin, begin + ROUND):
            river.event(small.event(f"e{number}", number, distance=float(number % 11)))
            river.label(small.label(f"e{number}", number + 5, float(number % 11)))
        river.run()
    there = of(river)
    (found,) = there.log.find(["e50"])
    assert found.log["champion"]["version"] == ROUND
    assert set(found.log["champion"]["probabilities"]) == {"early", "well", "late"}
    for rebuild in (False, True):
        assert states(there.run([found], rebuild=rebuild)) == {"equal"}
    found.log["champion"]["probabilities"]["late"] += 1e-12
    done = there.run([found], rebuild=False)
    assert done[0].scores[0].state == "different"
    text = prediction_text(declared, there.details(done)[0])
    assert "different probabilities" in text
    assert " late " in text


def test_what_expired_says_so(river: River) -> None:
    (record,) = [record for record in river.of(LOG) if record.key() == b"e88"]
    river.broker.append(topics.EXPIRED.name("small"), record.value(), b"e88")
    there = of(river)
    (told,) = there.details(there.run(there.log.find(["e88"]), rebuild=False))
    assert (told["outcome"]["state"], told["outcome"]["topic"]) == ("expired", "small.expired")
    assert "never came in time: small.expired[" in prediction_text(river.pipeline, told)


def test_what_was_sent_commands_no_terminal(river: River) -> None:
    there = of(river)
    (told,) = there.details(there.run(there.log.find(["e70"]), rebuild=False))
    hostile = "\x1b[31m[bold]red[/bold]\u202e\r\n\x00"
    told["event_id"] = told["entity_id"] = told["event"]["record"]["carrier"] = told["vector"]["hour"] = hostile
    told["views"][0]["entity_id"] = told["scores"][0]["why"] = told["scores"][1]["model"] = hostile
    text = prediction_text(river.pipeline, told)
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert "\\x1b[31m[bold]red[/bold]" in text


def test_another_declaration_is_named(river: River) -> None:
    declared = small.make(models={"linear": small.linear(0.5)})
    there = Replay(declared, river.broker, Registry(declared, river.registry.store, KEY))  # type: ignore[union-attr]
    for rebuild in (False, True):
        (done,) = there.run(there.log.find(["e70"]), rebuild=rebuild)
        assert "was learned under another declaration" in done.scores[0].why
        assert "model 'slow' is not declared any more" in done.scores[1].why
        assert done.scores[2].state == "equal"
    other = small.with_category()
    there = Replay(other, river.broker, Registry(other, river.registry.store, KEY))  # type: ignore[union-attr]
    with pytest.raises(SettingsError, match="name the pipeline's file as it was then"):
        there.log.find(["e70"])
    assert there.log.draw(10, 1) == []
    assert there.log.skipped == 4 * ROUND


def test_a_model_that_fails_now_is_told(river: River) -> None:
    there = of(river)
    (found,) = there.log.find(["e70"])
    broken = copy.deepcopy(found)
    broken.log["features"]["vector"]["distance"] = "far"
    (done,) = there.run([broken], rebuild=False)
    assert "'linear' version 50 raised" in done.scores[0].why


class TestDraw:
    def test_the_same_seed_draws_the_same(self, river: River) -> None:
        ids = [[p.event_id for p in of(river).log.draw(20, seed)] for seed in (1, 1, 2)]
        assert ids[0] == ids[1] != ids[2]
        assert [len(set(drawn)) for drawn in ids] == [20] * 3

    @pytest.mark.slow
    def test_each_is_as_likely_where_most_offsets_hold_nothing(self, river: River) -> None:
        """Offsets that end transactions hold no record, and one partition is a hundred times as long as the other."""
        slots = [slot for slot in river.broker.log if slot.topic == LOG.name("small")]
        codec = river.records.prediction_log
        log = codec.decode(river.of(LOG)[0].value() or b"")
        there: dict[TopicPartition, dict[int, Any]] = {slot: {} for slot in slots}
        for number in range(101):
            log["features"]["event_id"] = f"n{number}"
            slot, offset = slots[number < 100], 7 + 1000 * number
            record = copy.copy(river.of(LOG)[0])
            record._value, record._offset, record._partition = codec.encode(log), offset, slot.partition
            there[slot][offset] = record
        reads: list[Any] = []

        class Gaps:
            def partitions(self, topic: str) -> int:
                return 2

            def offset_range(self, slot: TopicPartition) -> tuple[int, int]:
                return (7, 99_008) if slot == slots[1] else (100_007, 101_000)

            def read(self, ranges: Any) -> Iterator[list[Any]]:
                reads.append(ranges)
                for slot, (begin, end) in ranges.items():
                    yield [record for offset, record in there[slot].items() if begin <= offset < end]

        replay = Replay(river.pipeline, Gaps(), river.registry)  # type: ignore[arg-type]
        assert len({p.event_id for p in replay.log.draw(101, 5)}) == 101
        assert len(replay.log.draw(200, 5)) == 101, "all there are"
        assert all(end - begin > 0 for ranges in reads for begin, end in ranges.values())
        reads.clear()
        replay.log._read(
            [(slots[1], 0), (slots[1], MAX_GAP_OFFSETS - 1), (slots[1], 5 * MAX_GAP_OFFSETS), (slots[0], 3)]
        )
        assert reads == [
            {slots[1]: (0, MAX_GAP_OFFSETS), slots[0]: (3, 4)},
            {slots[1]: (5 * MAX_GAP_OFFSETS, 5 * MAX_GAP_OFFSETS + 1)},
        ]


@pytest.fixture(scope="module")
def embedded(learned: River) -> EmbeddedBroker:
    """The same on a broker that the command can connect to."""
    broker = EmbeddedBroker()
    broker.create([topic.name("small") for topic in topics.TOPICS])
    producer = KafkaBroker(broker.servers, exactly_once=False).producer("test")
    for slot, entries in learned.broker.log.items():
        if slot.topic == topics.PROGRESS.name("small"):
            continue  # it has more partitions than a topic of the embedded broker, and nothing of predictions
        for record in entries:
            # The log where its keys belong; the rest where it was, for positions are named in it.
            partition = -1 if slot.topic == LOG.name("small") else slot.partition
            producer.emit(slot.topic, record.value() or b"", record.key(), record.timestamp()[1], None, partition)
    producer.commit({}, None)
    producer.close()
    return broker


def run(learned: River, broker: EmbeddedBroker, *arguments: str) -> Any:
    assert learned.registry
    store = learned.registry.store.url
    declared = str(Path(store).parent / "declared.py")
    return CliRunner().invoke(
        cli, ["replay", declared, *arguments, "--brokers", broker.servers, "--store-url", store],
        env=SETTINGS, catch_exceptions=False,
    )  # fmt: skip


class TestCommand:
    @pytest.mark.slow
    def test_one_prediction_in_full(self, learned: River, embedded: EmbeddedBroker) -> None:
        done = run(learned, embedded, "e70")
        assert done.exit_code == 0
        for words in (
            "prediction e70 of small.prediction-log[", "equal", "small.events.valid[", "origin JFK",
            "label", "small.examples[0]@", "view origin", "linear", "slow", "baseline", "challenger",
            learned.pipeline.declaration_hash("linear"), "StandardScaler", "3 scores: 3 equal",
        ):  # fmt: skip
            assert words in done.stdout, words

    @pytest.mark.slow
    def test_samples_and_rebuilds(self, learned: River, embedded: EmbeddedBroker) -> None:
        done = run(learned, embedded, "--sample", "50", "--seed", "3")
        assert done.exit_code == 0
        assert "50 predictions of small.prediction-log drawn (--seed 3) repeated by" in done.stdout
        assert "150 scores: 150 equal\n" in done.stdout
        done = run(learned, embedded, "--sample", "500", "--rebuild", "--json")
        said = json.loads(done.stdout)
        assert (said["equal"], said["summary"]["scores"], said["predictions"]) == (True, 360, [])
        said = json.loads(run(learned, embedded, "e1", "e100", "--rebuild", "--json").stdout)
        assert [one["event_id"] for one in said["predictions"]] == ["e1", "e100"]

    @pytest.mark.slow
    def test_what_is_gone_is_said_once(self, learned: River, embedded: EmbeddedBroker) -> None:
        assert learned.registry
        (manifest,) = [m for m in manifests(learned) if (m.model, m.version) == ("slow", 50)]
        path = Path(learned.registry.store.url) / manifest.uri
        whole = path.read_bytes()
        path.unlink()
        try:
            why = (
                f"model 'slow' version 50: artifact {manifest.sha256} is not in {learned.registry.store.url}; --rebuild folds it "
                f"again from the examples\n"
            )
            done = run(learned, embedded, "e70")
            assert (done.exit_code, done.stdout.count(why)) == (1, 1)
            assert "3 scores: 2 equal, 1 can't be repeated\n" in done.stdout
            done = run(learned, embedded, "--sample", "500")
            assert done.exit_code == 1
            assert f"30 scores can't be repeated: {why}" in done.stdout
            assert run(learned, embedded, "e70", "--rebuild").exit_code == 0
        finally:
            path.write_bytes(whole)

    @pytest.mark.slow
    def test_what_differs_is_shown_and_the_code_is_1(self, learned: River, embedded: EmbeddedBroker) -> None:
        codec = learned.records.prediction_log
        (record,) = [record for record in learned.of(LOG) if record.key() == b"e70"]
        log = codec.decode(record.value() or b"")
        log["features"]["event_id"], log["challengers"][0]["score"] = "odd", 0.125
        producer = KafkaBroker(embedded.servers, exactly_once=False).producer("test")
        producer.emit(LOG.name("small"), codec.encode(log), b"odd")
        producer.commit({}, None)
        producer.close()
        done = run(learned, embedded, "odd")
        assert done.exit_code == 1
        assert "3 scores: 2 equal, 1 different" in done.stdout
        assert "another event is at this offset" in done.stdout
        done = run(learned, embedded, "--sample", "500")
        assert done.exit_code == 1
        assert "363 scores: 362 equal, 1 different" in done.stdout
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("odd")]
        assert line.split()[1:4] == ["slow", "50", "0.125"]
        said = json.loads(run(learned, embedded, "--sample", "500", "--json").stdout)
        assert [one["event_id"] for one in said["predictions"]] == ["odd"]
        assert (said["equal"], said["summary"]["different"]) == (False, 1)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "name the predictions to replay"),
            (["e1", "--sample", "3"], "one of the two"),
            (["e1", "--seed", "3"], "--seed 3 goes with --sample"),
            (["e999"], "no prediction of event 'e999'"),
        ],
    )
    def test_what_is_wrong_is_named(self, learned, embedded, arguments: list[str], words: str) -> None:
        with pytest.raises(SettingsError, match=words):
            run(learned, embedded, *arguments)


def test_an_example_begins_with_its_prediction(learned: River) -> None:
    logs = {record.key(): (record.value() or b"")[HEADER:] for record in learned.of(LOG)}
    for record in learned.of(EXAMPLES):
        assert (record.value() or b"")[HEADER:].startswith(logs[record.key()])
