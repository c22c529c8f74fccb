"""A changed declaration beside another one, over the same history: which of the two would have served better.

The other may be the declaration as git has it at a revision: `git:main`. It is loaded and run in a process of its own,
so that the modules of the one are not taken for those of the other.
"""

from __future__ import annotations

import io
import pickle
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from tidemill.declare.load import SHIPPED, load
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError, TidemillError
from tidemill.offline.backtest import Backtest, BacktestReport
from tidemill.offline.compare import Comparison, ComparisonReport, ComparisonRequest
from tidemill.offline.source import ArchiveSource, FileSource, past_of
from tidemill.stream.api import Progress, expect
from tidemill.wire.records import Example, Score

GIT = "git:"
#: How the two are named in the comparison.
DEPLOYED, CHANGED = "deployed", "changed"

Result = TypeVar("Result")


@dataclass(frozen=True)
class AgainstReport:
    """Two declarations over one history. `labels_differ`: questions whose labels the two take for different ones."""

    against: str
    deployed: BacktestReport
    changed: BacktestReport
    comparison: ComparisonReport
    labels_differ: int

    @property
    def warnings(self) -> list[str]:
        """What to know before the figures, of which of the two."""
        return _warnings(self.deployed, self.changed)

    @property
    def is_worse(self) -> bool:
        """Whether the changed one is worse, over all or in a segment, beyond doubt."""
        return any(line.verdict == "A better" for line in self.comparison.lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "against": self.against,
            "warnings": self.warnings,
            "deployed": self.deployed.as_dict(),
            "changed": self.changed.as_dict(),
            "comparison": self.comparison.as_dict(),
            "labels_differ": self.labels_differ,
            "is_worse": self.is_worse,
        }


@contextmanager
def other_declaration(against: str, reference: str) -> Iterator[str]:
    """Yield the reference of the other declaration; of `git:REVISION`, in a folder that is removed afterwards.

    Raises SettingsError where there is none.
    """
    if not against.startswith(GIT):
        yield against
        return
    target, colon, name = SHIPPED.get(reference, reference).partition(":")
    path = Path(target).absolute()
    if reference in SHIPPED or not path.is_file():
        raise SettingsError(f"--against {against} needs the pipeline as a file, not {reference!r}")
    root = Path(_git(path.parent, "rev-parse", "--show-toplevel").decode().strip())
    revision = against.removeprefix(GIT)
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", of=against)
    data = _git(root, "archive", "--format=tar", commit.decode().strip())
    with tempfile.TemporaryDirectory(prefix="tidemill-against-") as folder:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(folder, filter="data")
        then_file = Path(folder, path.resolve().relative_to(root.resolve()))
        if not then_file.is_file():
            raise SettingsError(f"--against {against}: {target} is not in that revision")
        yield f"{then_file}{colon}{name}"


def _git(folder: Path, *arguments: str, of: str = "") -> bytes:
    try:
        ended = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:
        raise SettingsError("--against git:... needs git, which is not installed") from None
    if ended.returncode:
        why = " ".join(ended.stderr.decode(errors="replace").split()) or f"{of}: git knows no such revision"
        raise SettingsError(f"--against: {why}")
    return ended.stdout


@dataclass(frozen=True)
class _Run:
    """What one declaration has made of the history, beside a file of its examples."""

    report: BacktestReport
    task: str


def _served(reference: str, source: FileSource | ArchiveSource, model_delay_ms: int, file: str) -> _Run:
    """Run one declaration; in a process of its own."""
    pipeline = load(reference)
    run = Backtest(pipeline, model_delay_ms=model_delay_ms)
    with Path(file).open("wb") as out:
        _keep(run, out)
        report = past_of(source, pipeline).run(run, None)
    return _Run(report, pipeline.task)


def _keep(run: Backtest, out: IO[bytes]) -> None:
    """Write every example of a run."""
    decode = run.records.example.decode

    def keep(record: Any) -> None:
        pickle.dump(decode(record.value()), out)

    run.examples = keep


def _examples(file: Path) -> Iterator[Example]:
    with file.open("rb") as data:
        while True:
            try:
                yield pickle.load(data)  # noqa: S301  a process of ours has written it a moment ago
            except EOFError:
                return


def compare_with(
    reference: str,
    pipeline: Pipeline,
    against: str,
    source: FileSource | ArchiveSource,
    *,
    segments: Sequence[str] = (),
    model_delay_ms: int = 0,
    progress: Progress | None = None,
) -> AgainstReport:
    """Run a pipeline and another declaration of it, side by side, and compare what each served.

    Without segments they are those of the monitor. Raises SettingsError where the two can't be compared.
    """
    request = ComparisonRequest(DEPLOYED, CHANGED, segments=segments or pipeline.monitor.segments)
    comparison = Comparison(pipeline, request)
    with (
        other_declaration(against, reference) as other,
        tempfile.TemporaryDirectory(prefix="tidemill-against-") as name,
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        then = pool.submit(_served, other, source, model_delay_ms, str(Path(name, "deployed")))
        run = Backtest(pipeline, model_delay_ms=model_delay_ms)
        with Path(name, "changed").open("wb") as out:
            _keep(run, out)
            past = past_of(source, pipeline, progress)
            expect(progress, len(past.times))
            changed = past.run(run, progress)
        deployed = _result(then, against)
        if deployed.task != pipeline.task:
            raise SettingsError(
                f"--against {against}: its task is {deployed.task!r} and this one's {pipeline.task!r}: their answers "
                "can't be compared"
            )
        labels_differ = _fill(comparison, Path(name, "deployed"), Path(name, "changed"))
    if not (deployed.report.joined or changed.joined):
        why = "; ".join(_warnings(deployed.report, changed)) or "no question has a label"
        raise SettingsError(f"--against {against}: nothing to compare by: {why}")
    return AgainstReport(against, deployed.report, changed, comparison.finish(), labels_differ)


def _warnings(deployed: BacktestReport, changed: BacktestReport) -> list[str]:
    if deployed.warnings == changed.warnings:
        return changed.warnings
    return [f"{name}: {text}" for name, one in ((DEPLOYED, deployed), (CHANGED, changed)) for text in one.warnings]


def in_other_process(against: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Return what a function returns in a process that has loaded no declaration yet."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return _result(pool.submit(function, *arguments), against)


def _result(future: Future[Result], against: str) -> Result:
    try:
        return future.result()
    except TidemillError as error:
        raise SettingsError(f"--against {against}: {error}") from None
    except BrokenProcessPool:
        raise SettingsError(f"--against {against}: its process has ended (out of memory?)") from None


def _fill(comparison: Comparison, deployed: Path, changed: Path) -> int:
    """Have the comparison take every question that has a label; returns how many labels differ."""
    answers: dict[str, tuple[Score, Any]] = {}
    for example in _examples(deployed):
        log = example["prediction"]
        answers[log["features"]["event_id"]] = (log["champion"], example["label"])
    differ, report = 0, comparison.report
    for example in _examples(changed):
        log = example["prediction"]
        other = answers.pop(log["features"]["event_id"], None)
        given = [] if other is None else [_named(other[0], DEPLOYED)]
        differ += other is not None and other[1] != example["label"]
        comparison.take(
            {**example, "prediction": {**log, "champion": _named(log["champion"], CHANGED), "challengers": given}}
        )
    report.only_a += sum(answer["answered"] for answer, _ in answers.values())
    report.neither += sum(not answer["answered"] for answer, _ in answers.values())
    return differ


def _named(answer: Score, name: str) -> Score:
    return cast(Score, {**answer, "model": name, "epoch": 0})
