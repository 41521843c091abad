"""Formulas of what a step sends and computes, against the compiled program."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from jaxdpo.config import load_config
from jaxdpo.devices.machine import Machine
from jaxdpo.model.config import ModelConfig
from jaxdpo.planning.aot import compile_step
from jaxdpo.planning.cost import step_cost, traffic
from jaxdpo.runs.execution import resolve
from jaxdpo.scoring import logprobs
from tests.collectives import operations, result_bytes
from tests.planned import LENGTHS, MODEL, SETTINGS
from tests.tiny import mesh_of


@functools.cache
def compiled(mesh_shape: tuple[int, int, int], *settings: str, model: ModelConfig = MODEL):
    config, mesh = load_config(None, [*SETTINGS, *settings]), mesh_of(*mesh_shape)
    with jax.set_mesh(mesh):
        none = np.zeros((0, 3), np.int32)
        resolved = resolve(config, model, LENGTHS, none, mesh, Machine("cpu", 1e12))
        return config, mesh, resolved, compile_step(config, model, resolved, mesh, "cpu")


@pytest.mark.parametrize("mesh_shape", [(1, 8, 1), (8, 1, 1), (1, 1, 8)])
def test_collectives_bring_together_what_the_shardings_say(mesh_shape):
    config, mesh, resolved, program = compiled(mesh_shape)
    assert resolved.shape.microbatches == (8 if mesh_shape[2] == 8 else 1)
    expected = traffic(config, MODEL, resolved, mesh)
    found = result_bytes(program.program.as_text())
    # XLA for CPUs sums and cuts where accelerators reduce-scatter; the sum is as large.
    np.testing.assert_allclose(found["all-gather"], expected.gathered, rtol=0.05)
    sums = expected.gradients + expected.hidden
    np.testing.assert_allclose(found["all-reduce"], sums, rtol=0.05)
    assert set(found) <= {"all-gather", "all-reduce"}


@pytest.mark.parametrize("mesh_shape", [(1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_no_logits_are_gathered(mesh_shape, monkeypatch):
    """Not of all tokens, nor of one chunk: of the vocabulary's width there are weights alone."""
    for chunk_logits in (2**24, 8 * MODEL.vocab_size):
        monkeypatch.setitem(logprobs.CHUNK_LOGITS, "cpu", chunk_logits)
        program = compiled.__wrapped__(mesh_shape)[3].program
        for kind, brought, _ in operations(program.as_text()):
            for found in re.findall(r"\[([\d,]+)\]", brought):
                sizes = [int(size) for size in found.split(",")]
                if MODEL.vocab_size in sizes:
                    others = math.prod(sizes) // MODEL.vocab_size
                    assert others == MODEL.hidden_size, (kind, brought)


@pytest.mark.parametrize(("mesh_shape", "piece"), [((1, 8, 1), 1024), ((2, 2, 2), 512)])
def test_the_head_is_gathered_once_whatever_its_chunks(mesh_shape, piece, monkeypatch):
    for chunk_logits in (2**24, 8 * MODEL.vocab_size):
        monkeypatch.setitem(logprobs.CHUNK_LOGITS, "cpu", chunk_logits)
        program = compiled.__wrapped__(mesh_shape)[3].program
        found = operations(program.as_text())
        of_head = [(kind, times) for kind, shape, times in found if f"[64,{piece}]" in shape]
        # Its gradient is summed over the devices once, after the last chunk.
        assert sorted(of_head) == [("all-gather", 1), ("all-reduce", 1)]
        # Nothing else of the vocabulary's width is gathered, but the embedding.
        gathered = [shape for kind, shape, _ in found if kind in ("all-gather", "all-to-all")]
        wide = [shape for shape in gathered if re.search(rf"\b{piece}\b", shape)]
        assert len(wide) == 2 and any(f"[{piece},64]" in shape for shape in wide)
    loops = [
        int(count) for count in re.findall(r'known_trip_count":{"n":"(\d+)"', program.as_text())
    ]
    assert max(loops) >= 10


def test_work_is_what_the_compiler_counts():
    # One layer, since the compiler counts a loop's body once; and no padding.
    one = MODEL.model_copy(update={"num_layers": 1})
    lengths = np.full((16, 3), [28, 50, 50], np.int32)
    config, mesh = load_config(None, [*SETTINGS, "model.remat=none"]), mesh_of(1, 1, 1)
    config = config.model_copy(
        update={"batch": config.batch.model_copy(update={"rows_per_device": 16})}
    )
    with jax.set_mesh(mesh):
        none = np.zeros((0, 3), np.int32)
        resolved = resolve(config, one, lengths, none, mesh, Machine("cpu", 1e12))
        program = compile_step(config, one, resolved, mesh, "cpu").program
        cost = step_cost(config, one, resolved, mesh)
    assert cost.packing == 1 and resolved.shape.microbatches == 1
    np.testing.assert_allclose(program.cost_analysis()["flops"], cost.done, rtol=0.1)


def test_useful_work_by_hand():
    config, mesh, resolved, _ = compiled((8, 1, 1))
    kernels = 4 * (4 * 64 * 64 + 3 * 64 * 192)
    tokens, scored = 16 * 64, 16 * 40
    # A prompt of 24 and completions of 20: each part causally, completions over the prompt.
    area = 16 * (24**2 / 2 + 2 * (20**2 / 2 + 20 * 24))
    by_hand = 6 * (kernels * tokens + 64 * 1024 * scored) + 3.5 * 4 * 4 * 64 * area
    cost = step_cost(config, MODEL, resolved, mesh)
    np.testing.assert_allclose(cost.useful, by_hand)
    assert cost.packing == 1.0
    lora = load_config(None, [*SETTINGS, "lora.rank=2"])
    by_hand -= 2 * (kernels * tokens + 64 * 1024 * scored)
    np.testing.assert_allclose(step_cost(lora, MODEL, resolved, mesh).useful, by_hand)
