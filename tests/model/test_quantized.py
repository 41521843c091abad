"""A quantized base: the published table, errors within their bounds, gradients of its weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.errors import UserError
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ExpertsConfig, MLPConfig
from jaxdpo.model.lora import LoraConfig, init_lora
from jaxdpo.model.quantized import NF4, BaseKind, block_of, is_quantized, quantize, quantize_layers
from jaxdpo.scoring.score import score_completions
from tests.tiny import MODEL, mesh_of, random_pairs, random_params, temporary_bytes

KERNELS = np.random.default_rng(0).normal(size=(3, 192, 40)).astype(np.float32)
# A column of zeros in one block, and a weight far from the others.
KERNELS[0, :64, 5] = 0
KERNELS[1, 70, 6] = 30


def test_the_table_is_the_published_one():
    # Appendix E of the paper, and bitsandbytes' own; formed in fp32, so off by its rounding.
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    np.testing.assert_allclose(NF4, published, rtol=0, atol=2**-22)


def test_int8_is_off_by_half_a_step_at_most():
    made = quantize(KERNELS, "int8")
    assert made.codes.dtype == np.int8 and made.codes.shape == KERNELS.shape
    blocks = KERNELS.reshape(3, 3, 64, 40)
    largest = np.abs(blocks).max(2)
    np.testing.assert_allclose(made.scales, largest / 127, rtol=1e-6)
    error = np.abs(made.dequantized(np.float64).reshape(blocks.shape) - blocks)
    assert (error <= made.scales[:, :, None] / 2 * (1 + 1e-6) + 1e-7 * largest[:, :, None]).all()
    # Uniform over a step: its width over √12.
    expected = np.sqrt(np.mean(np.square(made.scales) / 12))
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(error))), expected, rtol=0.05)


def test_nf4_is_the_nearest_of_the_sixteen_values():
    made = quantize(KERNELS, "nf4")
    assert made.codes.dtype == np.uint8 and made.codes.shape == (3, 96, 40)
    assert made.codes.nbytes + made.scales.nbytes == 4.5 * KERNELS.size / 8
    blocks = KERNELS.reshape(3, 3, 64, 40).astype(np.float64)
    scales = np.abs(blocks).max(2, keepdims=True)
    distance = np.abs(blocks[..., None] - scales[..., None] * NF4.astype(np.float64))
    error = np.abs(made.dequantized(np.float64).reshape(blocks.shape) - blocks)
    np.testing.assert_allclose(error, distance.min(-1), atol=1e-5)
    # Half of the widest gap, which is the lowest one.
    assert (error <= scales * (1 - 0.6961928) / 2 + 1e-6).all()
    relative = np.sqrt(np.mean(np.square(error)) / np.mean(np.square(blocks)))
    assert relative < 0.11


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_numpy_and_jax_agree_bit_for_bit(kind):
    here, there = quantize(KERNELS, kind), jax.jit(quantize, static_argnums=1)(KERNELS, kind)
    jax.tree.map(np.testing.assert_array_equal, here, jax.device_get(there))
    on_device = jax.jit(lambda made: made.dequantized(jnp.float32))(there)
    np.testing.assert_array_equal(here.dequantized(np.float32), on_device)
    np.testing.assert_array_equal(there[1].dequantized(jnp.float32), on_device[1])
    assert there.shape == KERNELS.shape and there.kind == kind


def test_blocks_divide_the_inputs():
    assert [block_of(inputs) for inputs in (4096, 96, 48)] == [64, 32, 16]
    with pytest.raises(UserError, match=r"has 24 inputs, which blocks of 16 or more do not divide"):
        block_of(24)


SHAPE = BatchShape(
    rows=2, row_length=128, pairs=4, scores=80, tiles=3, sequences=8, sequence_width=64
)
EXPERTS = MLPConfig(intermediate_size=48, experts=ExpertsConfig(num_experts=4, per_token=2))


def adapters(model, lora):
    """Returns adapters as if trained."""
    fresh = init_lora(model, lora, jax.random.key(1))
    return jax.tree.map(lambda leaf: leaf + 0.05, fresh)


@pytest.mark.parametrize(
    ("mlp", "remat"),
    [(MODEL.mlp, "none"), (MODEL.mlp, "dots"), (MODEL.mlp, "full"), (EXPERTS, "full")],
)
def test_gradients_are_those_of_the_dequantized_base(mlp, remat):
    model, lora = MODEL.model_copy(update={"mlp": mlp}), LoraConfig(rank=4)
    compute = Compute(jnp.float32, "dense", remat, lora)
    batch = pack_batch(random_pairs(), [[0, 1, 2], [3, 4]], SHAPE)
    quantized = jax.jit(quantize_layers, static_argnums=1)(
        random_params(mesh_of(1, 1, 1), model=model), "nf4"
    )
    dequantized = jax.tree.map(
        lambda leaf: leaf.dequantized(jnp.float32) if is_quantized(leaf) else leaf,
        quantized,
        is_leaf=is_quantized,
    )

    @jax.jit
    def gradients(params, adapters):
        def total(adapters):
            logps = score_completions(model, params, adapters, batch, compute).completions.logps
            return jnp.sum(logps * jnp.array([[[1.0, -0.5]]])), logps

        return jax.grad(total, has_aux=True)(adapters)

    trained = adapters(model, lora)
    of_quantized, of_dequantized = gradients(quantized, trained), gradients(dequantized, trained)

    def same(one, other):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max())

    jax.tree.map(same, of_quantized, of_dequantized)


@pytest.mark.slow
def test_no_dequantized_layer_is_kept_for_the_backward_pass():
    """Temporaries of a gradient grow by the same for each further layer, quantized or not."""
    wide = MODEL.model_copy(update={"mlp": MLPConfig(intermediate_size=2048)})
    batch = pack_batch(random_pairs(), [[0, 1, 2], [3, 4]], SHAPE)

    def temporaries(layers: int, base: BaseKind, remat: Any) -> int:
        model = wide.model_copy(update={"num_layers": layers})
        lora = LoraConfig(rank=4, targets=("q",), base=base)
        compute = Compute(jnp.float32, "dense", remat, lora)

        def total(adapters, params):
            return score_completions(
                model, params, adapters, batch, compute
            ).completions.logps.sum()

        params = random_params(mesh_of(1, 1, 1), model=model)
        params = quantize_layers(params, base)
        compiled = jax.jit(jax.grad(total)).lower(adapters(model, lora), params).compile()
        return temporary_bytes(compiled)

    dequantized = 4 * 3 * 32 * 2048  # bytes of a layer's MLP
    for remat in ("none", "full"):
        bases: tuple[BaseKind, ...] = ("full", "nf4")
        full, quantized = (
            temporaries(12, base, remat) - temporaries(4, base, remat) for base in bases
        )
        assert abs(quantized - full) < dequantized / 4
