"""The best step of a run on TEST, and when a run has fallen too far behind it to go on."""

import math
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.training.metrics import Metrics

# Names of `checkpoint.best` ↦ the metric, and whether more of it is better. Every other name is a
# criterion's, whose pass rate is meant.
RANKED_BY: dict[str, tuple[str, bool]] = {
    "loss": ("loss", False),
    "accuracy": ("rewards/accuracies", True),
    "margin": ("rewards/margins", True),
}


PASS_RATE = "answers/pass_rate/"


def metric_of(by: str) -> str:
    """Returns the metric that `checkpoint.best` names."""
    return RANKED_BY[by][0] if by in RANKED_BY else PASS_RATE + by


class StopConfig(BaseModel):
    """When a run ends before its last step, and exports its best one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    broken: float | None = Field(
        default=0.5,
        gt=0,
        le=1,
        description="end when this share of the watched answers is broken (does not end, is empty "
        "or repeats itself), beyond the share before training; null: never",
    )
    worse: int | None = Field(
        default=None,
        ge=1,
        description="end after this many evaluations without a new best step; null: never",
    )


@dataclass
class BestStep:
    """Follows the metric that `checkpoint.best` names over the evaluations of a run.

    Attributes:
      by: `checkpoint.best`: loss, accuracy, margin, or the name of a criterion.
      metric: The metric that is compared.
      step: The best step so far, or None before the first evaluation.
      value: The metric there.
      interval: The ends of the metric's 95% interval there, or None where it has none.
      since: Evaluations after it.
    """

    by: str
    metric: str
    step: int | None = None
    value: float = math.nan
    interval: tuple[float, float] | None = None
    since: int = field(default=0)

    def take(self, step: int, metrics: Metrics) -> bool:
        """Takes an evaluation's metrics; tells whether its step is the best so far.

        A tie leaves the earlier step, which is nearer to the reference.

        Args:
          step: Steps done.
          metrics: TEST metrics after them.

        Raises:
          KeyError: If the evaluation lacks the metric.
        """
        value, (_, more_is_better) = metrics[self.metric], RANKED_BY.get(self.by, ("", True))
        # NaN compares as false, so a broken evaluation is never the best.
        better = value > self.value if more_is_better else value < self.value
        if self.step is None and not math.isnan(value):
            better = True
        if not better:
            self.since += 1
            return False
        low, high = metrics.get(f"{self.metric}_low"), metrics.get(f"{self.metric}_high")
        self.interval = None if low is None or high is None else (low, high)
        self.step, self.value, self.since = step, value, 0
        return True

    def describe(self) -> str:
        """Returns `loss 0.412 (95% interval 0.391 to 0.433)`."""
        text = f"{self.by} {self.value:.3f}"
        if self.interval is not None:
            text += f" (95% interval {self.interval[0]:.3f} to {self.interval[1]:.3f})"
        return text
