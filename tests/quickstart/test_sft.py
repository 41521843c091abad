"""Supervised training: its loss from one plain forward pass, and that it learns."""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.data.packing.batch import PROMPT
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from jaxdpo.model.decoder import init_params, logits
from jaxdpo.quickstart.make import supervised_batches
from jaxdpo.quickstart.sft import COMPUTE, supervised_loss, train_supervised
from jaxdpo.quickstart.task import SYLLABLES, sample_texts
from jaxdpo.quickstart.tokenizer import write_tokenizer
from tests.tiny import hidden_states

CONFIG = ModelConfig(
    vocab_size=576,
    hidden_size=32,
    num_layers=1,
    attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=16),
    mlp=MLPConfig(intermediate_size=48),
    tied_head=True,
)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, sample_texts(random.Random(0)), SYLLABLES, CONFIG.vocab_size)
    return next(supervised_batches(load_chat(str(folder)), random.Random(1)))


def test_the_loss_is_the_mean_over_answer_tokens(batch):
    """Counted from the tokens' branches: each answer token after its predecessor or the prompt."""
    params = init_params(CONFIG, jax.random.key(0), jnp.float32)
    hidden = hidden_states(CONFIG, params, None, batch, COMPUTE)
    logps = np.asarray(jax.nn.log_softmax(logits(CONFIG, params, hidden)), np.float64)
    total, count = 0.0, 0
    for row, branches in enumerate(batch.branches):
        prompt_end = int(np.flatnonzero((branches == PROMPT) & (batch.pair_ids[row] > 0))[-1])
        for token in np.flatnonzero(branches != PROMPT):
            follows = branches[token - 1] == branches[token]
            before = token - 1 if follows else prompt_end
            total -= logps[row, before, batch.tokens[row, token]]
            count += 1
    assert float(supervised_loss(CONFIG, params, batch)) == pytest.approx(total / count, rel=1e-5)


def test_training_lowers_the_loss_of_what_it_sees(batch):
    params = train_supervised(CONFIG, itertools.repeat(batch), steps=40, peak_lr=1e-2, seed=0)
    before = supervised_loss(CONFIG, init_params(CONFIG, jax.random.key(0), jnp.float32), batch)
    assert supervised_loss(CONFIG, params, batch) < 0.5 * before
