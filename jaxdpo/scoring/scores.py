"""Scores of a batch's completions: the arrays that losses and metrics are made of."""

from typing import NamedTuple

import jax


class CompletionScores(NamedTuple):
    """Scores of completions, f32 `[..., 2]`: chosen and rejected; 0 where there is no pair.

    Attributes:
      logps: Log-probs in nats, summed over tokens; with `ld_alpha` the longer completion's tail
        counts less. What losses and rewards are made of.
      plain_logps: Log-probs summed over all tokens alike.
      tokens: How many tokens.
      log_weights: Mean over tokens of log p − log Σ p² over the vocabulary (WPO), or None.
      entropy: Entropy of the predictions in nats, summed over tokens, or None.
      correct: Tokens that are the most likely ones, or None.
    """

    logps: jax.Array
    plain_logps: jax.Array
    tokens: jax.Array
    log_weights: jax.Array | None = None
    entropy: jax.Array | None = None
    correct: jax.Array | None = None


class BatchScores(NamedTuple):
    """Scores of a microbatch.

    Attributes:
      completions: Those of its completions, f32 `[R, P, 2]`.
      router_loss: f32 scalar, the experts' load-balancing loss; None without experts.
    """

    completions: CompletionScores
    router_loss: jax.Array | None = None
