"""What a pipeline declares about replacing its champion: how much better, on how much evidence, and worse nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from tidemill.declare.checks import Fail, Segments, check_fields, check_segments, river_metric


def _metric(value: Any) -> Any:
    return value if value is None else river_metric(value, "bigger_is_better")


Loss = Annotated[float, Field(ge=0)]
#: The gate looks at its evidence every hundred questions.
Rounds = Annotated[int, Field(ge=1_000, multiple_of=100)]


@dataclass(frozen=True)
class Gate:
    """When a challenger replaces the champion.

    Both are held to what they answered, on the same questions, by the mean loss of an answer: the Brier score, or the absolute
    error. A challenger is promoted when its confidence sequence says that it is better by more than `margin`, in no
    declared segment worse than `worse`, and better by `metric_margin` in `metric` where one is declared.

    Parameters
    ----------
    margin
        How much better, in loss, is better; 0: any improvement that is shown.
    examples
        Questions, answered by both and labelled, before anything is decided.
    metric, metric_margin
        One of River's metrics, and how much better in it over the same questions; None: the loss alone.
    segments
        Categories of the vector; those of the monitor where None is given.
    worse
        How much worse, in loss, a challenger may be in one value of a segment.
    least
        Questions of a segment's value before it is looked at.
    rate
        The probability of ever promoting, between two decisions, a challenger that is not better.
    automatic
        False: what would be promoted is proposed, and a person promotes it or not.
    watch
        Questions after a promotion during which the old champion takes over again when the new one does worse; and how many
        in a row, later on, the champion is held to the baseline's answers.
    round
        Questions after which what has shown no difference is compared again, with less of the rate.
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

    def check(self, task: str, vector: Mapping[str, str], fail: Fail) -> None:
        """Check the fields, and that the pipeline has what they name."""
        if task == "anomaly":
            fail(
                "gate",
                "an anomaly's score is right or wrong only beside others', so none is better by its loss: "
                "leave it out, and promote by `tidemill models promote`",
            )
        check_fields(self, "gate", fail)
        check_segments("gate.segments", self.segments or (), vector, fail)
