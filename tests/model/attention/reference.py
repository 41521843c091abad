"""Random queries, keys and values, and the values and gradients of an attention over them."""

import jax
import jax.numpy as jnp


def random_qkv(packed, heads, kv_heads, channels=6):
    keys = jax.random.split(jax.random.key(heads), 3)
    sizes = zip(keys, (heads, kv_heads, kv_heads), strict=True)
    return [2 * jax.random.normal(key, (*packed.tokens.shape, n, channels)) for key, n in sizes]


def run(attend, packed, qkv):
    """Values and gradients where there are tokens."""
    real = jnp.asarray(packed.pair_ids > 0)[:, :, None, None]
    cotangent = jnp.where(real, jax.random.normal(jax.random.key(7), qkv[0].shape), 0)

    @jax.jit
    def both(q, k, v):
        outputs, pull = jax.vjp(lambda *qkv: attend(*qkv)[0], q, k, v)
        return jnp.where(real, outputs, 0), *pull(cotangent)

    return both(*qkv)
