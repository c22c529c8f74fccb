"""Any version made anew from the log scores as its artifact does; what was pruned or damaged is there again, and nothing forged is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import river as river_library
import small
from click.testing import CliRunner
from river import forest
from river_in_memory import River, drive
from signing_keys import KEY, forged, set_keys

from tidemill import Pipeline, load
from tidemill.cli.main import cli
from tidemill.cli.text.models import version_text
from tidemill.errors import ArtifactError, SettingsError
from tidemill.keys import Keyring
from tidemill.models.fold import Fold
from tidemill.models.refold import FoldRange, Refold
from tidemill.offline.rebuild import Rebuild, RebuiltVersion
from tidemill.registry.latest import MAX_MANIFESTS_BACK, latest
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.pruning import plan, prune
from tidemill.registry.signing import Head
from tidemill.registry.store import ArtifactStore
from tidemill.registry.versions import Versions
from tidemill.runtime.run import topic_table
from tidemill.stages.learner import service as learner
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.wire import topics
from tidemill.wire.records import Records, vector_to_x

EXAMPLES, MODELS = topics.EXAMPLES.name("small"), topics.MODELS.name("small")
ROUND, ROUNDS = 10, 6
DECLARATION = """
import small
from river import forest
pipeline = small.make(models={'linear': small.linear(), 'forest': forest.ARFRegressor(n_models=2, seed=1, grace_period=5)})
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Pipeline]:
    path = tmp_path_factory.mktemp("declared") / "declared.py"
    path.write_text(DECLARATION)
    return str(path), load(str(path))


@pytest.fixture(scope="module")
def learned(declared: tuple[str, Pipeline], tmp_path_factory: pytest.TempPathFactory) -> River:
    """Six rounds, after each of which every model publishes a version and its learner starts anew."""
    river = River(declared[1], tmp_path_factory.mktemp("rebuild") / "artifacts")
    assert river.registry
    for begin in range(0, ROUNDS * ROUND, ROUND):
        for number in range(begin, begin + ROUND):
            river.event(small.event(f"e{number}", number * 10_000, ("JFK", "EWR")[number % 2], float(number % 7) * 50))
            river.label(small.label(f"e{number}", number * 10_000 + 5, number * 7 % 13 - 6.0))
        river.run()
        for name in ("forest", "baseline"):
            built = learner.build(
                river.pipeline, name, river.registry, river.broker, every_examples=10**6, every_seconds=1e-9
            )
            drive(built, river.broker)
    return river


@pytest.fixture
def river(learned: River, tmp_path: Path) -> River:
    """One of its own for each test, with its own store."""
    assert learned.registry
    own = River(learned.pipeline, tmp_path / "store")
    shutil.copytree(learned.registry.store.url, tmp_path / "store", dirs_exist_ok=True)
    own.broker.log = {slot: list(entries) for slot, entries in learned.broker.log.items()}
    own.broker.first = dict(learned.broker.first)
    return own


def registry_of(river: River) -> Registry:
    assert river.registry
    return river.registry


def run(river: River, **options: Any) -> list[RebuiltVersion]:
    rebuilding = Rebuild(river.pipeline, river.broker, registry_of(river))
    manifests, _ = rebuilding.every()
    return list(rebuilding.run(manifests, **options))


def place(river: River, manifest: Manifest) -> Path:
    return Path(registry_of(river).store.url) / manifest.uri


def one(river: River, model: str, version: int = 3 * ROUND) -> Manifest:
    (found,) = Rebuild(river.pipeline, river.broker, registry_of(river)).named([(model, version)])
    return found


def same_scores(river: River, first: Any, second: Any) -> None:
    codec = river.records.example
    for record in river.of(topics.EXAMPLES):
        x = vector_to_x(codec.decode(record.value() or b"")["prediction"]["features"]["vector"])
        assert river.pipeline.kind.predict(first, x) == river.pipeline.kind.predict(second, x)


def test_every_version_that_is_listed_scores_as_its_artifact_does(river: River) -> None:
    listed = list(Versions(river.pipeline, river.broker, registry_of(river)).read())
    found = run(river)
    assert {(r.manifest.model, r.manifest.version) for r in found} == {(v.key, v.manifest.version) for v in listed}
    assert len(found) == len(listed) == 3 * ROUNDS
    assert {(r.state, r.artifact) for r in found} == {("equal", "intact")}
    assert all(r.scores == 2 * min(8, ROUND) for r in found), "the golden ones, and those of the fold's last vectors"


@pytest.mark.parametrize("damage", ["gone", "damaged"])
@pytest.mark.parametrize("model", ["linear", "forest", "baseline"])
def test_an_artifact_that_is_lost_is_there_again_and_scores_as_before(river: River, model: str, damage: str) -> None:
    registry, lost = registry_of(river), one(river, model)
    before = registry.open(lost).model
    place(river, lost).unlink() if damage == "gone" else place(river, lost).write_bytes(b"damaged")
    assert not registry.is_intact(lost)
    (dry,) = [r for r in run(river, write=False) if r.artifact != "intact"]
    assert (dry.manifest, dry.state, dry.artifact) == (lost, "equal", "not restored")
    assert not registry.is_intact(lost)
    (found,) = [r for r in run(river) if r.artifact != "intact"]
    assert (found.manifest, found.state) == (lost, "equal")
    assert registry.is_intact(lost)
    opened = registry.open(lost)
    assert (opened.version, opened.examples) == (lost.version, lost.examples)
    same_scores(river, opened.model, before)
    assert {r.artifact for r in run(river)} == {"intact"}


def test_the_very_bytes_are_put_back_where_they_are_the_same(river: River) -> None:
    first = one(river, "linear", ROUND)  # learned in one go, as the fold does
    whole = place(river, first).read_bytes()
    place(river, first).unlink()
    assert [r.artifact for r in run(river) if r.manifest == first] == ["restored"]
    assert place(river, first).read_bytes() == whole
    assert registry_of(river).replacement(first) is None


def test_other_bytes_of_the_same_scores_stand_in_and_the_log_stays_as_it_is(river: River) -> None:
    registry, lost = registry_of(river), one(river, "linear")
    records = len(river.of(topics.MODELS))
    place(river, lost).unlink()
    assert [r.artifact for r in run(river) if r.manifest == lost] == ["replaced"], "its learner was resumed twice"
    assert len(river.of(topics.MODELS)) == records
    replacement = registry.replacement(lost)
    assert replacement is not None
    assert replacement.sha256 != lost.sha256
    registry._replacements.verify(replacement)
    assert (
        dataclasses.replace(lost, **{n: getattr(replacement, n) for n in ("uri", "sha256", "created_at", "signature")})
        == replacement
    )
    there = Versions(river.pipeline, river.broker, registry)
    told, _ = there.find("linear", lost.version)
    assert there.as_dict(told, registry.store)["artifact"] == "replaced"
    assert "replaced by a rebuild" in " ".join(version_text(there, registry.store, told, 0).split())


def test_a_learner_goes_on_from_what_stands_in(river: River) -> None:
    registry = registry_of(river)
    newest = one(river, "linear", ROUNDS * ROUND)
    place(river, newest).unlink()
    run(river)
    step = learner.build(
        river.pipeline, "linear", registry, river.broker, every_examples=10**6, every_seconds=1e9
    ).processor  # fmt: skip
    assert step.assign(TopicPartition(EXAMPLES, 0), Position(0)).live_from == newest.version


@pytest.mark.parametrize(
    "forgery",
    [
        "unsigned",
        "another key",
        "another version",
        "other golden scores",
        "of another manifest",
        "a manifest",
        "junk",
    ],
)
def test_what_stands_in_is_believed_only_when_signed_for_this_version(river: River, forgery: str) -> None:
    registry, lost = registry_of(river), one(river, "linear")
    other = one(river, "linear", 2 * ROUND)
    digest = other.sha256  # a sound artifact of ours, but of another version
    said = dataclasses.replace(lost, sha256=digest, uri=registry.store.path(digest))
    signing = Registry(river.pipeline, registry.store, Keyring.generate()) if forgery == "another key" else registry
    if forgery == "another version":
        said = dataclasses.replace(other, created_at=5)
    if forgery == "other golden scores":
        said = dataclasses.replace(said, golden=other.golden)
    own = registry.codec.head(dataclasses.replace(lost, created_at=5) if forgery == "of another manifest" else lost)
    data = signing._replacements.sign(said, Head(own.sequence - 1, own.sha256))
    if forgery == "unsigned":
        data = registry.encode(forged(registry._replacements.parse(data)))
    if forgery == "a manifest":  # signed well, but of the log
        data = registry.codec.sign(said, Head(own.sequence - 1, own.sha256))
    registry.store.put_note(lost.sha256, b"junk" if forgery == "junk" else data)
    place(river, lost).unlink()
    with pytest.raises(ArtifactError):
        registry.open(lost)
    assert not registry.is_intact(lost)
    (found,) = [r for r in run(river) if r.artifact != "intact"]
    assert (found.manifest, found.state, found.artifact) == (lost, "equal", "replaced"), "and the forged one is gone"
    assert registry.open(lost).version == lost.version


def test_a_version_of_another_river_is_compared_and_opened_again(river: River, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, made = registry_of(river), one(river, "linear")
    monkeypatch.setattr(river_library, "__version__", "9.9.9")
    with pytest.raises(ArtifactError, match=r"made by River 0\.26\.1, this is 9\.9\.9"):
        registry.open(made)
    found = run(river)
    assert {(r.state, r.artifact) for r in found} == {("equal", "replaced")}, "this River scores the same"
    assert registry.open(made).version == made.version
    monkeypatch.undo()
    assert registry.open(made).version == made.version, "and that one has its own artifact still"


def changed(river: River, change: Callable[[dict[str, Any]], None], at: int = 14) -> None:
    """Have the log say something else of one example."""
    entries, codec = river.broker.log[TopicPartition(EXAMPLES, 0)], Records(river.pipeline).example
    example = codec.decode(entries[at].value() or b"")
    change(example)
    fake = type(entries[at])(EXAMPLES, codec.encode(example), b"k", 1, None, 0, at)
    entries[at] = fake


def test_what_is_not_equal_is_told_and_nothing_is_put_back(river: River) -> None:
    changed(river, lambda example: example.update(label=5000.0))
    lost = one(river, "linear")
    place(river, lost).unlink()
    found = {(r.manifest.model, r.manifest.version): r for r in run(river)}
    assert {r.state for (_, version), r in found.items() if version <= ROUND} == {"equal"}
    wrong = found["linear", lost.version]
    assert (wrong.state, wrong.artifact) == ("different", "not restored")
    assert "golden vector 0 scores" in wrong.why
    assert not registry_of(river).is_intact(lost)


def test_an_example_more_or_fewer_is_told(river: River) -> None:
    entries = river.broker.log[TopicPartition(EXAMPLES, 0)]
    del entries[3]
    (found,) = [r for r in run(river) if (r.manifest.model, r.manifest.version) == ("baseline", ROUND)]
    assert found.state == "different"
    assert "9 examples were folded where it had learned 10" in found.why


def test_an_artifact_that_scores_otherwise_than_its_manifest_says_is_made_anew(river: River) -> None:
    registry, made = registry_of(river), one(river, "linear")
    other = one(river, "linear", 2 * ROUND)
    latest(river.broker, registry, {"linear": 1}, chains=registry.chains)
    changed = registry.sign(dataclasses.replace(made, sha256=other.sha256, uri=other.uri))
    river.broker.append(MODELS, registry.encode(changed), b"linear")
    (found,) = [r for r in run(river) if r.manifest == changed]
    assert (found.state, found.artifact) == ("equal", "replaced")


def test_a_log_that_was_cut_off_folds_to_nothing(river: River) -> None:
    river.broker.truncate(TopicPartition(EXAMPLES, 0), 5)
    found = run(river)
    assert {r.state for r in found} == {"gone"}
    assert "small.examples does not reach back to 0 any more, its first offset is 5" in found[0].why


def test_a_version_that_begins_later_is_folded_from_there_and_needs_no_more_of_the_log(river: River) -> None:
    registry, codec = registry_of(river), river.records.example
    fold = Fold(river.pipeline, "linear", 25)
    for record in river.of(topics.EXAMPLES)[25:40]:
        fold.learn(codec.decode(record.value() or b""), record.offset())
    latest(river.broker, registry, {"linear": 1}, chains=registry.chains)
    later = registry.publish("linear", fold.snapshot(), tuple(fold.vectors))
    river.broker.append(MODELS, registry.encode(later), b"linear")
    river.broker.truncate(TopicPartition(EXAMPLES, 0), 25)
    found = {r.manifest.version: r for r in run(river) if r.manifest.model == "linear"}
    assert (found[40].manifest.begin, found[40].state, found[40].artifact) == (25, "equal", "intact")
    assert {r.state for version, r in found.items() if version != 40} == {"gone"}


def test_one_pass_comes_by_all_of_them(river: River) -> None:
    read: list[Any] = []
    whole = river.broker.read
    river.broker.read = lambda ranges: read.append(ranges) or whole(ranges)  # type: ignore[method-assign, func-returns-value]
    run(river)
    assert [ranges for ranges in read if TopicPartition(EXAMPLES, 0) in ranges] == [
        {TopicPartition(EXAMPLES, 0): (0, ROUNDS * ROUND)}
    ]
    del read[:]
    wanted = [FoldRange("linear", 40, 25), FoldRange("linear", 30, 20), FoldRange("slow", 0)]
    list(Refold(small.make(), river.broker).snapshots(wanted))
    assert read == [{TopicPartition(EXAMPLES, 0): (20, 40)}]


def test_what_was_pruned_is_rebuilt_and_what_stands_in_is_pruned_too(river: River) -> None:
    registry = registry_of(river)
    latest(river.broker, registry, {"baseline": 1}, chains=registry.chains)
    codec, fold = river.records.example, Fold(river.pipeline, "baseline")
    for record in river.of(topics.EXAMPLES):
        fold.learn(codec.decode(record.value() or b""), record.offset())
        manifest = registry.publish("baseline", fold.snapshot(), tuple(fold.vectors))
        river.broker.append(MODELS, registry.encode(manifest), b"baseline")

    def pruned() -> list[str]:
        found = plan(Versions(river.pipeline, river.broker, registry).read(), registry, keep=MAX_MANIFESTS_BACK)
        prune(found, registry.store)
        return found.artifacts

    files = len([path for path in Path(registry.store.url).rglob("*") if path.is_file()])
    gone = pruned()
    assert len(gone) >= ROUNDS * ROUND - MAX_MANIFESTS_BACK
    back = [r for r in run(river) if r.artifact in ("restored", "replaced")]
    assert len(back) >= len(gone) - ROUNDS
    assert {r.state for r in back} == {"equal"}
    assert len(pruned()) >= len(back)
    assert len([path for path in Path(registry.store.url).rglob("*") if path.is_file()]) <= files - len(gone)


def served(river: River) -> EmbeddedBroker:
    """Return a broker that commands can reach, with the river's examples and manifests."""
    broker = EmbeddedBroker()
    broker.create([name for _, name, _ in topic_table(river.pipeline)])
    producer = KafkaBroker(broker.servers).producer("test")
    for topic in (EXAMPLES, MODELS):
        for record in river.broker.records(topic):
            producer.emit(topic, record.value() or b"", record.key(), partition=0)
    producer.commit({}, None)
    producer.close()
    return broker


class TestCommand:
    @pytest.fixture
    def command(
        self, river: River, declared: tuple[str, Pipeline], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., tuple[int, str]]:
        set_keys(monkeypatch, KEY)

        def invoke(*arguments: str) -> tuple[int, str]:
            broker = served(river)
            where = ["--brokers", broker.servers, "--store-url", registry_of(river).store.url]
            done = CliRunner().invoke(cli, ["models", "rebuild", declared[0], *arguments, *where])
            if done.exception and not isinstance(done.exception, SystemExit):
                raise done.exception
            return done.exit_code, done.stdout

        return invoke

    def test_all_of_it(self, command: Callable[..., tuple[int, str]], river: River) -> None:
        code, text = command("linear@30", "forest@60")
        assert code == 0
        assert "small.examples folded: 2 equal" in text
        lost = one(river, "forest")
        place(river, lost).unlink()
        code, text = command("--all", "--missing", "--json")
        assert (code, json.loads(text)["equal"]) == (0, True)
        (told,) = json.loads(text)["versions"]
        assert (told["model"], told["version"], told["state"]) == ("forest", 30, "equal")
        assert told["artifact"] in ("restored", "replaced")
        code, text = command("--all", "--missing")
        assert (code, text) == (0, "small.examples folded: none to rebuild\n")
        assert "18 equal" in command("--all")[1]

    def test_one_that_is_not_equal_is_exit_code_1(self, command: Callable[..., tuple[int, str]], river: River) -> None:
        changed(river, lambda example: example.update(label=5000.0))
        code, text = command("linear@10", "linear@30", "--json")
        assert code == 1
        assert json.loads(text)["equal"] is False
        assert [one["state"] for one in json.loads(text)["versions"]] == ["equal", "different"]
        code, text = command("linear@30")
        assert code == 1
        assert "golden vector 0 scores" in " ".join(text.split())

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "name the versions to rebuild"),
            (["linear@30", "--all"], "one of the two"),
            (["linear@30", "--missing"], "--missing goes with --all"),
            (["linear"], "'linear' is not a version: expected MODEL@VERSION"),
            (["linear@x"], "is not a version"),
            (["linear@31"], r"linear@31 can't be rebuilt: small\.models has no manifest of model 'linear' version 31"),
        ],
    )
    def test_what_can_not_be_asked_is_said(
        self, command: Callable[..., tuple[int, str]], arguments: list[str], words: str
    ) -> None:
        with pytest.raises(SettingsError, match=words):
            command(*arguments)


def test_versions_of_another_declaration_are_left_out_and_counted(river: River) -> None:
    changed_to = small.make(
        models={"linear": small.linear(0.5), "forest": forest.ARFRegressor(n_models=2, seed=1, grace_period=5)}
    )
    rebuilding = Rebuild(
        changed_to, river.broker, Registry(changed_to, ArtifactStore(registry_of(river).store.url), KEY)
    )
    manifests, others = rebuilding.every()
    assert {m.model for m in manifests} == {"forest", "baseline"}
    assert others == ROUNDS
    with pytest.raises(SettingsError, match="learned under another declaration"):
        rebuilding.named([("linear", ROUND)])
