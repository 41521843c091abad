"""The update rules by name against optax and torch, sharded, saved and side by side."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from orbax.checkpoint import v1 as ocp
from pydantic import ValidationError
from safetensors.numpy import load_file
from transformers.optimization import Adafactor

from jaxdpo.config import load_config
from jaxdpo.devices.sharding import shardings_for
from jaxdpo.runs.fit import fit
from jaxdpo.runs.load import load_source
from jaxdpo.training.checkpoint import Checkpoints
from jaxdpo.training.multi_run import Unstack, stack_states
from jaxdpo.training.optimizer import Optimizer, make_optimizer
from jaxdpo.training.optimizer_config import OptimizerConfig
from jaxdpo.training.state import TrainState, init_state
from tests.folders import write_model, write_pairs
from tests.run_configs import settings
from tests.tiny import mesh_of

RATE, DECAY, LAYERS, STEPS = 0.02, 0.1, 2, 4
RNG = np.random.default_rng(0)


def random_tree() -> Any:
    """Parameters of two layers and a head, wide enough for Adafactor to factor the matrices."""

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(RNG.normal(size=shape), jnp.float32)

    layers = {"up": {"kernel": normal(LAYERS, 128, 144), "bias": normal(LAYERS, 144)}}
    return {"layers": layers, "head": {"kernel": normal(128, 160)}}


PARAMS, GRADIENTS = random_tree(), [random_tree() for _ in range(STEPS)]


def layer(tree: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[number], tree["layers"])


def follow(rule: optax.GradientTransformation, params: Any, gradients: list[Any]) -> Any:
    state, step = rule.init(params), jax.jit(rule.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def is_matrix(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", tree)


def by_torch_adafactor(params: Any, gradients: list[Any]) -> Any:
    """A tree's parameters after the steps of the Adafactor of `transformers`."""
    leaves, structure = jax.tree.flatten(params)
    theirs = [torch.nn.Parameter(torch.tensor(np.asarray(leaf))) for leaf in leaves]
    # It decays by the rate times the weight, and all parameters alike: two groups.
    groups = [
        {"params": [one for one in theirs if one.ndim > 1], "weight_decay": DECAY},
        {"params": [one for one in theirs if one.ndim == 1], "weight_decay": 0.0},
    ]
    rule = Adafactor(groups, lr=RATE, scale_parameter=False, relative_step=False)
    for gradient in gradients:
        for one, each in zip(theirs, jax.tree.leaves(gradient), strict=True):
            one.grad = torch.tensor(np.asarray(each))
        rule.step()
    return jax.tree.unflatten(structure, [one.detach().numpy() for one in theirs])


def reference_rule(name: str) -> optax.GradientTransformation:
    """A rule as optax sets it up, for the parameters of one layer."""
    return {
        "adamw": optax.adamw(RATE, weight_decay=DECAY, mask=is_matrix),
        "lion": optax.lion(RATE, weight_decay=DECAY, mask=is_matrix),
    }[name]


def options(name: str) -> OptimizerConfig:
    return OptimizerConfig(
        name=name,
        learning_rate=RATE,
        weight_decay=DECAY,
        schedule="constant",
        max_grad_norm=None,
    )


def assert_close(ours: Any, theirs: Any, rtol: float = 2e-6, atol: float = 2e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), ours, theirs)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_each_layer_follows_optax(name):
    ours, _ = follow(make_optimizer(options(name), lambda _: RATE), PARAMS, GRADIENTS)
    for number in range(LAYERS):
        gradients = [layer(gradient, number) for gradient in GRADIENTS]
        theirs, _ = follow(reference_rule(name), layer(PARAMS, number), gradients)
        assert_close(layer(ours, number), theirs)


def test_matrices_of_layers_follow_optax_s_muon_and_the_rest_adamw():
    ours, _ = follow(make_optimizer(options("muon"), lambda _: RATE), PARAMS, GRADIENTS)
    muon = optax.contrib.muon(RATE, weight_decay=DECAY, consistent_rms=0.2)
    for number in range(LAYERS):
        kernels = [layer(tree, number)["up"]["kernel"] for tree in (PARAMS, *GRADIENTS)]
        theirs, _ = follow(muon, kernels[0], kernels[1:])
        # Its iteration multiplies matrices, batched here and not there.
        assert_close(ours["layers"]["up"]["kernel"][number], theirs, atol=1e-4)

    def rest(tree: Any) -> Any:
        return {"head": tree["head"], "up": {"bias": tree["layers"]["up"]["bias"]}}

    adamw = optax.adamw(RATE, b1=0.95, weight_decay=DECAY, mask=is_matrix)
    theirs, _ = follow(adamw, rest(PARAMS), [rest(gradient) for gradient in GRADIENTS])
    assert_close(rest(ours), theirs)


def test_each_layer_follows_the_adafactor_of_transformers():
    ours, state = follow(make_optimizer(options("adafactor"), lambda _: RATE), PARAMS, GRADIENTS)
    for number in range(LAYERS):
        gradients = [layer(gradient, number) for gradient in GRADIENTS]
        theirs = by_torch_adafactor(layer(PARAMS, number), gradients)
        assert_close(layer(ours, number), theirs, rtol=1e-5, atol=1e-5)
    theirs = by_torch_adafactor(PARAMS["head"], [gradient["head"] for gradient in GRADIENTS])
    assert_close(ours["head"], theirs, rtol=1e-5, atol=1e-5)
    # The point of it: rows and columns in place of matrices.
    kept = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert kept < 0.05 * sum(leaf.size for leaf in jax.tree.leaves(PARAMS))


def test_schedule_free_follows_optax():
    config = OptimizerConfig(
        name="schedule_free", learning_rate=RATE, warmup_ratio=0.5, max_grad_norm=None
    )
    optimizer = Optimizer(config, STEPS)
    ours, state = follow(optimizer.update_rule(), PARAMS, GRADIENTS)
    reference = optax.contrib.schedule_free_adamw(RATE, warmup_steps=STEPS // 2)
    theirs, expected = follow(reference, PARAMS, GRADIENTS)
    assert_close(ours, theirs)
    average = optimizer.average(PARAMS, state, ours, jnp.int32(STEPS))
    assert_close(average, optax.contrib.schedule_free_eval_params(expected, theirs))


def test_moving_average_by_hand():
    optimizer = Optimizer(OptimizerConfig(ema_decay=0.2), STEPS)
    average = jnp.zeros(())
    for step, weight in enumerate([10.0, 20.0, 30.0]):
        average = optimizer.average(average, None, jnp.float32(weight), jnp.int32(step))
    # Decays (1 + t) / (10 + t) = 0.1 and 2/11, then 0.2 in place of 3/12:
    # 0.9 · 10 = 9; 2/11 · 9 + 9/11 · 20 = 18; 0.2 · 18 + 0.8 · 30 = 27.6.
    assert float(average) == pytest.approx(27.6, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "adafactor", "beta1": 0.8}, "beta1 is 0.8, but adafactor does not read it"),
        ({"name": "adafactor", "mean_dtype": "bfloat16"}, "mean_dtype is bfloat16, but adafactor"),
        ({"name": "lion", "epsilon": 1e-6}, "epsilon is 1e-06, but lion does not read it"),
        ({"name": "schedule_free", "schedule": "linear"}, "schedule is linear, but schedule_free"),
        ({"name": "schedule_free", "beta1": 0.0}, "beta1 is 0, but schedule_free"),
        ({"name": "schedule_free", "ema_decay": 0.9}, "schedule_free keeps an average of its own"),
    ],
)
def test_options_that_a_rule_does_not_read_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        OptimizerConfig(**given)


def test_defaults_of_a_rule_are_written_out():
    assert OptimizerConfig(name="lion").beta2 == 0.99
    assert OptimizerConfig(name="lion", beta2=0.98).beta2 == 0.98
    assert OptimizerConfig(name="lion").peak(lora=False) == pytest.approx(1e-6 / 3)
    assert OptimizerConfig(name="muon").beta1 == 0.95
    assert OptimizerConfig(name="schedule_free").schedule == "constant"
    for name in ("adamw", "lion", "adafactor", "muon", "schedule_free"):
        config = OptimizerConfig(name=name)
        assert OptimizerConfig.model_validate(config.model_dump()) == config


def optimizer_of(name: str, rate: float = RATE) -> Optimizer:
    ema_decay = 0.5 if name == "lion" else None
    config = OptimizerConfig(name=name, learning_rate=rate, weight_decay=DECAY, ema_decay=ema_decay)
    return Optimizer(config, STEPS)


def take(optimizer: Optimizer, state: TrainState, gradient: Any) -> TrainState:
    """A state after an update, as `take_step` makes it of the gradient."""
    updates, rule = optimizer.update_rule().update(gradient, state.optimizer, state.trainable)
    trainable: Any = optax.apply_updates(state.trainable, updates)
    average = state.average
    if average is not None:
        average = optimizer.average(average, rule, trainable, state.step)
    return TrainState(trainable, rule, state.step + 1, None, average)


NAMES = ["adafactor", "lion", "muon", "schedule_free"]


@pytest.mark.parametrize("name", NAMES)
def test_a_state_in_pieces_that_is_saved_and_restored_is_the_whole_one(name, tmp_path):
    optimizer, whole, mesh = optimizer_of(name), mesh_of(1, 1, 1), mesh_of(1, 2, 2)
    step = jax.jit(lambda state, gradient: take(optimizer, state, gradient))

    def placed(tree: Any, mesh: Any) -> Any:
        return jax.device_put(tree, shardings_for(tree, mesh))

    def states(state: TrainState, mesh: Any, first: int = 0) -> list[TrainState]:
        found = [state]
        for gradient in GRADIENTS[first:]:
            found.append(placed(step(found[-1], placed(gradient, mesh)), mesh))
        return found

    expected = states(init_state(placed(PARAMS, whole), optimizer, whole), whole)[-1]
    sharded = states(init_state(placed(PARAMS, mesh), optimizer, mesh), mesh)
    # A moment, an average and what is beside them lie where their parameter lies.
    for path, leaf in jax.tree_util.tree_leaves_with_path(sharded[0]):
        is_kernel = leaf.ndim > 1 and min(leaf.shape[-2:]) >= 128
        assert leaf.sharding.is_fully_replicated != is_kernel or leaf.ndim == 2, path
    saved = Checkpoints(tmp_path, keep=1)
    saved.save(2, sharded[2])
    saved.wait()
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        sharded[2],
    )
    restored = Checkpoints(tmp_path, keep=1).restore(shapes)
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, states(restored, mesh, 2)[-1], sharded[-1])
    assert_close(
        jax.device_get(sharded[-1].evaluated), jax.device_get(expected.evaluated), atol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_adapters_side_by_side_are_the_runs_they_stand_for(name):
    rates = jnp.array([RATE, RATE / 10])
    mesh, fresh = mesh_of(1, 1, 1), optimizer_of(name)
    stacked = stack_states([init_state(PARAMS, fresh, mesh) for _ in rates], mesh)

    def one(rate: jax.Array, state: TrainState, gradient: Any) -> TrainState:
        config = fresh.config.model_copy(update={"learning_rate": rate})
        return take(replace(fresh, config=config), state, gradient)

    together, alone = jax.jit(jax.vmap(one, in_axes=(0, 0, None))), jax.jit(one)
    after, apart = stacked, [init_state(PARAMS, fresh, mesh) for _ in rates]
    for gradient in GRADIENTS:
        after = together(rates, after, gradient)
        apart = [alone(rate, state, gradient) for rate, state in zip(rates, apart, strict=True)]
    unstack = Unstack(stacked, mesh)
    for number, state in enumerate(apart):
        assert_close(unstack.state(after, number).evaluated, state.evaluated, atol=1e-5)
    assert jnp.abs(apart[0].evaluated["head"]["kernel"] - PARAMS["head"]["kernel"]).max() > 0.01


def test_the_average_is_what_a_run_evaluates_exports_and_opens(tmp_path):
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 20, test=4)
    overrides = (
        "training.max_steps=2", "training.evaluate_every=2", "optimizer.name=schedule_free",
        "training.watch.prompts=0", "training.report_to=[]",
    )  # fmt: skip
    result = fit(load_config(None, settings(tmp_path, tmp_path / "run", *overrides)))
    checkpoint = tmp_path / "run/checkpoints/step_00000002"
    saved = ocp.load(str(checkpoint / "state"))
    exported = load_file(tmp_path / "run/model/model.safetensors")["model.norm.weight"]
    average, trained = (saved[part]["norm"]["scale"] for part in ("average", "trainable"))
    np.testing.assert_array_equal(exported, average)
    assert (np.asarray(average) != np.asarray(trained)).any()
    opened = load_source(str(checkpoint))
    np.testing.assert_array_equal(opened.params["norm"]["scale"], average)
    after = result.summary["test"]["after"]["loss"]
    assert after == pytest.approx(result.history[-1]["loss"], rel=1e-6)
