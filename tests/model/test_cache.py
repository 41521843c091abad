import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.data.packing.layout import empty_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.model.cache import PackedPrompts, decode, empty_cache, place, prefill
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import unstacked
from jaxdpo.model.lora import LoraConfig, init_lora
from tests.tiny import compilations, hidden_states

LORA = LoraConfig(rank=4)
COMPUTE = Compute(jnp.float32, attention="dense", remat="none", lora=LORA)
LENGTH, PROMPTS = 14, (5, 2, 7)
step = jax.jit(decode, static_argnums=(0, 5))


def full_forward(config, params, lora, tokens_BT) -> jax.Array:
    rows, length = tokens_BT.shape
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BT.shape)
    batch = empty_batch(BatchShape(rows, length), rows)._replace(
        tokens=tokens_BT, positions=positions, pair_ids=np.ones_like(tokens_BT)
    )
    return jax.jit(hidden_states, static_argnums=(0, 4))(config, params, lora, batch, COMPUTE)


def test_prefill_and_decode_equal_the_full_forward(config, params):
    """Prompts of different lengths, then tokens; a row begun later, the ring going round."""
    rng = np.random.default_rng(0)
    lora = jax.tree.map(
        lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32),
        jax.eval_shape(lambda: init_lora(config, LORA, jax.random.key(0))),
    )
    tokens = rng.integers(0, 40, (len(PROMPTS), LENGTH)).astype(np.int32)
    expected = np.asarray(full_forward(config, params, lora, tokens))
    weights = unstacked(params, lora, jnp.float32)

    starts = np.cumsum(PROMPTS) - PROMPTS
    spans = [slice(start, start + length) for start, length in zip(starts, PROMPTS, strict=True)]
    prompts = PackedPrompts(*np.zeros((3, 20), np.int32))
    prompts.segments_T[:] = -1
    for row, span in enumerate(spans):
        prompts.tokens_T[span] = tokens[row, : PROMPTS[row]]
        prompts.positions_T[span] = np.arange(PROMPTS[row])
        prompts.segments_T[span] = row
    hidden, kv = jax.jit(prefill, static_argnums=(0, 4))(config, *weights, prompts, COMPUTE)
    assert np.isfinite(hidden).all()
    for row, span in enumerate(spans):
        np.testing.assert_allclose(
            hidden[span], expected[row, : PROMPTS[row]], rtol=1e-5, atol=1e-5
        )

    cache = empty_cache(config, len(PROMPTS), slots=LENGTH + 2, dtype=jnp.float32)
    # The last row begins after six tokens of the others.
    early = np.array([*PROMPTS[:-1], 0], np.int32)
    late = np.array([0] * (len(PROMPTS) - 1) + [PROMPTS[-1]], np.int32)
    cache = jax.jit(place)(cache, kv, starts, early)
    at = np.array(PROMPTS)
    for step_number in range(14):
        if step_number == 6:
            cache = jax.jit(place)(cache, kv, starts, late)
            at[-1] = PROMPTS[-1]
        token = np.take_along_axis(tokens, np.minimum(at, LENGTH - 1)[:, None], axis=1)[:, 0]
        hidden, cache = step(config, *weights, token, cache, COMPUTE)
        for row in range(len(PROMPTS)):
            if at[row] < LENGTH and (step_number >= 6 or late[row] == 0):
                np.testing.assert_allclose(
                    hidden[row], expected[row, at[row]], rtol=1e-5, atol=1e-5
                )
        at += 1
    assert compilations(step) <= 4


def test_an_empty_cache_has_no_tokens(config):
    cache = empty_cache(config, rows=2, slots=5, dtype=jnp.bfloat16)
    assert [leaf.shape for leaf in (*cache.k_BKSd, *cache.v_BKSd)] == [(2, 2, 5, 6)] * 6
    assert cache.k_BKSd[0].dtype == jnp.bfloat16
    assert not cache.lengths_B.any()
