"""A run folder blocks no corrected command, opens anywhere, and nothing is replaced unasked."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdpo.collect as collect
from jaxdpo.config import load_config
from jaxdpo.errors import UserError
from jaxdpo.evaluate import main as evaluate_command
from jaxdpo.rounds.compare import EvaluateConfig, compare
from jaxdpo.runs.convert import ConvertConfig, convert
from jaxdpo.runs.fit import fit
from jaxdpo.runs.load import load_source
from tests.folders import write_model, write_pairs


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with a model and pairs, which the runs name by relative paths."""
    write_model(tmp_path / "work" / "sft")
    write_pairs(tmp_path / "work" / "pairs.jsonl", 12, test=2)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def train(folder: str, *settings: str):
    given = ["model=./sft", "data=pairs.jsonl", f"training.folder={folder}", "batch.size=4"]
    given += ["data.cache_dir=cache", "training.max_steps=2", "training.completions=0"]
    return fit(load_config(None, [*given, *settings]))


def assert_same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def test_a_run_that_failed_before_its_first_step_blocks_nothing(here):
    for settings in (["batch.size=1000"], ["loss.beta=0.5", "batch.size=500"]):
        with pytest.raises(UserError, match="there are only 10 TRAIN pairs"):
            train("run", *settings)
    # Another file and other weights as well: what was started from is of no meaning yet.
    write_pairs(here / "work" / "pairs.jsonl", 14, test=2, seed=1)
    assert train("run").summary["steps"] == 2
    with pytest.raises(UserError, match=r"loss.beta was 0.1, is now 0.3"):
        train("run", "loss.beta=0.3")
    again = train("run", "loss.beta=0.3", "overwrite=true")
    assert again.history[-1]["step"] == 2
    assert "beta: 0.3" in (here / "work/run/config.yaml").read_text()
    # With nothing changed, the same command continues, and a finished run stays.
    before = (here / "work/run/summary.json").stat().st_mtime_ns
    train("run", "loss.beta=0.3", "overwrite=true")
    assert (here / "work/run/summary.json").stat().st_mtime_ns == before


def test_a_run_opens_from_any_directory(here, monkeypatch):
    (here / "work" / "t.jinja").write_text((here / "work/sft/chat_template.jinja").read_text())
    trained = train("run", "data.chat_template=t.jinja").policy
    elsewhere = here / "elsewhere"
    (here / "work" / "run").rename(elsewhere)
    shutil.rmtree(here / "work")
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    for source in ("../elsewhere", "../elsewhere/checkpoints/step_00000002"):
        opened = load_source(source)
        assert_same(opened.params, trained.params)
        asked = [{"role": "user", "content": "why is the cat red"}]
        assert opened.chat.encode(asked, (), True) == trained.chat.encode(asked, (), True)


def test_adapters_need_their_base_and_say_so(here, monkeypatch):
    trained = train("run", "lora.rank=2").policy
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    opened = load_source("../work/run")
    assert_same(opened.lora, trained.lora)
    assert_same(opened.params, trained.params)
    shutil.rmtree(here / "work" / "sft")
    # The finished run's merged model needs no base; a checkpoint alone does.
    merged = load_source("../work/run")
    assert merged.lora is None
    assert_same(merged.params, trained.merged().params)
    (here / "work/run/summary.json").unlink()
    with pytest.raises(UserError, match=r"holds adapters alone.*their base model is needed, wh"):
        load_source("../work/run")


@pytest.mark.slow
def test_another_model_in_the_place_of_an_adapters_base_is_refused(here, tmp_path):
    trained = train("run", "lora.rank=2").policy
    checkpoint = tmp_path / "copied"
    shutil.copytree("run/checkpoints/step_00000002", checkpoint)
    quantized = train("codes", "lora.rank=2", "lora.base=int8").policy
    for source, policy in (("run", trained), (checkpoint, trained), ("codes", quantized)):
        assert_same(load_source(str(source)).lora, policy.lora)
    # A model of the same shape and name, of which one weight is another.
    weights = load_file("sft/model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(weights, "sft/model.safetensors", metadata={"format": "pt"})
    for source in ("run", checkpoint, "codes"):
        with pytest.raises(UserError, match=r"its adapters were trained on other weights than .*d"):
            load_source(str(source))


def test_figures_of_human_agreement_replace_no_others(here):
    lines = [
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": text},
            ],
            "judgement": judgement,
        }
        for text, judgement in (("{}", "PASS"), ("no", "FAIL"), ("also no", "FAIL"))
    ]
    Path("judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["alignment=judged.jsonl", "criteria=json", "out=figures"]
    evaluate_command(arguments)
    (figures,) = Path("figures").iterdir()
    figures.write_text("mine")
    with pytest.raises(UserError, match=rf"{figures.name}: is there already; set overwrite=true"):
        evaluate_command(arguments)
    assert figures.read_text() == "mine"
    evaluate_command([*arguments, "overwrite=true"])
    assert json.loads(figures.read_text())["disagreements"] == []


def test_a_foreign_folder_is_not_trained_into(here):
    folder = here / "work" / "evaluation"
    folder.mkdir()
    (folder / "report.html").write_text("mine")
    (folder / "model").mkdir()
    (folder / "config.yaml").write_text("of another command")
    with pytest.raises(UserError, match=r"holds config.yaml, and is no run's folder"):
        train("evaluation")
    assert (folder / "config.yaml").read_text() == "of another command"
    shutil.rmtree(folder / "model")
    assert train("evaluation", "overwrite=true").summary["steps"] == 2
    assert (folder / "report.html").read_text() == "mine"


def test_a_runs_own_model_is_not_converted_over(here):
    train("run")
    before = (here / "work/run/model/model.safetensors").read_bytes()
    arguments = {"source": "run", "target": "run/model", "dtype": "bfloat16"}
    with pytest.raises(UserError, match=r"run/model: belongs to the run in .*set overwrite=true"):
        convert(ConvertConfig.model_validate(arguments))
    assert (here / "work/run/model/model.safetensors").read_bytes() == before
    convert(ConvertConfig.model_validate({**arguments, "overwrite": True}))
    assert (here / "work/run/model/model.safetensors").read_bytes() != before


def test_an_evaluation_is_not_replaced_by_another(here):
    def evaluate(**fields):
        values = {"data": {"path": "pairs.jsonl", "limit": 2}, "out": "e", "criteria": "json",
                  "sampling": {"max_new_tokens": 4}}  # fmt: skip
        compare(EvaluateConfig.model_validate({**values, **fields}))

    evaluate(models={"a": "./sft"})
    results = Path("e/results.json").read_text()
    evaluate(models={"a": "./sft"})
    with pytest.raises(UserError, match=r"e holds another evaluation: models was.*overwrite=true"):
        evaluate(models={"b": "./sft"})
    assert Path("e/results.json").read_text() == results
    evaluate(models={"b": "./sft"}, overwrite=True)
    assert set(json.loads(Path("e/results.json").read_text())["models"]) == {"b"}


def test_collected_pairs_replace_no_file(here):
    record = {"messages": [{"role": "user", "content": "a"}], "output": "one", "edited": "two"}
    Path("edits.jsonl").write_text(json.dumps(record) + "\n")
    Path("out.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match=r"out.jsonl: is there already.*set overwrite=true"):
        collect.main(["expert_edits", "edits.jsonl", "-o", "out.jsonl"])
    assert Path("out.jsonl").read_text() == "mine\n"
    collect.main(["expert_edits", "edits.jsonl", "-o", "out.jsonl", "--overwrite"])
    assert "rejected_message" in Path("out.jsonl").read_text()
