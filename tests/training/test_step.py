"""The optimizer step: what it costs may change, what it means may not."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxdpo.data.packing.batch import TILE
from jaxdpo.data.packing.layout import empty_batch
from jaxdpo.data.packing.plan import (
    BatchConfig,
    BatchShape,
    Packer,
    choose_row_length,
    make_train_plan,
)
from jaxdpo.devices.sharding import batch_shards, on_host, shardings_for
from jaxdpo.losses import LossConfig
from jaxdpo.model.attention.dense import LAYOUTS
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ExpertsConfig, MLPConfig, ModelConfig
from jaxdpo.model.decoder import abstract_params
from jaxdpo.model.lora import LoraConfig, init_lora
from jaxdpo.model.quantized import quantize_layers
from jaxdpo.scoring.planned_pairs import PairColumns, PlannedPairs
from jaxdpo.training.loop import run_steps
from jaxdpo.training.metrics import LaggedMetrics
from jaxdpo.training.objective import MovingReference, Objective
from jaxdpo.training.optimizer import Optimizer
from jaxdpo.training.optimizer_config import OptimizerConfig
from jaxdpo.training.state import begin, init_state
from jaxdpo.training.step import make_train_step
from tests.tiny import MODEL, mesh_of, random_pairs, random_params

PAIRS = random_pairs(24)
STEPS = 3
# A reference unlike the policy, so that losses differ from log 2 and from each other.
REFERENCE = np.linspace([-90.0, -80.0], [-80.0, -90.0], 24).astype(np.float32)
# A large epsilon keeps Adam from blowing up the rounding of gradients that are all but zero.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.01, epsilon=1e-2)


@dataclass(frozen=True)
class Setting:
    """A way to compute the same three steps."""

    batch: BatchConfig = field(default_factory=lambda: BatchConfig(size=8))
    mesh: tuple[int, ...] = (1, 1, 1)
    attention: str = "dense"
    remat: str = "none"
    lora: LoraConfig | None = None
    online: bool = False
    offloaded: bool = False
    model: ModelConfig = MODEL
    loss: LossConfig = LossConfig(beta=0.1)  # noqa: RUF009 - frozen


@cache
def run(setting: Setting) -> tuple[list[dict[str, float]], Any, int]:
    """Metrics of each step, what was trained, and how often the step was compiled."""
    mesh, batch = mesh_of(*setting.mesh), setting.batch
    with jax.set_mesh(mesh):
        rows = batch.rows_per_device * batch_shards()
        row_length = choose_row_length(PAIRS.lengths, batch, rows)
        plan = make_train_plan(Packer(PAIRS.lengths, batch, rows, row_length), 0, 1.0, None)
        compute = Compute(jnp.float32, setting.attention, setting.remat, setting.lora)
        params = random_params(mesh, model=setting.model)
        frozen = None
        trainable = params
        if setting.lora is not None:
            base = setting.lora.base
            quantize = jax.jit(lambda tree: quantize_layers(tree, base))
            expected = jax.eval_shape(quantize, params)
            frozen = jax.device_put(quantize(params), shardings_for(expected, mesh))
            trainable = init_lora(setting.model, setting.lora, jax.random.key(1))
            trainable = jax.device_put(trainable, shardings_for(trainable, mesh))
        elif setting.online:
            frozen = jax.tree.map(jnp.copy, params)
            if setting.offloaded:
                frozen = jax.device_put(frozen, on_host(frozen, mesh))
        optimizer = Optimizer(OPTIMIZER, plan.num_steps)
        state = init_state(trainable, optimizer, mesh)
        objective = Objective(
            setting.model, compute, setting.loss, batch.size, 0, offloaded=setting.offloaded
        )
        step = make_train_step([objective], [optimizer], mesh, state)
        columns = PairColumns(None if setting.online else REFERENCE)
        shape = plan.shape(LAYOUTS[setting.attention])
        data = PlannedPairs(PAIRS, plan.packer, shape, columns)
        lagged, metrics = LaggedMetrics(), []
        trained = trainable
        for number, after, device_metrics in run_steps(step, state, frozen, data, plan, mesh, 0):
            metrics.append(lagged.push(number, device_metrics))
            trained = after.trainable
        metrics.append(lagged.flush())
        by_step = [ready[1] for ready in metrics if ready is not None]
        return by_step, jax.device_get(trained), step._cache_size()


def assert_same(actual: Setting, expected: Setting) -> None:
    metrics, trained, compiles = run(actual)
    expected_metrics, expected_trained, _ = run(expected)
    assert compiles == 1
    assert len(metrics) == len(expected_metrics) == STEPS
    names = ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen")
    for one, other in zip(metrics, expected_metrics, strict=True):
        for name in names:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        trained,
        expected_trained,
    )


# One pair a row, its prompt laid out twice: the textbook's step.
PLAIN = Setting(BatchConfig(size=8, pack=False, share_prefix=False))


@pytest.mark.parametrize(
    "setting",
    [
        Setting(),
        Setting(BatchConfig(size=8, share_prefix=False)),
        Setting(BatchConfig(size=8, pack=False)),
        Setting(BatchConfig(size=8, row_length=57)),
        Setting(BatchConfig(size=8, row_length=64, rows_per_device=3)),
        Setting(BatchConfig(size=8, row_length=600)),
        Setting(attention="tiles"),
        Setting(BatchConfig(size=8, share_prefix=False), attention="tiles"),
        Setting(remat="dots"),
        Setting(remat="full"),
    ],
    ids=str,
)
def test_packing_and_sharing_change_the_cost_and_not_the_step(setting):
    assert_same(setting, PLAIN)


# Token-weighted, sorted over the step, and by rank of tokens: what could depend on the packing.
LOSSES = [
    LossConfig(type=["ipo", "sft", "aot"], weights=[0.01, 0.5, 1.0], ld_alpha=0.3),
    LossConfig(type=["sigmoid", "sft"], use_weighting=True),
]


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "+".join(loss.type))
def test_other_losses_do_not_depend_on_the_packing_either(loss, mesh):
    plain = Setting(BatchConfig(size=8, pack=False, share_prefix=False), loss=loss)
    assert_same(Setting(BatchConfig(size=8, row_length=64), mesh=mesh, loss=loss), plain)


def test_a_moving_reference_moves_as_often_and_as_far_as_it_is_told():
    mesh, batch, mixup = mesh_of(1, 1, 1), BatchConfig(size=8), 0.25
    with jax.set_mesh(mesh):
        packer = Packer(PAIRS.lengths, batch, 1, choose_row_length(PAIRS.lengths, batch, 1))
        plan = make_train_plan(packer, 0, 1.0, None)
        optimizer = Optimizer(OPTIMIZER, num_steps=3)
        params = random_params(mesh)
        expected = jax.device_get(params)
        copy = jax.tree.map(jnp.copy, params)
        state = init_state(params, optimizer, mesh, reference=copy)
        compute, moving = Compute(jnp.float32, "dense", "none"), MovingReference(mixup, every=2)
        objective = Objective(MODEL, compute, LossConfig(), 8, seed=0, moving=moving)
        step = make_train_step([objective], [optimizer], mesh, state)
        data = PlannedPairs(PAIRS, packer, plan.shape("plain"), PairColumns())
        margins = []
        for number, after, metrics in run_steps(step, state, None, data, plan, mesh, 0):
            if number % 2 == 0:
                expected = jax.tree.map(
                    lambda new, old: mixup * new + (1 - mixup) * old,
                    jax.device_get(after.trainable),
                    expected,
                )
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
                jax.device_get(after.reference),
                expected,
            )
            margins.append(float(metrics["rewards/margins"]))
    np.testing.assert_allclose(margins[0], 0, atol=1e-6)
    assert margins[1] != 0


@pytest.mark.parametrize(
    "setting",
    [
        Setting(mesh=(2, 2, 2)),
        Setting(mesh=(8, 1, 1)),
        Setting(mesh=(1, 8, 1)),
        Setting(mesh=(1, 2, 2), attention="tiles", remat="full"),
        # Four pieces do not divide two kv-heads' sixteen columns by head: still the same step.
        Setting(mesh=(1, 2, 4)),
    ],
    ids=lambda setting: f"{setting.mesh}-{setting.attention}",
)
def test_eight_devices_equal_one(setting):
    assert_same(setting, PLAIN)


EXPERTS = ExpertsConfig(num_experts=4, per_token=2, router_loss=0.05)
SPARSE = MODEL.model_copy(update={"mlp": MLPConfig(intermediate_size=48, experts=EXPERTS)})
# The router's loss is of a microbatch, so these have the same ones: eight rows of 80 tokens.
EIGHT_ROWS = BatchConfig(size=8, row_length=80, rows_per_device=8)
PLAIN_SPARSE = Setting(EIGHT_ROWS, model=SPARSE)


@pytest.mark.parametrize(
    "setting",
    [
        Setting(BatchConfig(size=8, row_length=80), (1, 2, 1, 4), remat="full", model=SPARSE),
        Setting(BatchConfig(size=8, row_length=80, rows_per_device=2), (1, 2, 2, 2), model=SPARSE),
    ],
    ids=lambda setting: f"{setting.mesh}",
)
def test_experts_on_eight_devices_equal_one(setting):
    assert_same(setting, PLAIN_SPARSE)
    for one, other in zip(run(setting)[0], run(PLAIN_SPARSE)[0], strict=True):
        assert other["router_loss"] > 1
        np.testing.assert_allclose(one["router_loss"], other["router_loss"], rtol=1e-5)


def test_the_router_loss_is_in_the_gradient_by_its_factor():
    without = EXPERTS.model_copy(update={"router_loss": 0.0})
    model = SPARSE.model_copy(update={"mlp": SPARSE.mlp.model_copy(update={"experts": without})})
    with_loss, _, _ = run(PLAIN_SPARSE)
    without_loss, _, _ = run(Setting(EIGHT_ROWS, model=model))
    assert with_loss[0]["loss"] == without_loss[0]["loss"]
    assert abs(with_loss[0]["grad_norm"] - without_loss[0]["grad_norm"]) > 1e-4


def test_experts_with_adapters():
    metrics, adapters, _ = run(
        Setting(EIGHT_ROWS, model=SPARSE, lora=LoraConfig(rank=4), online=True)
    )
    np.testing.assert_allclose(metrics[0]["loss"], np.log(2), rtol=1e-6)
    assert set(adapters["layers"]) == {"attention"}
    assert metrics[0]["grad_norm"] > 0


def test_parameters_and_moments_are_cut_by_the_table():
    mesh = mesh_of(2, 2, 2)
    with jax.set_mesh(mesh):
        optimizer = Optimizer(OPTIMIZER, num_steps=3)
        state = init_state(random_params(mesh), optimizer, mesh)
    kernel = state.trainable["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == P(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (2, 16, 24)
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state.optimizer)[0]
        if jax.tree_util.keystr(path).endswith("['mlp']['up']['kernel']")
    ]
    assert len(moments) == 2
    assert all(moment.sharding == kernel.sharding for moment in moments)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_lora_starts_at_its_reference(mesh):
    setting = Setting(lora=LoraConfig(rank=4), mesh=mesh, online=True)
    metrics, adapters, compiles = run(setting)
    assert compiles == 1
    np.testing.assert_allclose(metrics[0]["loss"], np.log(2), rtol=1e-6)
    assert metrics[0]["rewards/accuracies"] == 0.5
    assert metrics[0]["grad_norm"] > 0
    assert abs(metrics[1]["loss"] - np.log(2)) > 1e-5
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(adapters))
    if mesh != (1, 1, 1):
        assert_same(setting, Setting(lora=LoraConfig(rank=4), online=True))


def test_adapters_on_a_base_in_codes_on_eight_devices_equal_one():
    lora = LoraConfig(rank=4, base="nf4")
    setting = Setting(lora=lora, mesh=(2, 2, 2), remat="full", online=True)
    metrics, _, compiles = run(setting)
    assert compiles == 1
    # Without adapters the base in codes is the reference.
    np.testing.assert_allclose(metrics[0]["loss"], np.log(2), rtol=1e-6)
    assert metrics[2]["loss"] != metrics[0]["loss"]
    assert_same(setting, Setting(lora=lora, online=True))


def test_frozen_copy_starts_at_log_two():
    metrics, _, _ = run(Setting(online=True))
    np.testing.assert_allclose(metrics[0]["loss"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(metrics[0]["rewards/margins"], 0, atol=1e-6)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_a_reference_in_the_hosts_memory_changes_nothing(mesh):
    setting = Setting(mesh=mesh, online=True, offloaded=True)
    metrics, _, _ = run(setting)
    np.testing.assert_allclose(metrics[0]["loss"], np.log(2), rtol=1e-6)
    assert_same(setting, Setting(online=True))


def test_adapters_dropout_changes_with_the_step_and_repeats_with_the_seed():
    setting = Setting(lora=LoraConfig(rank=4, dropout=0.3), online=True)
    again = Setting(lora=LoraConfig(rank=4, dropout=0.3), online=True, remat="full")
    metrics, _, _ = run(setting)
    np.testing.assert_allclose(metrics[0]["loss"], np.log(2), rtol=1e-6)
    assert_same(again, setting)
    without, _, _ = run(Setting(lora=LoraConfig(rank=4), online=True))
    assert abs(without[2]["loss"] - metrics[2]["loss"]) > 1e-6


def test_a_step_that_is_not_finite_changes_nothing():
    mesh = mesh_of(1, 1, 1)
    batch = BatchConfig(size=8)
    with jax.set_mesh(mesh):
        packer = Packer(PAIRS.lengths, batch, 1, choose_row_length(PAIRS.lengths, batch, 1))
        plan = make_train_plan(packer, 0, 1.0, None)
        optimizer = Optimizer(OPTIMIZER, num_steps=3)
        params = random_params(mesh)
        before = jax.device_get(params)
        state = init_state(params, optimizer, mesh)
        compute = Compute(jnp.float32, "dense", "none")
        objective = Objective(MODEL, compute, LossConfig(), 8, seed=0)
        step = make_train_step([objective], [optimizer], mesh, state)
        broken = REFERENCE.copy()
        broken[int(plan.pairs(0)[3])] = np.inf
        data = PlannedPairs(PAIRS, packer, plan.shape("plain"), PairColumns(broken))
        _, state, metrics = next(iter(run_steps(step, state, None, data, plan, mesh, 0)))
    assert not np.isfinite(float(metrics["loss"]))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.trainable), before)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert all(not np.asarray(leaf).any() for leaf in moments)


def train_in(param_dtype: str, steps: int) -> tuple[Any, float]:
    """Returns what trained in a few steps at a small rate, and the loss of the last."""
    mesh, batch = mesh_of(1, 1, 1), BatchConfig(size=8)
    config = OptimizerConfig(learning_rate=1e-5, schedule="constant")
    with jax.set_mesh(mesh):
        packer = Packer(PAIRS.lengths, batch, 1, choose_row_length(PAIRS.lengths, batch, 1))
        plan = make_train_plan(packer, 0, 99.0, steps)
        optimizer, dtype = Optimizer(config, steps), jnp.dtype(param_dtype)
        # Weights that bf16 holds exactly, so that both begin as the same model.
        exact = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(mesh))
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), exact)
        compute = Compute(jnp.float32, "dense", "full")
        objective = Objective(MODEL, compute, LossConfig(), batch.size, 0, param_dtype=dtype)
        state, frozen = begin(objective, optimizer, params, mesh)
        step = make_train_step([objective], [optimizer], mesh, state)
        data = PlannedPairs(PAIRS, packer, plan.shape("plain"), PairColumns(REFERENCE))
        taken = list(run_steps(step, state, frozen, data, plan, mesh, 0))
        _, state, metrics = taken[-1]
        loss = float(metrics["loss"]) / batch.size
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert moments and all(leaf.dtype == jnp.float32 for leaf in moments)
    moved = jax.tree.map(lambda after, before: after - before, state.trainable, exact)
    return jax.device_get(moved), loss


def test_updates_below_the_resolution_of_bfloat16_add_up():
    """Each step moves a weight by 1e-5; in bf16 weights of 0.1 lie 5e-4 apart."""
    moved, loss = train_in("bfloat16", steps=12)
    expected, expected_loss = train_in("float32", steps=12)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(moved))
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-2)
    for ours, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        # Adam's steps are ±1e-5 wherever a gradient keeps its sign, which rounding changes for few.
        assert (ours != 0).mean() > 0.99 * (theirs != 0).mean()
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9


def test_the_first_loss_in_bfloat16_is_that_of_the_rounded_model():
    """The step computes with the rounded weights, bit for bit, and not with those that train."""
    mesh = mesh_of(1, 1, 1)
    fine = random_params(mesh)
    compute = Compute(jnp.float32, "dense", "full")
    rounding = Objective(MODEL, compute, LossConfig(), 8, 0, param_dtype=jnp.bfloat16)
    plain = Objective(MODEL, compute, LossConfig(), 8, 0)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), fine)

    def first_loss(objective: Objective, params: Any) -> float:
        batch = BatchConfig(size=8)
        with jax.set_mesh(mesh):
            packer = Packer(PAIRS.lengths, batch, 1, choose_row_length(PAIRS.lengths, batch, 1))
            plan, optimizer = make_train_plan(packer, 0, 1.0, None), Optimizer(OPTIMIZER, STEPS)
            state = init_state(jax.tree.map(jnp.copy, params), optimizer, mesh)
            step = make_train_step([objective], [optimizer], mesh, state)
            data = PlannedPairs(PAIRS, packer, plan.shape("plain"), PairColumns(REFERENCE))
            _, _, metrics = next(iter(run_steps(step, state, None, data, plan, mesh, 0)))
        return float(metrics["loss"])

    assert first_loss(rounding, fine) == first_loss(plain, rounded)
    assert first_loss(plain, fine) != first_loss(plain, rounded)


def step_temporaries(row_length: int, vocabulary: int) -> int:
    """Bytes of temporaries that the compiler plans for a whole optimizer step."""
    model = MODEL.model_copy(update={"vocab_size": vocabulary})
    mesh = mesh_of(1, 1, 1)
    with jax.set_mesh(mesh):
        optimizer = Optimizer(OPTIMIZER, STEPS)
        params = abstract_params(model, jnp.float32)
        state = jax.eval_shape(lambda: init_state(params_like(params), optimizer, mesh))
        objective = Objective(model, Compute(jnp.float32, "tiles", "full"), LossConfig(), 8, seed=0)
        step = make_train_step([objective], [optimizer], mesh, state)
        # Four tiles a block of tokens: sequences are short, the row is long.
        shape = BatchShape(
            rows=1,
            row_length=row_length,
            pairs=64,
            scores=row_length,
            tiles=4 * row_length // TILE,
        )
        batch = jax.tree.map(lambda leaf: leaf[None], empty_batch(shape, 1))
        reference = jnp.zeros((1, 1, shape.pairs, 2))
        lowered = step.lower(state, None, batch, PairColumns(reference), jnp.int32(1))
        return lowered.compile().memory_analysis().temp_size_in_bytes


def params_like(abstract):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)


def test_a_steps_temporaries_do_not_grow_with_tokens_times_vocabulary():
    small, large = 2**10, 2**15
    # Chunks of logits are 64 MiB at most; all logits of 8,192 tokens would be 1 GiB.
    grown = step_temporaries(8192, large) - step_temporaries(2048, large)
    grown_with_small_vocabulary = step_temporaries(8192, small) - step_temporaries(2048, small)
    all_logits = (8192 - 2048) * large * 4
    assert grown - grown_with_small_vocabulary < all_logits / 8
