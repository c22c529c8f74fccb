"""Where a command prints: a full disk, a closed output, an encoding without lines; none of them ends in a traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tidemill.cli.main import cli
from tidemill.cli.shared import progress
from tidemill.cli.text import shared
from tidemill.stream.api import expect

pytestmark = pytest.mark.slow


def run(redirected: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell; that no broker answers it says on the error output, which is left out here."""
    line = f'"{sys.executable}" -m tidemill.cli {" ".join(arguments)} {redirected}'
    settings = {**os.environ, "TIDEMILL_BROKERS": "127.0.0.1:1", **variables}
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=False, env=settings)
    done.stderr = "".join(one for one in done.stderr.splitlines(keepends=True) if "no Kafka at" not in one)
    return done


def test_a_full_disk_is_one_line() -> None:
    done = run("> /dev/full", "topics", "plain")
    assert (done.returncode, done.stderr) == (1, "tidemill: can not go on: No space left on device\n")


def test_a_closed_output_is_no_failure() -> None:
    done = run(">&- 2>&-", "topics", "plain")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_that_is_closed_early_ends_it_quietly() -> None:
    assert run("| head -1", "topics", "plain").stderr == ""


def test_an_encoding_without_lines_gets_a_table_all_the_same() -> None:
    done = run("", "topics", "plain", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "-----" in done.stdout
    assert shared.render("─") == "─\n"


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("", "k8s", "plain", f"{tmp_path}/file/k8s")
    assert (done.returncode, done.stderr) == (1, f"tidemill: {tmp_path}/file/k8s: Not a directory\n")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_knows_how_much_is_to_come_as_soon_as_somebody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that takes long: without a total there is no time left."""
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("history", None) as advance:
        assert "history" in terminal.getvalue()
        expect(advance, 400)
        advance(100)
        expect(advance, 100)
    assert "0/400" in terminal.getvalue()
    assert "100/500" in terminal.getvalue()
    expect(None, 3)


@pytest.mark.parametrize(("name", "text"), [("none.jsonl", ""), ("none.json", "[]"), ("none.csv", "flight_id\n")])
def test_nothing_to_send_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    done = CliRunner().invoke(cli, ["send", "flights", "events", str(tmp_path / name)])
    assert done.exit_code != 0
    assert name in str(done.exception)
    assert "\n" not in str(done.exception)
