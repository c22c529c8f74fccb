"""What is shipped: the wheel holds the schemas, and finds them without the repository; an editable install finds the repository's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest

from tidemill.encoding import schema_files

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
        timeout=240,
    )
    (found,) = folder.glob("tidemill-*.whl")
    return found


def test_an_editable_install_reads_the_schemas_of_the_repository() -> None:
    assert schema_files.root() == ROOT / "schemas"


def test_the_wheel_has_every_schema(wheel: Path) -> None:
    inside = {
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if name.startswith("tidemill/schemas/") and name.endswith(".avsc")
    }
    assert inside == {f"tidemill/schemas/{p.relative_to(ROOT / 'schemas')}" for p in (ROOT / "schemas").rglob("*.avsc")}
    assert len(inside) >= 9


def test_a_pipeline_loads_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.path_importer_cache.clear()\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import tidemill, tidemill.encoding.schema_files as s\n"
        "assert str(s.root()).startswith(sys.argv[1]), s.root()\n"
        "print(tidemill.load('flights').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == "flights", done.stderr


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command of the wheel in a new environment, without the repository.

    The packages that the wheel requires are those of this environment: it shows what is in the wheel, not that pip
    finds the rest.
    """
    place = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--no-cache"]
    subprocess.run([*install, "--python", str(place / "bin/python"), str(wheel)], check=True)
    (site,) = place.glob("lib/*/site-packages")
    (site / "required.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin/tidemill"


def run(command: Path, folder: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [str(command), *arguments], cwd=folder, env=alone(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def alone() -> dict[str, str]:
    """Return the environment without what leads to the repository."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_hour_from_the_wheel_alone(command: Path, tmp_path: Path) -> None:
    """From an empty folder: init, check, backtest, up, send, tail; Ctrl-C ends all of it."""
    where = "import tidemill; print(tidemill.__file__)"
    python = [str(command.parent / "python"), "-c", where]
    used = subprocess.run(python, cwd=tmp_path, env=alone(), check=True, capture_output=True, text=True).stdout
    assert used.startswith(str(command.parents[1]))
    run(command, tmp_path, "init", "shop")
    shop = tmp_path / "shop"
    files = ("--events", "data/events.csv", "--labels", "data/labels.csv")
    assert "2,000 valid" in run(command, shop, "check", "pipeline.py", *files)
    assert "predictions 2,000 = joined 2,000 + expired 0 + pending 0" in run(
        command, shop, "backtest", "pipeline.py", *files
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (shop / "up.log").open("w") as log:
        up = subprocess.Popen(
            [str(command), "up", "pipeline.py", "--port", str(port)], cwd=shop, env=alone(), stdout=log, stderr=log
        )
    try:
        event = (
            '{"order_id": "x", "ordered_at": "2026-01-01T10:00:00Z", "depot": "N", "courier": "c1", "distance_km": 4.2}'
        )
        ended = None
        for _ in range(120):  # until it is ready
            ended = subprocess.run(
                [str(command), "send", "pipeline.py", "events", "--json", event, "--timeout", "60"],
                cwd=shop, env=alone(), capture_output=True, text=True, timeout=90,
            )  # fmt: skip
            if ended.returncode == 0 or up.poll() is not None:
                break
            time.sleep(0.5)
        assert ended is not None
        assert ended.returncode == 0, ended.stdout + ended.stderr + (shop / "up.log").read_text()
        tail = run(command, shop, "tail", "pipeline.py", "predictions", "--from-start", "-n", "1")
        assert " x " in tail
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0, (shop / "up.log").read_text()
    assert "no process is left" in (shop / "up.log").read_text()


@pytest.mark.slow
def test_examples_are_listed_and_copied_from_the_wheel(command: Path, tmp_path: Path) -> None:
    assert [line.split()[0] for line in run(command, tmp_path, "examples").splitlines()[:4]] == [
        "approval", "phishing", "segments", "shuttle",
    ]  # fmt: skip
    assert "python -m examples.data phishing data" in run(command, tmp_path, "examples", "phishing", "here")
    assert "phishing" in run(command, tmp_path / "here", "check", "examples/phishing.py")
    python = [str(command.parent / "python"), "-m", "examples.data", "phishing", "data"]
    subprocess.run(python, cwd=tmp_path / "here", env=alone(), check=True, timeout=120)
    files = ("--events", "data/events.csv", "--labels", "data/labels.csv")
    assert "joined 1,250" in run(command, tmp_path / "here", "backtest", "examples/phishing.py", *files)
    run(command, tmp_path, "examples", "phishing", "here", code=1)
    run(command, tmp_path, "examples", "nothing", "there", code=1)
