"""KTO against its paper, TRL 1.16's own trainer on the same log-probs, and finite differences."""

from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdpo.losses import LossConfig
from jaxdpo.losses.mixture import loss_sums
from jaxdpo.scoring.planned_pairs import PairColumns
from jaxdpo.scoring.scores import CompletionScores
from jaxdpo.training.metrics import completion_sums, means, reward_sums
from tests.losses import papers
from tests.losses.papers import Wide
from tests.torch_reference import Accelerator

COUNT = 12
CONFIGS = [
    LossConfig(type="kto"),
    LossConfig(type="kto", beta=0.7, desirable_weight=1.5),
    LossConfig(type="kto", beta=0.3, undesirable_weight=2.5),
]


def examples(seed=0, drift=0.0):
    """Log-probs f64 `[COUNT, 2]` of answers and mismatched ones, the reference's, and labels."""
    rng = np.random.default_rng(seed)
    reference = rng.uniform(-60, -5, (COUNT, 2))
    policy = reference + rng.normal(0, 3, (COUNT, 2)) + [0.0, drift]
    return policy, reference, (rng.random(COUNT) < 0.6).astype(float)


def by_paper(config, policy, reference, labels, z=None):
    """The mean loss in eighty bits; z of its own unless given, as it has no gradient."""
    ratios = np.asarray(policy, Wide) - np.asarray(reference, Wide)
    z = max(Wide(0), ratios[:, 1].mean()) if z is None else z
    options = (Wide(config.beta), Wide(config.desirable_weight), Wide(config.undesirable_weight))
    losses = [
        papers.kto(a, good, z, *options) for a, good in zip(ratios[:, 0], labels, strict=True)
    ]
    return np.mean(losses), z


def ours(config, policy, reference, labels):
    """The mean loss, its gradient in the policy's log-probs, and what is reported."""
    reference, labels = jnp.asarray(reference, jnp.float32), jnp.asarray(labels, jnp.float32)
    is_pair = jnp.ones(len(labels), bool)

    def loss(logps):
        scores = CompletionScores(logps, logps, jnp.full(logps.shape, 10.0))
        columns = PairColumns(reference, labels=labels)
        sums = loss_sums(config, scores, columns, is_pair, jnp.float32(10))
        sums |= completion_sums(scores, columns, is_pair)
        sums |= reward_sums(config.beta * (logps - reference), columns, is_pair)
        return sums["loss"] / len(labels), sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(
        jnp.asarray(policy, jnp.float32)
    )
    return float(value), np.asarray(gradient), means({n: float(v) for n, v in sums.items()})


@pytest.mark.parametrize("drift", [2.0, -8.0])
@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "desirable", "undesirable"])
def test_value_and_gradient_are_the_papers(config, drift):
    policy, reference, labels = examples(drift=drift)
    expected, z = by_paper(config, policy, reference, labels)
    assert (z > 0) == (drift > 0)
    value, gradient, metrics = ours(config, policy, reference, labels)
    np.testing.assert_allclose(value, float(expected), rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], float(z), rtol=1e-5)
    step = 1e-6
    for row in range(COUNT):
        up, down = policy.copy(), policy.copy()
        up[row, 0] += step
        down[row, 0] -= step
        rise = by_paper(config, up, reference, labels, z)[0]
        rise -= by_paper(config, down, reference, labels, z)[0]
        np.testing.assert_allclose(
            gradient[row, 0], float(rise / (up[row, 0] - down[row, 0])), rtol=1e-3, atol=1e-7
        )
    assert not gradient[:, 1].any(), "no gradient goes through the mismatched answers"


def test_extreme_log_probs_are_finite_and_right():
    config = LossConfig(type="kto", undesirable_weight=2.0)
    for a in (-1e4, 1e4):
        for mismatched in (-1e4, 0.0, 1e4):
            for label in (0.0, 1.0):
                policy = np.array([[a, mismatched]])
                arguments = config, policy, np.zeros((1, 2)), [label]
                value, gradient, _ = ours(*arguments)
                np.testing.assert_allclose(value, float(by_paper(*arguments)[0]), atol=1e-6)
                assert np.isfinite(gradient).all()


def by_trl(config, policy, reference, labels):
    """Loss, gradient and metrics of TRL's `KTOTrainer._compute_loss` on given log-probs."""
    from trl import KTOTrainer  # pyright: ignore[reportPrivateImportUsage]  # exported lazily

    # One token each; TRL sums them over tokens itself.
    logps = torch.tensor(policy[:, :1], dtype=torch.float32, requires_grad=True)
    outputs = SimpleNamespace(
        log_probs=logps, entropy=torch.zeros_like(logps), mean_logits=torch.zeros_like(logps)
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
        _compute_kl_logps=lambda model, batch: torch.tensor(policy[:, 1], dtype=torch.float32),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    mask = torch.tensor([[0, 1]] * len(labels))
    inputs = {
        "label": torch.tensor(labels > 0),
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_logps": torch.tensor(reference[:, 0], dtype=torch.float32),
        "ref_KL_logps": torch.tensor(reference[:, 1], dtype=torch.float32),
    }
    loss = KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert logps.grad is not None
    return loss.item(), logps.grad.numpy()[:, 0], metrics


@pytest.mark.parametrize("drift", [2.0, -8.0])
@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "desirable", "undesirable"])
def test_value_gradient_and_metrics_are_trls(config, drift):
    arrays = examples(seed=1, drift=drift)
    value, gradient, metrics = ours(config, *arrays)
    expected, expected_gradient, expected_metrics = by_trl(config, *arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], expected_gradient, rtol=1e-3, atol=1e-7)
    sides = [f"{kind}/{side}" for kind in ("rewards", "logps") for side in ("chosen", "rejected")]
    for name in ("kl", "rewards/margins", *sides):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-4, err_msg=name)


def test_metrics_by_hand_where_one_label_is_missing():
    config = LossConfig(type="kto", beta=0.5)
    policy, reference = np.array([[-4.0, -1.0], [-8.0, -1.0]]), np.array([[-5.0, -2.0]] * 2)
    _, _, metrics = ours(config, policy, reference, np.array([1.0, 1.0]))
    assert metrics["rewards/chosen"] == 0.5 * (1 - 3) / 2
    assert metrics["logps/chosen"] == -6.0 and metrics["lengths/chosen"] == 10.0
    # z is 1: the first lies on it, the second below.
    assert (metrics["kl"], metrics["rewards/accuracies"]) == (1.0, 0.25)
    assert (metrics["num_chosen"], metrics["num_rejected"]) == (2.0, 0.0)
    assert not {"rewards/rejected", "rewards/margins", "logps/rejected"} & metrics.keys()


def test_padding_changes_nothing():
    config = LossConfig(type="kto")
    policy, reference, labels = (jnp.asarray(a, jnp.float32) for a in examples(drift=2.0))
    at = jnp.array([0, 5])

    def total(policy, reference, labels, is_pair):
        scores = CompletionScores(policy, policy, jnp.ones(policy.shape))
        columns = PairColumns(reference, labels=labels)
        return loss_sums(config, scores, columns, is_pair, jnp.float32(1))

    alone = total(policy, reference, labels, jnp.ones(COUNT, bool))
    padded = [jnp.insert(array, at, 0.0, axis=0) for array in (policy, reference, labels)]
    among = total(padded[0], padded[1], padded[2], jnp.insert(jnp.ones(COUNT, bool), at, False))
    for name, value in alone.items():
        np.testing.assert_allclose(among[name], value, rtol=1e-6, err_msg=name)
