import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jaxdpo.devices.sharding import MeshConfig, make_mesh, shardings_for
from jaxdpo.errors import UserError
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.folder import member, read_config
from jaxdpo.hub.read import load_params
from jaxdpo.model.decoder import abstract_params
from tests.hub.conftest import make_torch_model


@pytest.fixture
def folder(llama, tmp_path):
    """A copy of the plain Llama to spoil."""
    return shutil.copytree(llama.folder, tmp_path / "model")


def load(folder, dtype=jnp.float32, mesh=None):
    config = config_from_hf(read_config(folder))
    shardings = mesh and shardings_for(abstract_params(config, dtype), mesh)
    return load_params(folder, config, dtype, shardings)


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def split_weights(folder):
    """Makes two shards and an index of them."""
    tensors = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map):
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def assert_equal_trees(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_values_are_those_of_the_file(llama):
    params = load(llama.folder)
    state = {name: tensor.detach().numpy() for name, tensor in llama.torch_model.named_parameters()}
    np.testing.assert_array_equal(params["embed"]["weight"], state["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["head"]["kernel"], state["lm_head.weight"].T)
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        kernel = params["layers"]["mlp"]["down"]["kernel"][layer]
        np.testing.assert_array_equal(kernel, state[name].T)


def test_sharded_parameters_hold_the_same_values(llama):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = load(llama.folder, mesh=mesh)
    kernel = sharded["layers"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (3, 32, 48)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 16, 24)}
    assert_equal_trees(jax.tree.map(np.asarray, sharded), load(llama.folder))


def test_each_device_reads_only_its_own_slice(llama, monkeypatch):
    """Counts what is read of the file: every element once, and never a whole matrix."""
    from jaxdpo.hub import read

    sizes = []
    original = read.Tensor.read

    def counting(tensor, index):
        piece = original(tensor, index)
        sizes.append((piece.size, np.prod(tensor.shape)))
        return piece

    monkeypatch.setattr(read.Tensor, "read", counting)
    load(llama.folder, mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    read_elements = sum(size for size, _ in sizes)
    assert read_elements == sum(p.numel() for p in llama.torch_model.parameters())
    assert all(size == whole / 4 for size, whole in sizes if whole > 32)


def test_stored_in_bf16_loads_exactly(llama, folder):
    edit_weights(folder, lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    rounded = llama.torch_model.model.norm.weight.detach().bfloat16()
    as_bf16, as_f32 = load(folder, jnp.bfloat16), load(folder, jnp.float32)
    assert as_bf16["norm"]["scale"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        as_bf16["norm"]["scale"].view(jnp.uint16), rounded.view(torch.uint16)
    )
    np.testing.assert_array_equal(as_f32["norm"]["scale"], rounded.float())


def test_several_files_with_an_index(llama, folder):
    split_weights(folder)
    assert_equal_trees(load(folder), load(llama.folder))


def test_derived_buffers_and_equal_tied_heads_are_passed_over(llama, folder):
    edit_config(folder, tie_word_embeddings=True)

    def store_twice(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit_weights(folder, store_twice)
    assert "head" not in load(folder)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "base_model.model.", "language_model."]
)
def test_other_trainers_names_are_read(prefix, llama, folder):
    """State dicts saved from inside torch.compile, DistributedDataParallel, PEFT, and a VLM."""

    def rename(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    edit_weights(folder, rename)
    assert_equal_trees(load(folder), load(llama.folder))


def test_a_language_model_within_another_and_one_without_its_head(llama, folder):
    def inner(tensors):
        for name in list(tensors):
            tensors[name.replace("model.", "model.language_model.", 1)] = tensors.pop(name)

    edit_weights(folder, inner)
    assert_equal_trees(load(folder), load(llama.folder))

    def headless(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.language_model.")] = tensors.pop(name)

    edit_weights(folder, headless)
    assert_equal_trees(load(folder), load(llama.folder))


def test_two_tensors_of_one_name_are_refused(folder):
    edit_weights(folder, lambda t: t.update({f"module.{Q}": t[Q].clone()}))
    with pytest.raises(UserError, match=rf"holds {Q} twice, once as"):
        load(folder)


def test_an_old_index_beside_a_single_file_is_passed_over(llama, folder):
    write_index(folder, {Q: "model-00001-of-00002.safetensors"})
    assert_equal_trees(load(folder), load(llama.folder))


def test_an_index_may_name_a_tied_head_that_is_not_stored(folder):
    edit_config(folder, tie_word_embeddings=True)
    edit_weights(folder, lambda t: t.pop("lm_head.weight"))
    expected = load(folder)
    weight_map = split_weights(folder)
    write_index(folder, {**weight_map, "lm_head.weight": "a.safetensors"})
    assert_equal_trees(load(folder), expected)


def test_gpt2_as_the_hub_has_it(tmp_path):
    """Names without the prefix, and the causal mask as a buffer."""
    model = make_torch_model("gpt2", tmp_path / "new")
    old = shutil.copytree(model.folder, tmp_path / "old")

    def rename(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 48, 48)

    edit_weights(old, rename)
    assert_equal_trees(load(old), load(model.folder))


def test_a_tied_head_that_differs_is_refused(folder):
    edit_config(folder, tie_word_embeddings=True)
    with pytest.raises(
        UserError, match=r"lm_head.weight differs.*set tie_word_embeddings to false"
    ):
        load(folder)


def remove(name):
    return lambda folder: os.remove(folder / name)


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def weights(change):
    return lambda folder: edit_weights(folder, change)


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_pickles(folder):
    os.rename(folder / "model.safetensors", folder / "pytorch_model.bin")


def shard_elsewhere(name):
    def spoil(folder):
        weight_map = split_weights(folder)
        shutil.copy(folder / "b.safetensors", folder.parent / "b.safetensors")
        wrong = {tensor: name if shard == "b.safetensors" else shard
                 for tensor, shard in weight_map.items()}  # fmt: skip
        write_index(folder, wrong)

    return spoil


def shard_missing(folder):
    split_weights(folder)
    os.remove(folder / "b.safetensors")


def index_disagrees(folder):
    weight_map = split_weights(folder)
    weight_map["model.norm.weight"] = "a.safetensors"
    weight_map["lm_head.weight"] = "b.safetensors"
    write_index(folder, weight_map)


def link_outside(name):
    def spoil(folder):
        os.rename(folder / name, folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return spoil


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("config.json"), "holds no config.json, so it is not a Hugging Face model folder"),
        (write("config.json", "{"), "config.json: not JSON"),
        (write("config.json", "[]"), "config.json: not a JSON object"),
        (remove("model.safetensors"), r"holds no weights \(model.safetensors, or "),
        (only_pickles, "pytorch_model.bin, which are not read because loading them can run code"),
        (cut_off, "model.safetensors: damaged or cut off"),
        (write("model.safetensors", ""), "model.safetensors: damaged or cut off"),
        (weights(lambda t: t.pop(Q)), f"1 missing: {Q}"),
        (weights(lambda t: t.update(extra=torch.ones(2))), "1 that have no use here: extra"),
        (weights(lambda t: t.update({Q: t[Q][:-1]})), r"has shape \[31, 32\], but .* \[32, 32\]"),
        (weights(lambda t: t.update({Q: t[Q][:, :16].contiguous()})), r"has shape \[32, 16\]"),
        (weights(lambda t: t.update({Q: t[Q].to(torch.int8)})), "is I8; quantised weights are not"),
        (shard_missing, "b.safetensors: missing, though the index names it"),
        (index_disagrees, "the index lists others: .*"),
        (shard_elsewhere("../b.safetensors"), "'../b.safetensors' is not a plain file name"),
        (shard_elsewhere("/etc/passwd"), "'/etc/passwd' is not a plain file name"),
        (shard_elsewhere("..\\b.safetensors"), "is not a plain file name"),
        (shard_elsewhere(3), "3: missing, though the index names it"),
        (write("model.safetensors.index.json", "{}"), "weight_map must map tensor names"),
        (link_outside("model.safetensors"), "a link to .*, outside the model folder"),
        (link_outside("config.json"), "a link to .*, outside the model folder"),
    ],
)  # fmt: skip
def test_a_spoilt_folder_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_the_hub_caches_links_are_followed(llama, tmp_path):
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(llama.folder.iterdir()):
        shutil.copy(path, cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert_equal_trees(load(snapshot), load(llama.folder))


def test_folders_are_found(llama, tmp_path):
    assert find_folder(llama.folder) == llama.folder.resolve()
    for missing in (str(tmp_path / "none"), "none", "a/b/c", "./none"):
        with pytest.raises(UserError, match="no such folder; name a model folder, or org/name"):
            find_folder(missing)
    with pytest.raises(UserError, match="the Hub did not give a model of that name"):
        find_folder("no-such-organisation/no-such-model")
    with pytest.raises(UserError, match="is not a plain file name"):
        member(tmp_path, "..")


def as_float8(dtype):
    def change(tensors):
        tensors.update({k: v.to(dtype) if v.ndim == 2 else v for k, v in tensors.items()})

    return change


def value_head(tensors):
    tensors["v_head.summary.weight"] = torch.randn(1, 32)
    tensors["v_head.summary.bias"] = torch.zeros(1)


def mixed(tensors):
    tensors.update({k: v.bfloat16() if v.ndim == 2 else v.double() for k, v in tensors.items()})


@pytest.mark.parametrize(
    "change",
    [value_head, as_float8(torch.float8_e4m3fn), as_float8(torch.float8_e5m2), mixed],
    ids=["TRL's value head", "float8_e4m3", "float8_e5m2", "mixed dtypes"],
)
def test_what_transformers_reads_is_read(change, folder):
    edit_weights(folder, change)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    params = load(folder)
    np.testing.assert_array_equal(params["embed"]["weight"], expected["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["norm"]["scale"], expected["model.norm.weight"])
    for name, kernel in params["layers"]["attention"].items():
        for layer in range(3):
            value = expected[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
            np.testing.assert_array_equal(kernel["kernel"][layer], value.T)


def test_a_wrapped_model_with_a_value_head_is_read(llama, folder):
    def wrap(tensors):
        for name in list(tensors):
            tensors[f"pretrained_model.{name}"] = tensors.pop(name)
        value_head(tensors)

    edit_weights(folder, wrap)
    assert_equal_trees(load(folder), load(llama.folder))


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda t: t.update({"score.weight": t.pop("lm_head.weight")[:1]}), "a reward model"),
        (lambda t: t.pop("lm_head.weight"), "set tie_word_embeddings to true"),
        (
            lambda t: t.update({f"{Q}_scale_inv": torch.ones(1, 1)}),
            "weight_scale_inv says that the weights are quantised",
        ),
    ],
    ids=["reward model", "no head", "scales"],
)
def test_tensors_that_do_not_fit_say_what_to_do(change, remedy, folder):
    edit_weights(folder, change)
    with pytest.raises(UserError, match=remedy):
        load(folder)
