"""Rows that a server drives: settings of their own, log-probabilities, a ring that changes."""

# The types say that every part of an answer may be absent; these requests ask for all that is read.
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import init_params
from jaxdpo.sampling import Model, SamplingConfig, generate_each, numbered
from jaxdpo.sampling import rows as programs
from jaxdpo.sampling.logprobs import likeliest
from jaxdpo.sampling.pool import RowPool, RowRequest
from tests.sampling.test_engine import CONFIG, NO_STOP, full_forward_logits
from tests.tiny import compilations

COMPUTE = Compute(jnp.float32, attention="dense", remat="none")


@pytest.fixture(scope="module")
def model():
    weights = init_params(CONFIG, jax.random.key(0), jnp.float32)
    larger = jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, weights)
    return Model(CONFIG, larger, None, NO_STOP, COMPUTE)


def finish(pool, begun, steps=7):
    """Decodes until all rows have ended; returns each one's tokens, by row."""
    drawn = {each.row: [] for each in begun}
    while pool.running:
        for tokens in pool.advance(pool.rows, steps):
            drawn[tokens.row] += tokens.ids
    return drawn


def requests(prompts, count=20):
    """A request with settings of its own for each prompt."""
    settings = [(0.0, None, 1.0), (1.0, None, 1.0), (0.7, 5, 1.0), (1.3, 9, 0.6), (2.0, None, 0.4)]
    return [RowRequest(prompt, count, *settings[i % 5], seed=i) for i, prompt in enumerate(prompts)]


def alone(model, request):
    config = SamplingConfig(
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        seed=request.seed,
        # Rows and ring as those of the pools here, so that all is one program.
        batch_size=5,
    )
    [(_, completion)] = generate_each(model, numbered([request.prompt]), config)
    return completion.ids


PROMPTS = [[5, 9, 2], [3], [8, 8, 4, 1, 1], [11, 6], [20, 1, 7, 7]]


def test_rows_with_settings_of_their_own_draw_as_if_alone(model):
    jax.clear_caches()
    pool = RowPool(model, 5, 64)
    wanted = requests(PROMPTS)
    begun = pool.begin(wanted, 64)
    drawn = finish(pool, begun)
    assert compilations(programs.advance_rows) == 1
    for each, request in zip(begun, wanted, strict=True):
        assert drawn[each.row][:20] == alone(model, request)


def test_a_ring_that_grows_and_shrinks_changes_nothing(model):
    """Rows of different lengths, one of them begun later, over rings of two lengths."""
    pool = RowPool(model, 5, 64)
    wanted = requests(PROMPTS, 40)
    begun = pool.begin(wanted[:4], 64)
    drawn = {each.row: [] for each in begun}
    for slots in (64, 128, 128, 64, 128):
        pool.resize(slots)
        assert pool.slots == slots
        for tokens in pool.advance(pool.rows, 6):
            drawn[tokens.row] += tokens.ids
        if len(begun) == 4 and slots == 128:
            begun += pool.begin(wanted[4:], 64)
            drawn[begun[-1].row] = []
    for row, ids in finish(pool, begun).items():
        drawn[row] += ids
    for each, request in zip(begun, wanted, strict=True):
        assert drawn[each.row][:40] == alone(model, request)


def test_a_row_that_is_ended_is_free_and_disturbs_nobody(model):
    pool = RowPool(model, 5, 64)
    wanted = requests(PROMPTS * 2, 12)
    first = pool.begin(wanted[:7], 64)
    assert len(first) == 5 and pool.begin(wanted[5:], 64) == []
    drawn = {tokens.row: tokens.ids for tokens in pool.advance(5, 5)}
    pool.end([first[1].row, first[3].row])
    [late] = pool.begin(wanted[8:9], 64)
    assert late.row == first[1].row
    drawn[late.row] = []
    kept = [first[0], first[2], first[4], late]
    for row, ids in finish(pool, kept).items():
        drawn[row] += ids
    for each, request in zip(kept, (wanted[0], wanted[2], wanted[4], wanted[8]), strict=True):
        assert drawn[each.row][:12] == alone(model, request)


@pytest.mark.parametrize("vocabulary", [30, 4096, 5000, 32_000])
def test_the_likeliest_tokens_are_those_of_top_k(vocabulary):
    """With many equal values, of which the first indices come first."""
    rng = np.random.default_rng(vocabulary)
    for values in (rng.standard_normal((3, vocabulary)), rng.integers(0, 9, (3, vocabulary))):
        logps = jnp.asarray(values, jnp.float32)
        expected = jax.lax.top_k(logps, 20)
        for found, wanted in zip(likeliest(logps, 20), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_logprobs_are_those_of_the_full_forward_pass(model):
    pool = RowPool(model, 5, 64)
    # One that wants none runs among them, and two prompts are packed into one row.
    wanted = [
        each._replace(logprobs=i != 1, prompt_logprobs=i != 1, max_new_tokens=9)
        for i, each in enumerate(requests(PROMPTS[:3]))
    ]
    begun = pool.begin(wanted, 64)
    assert begun[1].prompt_logprobs is None
    found = {each.row: [] for each in begun}
    while pool.running:
        for tokens in pool.advance(5, 4):
            found[tokens.row].append(tokens)
    for each, request in zip(begun, wanted, strict=True):
        parts = found[each.row]
        ids = [token for part in parts for token in part.ids][:9]
        if not request.logprobs:
            assert all(part.logprobs is None for part in parts)
            continue
        sequence = [*request.prompt, *ids]
        own = np.concatenate([each.prompt_logprobs.of_token, *(p.logprobs.of_token for p in parts)])
        tops = np.concatenate([each.prompt_logprobs.top, *(p.logprobs.top for p in parts)])
        top_ids = np.concatenate(
            [each.prompt_logprobs.top_ids, *(p.logprobs.top_ids for p in parts)]
        )
        for place in range(1, len(sequence)):
            logits = np.asarray(full_forward_logits(model.params, sequence[:place]), np.float64)
            logps = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            np.testing.assert_allclose(own[place - 1], logps[sequence[place]], atol=1e-4)
            np.testing.assert_allclose(tops[place - 1], -np.sort(-logps)[:20], atol=1e-4)
            np.testing.assert_allclose(logps[top_ids[place - 1]], tops[place - 1], atol=1e-4)
