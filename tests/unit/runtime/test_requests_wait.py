"""Requests to forget wait for each other, and are carried out together, once."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import small
from signing_keys import KEY

from tidemill import Forgetting as Declared
from tidemill.errors import BrokerError, DeclarationError, SettingsError
from tidemill.keys import VERIFY_FILE, Keyring, make_keys, private_file
from tidemill.registry.forgetting import CHAIN, Forgetting, Hashes, Requests, forgetting_codec
from tidemill.registry.manifests import Registry
from tidemill.registry.signing import LogWriter
from tidemill.registry.store import ArtifactStore
from tidemill.runtime.forget import Forget
from tidemill.runtime.run import topic_table
from tidemill.stream.memory import MemoryBroker

ANN, BOB, CAT = ("origin", "ann-1"), ("origin", "bob-2"), ("origin", "cat-3")


class Work(Forget):
    """Writes requests to memory; what `run` erases is elsewhere tested."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = dataclasses.replace(
            small.make(), forgetting=Declared(within="30d", every="7d", fields=["origin"])
        )
        self.broker: Any = MemoryBroker({name: partitions for _, name, partitions in topic_table(self.pipeline)})
        self.registry = Registry(self.pipeline, ArtifactStore(str(folder)), KEY)
        self.hashes = Hashes(self.pipeline.name, KEY)
        self.writer = LogWriter(forgetting_codec(self.pipeline, KEY), self.broker, CHAIN)
        self.folder, self.breaks_off, self.runs = folder, False, list[Any]()

    def _write(self, request: Forgetting) -> None:
        self.writer.begin()
        self.broker.append(self.writer.topic, self.writer.sign(request), request.id.encode(), partition=0)

    def run(self, entities: Any, by: str, why: str, carried: Any = ()) -> dict[str, Any]:
        self.runs.append((list(entities), list(carried)))
        if len(self.runs) == 1 or not self.breaks_off:
            content = {"requests": list(carried), "ids": "0" * 64}
            self._write(Forgetting("run", "asked", by, why, 0, [], content=json.dumps(content)))
        if self.breaks_off:
            raise BrokerError("away")
        self._write(Forgetting("run", "done", by, why, 0, [], content=json.dumps({"requests": list(carried)})))
        return {"requests": list(carried)}

    def sealed(self) -> list[bytes]:
        return [path.read_bytes() for path in self.folder.rglob("*") if path.is_file()]

    @property
    def open(self) -> list[str]:
        return [one.id for one in Requests(self.pipeline, self.broker, KEY).open]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    now = time.time() + days * 86_400
    monkeypatch.setattr(time, "time", lambda: now)


def test_they_are_carried_out_together_when_the_first_has_waited(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    first = work.wait([ANN, BOB], "x", "letter 1")
    assert work.wait([BOB, ANN], "y", "letter 2").id == first.id, "asked twice is once"
    later(monkeypatch, 6.9)
    second = work.wait([CAT, BOB], "x", "letter 3")
    assert work.due("job") is None
    assert work.open == [first.id, second.id]
    later(monkeypatch, 0.2)
    certificate = work.due("job")
    assert certificate == {"requests": [first.id, second.id]}
    assert work.runs == [([ANN, BOB, CAT], [first.id, second.id])]
    assert (work.open, work.sealed(), work.due("job")) == ([], [], None)
    done = Requests(work.pipeline, work.broker, KEY).done
    assert done[first.id] is done[second.id] is done["run"]


def test_what_waits_has_no_id_that_can_be_read(work: Work) -> None:
    work.wait([ANN], "x", "letter")
    stored = [*work.sealed(), *(record.value() or b"" for record in work.broker.records(work.writer.topic))]
    assert len(stored) == 2
    assert not any(b"ann-1" in data for data in stored)
    with pytest.raises(SettingsError, match="encrypted with another key"):
        Hashes(work.pipeline.name, Keyring.generate()).unseal(work.sealed()[0])


def test_one_that_broke_off_goes_on_with_the_same_requests(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    first = work.wait([ANN], "x", "letter")
    later(monkeypatch, 8)
    work.breaks_off = True
    with pytest.raises(BrokerError):
        work.due("job")
    second = work.wait([BOB], "x", "letter")
    work.breaks_off = False
    assert work.due("job") == {"requests": [first.id]}
    assert [carried for _, carried in work.runs] == [[first.id], [first.id]]
    assert work.open == [second.id]
    assert len(work.sealed()) == 1, "the ids of the second"


def test_ids_that_a_crash_left_behind_go_the_next_time(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    work.wait([ANN], "x", "letter")
    later(monkeypatch, 8)
    delete = work.registry.store.delete
    monkeypatch.setattr(work.registry.store, "delete", lambda digest: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        work.due("job")
    assert len(work.sealed()) == 1
    monkeypatch.setattr(work.registry.store, "delete", delete)
    assert work.due("job") is None
    assert work.sealed() == []


def test_a_request_that_could_never_be_done_is_refused(work: Work) -> None:
    with pytest.raises(SettingsError, match="expected one of"):
        work.wait([("nothing", "1")], "x", "letter")
    with pytest.raises(SettingsError, match="--why names an id"):
        work.wait([ANN], "x", "ann-1 asked")
    assert (work.open, work.sealed()) == ([], [])


def test_requests_that_would_wait_until_they_are_late_are_a_mistake() -> None:
    with pytest.raises(DeclarationError, match=r"forgetting\.every: 30d is not shorter than within"):
        dataclasses.replace(small.make(), forgetting=Declared(within="30d", every="30d"))


def test_after_a_rotation_ids_are_known_again_and_requests_that_wait_are_read(tmp_path: Path) -> None:
    make_keys(tmp_path, ("forget", "audit"))
    keys = [Keyring(str(tmp_path / VERIFY_FILE), str(tmp_path), "forget")]
    known = Hashes("small", keys[0])
    names = {keys[0].signs_with}
    for _ in range(2):
        sealed, entity, event = known.seal(b"ann-1"), known.entity(*ANN), known.short(b"e1")
        make_keys(tmp_path, ("forget", "audit"), until=0)
        keys.append(Keyring(str(tmp_path / VERIFY_FILE), str(tmp_path), "forget"))
        names.add(keys[-1].signs_with)
        known = Hashes("small", keys[-1])
        assert (known.unseal(sealed), known.entity(*ANN), known.short(b"e1")) == (b"ann-1", entity, event)
    assert len(names) == 3, "each signs with a key of its own"
    assert len(private_file(tmp_path, "forget").read_text().split()) == 2
    assert len(private_file(tmp_path, "audit").read_text().split()) == 1
    make_keys(tmp_path / "others", ("forget",))
    other = Keyring(str(tmp_path / "others" / VERIFY_FILE), str(tmp_path / "others"), "forget")
    assert Hashes("small", other).entity(*ANN) != entity
