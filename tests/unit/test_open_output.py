"""A file that a person named is complete, or as it was before: never half of it."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill.errors import SettingsError
from tidemill.files import open_output


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Let no file be longer than 4 KiB, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("earlier", [None, b"earlier"])
def test_what_does_not_fit_leaves_the_earlier_file(earlier: bytes | None, tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "out.jsonl"
    if earlier is not None:
        path.write_bytes(earlier)
    with pytest.raises(SettingsError, match=r"out\.jsonl can't be written: File too large"), open_output(path) as out:
        out.write(b"x" * 9_000)
    assert (path.read_bytes() if path.exists() else None) == earlier
    assert os.listdir(tmp_path) == ["out.jsonl"] * (earlier is not None)


def test_an_error_while_it_is_written_leaves_the_earlier_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"earlier")
    with pytest.raises(ZeroDivisionError), open_output(tmp_path / "out") as out:
        out.write(b"half" * (1 // 0))
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("out", b"earlier")]


def test_a_link_stays_one_and_a_pipe_or_a_device_is_written_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"earlier")
    (tmp_path / "link").symlink_to("file")
    with open_output(tmp_path / "link") as out:
        out.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    with open_output(Path("/dev/null")) as out:
        out.write(b"new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with (
        pytest.raises(SettingsError, match="/dev/full can't be written: No space left"),
        open_output(Path("/dev/full")) as out,
    ):
        out.write(b"new")


@pytest.mark.parametrize("name", ["no/such/folder", "."])
def test_what_can_not_be_written_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"can't be written: "), open_output(Path(name)):
        pass
