"""Products of the training step: fp32 where that is asked for, whatever a device would do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.config import load_config
from jaxdpo.devices.machine import Machine
from jaxdpo.devices.sharding import replicated
from jaxdpo.planning.aot import abstract_inputs
from jaxdpo.runs.execution import resolve
from jaxdpo.runs.memory import abstract_run
from jaxdpo.runs.objective import objective_of, optimizer_of
from jaxdpo.training.step import make_train_step
from tests.planned import LENGTHS, MODEL, SETTINGS
from tests.tiny import mesh_of


def products(*settings: str) -> list[str]:
    """The matrix products of a step for GPUs, forwards and backwards, as the trace prints them."""
    config, mesh = load_config(None, [*SETTINGS, *settings]), mesh_of(1, 1, 1)
    with jax.set_mesh(mesh):
        none = np.zeros((0, 3), np.int32)
        resolved = resolve(config, MODEL, LENGTHS, none, mesh, Machine("gpu", 1e12))
        state, frozen = abstract_run(config, MODEL, mesh)
        objective = objective_of(config, MODEL, resolved.compute)
        step = make_train_step([objective], [optimizer_of(config, 1)], mesh, state)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
        jaxpr = step.trace(state, frozen, *abstract_inputs(config, resolved, mesh), count).jaxpr
    # Parameters stand in alphabetical order: precision is the one before the last.
    dots = str(jaxpr).split("dot_general[")[1:]
    return [each.split("preferred_element_type")[0] for each in dots]


@pytest.mark.parametrize("attention", ["tiles", "dense"])
def test_in_float32_every_product_is_of_all_bits(attention):
    # Adapters too; forwards, rematerialised and backwards.
    given = [f"model.attention={attention}", "model.remat=full", "lora.rank=2"]
    found = products("model.compute_dtype=float32", *given)
    assert len(found) > 60
    for product in found:
        assert "(Precision.HIGHEST, Precision.HIGHEST)" in product


def test_in_bfloat16_nothing_is_asked_for_that_kernels_refuse():
    found = products("model.compute_dtype=bfloat16", "model.attention=tiles")
    exact = [product for product in found if "HIGHEST" in product]
    # Sums of log-probs by completion alone, which are fp32.
    assert 0 < len(exact) < 10 < len(found)
