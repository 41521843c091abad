"""The memory of a step, by shapes and traces, against what the compiler allocates."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.config import load_config
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.devices.machine import Machine
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import abstract_params
from jaxdpo.runs.execution import resolve
from jaxdpo.runs.memory import abstract_rows, abstract_run, device_bytes, step_memory
from jaxdpo.scoring.score import score_completions
from tests.planned import LENGTHS, MODEL, SETTINGS
from tests.tiny import mesh_of

SHAPE = BatchShape(rows=2, row_length=256, pairs=4, scores=100, tiles=8)


def compiled_bytes(layers: int, remat: str, attention: str) -> tuple[int, int]:
    """(temporaries of the compiled gradient, activations by the trace)."""
    model = MODEL.model_copy(update={"num_layers": layers})
    compute = Compute(jnp.dtype("float32"), attention, remat)

    def loss(params, batch):
        return jnp.sum(score_completions(model, params, None, batch, compute).completions.logps)

    params = abstract_params(model, jnp.float32)
    program = jax.jit(jax.grad(loss)).lower(params, abstract_rows(SHAPE)).compile()
    config = load_config(None, SETTINGS)
    kept = step_memory(config, model, compute, SHAPE, mesh_of(1, 1, 1)).activations
    measured = program.memory_analysis()
    assert measured is not None
    return measured.temp_size_in_bytes, kept


@pytest.mark.parametrize(
    ("remat", "attention"), [("none", "tiles"), ("dots", "dense"), ("full", "tiles")]
)
def test_activations_of_a_layer_are_what_the_compiler_allocates(remat, attention):
    (few, kept_few), (many, kept_many) = (
        compiled_bytes(layers, remat, attention) for layers in (4, 8)
    )
    np.testing.assert_allclose(kept_many - kept_few, many - few, rtol=0.1)


def test_full_remat_keeps_each_layers_input():
    compute = Compute(jnp.dtype("float32"), "dense", "full")
    config, mesh = load_config(None, SETTINGS), mesh_of(1, 1, 1)
    sizes = [
        step_memory(
            config, MODEL.model_copy(update={"num_layers": layers}), compute, SHAPE, mesh
        ).activations
        for layers in (2, 3)
    ]
    assert sizes[1] - sizes[0] == 2 * 256 * 64 * 4


def test_state_is_counted_by_its_shards():
    config, mesh = load_config(None, SETTINGS), mesh_of(2, 2, 2)
    state, frozen = abstract_run(config, MODEL, mesh)
    # All but the norms (64 each) are cut in four, by fsdp and tensor.
    norms = 64 * (2 * 4 + 1)
    count = 2 * 1024 * 64 + 4 * (4 * 64 * 64 + 3 * 64 * 192)
    assert frozen is None
    assert device_bytes(state.trainable) == 4 * (count // 4 + norms)
    assert device_bytes(state.optimizer) - 2 * device_bytes(state.trainable) <= 16
    half = load_config(None, [*SETTINGS, "optimizer.mean_dtype=bfloat16"])
    saved = device_bytes(state.optimizer) - device_bytes(abstract_run(half, MODEL, mesh)[0][1])
    assert saved == 2 * (count // 4 + norms)


def test_the_state_of_other_update_rules_and_an_average_are_counted():
    mesh = mesh_of(1, 1, 1)
    count = 2 * 1024 * 64 + 4 * (4 * 64 * 64 + 3 * 64 * 192) + 64 * 9

    def optimizer_bytes(model, *overrides):
        config = load_config(None, [*SETTINGS, *overrides])
        compute = Compute(jnp.dtype("float32"), "tiles", "full")
        return step_memory(config, model, compute, SHAPE, mesh).optimizer

    # A mean of gradients, and the average, each a number for each weight.
    lion = optimizer_bytes(MODEL, "optimizer.name=lion", "optimizer.ema_decay=0.9")
    assert lion == pytest.approx(8 * count, abs=64)
    # The mean's number is a bf16 one.
    halved = optimizer_bytes(MODEL, "optimizer.name=lion", "optimizer.mean_dtype=bfloat16")
    assert halved == pytest.approx(2 * count, abs=64)
    # Rows and columns of each matrix with two sides of 128 or more, in place of its squares.
    wide = MODEL.model_copy(update={"hidden_size": 128})
    mlp, qkvo = 4 * 3 * (128 + 192), 4 * 4 * 128 * 64
    vocabulary, norms = 2 * (1024 + 128), 128 * 9
    expected = 4 * (mlp + qkvo + vocabulary + norms)
    adafactor = optimizer_bytes(wide, "optimizer.name=adafactor")
    # Placeholders of one number for what a matrix does not have, in each layer.
    assert expected <= adafactor < expected + 4 * 200


def test_adapters_train_and_their_base_is_frozen():
    config = load_config(None, [*SETTINGS, "lora.rank=2", "model.param_dtype=bfloat16"])
    state, frozen = abstract_run(config, MODEL, mesh_of(1, 1, 1))
    total = 2 * 1024 * 64 + 4 * (4 * 64 * 64 + 3 * 64 * 192) + 64 * 9
    assert device_bytes(frozen) == 2 * total
    assert device_bytes(state.trainable) == 4 * 4 * 2 * (4 * (64 + 64) + 3 * (64 + 192))


def test_a_reference_in_the_hosts_memory_is_none_on_the_device():
    mesh, kind = mesh_of(1, 2, 1), "reference.kind=frozen"
    held, offloaded = (
        abstract_run(load_config(None, [*SETTINGS, kind, *more]), MODEL, mesh)[1]
        for more in ([], ["reference.offload=true"])
    )
    assert device_bytes(held) > 0 and device_bytes(offloaded) == 0
    assert jax.tree.map(jnp.shape, held) == jax.tree.map(jnp.shape, offloaded)


def test_a_base_in_codes_is_counted_in_its_bits():
    """8.5 or 4.5 bits a weight of the layers, which are cut as the kernels are."""
    kernels = 4 * (4 * 64 * 64 + 3 * 64 * 192)
    rest = 4 * (2 * 1024 * 64 + 64 * 9)
    for base, bits in (("int8", 8.5), ("nf4", 4.5)):
        settings = [*SETTINGS, "lora.rank=2", f"lora.base={base}"]
        _, frozen = abstract_run(load_config(None, settings), MODEL, mesh_of(1, 1, 1))
        assert device_bytes(frozen) == kernels * bits / 8 + rest
    _, frozen = abstract_run(load_config(None, settings), MODEL, mesh_of(1, 1, 2))
    assert device_bytes(frozen["layers"]["mlp"]["up"]) == 4 * 64 * 192 * 4.5 / 8 / 2


def test_what_a_base_in_codes_keeps_for_the_backward_pass_is_what_a_plain_one_does():
    mesh, compute = mesh_of(1, 1, 1), Compute(jnp.dtype("float32"), "dense", "none")
    kept = []
    for base in ("full", "nf4"):
        config = load_config(None, [*SETTINGS, "lora.rank=2", f"lora.base={base}"])
        with_adapters = replace(compute, lora=config.lora)
        kept.append(step_memory(config, MODEL, with_adapters, SHAPE, mesh).activations)
    assert kept[0] == kept[1]


def test_remat_is_as_little_as_the_memory_allows():
    config, mesh = load_config(None, SETTINGS), mesh_of(1, 1, 1)
    none = np.zeros((0, 3), np.int32)

    def chosen(memory: float, platform: str = "gpu") -> str:
        with jax.set_mesh(mesh):
            machine = Machine(platform, memory)
            return resolve(config, MODEL, LENGTHS, none, mesh, machine).compute.remat

    with jax.set_mesh(mesh):
        resolved = resolve(config, MODEL, LENGTHS, none, mesh, Machine("gpu", 1e12))

    def needed(remat: str) -> int:
        compute = replace(resolved.compute, remat=remat)
        return step_memory(config, MODEL, compute, resolved.shape, mesh).total

    assert needed("full") < needed("dots") < needed("none")
    assert chosen(1e12) == "none"
    assert chosen(1e12, "cpu") == "full"
    assert chosen(needed("none") / 0.85 + 1) == "none"
    assert chosen(needed("none") / 0.85 - 1) == "dots"
    assert chosen(needed("dots") / 0.85 - 1) == "full"
