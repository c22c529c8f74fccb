"""A command starts fast: it imports what it needs, and `--help` imports no command at all."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest

from tidemill.cli import main, models

HEAVY = {
    "avro", "confluent_kafka", "fastapi", "fastavro", "faust", "mlflow", "numpy", "pandas", "prometheus_client", "pyarrow",
    "pydantic", "redis", "rich", "river", "scipy", "sqlalchemy",
}  # fmt: skip


def imported(*arguments: str) -> set[str]:
    code = "import sys; from tidemill.cli.main import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout
    return set(done.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("models", "--help")], ids=" ".join)
def test_help_imports_no_library_but_click(arguments: tuple[str, ...]) -> None:
    assert imported(*arguments) & HEAVY == set()


@pytest.mark.parametrize("command", main.FORKING_COMMANDS)
def test_a_command_that_begins_again_has_imported_nothing_before(command: str) -> None:
    code = (
        "import os, sys; from tidemill.cli.main import main\n"
        "os.execve = lambda *_: sys.exit(' '.join(sys.modules))\nmain()"
    )
    env = {name: value for name, value in os.environ.items() if name not in main.FORKING}
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert {"tidemill.cli.main", "click"} <= set(done.stderr.split())
    assert set(done.stderr.split()) & (HEAVY | {f"tidemill.cli.{command}"}) == set()


def test_another_program_that_calls_a_command_does_not_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it began again"))
    for name in main.FORKING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["tidemill", "demo", "--days", "0"])
    with pytest.raises(SystemExit, match="2"):
        main.main()


@pytest.mark.slow
def test_a_check_imports_no_client_and_no_data_frames() -> None:
    loaded = imported("check", "flights")
    assert loaded & {"confluent_kafka", "redis", "pandas", "pyarrow", "pydantic_settings", "prometheus_client"} == set()
    assert {module for module in loaded if module.startswith("tidemill.stages")} == set()


@pytest.mark.slow
def test_services_start_without_data_frames() -> None:
    code = (
        "import sys; import tidemill.local.up; from tidemill.runtime import run\n"
        "for name in run.SERVICES: run.load(name)\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tidemill.watch.monitor.figures" in loaded
    assert "pandas" not in loaded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "commands"),
    [(main.cli, main.COMMANDS), (models.models, models.COMMANDS)],
    ids=["tidemill", "tidemill models"],
)
def test_the_help_of_a_group_is_the_first_sentence_of_each_command(
    group: click.Group, commands: dict[str, tuple[str, str]]
) -> None:
    context = click.Context(group)
    for name, (_, line) in commands.items():
        command = group.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.get_short_help_str(200) == line
    assert group.list_commands(context) == sorted(commands)
    assert group.get_command(context, "nosuch") is None


def all_commands(group: click.Group) -> list[click.Command]:
    context = click.Context(group)
    commands = [group.get_command(context, name) for name in group.list_commands(context)]
    return [c for c in commands if c] + [d for c in commands if isinstance(c, click.Group) for d in all_commands(c)]


def test_the_help_of_every_command_fits_on_its_line() -> None:
    assert [c.name for c in all_commands(main.cli) if c.get_short_help_str(63).endswith("...")] == []
