"""Attention by tiles: the dense mask's values and gradients, and no work where nothing is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.data.packing.batch import TILE, PackedBatch
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchConfig, Packer
from jaxdpo.data.pairs import TokenizedPair
from jaxdpo.devices.sizes import ceil_div
from jaxdpo.model.attention import tiles
from jaxdpo.model.attention.dense import dense_attention
from jaxdpo.model.attention.tiles import tile_attention
from tests.tiny import Pairs, mesh_of

ROWS, ROW_LENGTH = 2, 500  # No multiple of a tile.


@pytest.fixture(scope="module")
def rows() -> PackedBatch:
    """Two rows of pairs whose parts begin and end anywhere in a tile; one row is half empty."""
    rng = np.random.default_rng(3)
    lengths = np.array([(70, 64, 1), (1, 90, 120), (128, 5, 13), (40, 130, 60)])
    pairs = [
        TokenizedPair(*(rng.integers(1, 40, n).astype(np.int32) for n in row)) for row in lengths
    ]
    packer = Packer(lengths, BatchConfig(), ROWS, ROW_LENGTH)
    microbatch = [[0, 1, 2], [3]]
    return pack_batch(Pairs(pairs), microbatch, packer.shape_of([microbatch], "tiles"))


def values_and_gradients(attend, batch: PackedBatch, heads: int, kv_heads: int, dtype=jnp.float32):
    """Outputs at real tokens, and gradients of q, k and v."""
    keys = jax.random.split(jax.random.key(heads), 4)
    shapes = [(ROWS, ROW_LENGTH, n, 8) for n in (heads, kv_heads, kv_heads, heads)]
    *qkv, cotangent = (
        (2 * jax.random.normal(key, shape)).astype(dtype)
        for key, shape in zip(keys, shapes, strict=True)
    )
    real = jnp.asarray(batch.pair_ids > 0)[:, :, None, None]

    def run(*qkv):
        outputs, pull = jax.vjp(lambda *qkv: attend(*qkv)[0], *qkv)
        return jnp.where(real, outputs, 0), *pull(jnp.where(real, cotangent, 0))

    return jax.jit(run)(*qkv)


CASES = [
    (4, 2, None, None),
    (4, 4, None, 20.0),
    (6, 2, 4, None),
    (3, 1, 100, 5.0),
]  # Query heads, kv-heads, window, soft cap.


@pytest.mark.parametrize(("heads", "kv_heads", "window", "softcap"), CASES)
@pytest.mark.parametrize("held", [2**21, 3 * 6 * TILE**2])
def test_values_and_gradients_are_the_dense_ones(
    rows, heads, kv_heads, window, softcap, held, monkeypatch
):
    # All tiles at once, and a few at a time, so that softmax is accumulated over steps.
    monkeypatch.setitem(tiles._HELD_SCORES, "cpu", held)
    scale = 0.4
    found, expected = (
        values_and_gradients(attention(rows, scale, window, softcap), rows, heads, kv_heads)
        for attention in (tile_attention, dense_attention)
    )
    for one, other in zip(found, expected, strict=True):
        assert np.isfinite(one).all()
        # fp32 sums over a row's keys, in another order.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_bf16_differs_by_its_own_rounding(rows):
    found, expected = (
        values_and_gradients(attention(rows, 0.2, None), rows, 4, 2, dtype)
        for attention, dtype in ((tile_attention, jnp.bfloat16), (dense_attention, jnp.float32))
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.bfloat16
        # Eight bits of mantissa: a part in 256 of the largest, and a few roundings of it.
        allowed = 0.03 * np.abs(other).max()
        np.testing.assert_allclose(one.astype(np.float32), other, rtol=0, atol=allowed)


def test_rows_and_heads_over_devices_change_nothing(rows):
    alone = values_and_gradients(tile_attention(rows, 0.4, None), rows, 4, 2)
    with jax.set_mesh(mesh_of(1, 2, 2)):
        cut = values_and_gradients(tile_attention(rows, 0.4, None), rows, 4, 2)
    for one, other in zip(cut, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_work_is_that_of_the_row_with_most_tiles(rows):
    # Unused tiles cost no turn, however many there is room for.
    used = (rows.tiles[..., 0] < ceil_div(ROW_LENGTH, TILE)).sum(1)
    assert used[0] > used[1] > 0
    end = jnp.zeros((ROWS, ceil_div(ROW_LENGTH, TILE), TILE), jnp.int32)
    room = np.pad(rows.tiles, ((0, 0), (0, 1000), (0, 0)), constant_values=8)
    static = tiles._Static(1.0, None, 5, all_turns=False)
    tokens = tiles._Tokens(end, end, jnp.asarray(room), None)
    assert tiles._turns(static, tokens) == ceil_div(int(used[0]), 5)


def test_a_static_number_of_turns_changes_nothing(rows, monkeypatch):
    # As on accelerators, whose hosts would have to read the number of turns; several here.
    expected = values_and_gradients(tile_attention(rows, 0.4, 60, 5.0), rows, 2, 1)
    monkeypatch.setattr(tiles, "current_platform", lambda: "gpu")
    monkeypatch.setitem(tiles._HELD_SCORES, "gpu", 2 * 2 * 5 * TILE**2)
    attend = tile_attention(rows, 0.4, 60, 5.0)
    keys = jnp.zeros((ROWS, ROW_LENGTH, 1, 8))
    jaxpr = str(jax.make_jaxpr(attend)(jnp.zeros((ROWS, ROW_LENGTH, 2, 8)), keys, keys))
    # A loop of a known length is a `scan`, one whose end the data says a `while`.
    assert "scan[" in jaxpr and "while[" not in jaxpr
    found = values_and_gradients(attend, rows, 2, 1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
