"""Supervised training of the quickstart model on the desk's past answers, from random weights."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Compute, Params, init_params
from jaxdpo.scoring.score import score_completions

COMPUTE = Compute(jnp.float32, attention="dense", remat="none")


def supervised_loss(config: ModelConfig, params: Params, batch: PackedBatch) -> jax.Array:
    """Mean negative log-likelihood, in nats a token, of both completions of each prompt."""
    logps = score_completions(config, params, None, batch, COMPUTE).completions.logps
    return -jnp.sum(logps) / jnp.sum(batch.score_pair > 0)


def train_supervised(
    config: ModelConfig, batches: Iterable[PackedBatch], steps: int, peak_lr: float, seed: int
) -> Params:
    """Trains a model from random weights: AdamW, warm-up over 5% of the steps, then cosine.

    Args:
      config: Architecture.
      batches: At least `steps` batches; their two completions of a prompt are two past answers.
      steps: Optimizer steps.
      peak_lr: Learning rate after the warm-up.
      seed: Of the random weights.

    Returns:
      The parameters, fp32.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak_lr, steps // 20, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )
    params = init_params(config, jax.random.key(seed), jnp.float32)
    state = optimizer.init(params)

    @jax.jit
    def update(params: Params, state: optax.OptState, batch: PackedBatch):
        loss, gradients = jax.value_and_grad(supervised_loss, argnums=1)(config, params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        params, state, loss = update(params, state, batch)
        if step % 50 == 0:
            print(f"supervised step {step}/{steps}: loss {loss:.3f}", flush=True)
    return params
