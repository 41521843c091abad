"""Metrics by the field's names: sums over pairs first, means at the end."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxdpo.devices.machine import peak_memory
from jaxdpo.losses import LossConfig
from jaxdpo.losses.mixture import implicit_rewards
from jaxdpo.scoring.planned_pairs import PairColumns
from jaxdpo.scoring.scores import CompletionScores

# Of one step or evaluation: on the host, and still on the device.
Metrics = dict[str, float]
DeviceMetrics = dict[str, Any]

# Sums over tokens ↦ the sum of the tokens they are over, and what the quotient is called.
_PER_TOKEN = {
    "logps/chosen": ("lengths/chosen", "logps/chosen_per_token"),
    "logps/rejected": ("lengths/rejected", "logps/rejected_per_token"),
    "entropy_sum": ("lengths/all", "entropy"),
    "correct_sum": ("lengths/chosen", "token_accuracy"),
}
_ONLY_SUMS = ("entropy_sum", "correct_sum", "lengths/all")


def by_label(values: Any, labels: jax.Array) -> Any:
    """Puts labelled answers where chosen or rejected ones stand, by their labels.

    Args:
      values: Arrays f32 `[..., 2]`, of answers and mismatched answers.
      labels: f32 `[...]`, 1 of an answer found good, 0 of a bad one.

    Returns:
      Arrays f32 `[..., 2]`: the answer's own value in the first place if it was found good, in the
      second if not; 0 in the other.
    """
    own = jnp.stack([labels > 0, labels <= 0], axis=-1)
    return jax.tree.map(lambda leaf: jnp.where(own, leaf[..., :1], 0.0), values)


def pair_metrics(
    loss: LossConfig, policy: CompletionScores, columns: PairColumns, is_pair: jax.Array
) -> dict[str, jax.Array]:
    """Sums over pairs what is reported of them beside the losses.

    Args:
      loss: The loss, for its rewards.
      policy: The policy's scores, f32 `[..., 2]`.
      columns: The pairs' own numbers, f32 `[...]`.
      is_pair: bool `[...]`, false where there is padding.

    Returns:
      f32 scalars, to be added over batches and divided by `means`.
    """
    sums = completion_sums(policy, columns, is_pair)
    # Supervised training compares nothing, so it has no rewards.
    if not loss.supervised:
        rewards = implicit_rewards(loss, policy, columns.reference)
        sums |= reward_sums(rewards, columns, is_pair)
    return sums


def reward_sums(
    rewards: jax.Array, columns: PairColumns, is_pair: jax.Array
) -> dict[str, jax.Array]:
    """Sums over pairs rewards, margins and accuracies.

    Ties count one half in the accuracies, so a policy equal to its reference reads 0.5.

    Args:
      rewards: f32 `[..., 2]`, of chosen and rejected completions.
      columns: The pairs' own numbers. Labelled answers have no margins of their own, and their
        accuracies come with the loss.
      is_pair: bool `[...]`, false where there is padding.

    Returns:
      f32 scalars, to be added over batches.
    """
    labels = columns.labels
    if labels is not None:
        placed = jnp.where(is_pair[..., None], by_label(rewards, labels), 0.0)
        return {
            "rewards/chosen": jnp.sum(placed[..., 0]),
            "rewards/rejected": jnp.sum(placed[..., 1]),
        }
    chosen, rejected = rewards[..., 0], rewards[..., 1]
    margins = chosen - rejected
    per_pair = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margins,
        "rewards/accuracies": 0.5 * (jnp.sign(margins) + 1),
    }
    return {name: jnp.sum(jnp.where(is_pair, value, 0.0)) for name, value in per_pair.items()}


def completion_sums(
    policy: CompletionScores, columns: PairColumns, is_pair: jax.Array
) -> dict[str, jax.Array]:
    """Sums over pairs log-probs, lengths, entropy and divergence of the completions.

    `kl` is (log π − log ref)² / 2n of a completion of n tokens, averaged over the pair's two: a
    lower bound, from sums alone, of the sum over its tokens of Schulman's estimator ½(log r)² of
    the KL divergence ("Approximating KL Divergence", 2020, k2), taken on the data's completions.

    Args:
      policy: The policy's scores, f32 `[..., 2]`.
      columns: The pairs' own numbers. Of labelled answers those found good are the chosen ones, the
        bad ones are the rejected; mismatched ones are not looked at, and `kl` comes with the loss.
      is_pair: bool `[...]`, false where there is padding.

    Returns:
      f32 scalars, to be added over batches; `num_pairs` counts what they sum over, of labelled
      answers `num_chosen` and `num_rejected` those with either label.
    """
    labels = columns.labels
    if labels is not None:
        policy = by_label(policy, labels)
    tokens = policy.tokens
    per_pair = {
        "logps/chosen": policy.plain_logps[..., 0],
        "logps/rejected": policy.plain_logps[..., 1],
        "lengths/chosen": tokens[..., 0],
        "lengths/rejected": tokens[..., 1],
        "num_pairs": jnp.ones_like(tokens[..., 0]),
    }
    if labels is not None:
        per_pair["num_chosen"] = jnp.where(labels > 0, 1.0, 0.0)
        per_pair["num_rejected"] = jnp.where(labels > 0, 0.0, 1.0)
    elif columns.reference is not None:
        ratios = policy.logps - columns.reference
        per_pair["kl"] = jnp.mean(jnp.square(ratios) / (2 * jnp.maximum(tokens, 1.0)), axis=-1)
    if policy.entropy is not None and policy.correct is not None:
        per_pair["entropy_sum"] = policy.entropy.sum(-1)
        per_pair["correct_sum"] = policy.correct[..., 0]
        per_pair["lengths/all"] = tokens.sum(-1)
    return {name: jnp.sum(jnp.where(is_pair, value, 0.0)) for name, value in per_pair.items()}


def means(sums: dict[str, float]) -> dict[str, float]:
    """Divides what was summed over pairs by `num_pairs`, or over tokens by the tokens.

    Counts (`num_*`) are kept. Of labelled answers what is of chosen or rejected ones is divided by
    their number, and left out where there are none.
    """
    averaged = {}
    for name, value in sums.items():
        # `rewards/chosen` is divided by `num_chosen` where that is counted, else by all pairs.
        count = sums.get(f"num_{name.rpartition('/')[2]}", sums["num_pairs"])
        if name.startswith("num_"):
            averaged[name] = value
        elif name not in _ONLY_SUMS and count > 0:
            averaged[name] = value / count
    sides = ("rewards/chosen", "rewards/rejected")
    if "num_chosen" in sums and all(side in averaged for side in sides):
        averaged["rewards/margins"] = averaged[sides[0]] - averaged[sides[1]]
    for name, (tokens, quotient) in _PER_TOKEN.items():
        # Supervised data has no rejected completions.
        if name in sums and sums[tokens] > 0:
            averaged[quotient] = sums[name] / sums[tokens]
        elif name in averaged:
            del averaged[name], averaged[tokens]
    return averaged


class LaggedMetrics:
    """Reads metrics one step late, when the next step is under way already.

    So reading never holds the device up. Times are taken between readings; the first after
    `restart_clock` has none, because compiling or evaluating went before it.
    """

    def __init__(self) -> None:
        self._pending: tuple[int, DeviceMetrics] | None = None
        self._last: float | None = None

    def push(self, step: int, metrics: DeviceMetrics) -> tuple[int, Metrics] | None:
        """Takes a step's metrics; returns the step before it and its metrics, if any."""
        ready = self.flush()
        self._pending = (step, metrics)
        return ready

    def flush(self) -> tuple[int, Metrics] | None:
        """Returns the metrics that are pending, once they are computed."""
        if self._pending is None:
            return None
        step, device_metrics = self._pending
        self._pending = None
        sums = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        now = time.perf_counter()
        slots = sums.pop("num_slots")
        of_step = {name: sums.pop(name) for name in ("grad_norm", "learning_rate")}
        metrics = means(sums) | of_step
        metrics["packing_efficiency"] = sums["num_tokens"] / slots
        metrics["peak_memory_gib"] = peak_memory() / 2**30
        if self._last is not None:
            metrics["step_seconds"] = now - self._last
            metrics["pairs_per_second"] = sums["num_pairs"] / metrics["step_seconds"]
        self._last = now
        return step, metrics

    def restart_clock(self) -> None:
        """Leaves what happens until the next reading out of the times."""
        self._last = None
