"""What a pipeline declares about replacing its champion: how much better, on how much evidence, and worse nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainValidator

from tidemill.declare.checks import Fail, Segments, check_fields, check_segments, river_metric

if TYPE_CHECKING:
    from tidemill.declare.tasks import Task


def _metric(value: Any) -> Any:
    return value if value is None else river_metric(value, "bigger_is_better")


Loss = Annotated[float, Field(ge=0)]
#: The gate looks at its evidence every hundred questions.
Rounds = Annotated[int, Field(ge=1_000, multiple_of=100)]


@dataclass(frozen=True)
class Gate:
    """When a challenger replaces the champion.

    Both are compared on the same questions, by the mean loss of their predictions: the Brier score, or the absolute
    error. A challenger is promoted when its confidence sequence shows that it is better by more than `margin`, is worse
    by no more than `worse` in every declared segment, and better by `metric_margin` in `metric` where one is declared.

    Parameters
    ----------
    margin
        How much better it must be, in loss; 0: any improvement that is shown.
    examples
        Questions, answered by both and labelled, before the first decision.
    metric, metric_margin
        One of River's metrics, and how much better it must be in it on the same questions; None: the loss alone.
    segments
        Categories of the vector; None: the monitor's.
    worse
        How much worse, in loss, a challenger may be in one value of a segment.
    least
        Questions that a segment's value must have before it counts.
    rate
        The probability of ever promoting, between two decisions, a challenger that is not better.
    automatic
        False: a promotion is proposed, and a person decides.
    watch
        For this many questions after a promotion, the old champion serves again if the new one does worse. Later, the
        champion is compared with the baseline over as many questions at a time.
    round
        Questions after which a comparison that has shown no difference starts again, with less of the rate.
    """

    margin: Loss = 0.0
    examples: Annotated[int, Field(ge=200)] = 2_000
    metric: Annotated[Any, PlainValidator(_metric)] = None
    metric_margin: Loss = 0.0
    segments: Segments | None = None
    worse: Loss = 0.0
    least: Annotated[int, Field(ge=1)] = 200
    rate: Annotated[float, Field(ge=1e-9, le=0.5)] = 0.05
    automatic: bool = True
    watch: Rounds = 5_000
    round: Rounds = 50_000

    def check(self, task: Task, vector: Mapping[str, str], fail: Fail) -> None:
        """Check the fields, and that the pipeline has what they name."""
        if task.name == "anomaly":
            fail(
                "gate",
                "an anomaly's score has no loss of its own, so no model is better by it: "
                "leave the gate out, and promote by `tidemill models promote`",
            )
        check_fields(self, "gate", fail)
        if self.metric is not None:
            task.check_metric("gate.metric", self.metric, fail)
        check_segments("gate.segments", self.segments or (), vector, fail)
