"""Says in plain words, once each, when a run goes wrong in one of the ways that DPO is known to.

A warning names the metric, its value, the step, and what to change to which value. It never stops a
run. Thresholds are loose: a healthy run says nothing.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np

from jaxdpo.errors import UserError
from jaxdpo.training.metrics import Metrics
from jaxdpo.training.remedies import Remedies, either

# Steps that a TRAIN figure is averaged over before it is judged; one batch says little.
_WINDOW = 10
# Fall of the chosen completions' mean token by this many nats: 1.6 times less likely.
_DISPLACEMENT = 0.5
# Accuracy 1 on every pair of the window, within this share of the run.
_SATURATED, _EARLY = 0.999, 0.2
# β × log-ratio difference of 20 nats: σ is 1 to fp32, the pair teaches nothing more.
_EXPLODED = 20.0
# (log-ratio)² / 2n of n tokens is 1/8 n where the mean token's log-ratio is ½ nat: each token has
# become or ceased to be 1.6 times as likely. Published DPO runs stay below a tenth of that.
_KL_PER_TOKEN = 0.125
_LENGTHS = ("lengths/chosen", "lengths/rejected")
# A quarter of the variance of the rewards is length.
_LENGTH_CORRELATION = 0.5
# A norm that is nearly always over the limit is the limit at work, not the learning rate.
_CLIPPED = 0.95
# TEST loss this much over its best, in parts of it, while TRAIN still falls.
_OVERFIT = 0.1
# A model that made, or was trained on, such answers gives their tokens −0.2 to −1.5 nats; at −3
# the right token is one in twenty.
_FAR = -3.0


@dataclass
class Watch:
    """The health of a run: all that has been seen of it so far.

    Attributes:
      remedies: The run's settings, of which warnings say what to change.
      warned: Names of the warnings that were given.
    """

    remedies: Remedies
    warned: set[str] = field(default_factory=set)
    _recent: deque[Metrics] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _first: Metrics | None = None
    _clipped: int = 0
    _steps: int = 0
    _first_test: Metrics | None = None
    _best_test: Metrics | None = None
    _best_step: int | None = None

    def train(self, step: int, metrics: Metrics) -> list[str]:
        """Takes a step's metrics; returns what is to be said of them."""
        if self._first is None:
            self._first = metrics
        self._recent.append(metrics)
        self._steps += 1
        limit = self.remedies.optimizer.max_grad_norm
        if limit is not None and metrics["grad_norm"] > limit:
            self._clipped += 1
        if len(self._recent) < _WINDOW:
            return []
        now = {
            name: fmean(one[name] for one in self._recent)
            for name in ("rewards/accuracies", "rewards/margins")
            if all(name in one for one in self._recent)
        }
        found = [*self._saturated(step, now), *self._clipping()]
        return self._once(found, f"step {step}")

    def test(self, step: int, metrics: Metrics) -> list[str]:
        """Takes an evaluation's metrics; returns what is to be said of them."""
        found = []
        if self._first_test is None or self._best_test is None:
            self._first_test = self._best_test = metrics
            found += self._far(metrics)
        found += [*self._displaced(self._first_test, metrics), *self._drifted(metrics)]
        found += [*self._lengthy(metrics), *self._overfits(self._best_test, metrics)]
        if metrics["loss"] < self._best_test["loss"]:
            self._best_test, self._best_step = metrics, step
        return self._once(found, f"step {step}, TEST")

    def _once(self, found: list[tuple[str, str]], where: str) -> list[str]:
        said = []
        for name, text in found:
            if name not in self.warned:
                self.warned.add(name)
                said.append(f"warning ({where}): {text}")
        return said

    def _saturated(self, step: int, now: Metrics) -> list[tuple[str, str]]:
        found = []
        early = step <= _EARLY * self.remedies.num_steps
        if now.get("rewards/accuracies", 0) >= _SATURATED and early:
            found.append(
                (
                    "saturated",
                    f"rewards/accuracies is {now['rewards/accuracies']:.3f} over the last "
                    f"{_WINDOW} of only {step} steps: the pairs are told apart at sight. Look for "
                    "a trivial difference in the data (length, a first word): `jaxdpo inspect` "
                    f"tries such rules. {either(self.remedies.slower())}",
                )
            )
        if now.get("rewards/margins", 0) > _EXPLODED:
            found.append(
                (
                    "exploded",
                    f"rewards/margins is {now['rewards/margins']:.1f} nats: the loss is all but 0 "
                    "and the policy still runs away. "
                    + either(
                        self.remedies.slower(),
                        self.remedies.shorter(step),
                        self.remedies.bounded_margin(),
                    ),
                )
            )
        return found

    def _clipping(self) -> list[tuple[str, str]]:
        if self._steps < 2 * _WINDOW or self._clipped < _CLIPPED * self._steps:
            return []
        typical = median(one["grad_norm"] for one in self._recent)
        limit = self.remedies.optimizer.max_grad_norm
        return [
            (
                "clipped",
                f"grad_norm was over optimizer.max_grad_norm={limit} in {self._clipped} of "
                f"{self._steps} steps, so the limit sets the step's size. "
                + either(
                    # Twice the typical norm clips what sticks out, and no more.
                    self.remedies.looser_limit(2 * typical),
                    self.remedies.smaller_gradients(),
                    self.remedies.slower(),
                ),
            )
        ]

    def _far(self, metrics: Metrics) -> list[tuple[str, str]]:
        per_token = metrics.get("logps/chosen_per_token", 0.0)
        # Supervised training is what the warning would ask for.
        if per_token >= _FAR or "rewards/margins" not in metrics:
            return []
        return [
            (
                "far",
                f"logps/chosen_per_token is {per_token:.2f} before training: the model hardly "
                "ever says such answers, and DPO teaches it to prefer, not to say them. Train it "
                "on the chosen completions first (loss.type=sft), and check the chat template",
            )
        ]

    def _displaced(self, first: Metrics, metrics: Metrics) -> list[tuple[str, str]]:
        if "rewards/margins" not in metrics:
            return []
        name = "logps/chosen_per_token"
        fall = first.get(name, 0.0) - metrics.get(name, 0.0)
        if fall < _DISPLACEMENT or metrics["rewards/margins"] <= first["rewards/margins"]:
            return []
        return [
            (
                "displaced",
                f"{name} fell by {fall:.2f} while margins rose: the chosen answers become less "
                "likely too, and something else takes their place (likelihood displacement). "
                + either(self.remedies.chosen_mixed_in(), self.remedies.slower()),
            )
        ]

    def _drifted(self, metrics: Metrics) -> list[tuple[str, str]]:
        if "kl" not in metrics:
            return []
        # Labelled answers may all have one label.
        lengths = [metrics[name] for name in _LENGTHS if name in metrics]
        tokens = fmean(lengths)
        per_token = metrics["kl"] / max(tokens, 1.0)
        if per_token < _KL_PER_TOKEN:
            return []
        return [
            (
                "drifted",
                f"kl is {metrics['kl']:.1f} nats a completion ({per_token:.2f} a token): the "
                "policy has gone far from its reference. "
                + either(
                    self.remedies.nearer_the_reference(),
                    self.remedies.slower(),
                    self.remedies.shorter(),
                ),
            )
        ]

    def _lengthy(self, metrics: Metrics) -> list[tuple[str, str]]:
        correlation = metrics.get("rewards/length_correlation", 0.0)
        if correlation < _LENGTH_CORRELATION or metrics["num_pairs"] < 2 * _WINDOW:
            return []
        return [
            (
                "lengthy",
                f"rewards/length_correlation is {correlation:.2f}: longer completions are "
                "rewarded for their length. "
                + either(
                    self.remedies.without_length(),
                    "balance the lengths of chosen and rejected answers in the data",
                ),
            )
        ]

    def _overfits(self, best: Metrics, metrics: Metrics) -> list[tuple[str, str]]:
        train_falls = (
            self._first is not None
            and len(self._recent) == _WINDOW
            and fmean(one["loss"] for one in self._recent) < self._first["loss"]
        )
        worse = metrics["loss"] - best["loss"]
        if not train_falls or worse < _OVERFIT * abs(best["loss"]):
            return []
        return [
            (
                "overfits",
                f"loss is {metrics['loss']:.3f} on TEST, after {best['loss']:.3f} at best, while "
                "it still falls on TRAIN: the run learns its pairs by heart. "
                + either(
                    self.remedies.shorter(self._best_step),
                    self.remedies.nearer_the_reference(),
                    "add pairs",
                ),
            )
        ]


def check_finite(step: int, metrics: Metrics, sources: Callable[[], list[str]]) -> None:
    """Stops a run whose loss or gradients are no longer finite.

    Args:
      step: Steps done.
      metrics: The last one's.
      sources: Gives where the step's pairs came from, as `file:line`; called when they are needed.

    Raises:
      UserError: Naming the step and its pairs. The state was left as it was before the step.
    """
    if np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]):
        return
    pairs = sources()
    raise UserError(
        f"step {step}: loss is {metrics['loss']}, gradient norm {metrics['grad_norm']}; the step "
        f"was not applied. Its pairs: {', '.join(pairs[:8])}{' …' if len(pairs) > 8 else ''}. "
        "Lower optimizer.learning_rate, or compute in float32 (model.compute_dtype)"
    )


def check_step_zero(metrics: Metrics, beta: float, dtype: str) -> None:
    """Checks that the policy still equals its reference before the first update.

    Then every reward is 0. Log-probs of a completion, summed over its tokens, are given 0.02 nats
    of rounding in float32 and 0.5 in bfloat16.

    Args:
      metrics: The first step's.
      beta: Factor of the rewards.
      dtype: Name of the dtype of activations.

    Raises:
      UserError: If they differ.
    """
    allowed = beta * (0.02 if dtype == "float32" else 0.5)
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins")
    # A step of labelled answers may hold none with either label.
    found = {name: metrics[name] for name in names if name in metrics}
    if any(abs(value) > allowed for value in found.values()):
        shown = ", ".join(f"{name} {value:.5f}" for name, value in found.items())
        raise UserError(
            f"step 1: {shown}, but a policy that equals its reference has rewards of 0 (allowed: "
            f"±{allowed:.3g}). The reference was not computed with the weights or tokens that "
            "training starts from: delete the reference folder in data.cache_dir, or set "
            "reference.kind=frozen to compare"
        )
