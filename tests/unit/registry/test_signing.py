"""Signed records say where they belong: what is old, foreign, forged, forked or out of order is obeyed by nobody."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small
from signing_keys import KEY, forged

from tidemill import metrics
from tidemill.errors import SettingsError
from tidemill.keys import SIGNERS, VERIFY_FILE, Keyring, RefusedError, make_keys, private_file, read_keys
from tidemill.models.fold import Fold
from tidemill.offline.lookup import LogLookup
from tidemill.registry.decisions import (
    GATE,
    NOBODY,
    Command,
    Decision,
    ModelRef,
    all_decisions,
    commands,
    decisions,
)
from tidemill.registry.latest import latest
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import Chains, LogWriter, SignedCodec
from tidemill.registry.store import ArtifactStore
from tidemill.registry.versions import Versions
from tidemill.runtime.run import topic_table
from tidemill.stages.gate.service import PromotionGate
from tidemill.stages.learner.service import candidate_names
from tidemill.stages.scorer.feed import Loaded, ModelFeed, ServingChange
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryBroker
from tidemill.watch.status.follower import TopicFollower
from tidemill.wire import topics

pytestmark = pytest.mark.slow

PIPELINE = small.make()
MODELS, PROMOTIONS = topics.MODELS.name("small"), topics.PROMOTIONS.name("small")
COMMANDS, EXAMPLES = topics.COMMANDS.name("small"), topics.EXAMPLES.name("small")


def empty_broker() -> MemoryBroker:
    return MemoryBroker({name: partitions for _, name, partitions in topic_table(PIPELINE)})


def refused(topic: str, reason: str) -> float:
    return metrics.REFUSED.labels(topic, reason)._value.get()


@pytest.fixture
def broker() -> MemoryBroker:
    return empty_broker()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(PIPELINE, ArtifactStore(str(tmp_path)), KEY)


def learned(registry: Registry, version: int, model: str = "linear") -> Manifest:
    """Return the next manifest of a model; nothing has been learned, and it says another version."""
    fold = Fold(registry.pipeline, model)
    for number in range(version):
        fold.learn(small.example(PIPELINE, "e", 1.0, number), number)  # type: ignore[arg-type]
    return registry.publish(model, fold.snapshot(), ())


def published(registry: Registry, broker: MemoryBroker, *versions: int, model: str = "linear") -> list[Manifest]:
    manifests = [learned(registry, version, model) for version in versions]
    for manifest in manifests:
        broker.append(MODELS, registry.encode(manifest), model.encode())
    return manifests


def again(broker: MemoryBroker, topic: str, offset: int) -> None:
    """Append the bytes of a record once more, as anybody can who may write to the topic."""
    record = broker.log[TopicPartition(topic, 0)][offset]
    broker.append(topic, record.value(), record.key())


def decided(broker: MemoryBroker, *champions: str, keys: Keyring = KEY, pipeline: Any = PIPELINE) -> None:
    chains = Chains(decisions(pipeline, keys))
    all_decisions(PIPELINE, broker, chains.codec, chains)
    for champion in champions:
        ref = ModelRef.of(champion)
        one = Decision(f"d{random.random()}", "promoted", "ann", "", 1, 1, 1, 1, "", ref, ref, NOBODY)
        broker.append(PROMOTIONS, chains.sign(one, GATE), one.id.encode())


class Served:
    """What a scorer serves that follows the registry: `fresh` starts when everything is there."""

    def __init__(self, registry: Registry, broker: MemoryBroker) -> None:
        self.feed = ModelFeed(registry, broker)
        self.feed._catch_up()
        end = broker.offset_range(TopicPartition(MODELS, 0))[1]
        self.models = broker.follow(TopicPartition(MODELS, 0), end)
        self.promotions = broker.follow(
            TopicPartition(PROMOTIONS, 0), broker.offset_range(TopicPartition(PROMOTIONS, 0))[1]
        )
        self.versions: dict[str, int] = {}
        self.champion = "linear"

    def now(self) -> tuple[str, dict[str, int]]:
        self.feed._look(self.models, self.promotions)
        for item in self.feed.take():
            if isinstance(item, Loaded):
                assert item.snapshot is not None
                self.versions[item.manifest.model] = item.manifest.version
            elif isinstance(item, ServingChange) and item.champion:
                self.champion = str(item.champion)
        return self.champion, self.versions


class TestManifests:
    def test_an_old_one_that_is_appended_again_takes_no_scorer_back(
        self, registry: Registry, broker: MemoryBroker
    ) -> None:
        published(registry, broker, 1, 5)
        running = Served(registry, broker)
        published(registry, broker, 9)
        assert running.now()[1] == {"linear": 9}
        before = refused(MODELS, "old")
        again(broker, MODELS, 1)
        assert running.now()[1] == {"linear": 9}, "one that runs"
        assert refused(MODELS, "old") == before + 1
        assert Served(registry, broker).now()[1] == {"linear": 9}, "and one that starts"

    @pytest.mark.slow
    def test_however_many_old_ones_are_appended_a_start_takes_the_highest_that_it_reads(
        self, registry: Registry, broker: MemoryBroker
    ) -> None:
        published(registry, broker, *range(1, 10))
        for _ in range(20):
            for offset in range(8):
                again(broker, MODELS, offset)
        newest, _ = latest(broker, registry, {"linear": 3})
        assert [manifest.version for manifest in newest["linear"]] == [9, 8, 7]
        listed = [one for one in Versions(PIPELINE, broker, registry).read() if not one.refused]
        assert [one.manifest.version for one in listed if one.manifest] == list(range(9, 0, -1))
        assert listed[0].is_newest

    def test_of_another_pipeline_another_model_or_another_kind_it_is_foreign(
        self, registry: Registry, broker: MemoryBroker
    ) -> None:
        published(registry, broker, 1)
        running = Served(registry, broker)
        other = small.make(name="other")
        elsewhere = Registry(other, registry.store, KEY)
        elsewhere.chains.heads["linear"] = registry.chains.heads["linear"]  # it would be the next one
        manifest = learned(elsewhere, 5)
        before = refused(MODELS, "foreign")
        broker.append(MODELS, elsewhere.encode(manifest), b"linear")
        own = learned(Registry(PIPELINE, registry.store, KEY), 5, "slow")
        broker.append(MODELS, registry.encode(own), b"linear")
        head = registry.chains.heads["linear"]
        replacement = registry._replacements.sign(learned(Registry(PIPELINE, registry.store, KEY), 5), head)
        broker.append(MODELS, replacement, b"linear")
        assert running.now()[1] == {"linear": 1}
        assert Served(registry, broker).now()[1] == {"linear": 1}
        assert refused(MODELS, "foreign") == before + 3

    def test_one_that_is_missing_and_one_too_many_stop_who_follows_and_not_who_starts(
        self, registry: Registry, broker: MemoryBroker
    ) -> None:
        published(registry, broker, 1)
        running = Served(registry, broker)
        learned(registry, 3)  # it never comes to the topic
        before = refused(MODELS, "gap")
        published(registry, broker, 5)
        assert running.now()[1] == {"linear": 1}
        assert refused(MODELS, "gap") == before + 1
        assert Served(registry, broker).now()[1] == {"linear": 5}

    def test_of_two_in_one_place_the_first_counts_and_what_follows_the_other_is_refused(
        self, registry: Registry, broker: MemoryBroker
    ) -> None:
        published(registry, broker, 1)
        second = Registry(PIPELINE, registry.store, KEY)
        latest(broker, second, {"linear": 1}, chains=second.chains)
        running, before = Served(registry, broker), refused(MODELS, "forked")
        published(registry, broker, 2)
        published(second, broker, 7, 8)
        assert running.now()[1] == {"linear": 2}
        assert refused(MODELS, "forked") == before + 2
        assert Served(registry, broker).now()[1] == {"linear": 2}

    def test_what_retention_took_from_the_beginning_is_no_gap(self, registry: Registry, broker: MemoryBroker) -> None:
        published(registry, broker, 1, 2, 3, 4)
        broker.truncate(TopicPartition(MODELS, 0), 2)
        newest, _ = latest(broker, registry, {"linear": 9})
        assert [manifest.version for manifest in newest["linear"]] == [4, 3]

    def test_what_a_learner_published_in_an_aborted_transaction_leaves_no_gap(
        self, registry: Registry, broker: MemoryBroker
    ) -> None:
        learned(registry, 1)  # never committed
        latest(broker, registry, {"linear": 20}, chains=registry.chains)
        assert published(registry, broker, 1)[0].signature.sequence == 1
        running = Served(registry, broker)
        learned(registry, 2)
        latest(broker, registry, {"linear": 20}, chains=registry.chains)
        published(registry, broker, 2)
        assert running.now()[1] == {"linear": 2}

    def test_a_learner_that_starts_again_continues_its_chain_exactly(
        self, registry: Registry, broker: MemoryBroker
    ) -> None:
        published(registry, broker, 1, 2)
        again(broker, MODELS, 0)
        for version in (3, 4):
            restarted = Registry(PIPELINE, registry.store, KEY)
            latest(broker, restarted, {"linear": 20}, chains=restarted.chains)
            published(restarted, broker, version)
        newest, _ = latest(broker, registry, {"linear": 9})
        assert [manifest.signature.sequence for manifest in newest["linear"]] == [4, 3, 2, 1]
        hashes = [registry.codec.head(manifest).sha256 for manifest in newest["linear"]]
        assert [manifest.signature.previous for manifest in newest["linear"]] == [*hashes[1:], ""]


class TestDecisions:
    def test_an_old_one_that_is_appended_again_changes_no_champion(
        self, registry: Registry, broker: MemoryBroker
    ) -> None:
        published(registry, broker, 1)
        published(registry, broker, 1, model="slow")
        decided(broker, "slow")
        running = Served(registry, broker)
        decided(broker, "linear")
        assert running.now()[0] == "linear"
        again(broker, PROMOTIONS, 0)
        assert running.now()[0] == "linear", "a scorer that runs"
        assert Served(registry, broker).now()[0] == "linear", "one that starts"
        assert [str(one.champion) for one in all_decisions(PIPELINE, broker, decisions(PIPELINE, KEY))] == [
            "slow",
            "linear",
        ]

    def test_one_of_another_pipeline_under_the_same_key_is_foreign(self, broker: MemoryBroker) -> None:
        decided(broker, "linear")
        decided(broker, "slow", pipeline=small.make(name="other"))
        assert [str(one.champion) for one in all_decisions(PIPELINE, broker, decisions(PIPELINE, KEY))] == ["linear"]
        assert [one.reason for one in self.refusals(broker)] == ["foreign"]

    def refusals(self, broker: MemoryBroker) -> list[RefusedError]:
        told: list[RefusedError] = []
        Chains(decisions(PIPELINE, KEY), lambda _, error: told.append(error)).restore(broker.records(PROMOTIONS))
        return told

    def test_an_old_one_drops_and_starts_no_candidate(self, registry: Registry, broker: MemoryBroker) -> None:
        chains = Chains(decisions(PIPELINE, KEY))
        names = candidate_names(broker, registry, "slow")
        for candidate in ("slow~5", ""):
            one = Decision("d", "training", "ann", "", 1, 1, 1, 1, "", NOBODY, ModelRef("linear"), NOBODY)
            broker.append(PROMOTIONS, chains.sign(dataclasses.replace(one, candidate=candidate), GATE), b"d")
        assert set(names()) == set()
        again(broker, PROMOTIONS, 0)
        assert set(names()) == set()

    def test_a_reader_meets_each_wrong_record_as_what_it_is(self, broker: MemoryBroker) -> None:
        decided(broker, "linear", "slow", "linear")
        codec = decisions(PIPELINE, KEY)
        one, two, three = [record.value() or b"" for record in broker.records(PROMOTIONS)]

        def reasons(*values: bytes) -> list[str]:
            other, told = empty_broker(), []
            chains = Chains(codec, lambda _, error: told.append(error.reason))
            for value in values:
                chains.take(other.append(PROMOTIONS, value, b"k"))
            return told

        unsigned = codec.encode(forged(codec.parse(two)))
        assert reasons(one, two, three) == []
        assert reasons(one, one) == reasons(one, two, one) == ["old"]
        assert reasons(one, three) == ["gap"]
        assert reasons(one, unsigned, two) == ["forged"]
        assert reasons(one, two[:-1], two) == ["damaged"]
        changed = dataclasses.replace(codec.parse(two), why="another")
        assert reasons(one, two, codec.sign(changed, codec.head(codec.parse(one)), chain=GATE)) == ["forked"]
        assert reasons(one, codec.sign(changed, codec.head(codec.parse(one))._replace(sha256="00"), chain=GATE)) == [
            "forked"
        ]


class TestGate:
    def gate(self, broker: MemoryBroker, keys: Keyring = KEY) -> PromotionGate:
        codec = decisions(PIPELINE, keys)
        step = PromotionGate(
            PIPELINE,
            keys,
            lambda: all_decisions(PIPELINE, broker, codec),
            lambda _: "",
            past=lambda topic, end: broker.records(topic)[:end],
        )
        for topic in sorted((COMMANDS, EXAMPLES)):
            step.assign(TopicPartition(topic, 0), Position(len(broker.records(topic)) if topic == COMMANDS else 0))
        return step

    def run(self, step: PromotionGate, broker: MemoryBroker, records: Sequence[Any]) -> list[str]:
        before = len(broker.records(PROMOTIONS))
        step.process(records, broker.append)
        return [decisions(PIPELINE, KEY).parse(r.value() or b"").kind for r in broker.records(PROMOTIONS)[before:]]

    def test_a_command_is_obeyed_once_and_not_again_after_a_restart(self, broker: MemoryBroker) -> None:
        writer = LogWriter(commands(PIPELINE, KEY), broker, "status-0")
        step = self.gate(broker)
        for number, model in enumerate(("slow", "linear")):
            writer.begin()
            asked = Command(f"c{number}", "promote", ModelRef(model), 1, 0, "ann", "why", 5)
            record = broker.append(COMMANDS, writer.sign(asked), b"c")
            assert self.run(step, broker, [record]) == ["promoted"]
        before = refused(COMMANDS, "old")
        again(broker, COMMANDS, 0)
        assert self.run(step, broker, broker.records(COMMANDS)[-1:]) == []
        again(broker, COMMANDS, 0)
        step = self.gate(broker)
        again(broker, COMMANDS, 0)
        assert self.run(step, broker, broker.records(COMMANDS)[-1:]) == []
        assert refused(COMMANDS, "old") > before
        assert str(step.standing.champion) == "linear"

    def test_a_command_that_was_not_committed_is_obeyed_when_it_is_read_again(self, broker: MemoryBroker) -> None:
        step = self.gate(broker)
        asked = Command("c", "promote", ModelRef("slow"), 1, 0, "ann", "why", 5)
        record = broker.append(COMMANDS, Chains(commands(PIPELINE, KEY)).sign(asked, "status-0"), b"c")
        step.process([record], lambda *_: None)  # the transaction is aborted
        partitions = [TopicPartition(topic, 0) for topic in sorted((COMMANDS, EXAMPLES))]
        step.revoke(partitions)
        for partition in partitions:
            step.assign(partition, Position(0))
        assert self.run(step, broker, [record]) == ["promoted"]

    def test_it_continues_the_chain_of_decisions_after_a_restart(self, broker: MemoryBroker) -> None:
        for number, model in enumerate(("slow", "linear", "slow")):
            writer = LogWriter(commands(PIPELINE, KEY), broker, "status-0")
            step = self.gate(broker)
            writer.begin()
            asked = Command(f"c{number}", "promote", ModelRef(model), 1, 0, "ann", "why", 5)
            self.run(step, broker, [broker.append(COMMANDS, writer.sign(asked), b"c")])
        sequences = [one.signature.sequence for one in all_decisions(PIPELINE, broker, decisions(PIPELINE, KEY))]
        assert sequences == [1, 2, 3]

    def test_a_key_that_may_not_sign_commands_gives_none(self, tmp_path: Path, broker: MemoryBroker) -> None:
        make_keys(tmp_path)
        verify = str(tmp_path / VERIFY_FILE)
        learner, gate = (Keyring(verify, str(tmp_path), service) for service in ("learner", "gate"))
        step = self.gate(broker, gate)
        asked = Command("c", "promote", ModelRef("slow"), 1, 0, "ann", "why", 5)
        record = broker.append(COMMANDS, Chains(commands(PIPELINE, learner)).sign(asked, "status-0"), b"c")
        before = refused(COMMANDS, "forged")
        assert self.run(step, broker, [record]) == []
        assert refused(COMMANDS, "forged") == before + 1


class TestStatus:
    def test_it_believes_what_is_valid_and_lists_what_it_refuses_and_why(
        self, registry: Registry, broker: MemoryBroker
    ) -> None:
        published(registry, broker, 1, 5)
        decided(broker, "slow", "linear")
        follower = TopicFollower(broker, PIPELINE, KEY.verifier())  # type: ignore[arg-type]
        for topic in follower._signed:
            follower._restore(topic, 100)
        again(broker, MODELS, 0)
        again(broker, PROMOTIONS, 0)
        for record in (*broker.records(MODELS), *broker.records(PROMOTIONS)):
            follower._handle(record)
        assert follower.manifests["linear"]["version"] == 5
        assert follower.champion == ("linear", 0)
        assert [(one["topic"], one["reason"]) for one in follower.refused] == [(PROMOTIONS, "old"), (MODELS, "old")]
        fresh = TopicFollower(broker, PIPELINE, KEY.verifier())  # type: ignore[arg-type]
        for topic in fresh._signed:
            fresh._restore(topic, 100)
        assert (fresh.manifests["linear"]["version"], fresh.champion) == (5, ("linear", 0))

    def test_a_look_up_shows_no_forged_manifest(self, registry: Registry, broker: MemoryBroker) -> None:
        (manifest,) = published(registry, broker, 5)
        lookup = LogLookup(PIPELINE, broker, lambda *_: {}, lambda *_: None, keys=KEY.verifier())
        records = broker.records(MODELS)
        assert lookup._signed(records[0]) == manifest
        assert lookup._signed(broker.append(MODELS, registry.encode(forged(manifest)), b"linear")) is None


class TestRotation:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        make_keys(tmp_path / "keys")
        return tmp_path / "keys"

    def ring(self, folder: Path, service: str = "", clock: Any = time.time) -> Keyring:
        return Keyring(str(folder / VERIFY_FILE), str(folder), service, clock)

    def test_who_runs_takes_up_new_keys_and_both_are_valid_until_the_old_one_ends(
        self, folder: Path, broker: MemoryBroker, registry: Registry
    ) -> None:
        now = [time.time()]
        learner = Registry(PIPELINE, registry.store, self.ring(folder, "learner", lambda: now[0]))
        reader = Registry(PIPELINE, registry.store, self.ring(folder, clock=lambda: now[0]))
        published(learner, broker, 1, 2)
        old = learner.keys.signs_with
        running = Served(reader, broker)
        make_keys(folder, until=int((now[0] + 60) * 1000), now=now[0])
        assert learner.keys.signs_with != old
        assert not learner.chains.is_by_present_key("linear")
        published(learner, broker, 3)
        assert running.now()[1] == {"linear": 3}
        now[0] += 120
        assert Served(reader, broker).now()[1] == {"linear": 3}
        newest, _ = latest(broker, reader, {"linear": 9})
        assert [manifest.version for manifest in newest["linear"]] == [3, 2, 1], "the new key vouches for the old ones"
        with pytest.raises(RefusedError, match="has ended"):
            reader.decode(broker.records(MODELS)[0].value() or b"")

    def test_the_old_key_alone_is_refused_after_its_date(
        self, folder: Path, broker: MemoryBroker, registry: Registry
    ) -> None:
        now = [time.time()]
        stolen = private_file(folder, "learner").read_text()
        learner = Registry(PIPELINE, registry.store, self.ring(folder, "learner", lambda: now[0]))
        published(learner, broker, 1)
        make_keys(folder, until=int((now[0] + 60) * 1000), now=now[0])
        thief = Registry(PIPELINE, registry.store, Keyring(str(folder / VERIFY_FILE), stolen))
        reader = Registry(PIPELINE, registry.store, self.ring(folder, clock=lambda: now[0]))
        running = Served(reader, broker)
        latest(broker, thief, {"linear": 1}, chains=thief.chains)
        now[0] += 120
        before = refused(MODELS, "expired_key")
        published(thief, broker, 9)
        assert running.now()[1] == {"linear": 1}
        assert Served(reader, broker).now()[1] == {}
        assert refused(MODELS, "expired_key") > before

    def test_the_gate_signs_its_newest_decision_anew(self, folder: Path, broker: MemoryBroker) -> None:
        keys = self.ring(folder, "gate")
        decided(broker, "slow", keys=keys)
        step = TestGate().gate(broker, keys)
        step.process([], broker.append)
        assert len(broker.records(PROMOTIONS)) == 1
        make_keys(folder, until=int(time.time() * 1000) + 60_000)
        step.process([], broker.append)
        step.process([], broker.append)
        newest = all_decisions(PIPELINE, broker, decisions(PIPELINE, keys))
        assert [one.signature.key_id for one in newest] != [keys.signs_with] * 2
        assert (newest[-1].signature.key_id, newest[-1].kind, str(newest[-1].champion)) == (
            keys.signs_with,
            "unchanged",
            "slow",
        )
        assert len(newest) == 2

    def test_files_that_are_damaged_while_a_process_runs_leave_it_its_keys(self, folder: Path) -> None:
        keys = self.ring(folder, "learner")
        before = keys.signs_with, dict(keys.keys)
        (folder / VERIFY_FILE).write_text("[{")
        private_file(folder, "learner").write_text("nothing")
        assert (keys.signs_with, dict(keys.keys)) == before
        with pytest.raises(SettingsError):
            self.ring(folder, "learner")

    def test_private_keys_are_for_their_owner_alone(self, folder: Path) -> None:
        for service in SIGNERS:
            assert private_file(folder, service).stat().st_mode & 0o077 == 0

    def test_a_verifier_can_not_sign(self, folder: Path) -> None:
        verifier = self.ring(folder, "scorer")
        assert not verifier.can_sign
        with pytest.raises(SettingsError, match="signing_key is not set"):
            verifier.sign(lambda _: b"")
        assert len(read_keys(folder)) == len(SIGNERS)


class TestSettings:
    @pytest.mark.parametrize(
        ("verify", "words"),
        [
            ("[]", "no JSON list of keys"), ("[{", "no JSON list of keys"), ("[1]", "1 where a key was expected"),
            ("nowhere.json", "nowhere.json can't be read"), ('[{"key": "AAAA"}]', "no Ed25519 public key"),
            (json.dumps([next(iter(KEY.keys.values())).as_dict() | {"id": "0" * 16}]), "has the id"),
            (json.dumps([next(iter(KEY.keys.values())).as_dict() | {"until": "soon"}]), "`until`"),
            (json.dumps([next(iter(KEY.keys.values())).as_dict() | {"kinds": ["x"]}]), "`kinds`"),
        ],
    )  # fmt: skip
    def test_public_keys_that_can_not_be_used_are_named(self, verify: str, words: str) -> None:
        with pytest.raises(SettingsError, match=words):
            Keyring(verify)

    def test_a_private_key_that_nobody_would_believe_is_refused(self, tmp_path: Path) -> None:
        make_keys(tmp_path / "a")
        make_keys(tmp_path / "b")
        with pytest.raises(SettingsError, match="is not in verify_keys"):
            Keyring(str(tmp_path / "a" / VERIFY_FILE), str(tmp_path / "b"), "learner")


def test_a_signature_is_written_in_one_way_only() -> None:
    codec: SignedCodec[Command] = commands(PIPELINE, KEY)
    data = codec.sign(Command("c", "promote", ModelRef("slow"), 1, 0, "ann", "why", 5), chain="status-0")
    one = codec.decode(data)
    loud = dataclasses.replace(one, signature=dataclasses.replace(one.signature, value=one.signature.value.upper()))
    with pytest.raises(RefusedError):
        codec.decode(codec.encode(loud))


def test_a_writer_without_transactions_continues_after_what_is_in_the_log(broker: MemoryBroker) -> None:
    codec = commands(PIPELINE, KEY)
    one = Command("c", "promote", ModelRef("slow"), 1, 0, "ann", "why", 5)
    first, second = (LogWriter(codec, broker, "status-0") for _ in range(2))
    first.begin()
    broker.append(COMMANDS, first.sign(one), b"c")
    first.begin()
    first.sign(one)  # it was never sent
    second.begin()
    broker.append(COMMANDS, second.sign(one), b"c")
    first.begin()
    broker.append(COMMANDS, first.sign(one), b"c")
    restored = Chains(codec).restore(broker.records(COMMANDS))["status-0"]
    assert [content.signature.sequence for content in restored] == [3, 2, 1]
