"""Pages that show a terminal: every command is run in order, as it stands, and prints what the page shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from river import datasets
from running import until

from tidemill.local.processes import free_port

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL, FIVE_COMMANDS = DOCS / "tutorial.md", DOCS / "how-to" / "first-hour.md"
BLOCK = re.compile(r"```(\w*)(?: title=\"(.*?)\")?\n(.*?)```", re.S)
#: Numbers, times, versions, positions.
NUMBER = re.compile(r"\d+(?:[.,:-]\d+)*")
#: Commands that go on until Ctrl-C, each in a terminal of its own.
LASTING = ("tidemill up ", "tidemill run ")


def masked(text: str) -> str:
    """Return a text without what differs from run to run: numbers, and the widths that they give to a table."""
    return NUMBER.sub("#", re.sub("─+", "─", " ".join(text.split())))


def as_pattern(shown: str) -> str:
    """Return what a page shows as a pattern: an ellipsis is any text."""
    return r"[\s\S]*?".join(re.escape(part.strip()) for part in shown.split("...")).replace(r"\ ", r"\s*")


class Terminal:
    """What somebody who follows the page has before them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
        self.env = {**clean, "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}", "COLUMNS": "120"}
        self.lasting: dict[str, subprocess.Popen[bytes]] = {}
        self.log = folder / "up.log"

    def run_all(self, text: str) -> list[str]:
        """Run the commands of a block, and return them."""
        parts = [part.partition("\n") for part in re.split(r"^\$ ", text, flags=re.M)[1:]]
        for command, _, shown in parts:
            self.run(command, shown)
        return [command for command, _, _ in parts]

    def end(self) -> None:
        """Press Ctrl-C in all terminals."""
        for command in list(self.lasting)[::-1]:
            self.stop(command)
        assert "no process is left" in self.log.read_text()

    def run(self, command: str, shown: str) -> None:
        if command.startswith("cd "):
            self.folder /= command.removeprefix("cd ")
        elif command.startswith(LASTING):
            self.start(command, shown)
        else:
            if "models list" in command:
                self.wait_until_learned_versions_serve()
            if "models decisions" in command:  # the gate's, about what was sent just before
                self.wait_until_serves("tree", 1)
            served = self.log.read_text().count("serving  champion=") if self.lasting else 0
            patient = command + (" --timeout 60" if " send " in command else "")
            ran = subprocess.run(
                patient, shell=True, cwd=self.folder, env=self.env, text=True, timeout=120,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            printed = ran.stdout
            refused = " send " in command and " dead letter " in shown
            assert ran.returncode == (1 if refused else 0), f"{command}\n{printed}"
            self.compare(command, shown, printed)
            if "models promote" in command or "models rollback" in command:
                self.wait_until_serves("tree" if "promote" in command else "linear", served + 1)

    def compare(self, command: str, shown: str, printed: str) -> None:
        if self.lasting:  # what services do takes its time; what runs without them is the same to the last digit
            shown, printed = masked(shown), masked(printed)
        shown, printed = " ".join(shown.split()), " ".join(printed.split())
        assert re.fullmatch(as_pattern(shown), printed), f"{command}\nshown:   {shown}\nprinted: {printed}"

    def start(self, command: str, shown: str) -> None:
        if command in self.lasting:
            self.stop(command)
        at_port = f" --port {free_port()}" if " up " in command else ""
        log = self.folder / f"{command.split()[1]}-{free_port()}.log"
        with log.open("wb") as out:
            self.lasting[command] = process = subprocess.Popen(
                shlex.split(command + at_port), cwd=self.folder, stdout=out, stderr=subprocess.STDOUT,
                env={**self.env, "TIDEMILL_HTTP_PORT": str(free_port())} if " run " in command else self.env,
            )  # fmt: skip
        if " up " in command:
            self.log = log
        pattern = as_pattern(masked(shown))

        def check() -> None:
            assert process.poll() is None, log.read_text()

        until(lambda: re.search(pattern, masked(log.read_text())), f"no {shown} in {log}", 90, check)

    def wait_until_serves(self, model: str, changes: int) -> None:
        """Wait until this model serves, after so many changes."""

        def champions() -> list[str]:
            return re.findall(r"serving  champion=(\w+)", self.log.read_text())

        until(lambda: len(champions()) >= changes and champions()[-1] == model, f"{model} does not serve", 60)

    def wait_until_learned_versions_serve(self) -> None:
        port = re.search(r" scorer :(\d+)", self.log.read_text())[1]

        def versions() -> list[float]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return [
                    float(line.split()[-1])
                    for line in answer.read().decode().splitlines()
                    if line.startswith("tidemill_model_version{")
                ]

        until(lambda: versions() == [3000.0] * 3, "no learned versions serve", 60)

    def stop(self, command: str) -> None:
        process = self.lasting.pop(command)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, command


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    for process in made.lasting.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_of_the_tutorial_prints_what_the_page_shows(terminal: Terminal, tmp_path: Path) -> None:
    ran: list[str] = []
    for kind, title, text in BLOCK.findall(TUTORIAL.read_text()):
        if kind == "console":
            ran += terminal.run_all(text)
        elif kind == "diff":
            old, new = (line[1:] for line in text.splitlines())
            file = terminal.folder / title
            assert file.read_text().count(old) == 1
            file.write_text(file.read_text().replace(old, new))
        elif title and terminal.folder != tmp_path:  # what `tidemill init` wrote
            assert text in (terminal.folder / title).read_text(), title
        elif title:
            (terminal.folder / title).write_text(text)
    words = {tuple(word for word in command.split()[1:3] if word.isalpha()) for command in ran}
    expected = {
        ("init", "shop"), ("check",), ("backtest",), ("report",), ("up",), ("run", "validator"), ("send",), ("tail",),
        ("models", "compare"), ("models", "decisions"), ("models", "rollback"), ("models", "promote"), ("replay",), ("dlq", "list"),
        ("dlq", "redrive"),
    }  # fmt: skip
    assert expected <= words, expected - words
    terminal.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_five_commands_print_what_their_page_shows(terminal: Terminal, tmp_path: Path) -> None:
    shutil.copy(Path(datasets.__file__).parent / "solar-flare.csv.zip", tmp_path)
    ran = [command for _, _, text in BLOCK.findall(FIVE_COMMANDS.read_text()) for command in terminal.run_all(text)]
    assert [command.split()[1] for command in ran if command.startswith("tidemill ")] == [
        "init", "backtest", "up", "send", "send", "tail",
    ]  # fmt: skip
    terminal.end()
