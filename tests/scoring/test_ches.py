"""CHES scores: the paper's formula over torch's hidden states, and what they are to foretell."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchConfig, BatchShape, Packer, scoring_shape
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.devices.sharding import replicated
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.folder import read_config
from jaxdpo.hub.read import load_params
from jaxdpo.model.compute import Compute
from jaxdpo.runs.load import load_source
from jaxdpo.scoring.ches import Ches, ches, ches_of_batch, ches_of_pairs, make_ches_step
from jaxdpo.scoring.planned_pairs import PairColumns, PlannedPairs
from jaxdpo.scoring.score import score_completions
from jaxdpo.storage.files import shipped
from tests.tiny import Pairs, mesh_of, random_pairs
from tests.torch_ches import ches_by_torch

COMPUTE = Compute(jnp.float32, attention="dense", remat="none")


def test_packed_pairs_have_the_papers_scores(tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
    ).double()
    model.save_pretrained(tmp_path)
    config = config_from_hf(read_config(tmp_path))
    params = load_params(tmp_path, config, jnp.float32)
    pairs = random_pairs(24)
    mesh = mesh_of(2, 1, 1)
    packer = Packer(pairs.lengths, BatchConfig(), rows=2, row_length=128)
    planned = PlannedPairs(pairs, packer, scoring_shape([packer], "plain"), PairColumns())
    params = jax.device_put(params, replicated(mesh))
    step = make_ches_step(config, COMPUTE, mesh)
    with jax.set_mesh(mesh):
        found = ches_of_pairs(step, params, None, planned, mesh)
    summed, normalized = np.array([ches_by_torch(model, pair) for pair in pairs.pairs]).T
    # fp32 through two layers, against float64.
    np.testing.assert_allclose(found.summed, summed, rtol=1e-4, atol=1e-4 * abs(summed).max())
    np.testing.assert_allclose(
        found.normalized, normalized, rtol=1e-4, atol=1e-4 * abs(normalized).max()
    )
    assert planned.shape.pairs > 1 and len(set(np.sign(normalized))) == 2


def test_the_formula_by_hand():
    # One pair: Σ h⁺ = (2, 1) of two tokens, Σ h⁻ = (3, −4) of one; and a row without a pair.
    sums = jnp.array([[[[2.0, 1.0], [3.0, -4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    found = ches(sums, jnp.array([[[2.0, 1.0]], [[0.0, 0.0]]]))
    assert found.summed.tolist() == [[6 - 4 - 5], [0]]
    assert found.normalized.tolist() == [[3 - 2 - 1.25], [0]]


def test_equal_completions_score_zero_and_opposite_ones_less():
    chosen = 1e4 + jnp.arange(4.0)
    sums = jnp.stack([jnp.stack([chosen, chosen]), jnp.stack([chosen, -chosen])])[None]
    alike, opposite = ches(sums, jnp.ones((1, 2, 2))).summed[0].tolist()
    assert alike == 0.0
    assert opposite == pytest.approx(-2 * float(jnp.sum(chosen**2)), rel=1e-6)


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """60 quickstart pairs: CHES before, and how far log π(chosen) falls in a step on each alone."""
    policy = load_source(shipped("@quickstart/model"))
    folder = tmp_path_factory.mktemp("cache")
    data = DataConfig(path=shipped("@quickstart/pairs.jsonl"), cache_dir=str(folder))
    train = load_pairs(data, policy.chat).splits["TRAIN"]
    chosen = np.random.default_rng(0).permutation(len(train))[:60]
    pairs = [train[int(index)] for index in chosen]
    shape = BatchShape(
        rows=1,
        row_length=max(sum(map(len, pair[:3])) for pair in pairs),
        scores=max(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs),
    )

    @jax.jit
    def step(params, batch):
        def completions(params):
            return score_completions(policy.config, params, None, batch, COMPUTE).completions

        before = completions(params)

        def dpo_loss(params):
            ratios = completions(params).logps[0, 0] - before.logps[0, 0]
            return -jax.nn.log_sigmoid(0.1 * (ratios[0] - ratios[1]))

        gradients = jax.grad(dpo_loss)(params)
        moved = jax.tree.map(lambda x, gradient: x - 0.01 * gradient, params, gradients)
        fall = before.logps[0, 0, 0] - completions(moved).logps[0, 0, 0]
        scores = ches_of_batch(policy.config, params, None, batch, COMPUTE)
        return jax.tree.map(lambda x: x[0, 0], scores), fall, before.tokens[0, 0, 0]

    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), policy.params)
    batches = [pack_batch(Pairs(pairs), [[index]], shape) for index in range(len(pairs))]
    found = [step(params, batch) for batch in batches]
    return jax.tree.map(lambda *leaves: np.array(leaves), *found)


def test_pairs_of_high_ches_lose_most_of_their_chosen_answer(one_step):
    """The paper's claim (section 5). Measured here: ρ = 0.54 for the answer, 0.80 for a token."""
    scores, fall, tokens = one_step
    assert isinstance(scores, Ches) and len(fall) >= 50
    whole: Any = stats.spearmanr(scores.normalized, fall)
    by_token: Any = stats.spearmanr(scores.normalized, fall / tokens)
    assert whole.statistic > 0.4 and whole.pvalue < 1e-3
    assert by_token.statistic > 0.65 and by_token.pvalue < 1e-6
