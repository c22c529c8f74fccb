"""The command `tidemill`: its commands, and how a mistake ends. Each command is imported when it is used."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import NoReturn

import click

from tidemill import __version__
from tidemill.cli.lazy import LazyGroup
from tidemill.errors import TidemillError

#: The commands by name: where each is, and its line in `tidemill --help`.
COMMANDS = {
    "acl": ("acl:acl", "Print what each service's user may do with Kafka and Redis."),
    "audit": ("audit:audit", "Write who served when, why, and on what evidence; signed."),
    "backtest": ("backtest:backtest", "Run a pipeline over history, without Kafka."),
    "backup": ("backup:backup", "Copy a pipeline, with its offsets, to a folder."),
    "capacity": ("capacity:capacity", "Say what machine a pipeline needs at a rate."),
    "check": ("check:check", "Check a declaration, and print what it runs."),
    "compose": ("compose:compose", "Print a pipeline's docker-compose.yml."),
    "dataset": ("dataset:dataset", "Write a training set as one Parquet file."),
    "demo": ("demo:demo", "Run everything on this machine and replay a month of flights."),
    "demo-data": ("demo:demo_data", "Write the demo's flights as files: events and labels."),
    "diff": ("diff:diff", "Say what a change of a declaration does to what runs."),
    "dlq": ("dead_letters:dlq", "List, count and redrive dead letters."),
    "down": ("down:down", "Say what a pipeline has, and delete it all."),
    "doctor": ("doctor:doctor", "Examine a pipeline's cluster, topics and offsets."),
    "examples": ("examples:examples", "List the shipped examples, or copy one."),
    "features": ("features:features", "Read online features, and fill views that were declared later."),
    "forget": ("forget:forget", "Erase all of an entity, and fold the models again without it."),
    "grow": ("grow:grow", "Move a pipeline to new topics with other partitions."),
    "init": ("init:init", "Make a pipeline of your own data, in a new folder."),
    "k8s": ("k8s:k8s", "Write a pipeline's manifests for Kubernetes into a new folder."),
    "keys": ("keys:keys", "Make, list and rotate the keys that records are signed with."),
    "models": ("models:models", "List, compare, promote, prune and rebuild versions of models."),
    "notify": ("notify:notify", "Try who is told of alerts and decisions."),
    "offsets": ("offsets:offsets", "List and decide from where services go on."),
    "replay": ("replay:replay", "Repeat predictions, and compare their scores."),
    "report": ("backtest:report", "Write a backtest as one HTML page, with pictures."),
    "restore": ("backup:restore", "Make a pipeline again from a backup, where it has nothing."),
    "rules": ("rules:rules", "Suggest value rules from history."),
    "run": ("run:run", "Run one service of a pipeline until SIGTERM or Ctrl-C."),
    "schema": ("schema:schema", "Print schemas, check new ones, and register the declared ones."),
    "send": ("send:send", "Send events or labels, and print what becomes of each."),
    "tail": ("send:tail", "Print predictions, dead letters or alerts as they come."),
    "tokens": ("tokens:tokens", "Make tokens for the status service, and keys for the gateway."),
    "topics": ("topics:topics", "Print, compare, create or change a pipeline's topics."),
    "up": ("up:up", "Run a whole pipeline on this machine, until Ctrl-C."),
    "tune": ("tune:tune", "Search a declared space of models on recorded examples."),
}


#: Commands that fork services.
FORKING_COMMANDS = ("demo", "up")
#: Environment of a process that forks services: no threads of numpy's and pyarrow's libraries, which a fork would not
#: have; sets in one order, which some models depend on; and two heaps for a process's threads, where glibc would make
#: up to 8 a core, which is memory that nobody else gets.
FORKING = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "2",
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="tidemill")
def cli() -> None:
    """Online machine learning on Kafka.

    PIPELINE is a file (flights.py), a module (package.flights), or one of the shipped pipelines: flights,
    departures, plain, delays. Add :name where a file or module declares several.
    """


def _fail(message: str) -> NoReturn:
    click.echo(f"tidemill: {message}", err=True)
    sys.exit(1)


def _prepare_output() -> None:
    """Have both outputs take whatever is printed: where a shell has closed one, and in the terminal's own encoding."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  it is open as long as the process runs
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def prepare_to_fork() -> None:
    """Have Python begin again with the environment that a process which forks services needs."""
    if os.environ.keys() < FORKING.keys() | os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**FORKING, **os.environ})  # noqa: S606


def main() -> None:
    """Run the command; a user's mistake ends in one line and exit code 1, never in a traceback."""
    given = sys.argv[1:]
    # Another program that calls this function must not begin again.
    if given and given[0] in FORKING_COMMANDS and sys.orig_argv[-len(given) :] == given:
        prepare_to_fork()  # before the command is imported, which takes as long as all of this
    _prepare_output()
    try:
        cli(prog_name="tidemill", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "tidemill"
        click.echo(f"tidemill: {' '.join(error.format_message().split())} See `{where} --help`.", err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except TidemillError as error:
        if logging.getLogger().handlers:  # a running service: its log is what is read
            logging.getLogger("tidemill").critical(str(error), extra={"error": type(error).__name__})
        else:
            _fail(str(error))
        sys.exit(1)
    except OSError as error:
        if logging.getLogger().handlers:
            raise
        _fail(f"{error.filename or 'can not go on'}: {error.strerror or error}")
