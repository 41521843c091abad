"""The optimizer against AdamW written out in float64, and its schedules by hand."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxdpo.training.optimizer import decayed, make_optimizer, make_schedule
from jaxdpo.training.optimizer_config import OptimizerConfig


def test_schedules_by_hand():
    def rates(schedule: str, warmup_ratio: float) -> list[float]:
        config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_ratio=warmup_ratio)
        make = make_schedule(config, 10, lora=False)
        return [round(float(make(step)), 4) for step in range(10)]

    assert rates("constant", 0.0) == [1.0] * 10
    assert rates("linear", 0.0) == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates("linear", 0.2) == [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    cosine = [0.5 * (1 + np.cos(np.pi * step / 8)) for step in range(8)]
    assert rates("cosine", 0.2) == [0.0, 0.5, *(round(rate, 4) for rate in cosine)]


def test_the_default_rate_depends_on_what_is_trained():
    config = OptimizerConfig()
    assert (config.peak(lora=False), config.peak(lora=True)) == (1e-6, 1e-5)
    assert OptimizerConfig(learning_rate=3e-4).peak(lora=True) == 3e-4


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_follows_torch(max_grad_norm):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    gradients = rng.normal(size=(6, 4, 3)).astype(np.float32)
    config = OptimizerConfig(
        learning_rate=0.1, schedule="linear", weight_decay=0.1, max_grad_norm=max_grad_norm
    )
    optimizer = make_optimizer(config, make_schedule(config, 6, lora=False))
    params: Any = {"layer": {"kernel": jnp.asarray(start)}}
    state = optimizer.init(params)
    theirs = torch.nn.Parameter(torch.tensor(start))
    adamw = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    decay = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1 - step / 6)
    for gradient in gradients:
        updates, state = optimizer.update({"layer": {"kernel": gradient}}, state, params)
        params = optax.apply_updates(params, updates)
        theirs.grad = torch.tensor(gradient)
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_([theirs], max_grad_norm)
        adamw.step()
        decay.step()
        np.testing.assert_allclose(
            params["layer"]["kernel"], theirs.detach().numpy(), rtol=2e-6, atol=2e-6
        )


def test_only_matrices_decay():
    params = {
        "embed": {"weight": 0},
        "layers": {"norm": {"scale": 0}, "q": {"kernel": 0, "bias": 0, "a": 0, "b": 0}},
    }
    assert decayed(params) == {
        "embed": {"weight": True},
        "layers": {
            "norm": {"scale": False},
            "q": {"kernel": True, "bias": False, "a": True, "b": True},
        },
    }
