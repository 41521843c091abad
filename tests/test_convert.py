"""Conversions: what is written holds the bits of what was read."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from orbax.checkpoint import v1 as ocp

from jaxdpo.config import load_config, to_yaml
from jaxdpo.convert import main
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy
from jaxdpo.model.decoder import abstract_params
from jaxdpo.model.lora import init_lora
from jaxdpo.runs.convert import ConvertConfig, convert
from jaxdpo.storage.lazy_array import Stored
from jaxdpo.training.checkpoint import Checkpoints
from jaxdpo.training.optimizer import Optimizer
from jaxdpo.training.state import init_state
from tests.folders import write_model
from tests.tiny import mesh_of


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def assert_same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def test_to_orbax_and_back(model, tmp_path, capsys):
    main([f"source={model}", f"target={tmp_path / 'orbax'}", "format=orbax", "--check"])
    main([f"source={tmp_path / 'orbax'}", f"target={tmp_path / 'again'}", "--check"])
    assert "12 arrays read back equal" in capsys.readouterr().out
    before, after = load_policy(str(model)), load_policy(str(tmp_path / "again"))
    # Orbax itself reads it as arrays that it wrote.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        abstract_params(before.config, jnp.float32),
    )
    assert_same(ocp.load(str(tmp_path / "orbax" / "params"), abstract), before.params)
    assert_same(before.params, after.params)
    assert before.config == after.config
    assert before.chat.tokenizer.chat_template == after.chat.tokenizer.chat_template


def test_one_matrix_at_a_time_is_read(model, tmp_path, monkeypatch):
    """Whatever the number of layers: from either format, and with adapters added."""
    run, orbax = tmp_path / "run", tmp_path / "orbax"
    make_run(run, model, ["lora.rank=2"])
    policy = load_policy(str(model))
    largest = max(leaf[0].size for leaf in jax.tree.leaves(policy.params["layers"]["mlp"]))
    largest = max(largest, policy.params["embed"]["weight"].size)
    sizes, at = [], Stored.at

    def seen(stored, indices):
        part = at(stored, indices)
        sizes.append(part.size)
        return part

    monkeypatch.setattr(Stored, "at", seen)
    convert(ConvertConfig(source=str(run), target=str(orbax), format="orbax", check=True))
    convert(ConvertConfig(source=str(orbax), target=str(tmp_path / "out"), check=True))
    assert max(sizes) == largest
    # And on disk a matrix is a chunk.
    store = {"driver": "ocdbt", "base": f"file://{orbax}/params/state/"}
    kernel = {"driver": "zarr3", "kvstore": {**store, "path": "layers.mlp.up.kernel/"}}
    opened = tensorstore.open(kernel, open=True).result()
    assert opened.chunk_layout.read_chunk.shape == (1, 32, 64)


def test_dtype_and_size_of_shards(model, tmp_path):
    target = tmp_path / "small"
    convert(
        ConvertConfig(
            source=str(model), target=str(target), dtype="bfloat16", shard_gb=2e-5, check=True
        )
    )
    shards = list(target.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size < 2e-5 * 1e9 + 30_000 for shard in shards)
    params = load_policy(str(model)).params
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)
    assert_same(load_policy(str(target)).params, expected)
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"


def make_run(folder: Path, model: Path, overrides: list[str]):
    """A run folder with two checkpoints, and what was trained in each."""
    settings = [f"model.path={model}", "data.path=pairs.jsonl", f"training.folder={folder}"]
    config = load_config(None, [*settings, *overrides])
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    policy = load_policy(str(model))
    trainable = policy.params
    if config.lora is not None:
        trainable = init_lora(policy.config, config.lora, jax.random.key(0))
    optimizer = Optimizer(config.optimizer, 7, lora=config.lora is not None)
    checkpoints, trained = Checkpoints(folder / "checkpoints", keep=2), []
    for step in (1, 2):
        changed = jax.tree.map(lambda leaf, by=step: leaf + 0.01 * by, trainable)
        checkpoints.save(step, init_state(changed, optimizer, mesh_of(1, 1, 1)))
        checkpoints.wait()
        trained.append(changed)
    return trained


def test_a_run_and_its_checkpoints(model, tmp_path):
    run = tmp_path / "run"
    trained = make_run(run, model, [])
    for source, expected in (
        (run, trained[1]),
        (run / "checkpoints" / "step_00000001", trained[0]),
    ):
        convert(ConvertConfig(source=str(source), target=str(tmp_path / "out"), check=True))
        assert_same(load_policy(str(tmp_path / "out")).params, expected)
    state = run / "checkpoints" / "step_00000002" / "state"
    damaged = next(path for path in state.rglob("*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes() + b"x")
    with pytest.raises(UserError, match="damaged, it does not match its manifest"):
        convert(ConvertConfig(source=str(run), target=str(tmp_path / "other")))


def test_adapters_apart_and_merged(model, tmp_path):
    trained = make_run(tmp_path / "run", model, ["lora.rank=2"])
    for lora in ("adapter", "merged"):
        target = str(tmp_path / lora)
        convert(ConvertConfig(source=str(tmp_path / "run"), target=target, lora=lora, check=True))
    adapter = load_policy(str(tmp_path / "adapter"))
    assert_same(adapter.lora, trained[1])
    assert_same(adapter.merged().params, load_policy(str(tmp_path / "merged")).params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target"], "--target: its value is missing; write --target VALUE or target=VALUE"),
        (["sorce=a"], r"sorce: unknown key; did you mean 'source'\?"),
        (["source=a"], "target: must be given; set target=…"),
        (["source=a", "target=b", "dtype=int8"], "dtype: Input should be 'float32'"),
        (["source=a", "target=b", "shard_gb=0"], "shard_gb: Input should be greater than 0"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_adapters_that_are_not_there(model, tmp_path):
    config = ConvertConfig(source=str(model), target=str(tmp_path / "out"), lora="adapter")
    with pytest.raises(UserError, match="has no adapters"):
        convert(config)
    assert not (tmp_path / "out").exists()
