"""The model card of an export, parsed by huggingface_hub, and its snippet run by Python."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from jaxdpo.config import load_config
from jaxdpo.runs.card import origin_of, run_card
from jaxdpo.runs.convert import ConvertConfig, convert
from jaxdpo.runs.fit import fit
from tests.folders import write_model, write_pairs

BASE_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M
---
# my-sft
"""


def config_of(inputs: Path, run: Path, *overrides: str):
    settings = {
        "model.path": inputs / "my-sft", "data.path": inputs / "pairs.jsonl",
        "data.cache_dir": inputs / "cache", "training.folder": run, "training.completions": 0,
        "training.max_steps": 2, "batch.size": 8,
    }  # fmt: skip
    return load_config(None, [*(f"{key}={value}" for key, value in settings.items()), *overrides])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("card-inputs")
    write_pairs(folder / "pairs.jsonl", 22, test=6)
    write_model(folder / "my-sft")
    (folder / "my-sft" / "README.md").write_text(BASE_CARD)
    return folder


@pytest.fixture(scope="module")
def merged(inputs, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("merged") / "run"
    fit(config_of(inputs, run))
    return run


@pytest.fixture(scope="module")
def adapter(inputs, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("adapter") / "run"
    fit(config_of(inputs, run, "lora.rank=2", "export.lora=adapter"))
    return run


def run_snippet(folder: Path, elsewhere: Path) -> subprocess.CompletedProcess[str]:
    """Runs the card's only Python block as a reader would, with the folder put in."""
    text = (folder / "README.md").read_text()
    (block,) = [each.split("```")[0] for each in text.split("```python\n")[1:]]
    assert block.count("path/to/this/folder") == 1
    code = block.replace("path/to/this/folder", str(folder)).replace(
        "max_new_tokens=200", "max_new_tokens=4"
    )
    return subprocess.run(
        [sys.executable, "-c", code + "\nprint('generated', output.shape[1] > 4)"],
        cwd=elsewhere,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_hub_reads_the_fields_of_all_parameters(merged):
    card = ModelCard.load(merged / "model" / "README.md")
    data = card.data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "tags": ["jaxdpo", "dpo", "sigmoid"],
    }
    assert "`HuggingFaceTB/SmolLM2-135M` → `my-sft` → this model" in card.text
    assert "From `pairs.jsonl`." in card.text
    assert "| TRAIN | 16 |" in card.text and "| TEST | 6 |" in card.text
    records = [json.loads(line) for line in (merged / "metrics.jsonl").read_text().splitlines()]
    before, *_, after = [record for record in records if record["split"] == "TEST"]
    assert after["step"] == 2
    assert f"| loss | {before['loss']:.4g} | {after['loss']:.4g} |" in card.text


def test_the_hub_reads_the_fields_of_an_adapter(adapter):
    data = ModelCard.load(adapter / "model" / "README.md").data.to_dict()
    assert (data["library_name"], data["base_model_relation"]) == ("peft", "adapter")
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M"
    assert "lora" in data["tags"]


def test_no_place_on_this_machine_is_named(inputs, merged, adapter):
    for run in (merged, adapter):
        text = (run / "model" / "README.md").read_text()
        for place in (inputs, run, Path.home(), Path.cwd()):
            assert str(place) not in text


def test_the_snippets_run(merged, adapter, tmp_path):
    for run in (merged, adapter):
        done = run_snippet(run / "model", tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("generated True\n")


def front_of(folder: Path) -> dict[str, Any]:
    return ModelCard.load(folder / "README.md").data.to_dict()


def test_a_base_that_has_moved_keeps_its_licence_and_its_line(inputs, tmp_path, monkeypatch):
    """A relative path that leads nowhere any more has the form of a Hub name, and is none."""
    shutil.copytree(inputs, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    fit(config_of(inputs, tmp_path / "run", "model.path=models/my-sft"))
    shutil.rmtree(tmp_path / "models")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    convert(ConvertConfig(source="../run", target="again"))
    card: Any = ModelCard.load("again/README.md")
    data = card.data.to_dict()
    assert (data["base_model"], data["license"]) == ("HuggingFaceTB/SmolLM2-135M", "apache-2.0")
    assert "`HuggingFaceTB/SmolLM2-135M` → `my-sft` → this model" in card.text
    assert "models/my-sft" not in card.content
    assert "path: my-sft\n" in card.text


def test_a_base_without_a_card_is_no_model_of_the_hub_when_it_has_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("pairs.jsonl"), 22, test=6)
    write_model(Path("models/plain"))
    fit(config_of(Path(), tmp_path / "run", "model.path=models/plain"))
    shutil.rmtree(tmp_path / "models")
    convert(ConvertConfig(source="run", target="again"))
    assert "base_model" not in front_of(Path("again"))


@pytest.mark.slow
def test_a_converted_adapter_has_the_card_of_what_it_became(inputs, adapter, tmp_path):
    # The run, and the folder that it exported, by themselves.
    for number, source in enumerate((adapter, adapter / "model")):
        merged = tmp_path / f"merged{number}"
        convert(ConvertConfig(source=str(source), target=str(merged)))
        data, text = front_of(merged), (merged / "README.md").read_text()
        assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")
        assert "PeftModel" not in text and "adapter_config.json" not in text
    done = run_snippet(merged, tmp_path)
    assert done.returncode == 0, done.stderr

    fit(config_of(inputs, tmp_path / "run", "lora.rank=2"))
    assert front_of(tmp_path / "run" / "model")["library_name"] == "transformers"
    convert(ConvertConfig(source=str(tmp_path / "run"), target=str(tmp_path / "a"), lora="adapter"))
    data, text = front_of(tmp_path / "a"), (tmp_path / "a" / "README.md").read_text()
    assert (data["library_name"], data["base_model_relation"]) == ("peft", "adapter")
    assert text == (adapter / "model" / "README.md").read_text()


def test_a_base_without_a_card_has_no_licence_and_no_lineage(inputs, tmp_path):
    base = tmp_path / "plain"
    base.mkdir()
    card = ModelCard(run_card(config_of(inputs, tmp_path / "run", f"model.path={base}"), None))
    for field in ("license", "base_model", "base_model_relation", "datasets"):
        assert card.data.to_dict().get(field) is None
    assert "The licence of the base model applies" in card.text
    assert "Lineage" not in card.text and str(tmp_path) not in card.text
    (base / "config.json").write_text('{"_name_or_path": "org/first"}')
    assert origin_of(str(base), None).hub_id == "org/first"
    (base / "config.json").write_text('{"_name_or_path": "/home/someone/first"}')
    assert origin_of(str(base), None).hub_id is None


def test_names_on_the_hub_are_taken_from_the_configuration(inputs, tmp_path):
    config = config_of(
        inputs, tmp_path / "run", "model.path=org/base", "data.path=org/pairs:default"
    )
    data = ModelCard(run_card(config, None)).data.to_dict()
    assert data["base_model"] == "org/base"
    assert data["datasets"] == ["org/pairs"]


def test_cards_of_several_generations_are_followed(tmp_path):
    for name, parent in (("second", "org/first"), ("third", str(tmp_path / "second"))):
        (tmp_path / name).mkdir()
        text = yaml.safe_dump({"base_model": [parent]})
        (tmp_path / name / "README.md").write_text(f"---\n{text}---\n")
    origin = origin_of(str(tmp_path / "third"), None)
    assert origin.parents == ("org/first", "second")
    assert (origin.name, origin.hub_id) == ("third", "org/first")


@pytest.mark.parametrize(
    "front",
    ["license: [", "- a list", "license: {a: b}\nbase_model: 3", "license: 'x\n\n  y: z'"],
)
def test_what_cannot_be_read_in_a_card_is_passed_over(tmp_path, front):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    origin = origin_of(str(tmp_path), None)
    assert (origin.hub_id, origin.parents, origin.licence) == (None, (), {})


def test_text_of_names_stays_text(inputs, tmp_path):
    base = tmp_path / "a: `b`\n---\nlicense: mit"
    base.mkdir()
    (base / "README.md").write_text('---\nlicense: other\nlicense_name: "a: b\\n---\\nc"\n---\n')
    config = config_of(inputs, tmp_path / "run")
    named = config.model_copy(update={"model": config.model.model_copy(update={"path": str(base)})})
    card: Any = ModelCard(run_card(named, None))  # the stubs do not know the fields of its data
    assert card.data.license == "other"
    assert card.data.to_dict()["license_name"] == "a: b\n---\nc"
