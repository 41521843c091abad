"""Checkpoints: whole or not there, kept in number, the same on another mesh."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.devices.sharding import shardings_for
from jaxdpo.errors import UserError
from jaxdpo.training.checkpoint import (
    MODEL_FOLDER,
    Checkpoints,
    Description,
    is_checkpoint,
    newest_checkpoint,
    read_manifest,
)
from jaxdpo.training.optimizer import Optimizer
from jaxdpo.training.optimizer_config import OptimizerConfig
from jaxdpo.training.state import TrainState, init_state
from tests.tiny import mesh_of, random_params

OPTIMIZER = Optimizer(OptimizerConfig(), num_steps=10)


def state_on(mesh, seed: int = 0) -> TrainState:
    with jax.set_mesh(mesh):
        return init_state(random_params(mesh, seed), OPTIMIZER, mesh)


def abstract(state: TrainState, mesh) -> TrainState:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings_for(state, mesh),
    )


def assert_equal(one: TrainState, other: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def test_restores_what_was_saved_on_another_mesh(tmp_path):
    one, eight = mesh_of(1, 1, 1), mesh_of(2, 2, 2)
    state = state_on(eight, seed=5)
    saving = Checkpoints(tmp_path, keep=2)
    saving.save(3, state)
    saving.wait()
    restored = Checkpoints(tmp_path, keep=2).restore(abstract(state, one))
    assert restored is not None
    assert_equal(restored, state)
    kernel = restored.trainable["layers"]["mlp"]["up"]["kernel"]
    assert len(kernel.addressable_shards) == 1


def test_a_save_holds_the_state_of_its_moment_though_the_state_is_donated(tmp_path):
    mesh = mesh_of(1, 1, 1)
    state = TrainState({"w": jnp.zeros((512, 2048))}, {}, jnp.zeros((), jnp.int32))
    advance = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep=100)
    like = abstract(state, mesh)
    for step in range(1, 6):
        state = advance(state)
        checkpoints.save(step, state)
        for _ in range(3):
            state = advance(state)
    checkpoints.wait()
    for step in (5, 4, 3, 2, 1):
        restored = Checkpoints(tmp_path, keep=100).restore(like)
        assert restored is not None
        expected = 4 * (step - 1) + 1
        assert int(restored.step) == expected
        np.testing.assert_array_equal(restored.trainable["w"], expected)
        (tmp_path / f"step_{step:08d}" / "manifest.json").unlink()


def test_keeps_the_newest(tmp_path):
    state = state_on(mesh_of(1, 1, 1))
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state)
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_what_an_interrupted_save_left_is_removed(tmp_path):
    state = state_on(mesh_of(1, 1, 1))
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state)
    checkpoints.wait()
    (tmp_path / "step_00000002" / "state").mkdir(parents=True)
    (tmp_path / "step_00000002" / "state" / "half").write_text("…")
    again = Checkpoints(tmp_path, keep=2)
    assert not (tmp_path / "step_00000002").exists()
    assert again.restore(abstract(state, mesh_of(1, 1, 1))) is not None


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path, damage, caplog):
    mesh = mesh_of(1, 1, 1)
    checkpoints = Checkpoints(tmp_path, keep=3)
    good, newer = state_on(mesh, seed=1), state_on(mesh, seed=2)
    checkpoints.save(1, good)
    checkpoints.save(2, newer)
    checkpoints.wait()
    files = (tmp_path / "step_00000002" / "state").rglob("*")
    largest = max((path for path in files if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "flip":
        largest.write_bytes(bytes(content))
    elif damage == "cut":
        largest.write_bytes(bytes(content[:-1]))
    else:
        largest.unlink()
    restored = Checkpoints(tmp_path, keep=3).restore(abstract(good, mesh))
    assert restored is not None
    assert_equal(restored, good)
    assert "step_00000002 does not match its manifest" in caplog.text
    assert (tmp_path / "damaged_step_00000002").exists()


def test_a_failed_save_is_said_and_leaves_the_one_before(tmp_path):
    mesh = mesh_of(1, 1, 1)
    with jax.set_mesh(mesh):
        noise = jax.random.normal(jax.random.key(0), (64, 4096))
        state = init_state({"embed": {"weight": noise}}, OPTIMIZER, mesh)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state)
    checkpoints.wait()
    # The system refuses to write more than this to a file, as it does on a full disk.
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        with pytest.raises(UserError, match=r"could not be saved: .*File too large.*make room"):
            checkpoints.save(2, state)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    restored = Checkpoints(tmp_path, keep=2).restore(abstract(state, mesh))
    assert restored is not None
    assert_equal(restored, state)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_parameters_that_an_earlier_version_trained_in_bfloat16_go_on_in_float32(tmp_path):
    mesh = mesh_of(1, 1, 1)
    state = state_on(mesh)
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.trainable)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, state._replace(trainable=halves))
    checkpoints.wait()
    restored = checkpoints.restore(abstract(state, mesh))
    assert restored is not None
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves)
    assert_equal(restored, state._replace(trainable=wide))


def test_it_describes_itself(tmp_path):
    description = Description({"loss": {"beta": 0.2}}, {"hidden_size": 32}, {"tokenizer": b"\x00"})
    checkpoints = Checkpoints(tmp_path, keep=2, description=description)
    checkpoints.save(7, state_on(mesh_of(1, 1, 1)))
    checkpoints.wait()
    folder = newest_checkpoint(tmp_path)
    assert is_checkpoint(folder)
    manifest = read_manifest(folder)
    assert (manifest["step"], manifest["run"], manifest["model"]) == (
        7,
        {"loss": {"beta": 0.2}},
        {"hidden_size": 32},
    )
    assert (folder / MODEL_FOLDER / "tokenizer").read_bytes() == b"\x00"
    # What it says of itself is verified as the arrays are.
    (folder / MODEL_FOLDER / "tokenizer").write_bytes(b"\x01")
    with pytest.raises(UserError, match="damaged"):
        read_manifest(folder)
