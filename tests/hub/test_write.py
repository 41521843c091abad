import errno
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig

from jaxdpo.devices.sharding import MeshConfig, make_mesh, shardings_for
from jaxdpo.errors import UserError
from jaxdpo.hub import export
from jaxdpo.hub.export import MANIFEST, TensorSpec, exporting, write_tensors
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.folder import read_config
from jaxdpo.hub.read import load_params
from jaxdpo.hub.write import save_pretrained
from jaxdpo.model.decoder import abstract_params

WEIGHTS_ONLY = {"config.json", "generation_config.json", "model.safetensors", MANIFEST}


def export_copy(model, folder, dtype=None, loaded_as=jnp.float32, mesh=None, **options):
    """Loads a model and saves it again."""
    hf_config = read_config(model.folder)
    config = config_from_hf(hf_config)
    shardings = mesh and shardings_for(abstract_params(config, loaded_as), mesh)
    params = load_params(model.folder, config, loaded_as, shardings)
    save_pretrained(folder, config, params, None, hf_config, dtype=dtype, **options)
    return config, params


def bits(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).view(np.uint8).tobytes(), tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_import_after_export_is_the_identity_bit_for_bit(each_model, tmp_path, dtype):
    config, params = export_copy(each_model, tmp_path / "out", loaded_as=dtype)
    assert config_from_hf(read_config(tmp_path / "out")) == config
    assert bits(load_params(tmp_path / "out", config, dtype)) == bits(params)


def test_torch_loads_the_export_with_equal_tensors_and_logits(each_model, tmp_path):
    export_copy(each_model, tmp_path / "out")
    # With output_loading_info a pair is returned, which transformers' annotations leave out.
    both: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    loaded, report = both
    assert not any(report.values()), report
    expected = each_model.torch_model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, each_model.torch_model(ids).logits)


def test_sharded_parameters_and_several_files(llama, tmp_path):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    _, params = export_copy(llama, tmp_path / "out", mesh=mesh, max_shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    sizes = [(tmp_path / "out" / name).stat().st_size for name in files]
    assert max(sizes) < 20_000 + 4_000  # The header comes on top.
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert index["metadata"]["total_size"] == total
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, llama.torch_model.state_dict()[name]), name


def test_dtype_is_changed_on_the_way_out_and_named(llama, tmp_path):
    export_copy(llama, tmp_path / "out", dtype="bfloat16")
    config = read_config(tmp_path / "out")
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = llama.torch_model.lm_head.weight.detach().bfloat16()
    assert torch.equal(loaded.lm_head.weight, expected)


def test_generation_config_is_kept_or_made(llama, tmp_path):
    export_copy(llama, tmp_path / "made")
    made = GenerationConfig.from_pretrained(tmp_path / "made")
    assert (made.bos_token_id, made.eos_token_id) == (1, 2)
    generation = {"generation_config.json": '{"eos_token_id": [2, 7], "top_k": 5}'}
    export_copy(llama, tmp_path / "kept", files=generation)
    kept = GenerationConfig.from_pretrained(tmp_path / "kept")
    assert (kept.eos_token_id, kept.top_k) == ([2, 7], 5)


def test_an_earlier_export_is_replaced_and_nothing_else(llama, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    export_copy(llama, folder, dtype="bfloat16")  # An empty folder is as good as none.
    export_copy(llama, folder)
    assert read_config(folder)["dtype"] == "float32"
    assert {path.name for path in folder.iterdir()} == WEIGHTS_ONLY
    assert list(tmp_path.iterdir()) == [folder]

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes.txt, which no export put there"):
        export_copy(llama, folder)
    assert (folder / "notes.txt").read_text() == "mine"

    copy = shutil.copytree(llama.folder, tmp_path / "model")
    with pytest.raises(UserError, match=r"which no export put there; name another folder"):
        export_copy(llama, copy)
    assert bits(load_params(copy, config_from_hf(read_config(copy)), jnp.float32))

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder"):
        export_copy(llama, tmp_path / "file")


def test_a_cut_off_export_leaves_the_earlier_one(llama, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    export_copy(llama, folder)
    before = (folder / "model.safetensors").read_bytes()

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export.os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot be written: .*No space left on device"):
        export_copy(llama, folder, dtype="bfloat16")
    assert (folder / "model.safetensors").read_bytes() == before
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_export_left_is_cleared(llama, tmp_path):
    """A kill at any moment leaves these names beside the folder, which may itself be missing."""
    for name in (".out.partial", ".out.previous"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    export_copy(llama, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_unwritable_place_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="out: cannot be written"), exporting(tmp_path / "file/out"):
        pass


def test_what_reads_back_differently_is_refused(tmp_path, monkeypatch):
    class Rotten:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def get_tensor(self, _):
            return np.zeros(3, np.float32)

    monkeypatch.setattr(export, "safe_open", Rotten)
    specs = {"w": TensorSpec((3,), np.float32)}
    with pytest.raises(OSError, match="w reads back differently"):
        write_tensors(tmp_path / "x.safetensors", specs, iter([np.ones(3, np.float32)]))


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    arrays = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asarray(jnp.arange(5, dtype=jnp.bfloat16)),
        "ü": np.zeros((0, 4), np.float16),
    }
    specs = {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()}
    write_tensors(tmp_path / "x.safetensors", specs, iter(arrays.values()))
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        assert set(file.keys()) == set(arrays)
        assert file.metadata() == {"format": "pt"}
        for name, array in arrays.items():
            assert file.get_tensor(name).dtype == array.dtype
            np.testing.assert_array_equal(file.get_tensor(name), array)
