"""The exports of a run, scored by torch: its loss of TEST is the one that the summary states."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxdpo.config import load_config
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.errors import UserError
from jaxdpo.hub.families import config_to_hf
from jaxdpo.hub.policy import load_policy
from jaxdpo.runs.convert import ConvertConfig, convert
from jaxdpo.runs.fit import RunResult, fit
from jaxdpo.runs.load import open_source
from tests.folders import write_model, write_pairs

BETA = 1.0
QUIET = "training.completions=0"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_pairs(folder / "pairs.jsonl", 38, test=6)
    return write_model(folder / "model")


@pytest.fixture(scope="module")
def model16(model) -> Path:
    """The same model in bfloat16, as models are on the Hub."""
    folder = model.parent / "model16"
    shutil.copytree(model, folder)
    halved = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    halved.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sft(model) -> Path:
    """An adapter as another trainer left it: rank-stabilised, with a rank of its own for v."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True,
        rank_pattern={"v_proj": 2}, task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.add_(0.1 * torch.randn_like(value))
    adapted.save_pretrained(str(model.parent / "sft"))
    return model.parent / "sft"


def config_of(path: Path, name: str, *overrides: str):
    folder = path.parent
    settings = {
        "model.path": path, "data.path": folder / "pairs.jsonl", "data.cache_dir": folder / "cache",
        "training.folder": folder / name, "training.completions": 1, "checkpoint.every": 4,
        "training.watch.prompts": 0,
        "batch.size": 8, "loss.beta": BETA,
        "optimizer.learning_rate": 1e-3 if name.startswith("full") else 1e-2,
    }  # fmt: skip
    return load_config(None, [*(f"{key}={value}" for key, value in settings.items()), *overrides])


def base_of(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def with_adapter(base: Path, adapter: Path) -> torch.nn.Module:
    return peft.PeftModel.from_pretrained(base_of(base), str(adapter)).eval()  # type: ignore[arg-type]


def log_probability(model: Any, prompt: np.ndarray, completion: np.ndarray) -> float:
    ids = torch.tensor(np.concatenate([prompt, completion])[None]).long()
    with torch.no_grad():
        logps = model(ids).logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
    return float(logps.gather(-1, torch.tensor(completion).long()[:, None]).sum())


def test_loss(policy: Any, reference: Any, config: Any) -> float:
    """Computes the DPO loss of the TEST pairs, equation 7 of https://arxiv.org/abs/2305.18290."""
    chat = load_policy(config.model.path).chat
    pairs = load_pairs(config.data, chat, Path(config.training.folder) / "unused", False)
    losses = []
    for index in range(len(pairs.splits["TEST"])):
        pair = pairs.splits["TEST"][index]
        ratios = [
            log_probability(policy, pair.prompt_ids, ids)
            - log_probability(reference, pair.prompt_ids, ids)
            for ids in (pair.chosen_ids, pair.rejected_ids)
        ]
        losses.append(np.log1p(np.exp(-BETA * (ratios[0] - ratios[1]))))
    return float(np.mean(losses))


test_loss.__test__ = False  # type: ignore[attr-defined]


def summarised(result: RunResult) -> tuple[float, float]:
    test = result.summary["test"]
    return test["before"]["loss"], test["after"]["loss"]


def test_all_parameters(model):
    config = config_of(model, "full")
    _, after = summarised(fit(config))
    exported = base_of(model.parent / "full" / "model")
    assert test_loss(exported, base_of(model), config) == pytest.approx(after, rel=1e-4)
    assert after < 0.65


def dtypes_of(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def trained_loss(result: RunResult) -> float:
    """The last evaluation of the run itself, on the weights before they were rounded."""
    return [record["loss"] for record in result.history if record["split"] == "TEST"][-1]


@pytest.mark.slow
def test_all_parameters_of_a_base_in_bfloat16(model16, capsys):
    config = config_of(model16, "full16", "training.watch.prompts=2")
    result = fit(config)
    _, after = summarised(result)
    folder = model16.parent / "full16" / "model"
    # By default as the base's files, though all was computed in fp32.
    assert dtypes_of(folder) == {"BF16"}
    assert test_loss(base_of(folder), base_of(model16), config) == pytest.approx(after, rel=1e-5)
    # The weights before rounding had another loss, which is not the one that is stated.
    trained = trained_loss(result)
    assert trained != pytest.approx(after, rel=1e-4)
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"TEST loss {trained:.4f} as trained, {after:.4f} as exported in bfloat16" in said
    exported = result.summary["exported"]
    assert (exported["dtype"], exported["test_is_of"]) == ("bfloat16", "the exported weights")
    assert exported["read_back"]["pairs"] == 6
    assert exported["read_back"]["largest_difference"] < 1e-4
    # By hand: the files before and after, and the checkpoint, which has what was trained in fp32.
    exact, lost, learned = open_source(str(folder.parent), exact=True).params, 0.0, 0.0
    before, written = load_policy(str(model16)).params, load_policy(str(folder)).params
    for one, two, three in zip(*map(jax.tree.leaves, (before, exact, written)), strict=True):
        whole = np.asarray(two.at(()), np.float64)
        learned += np.square(whole - np.asarray(one)).sum()
        lost += np.square(whole - np.asarray(three)).sum()
    share = np.sqrt(lost / learned)
    assert share > 0.01
    assert result.summary["rounding_loss"] == pytest.approx(share, rel=1e-3)
    assert f"loses {share:.0%} of what training changed" in said
    card = (folder / "README.md").read_text()
    assert f"| loss | {np.log(2):.4g} | {after:.4g} |" in card


@pytest.mark.parametrize(
    "param_dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"]
)
def test_lora_merged_in_bfloat16(param_dtype, model16):
    name = f"lora16-{param_dtype}"
    config = config_of(model16, name, "lora.rank=4", f"model.param_dtype={param_dtype}", QUIET)
    result = fit(config)
    _, after = summarised(result)
    folder = model16.parent / name / "model"
    assert dtypes_of(folder) == {"BF16"}
    assert test_loss(base_of(folder), base_of(model16), config) == pytest.approx(after, rel=1e-5)
    assert trained_loss(result) != pytest.approx(after, rel=1e-4)
    assert result.summary["exported"]["read_back"]["largest_difference"] < 1e-4
    # By hand, in float64.
    policy, lost, learned = result.policy, 0.0, 0.0
    assert policy.lora is not None and policy.lora_config is not None
    written = load_policy(str(folder)).params["layers"]
    for part, linears in policy.lora["layers"].items():
        for linear, pair in linears.items():
            a, b = (np.asarray(pair[side], np.float64) for side in "ab")
            delta = policy.lora_config.scale * a @ b
            base = np.asarray(policy.params["layers"][part][linear]["kernel"], np.float64)
            found = np.asarray(written[part][linear]["kernel"], np.float64)
            lost += np.square(found - base - delta).sum()
            learned += np.square(delta).sum()
    share = np.sqrt(lost / learned)
    assert share > 0.005
    assert result.summary["rounding_loss"] == pytest.approx(share, rel=1e-3)


@pytest.mark.slow
def test_parameters_computed_in_bfloat16_are_exported_as_they_were_kept(model, tmp_path):
    """The base is in fp32, and so is the export: what trained, not what it was rounded to."""
    config = config_of(model, "full32", "model.param_dtype=bfloat16", QUIET)
    result = fit(config)
    _, after = summarised(result)
    folder = model.parent / "full32" / "model"
    assert dtypes_of(folder) == {"F32"}
    # The reference is what training began with: the base rounded to the dtype of computation.
    load_policy(str(model), "bfloat16").save(tmp_path / "rounded")
    reference = base_of(tmp_path / "rounded")
    assert test_loss(base_of(folder), reference, config) == pytest.approx(after, rel=1e-5)
    kept = open_source(str(model.parent / "full32"), exact=True).params
    written = load_policy(str(folder)).params
    jax.tree.map(lambda one, two: np.testing.assert_array_equal(one.at(()), two), kept, written)
    convert(ConvertConfig(source=str(folder.parent), target=str(tmp_path / "again"), check=True))
    again = load_policy(str(tmp_path / "again")).params
    jax.tree.map(np.testing.assert_array_equal, again, written)


def test_a_folder_that_reads_back_as_another_model_is_an_error(model, monkeypatch):
    """A fault of the export: a number of config.json that is not the model's."""

    def faulty(config, hf_config):
        return {**config_to_hf(config, hf_config), "rms_norm_eps": 0.5}

    monkeypatch.setattr("jaxdpo.hub.write.config_to_hf", faulty)
    with pytest.raises(UserError, match=r"it is not the model that was written: its log-prob of"):
        fit(config_of(model, "faulty", QUIET))
    assert not (model.parent / "faulty" / "summary.json").exists()
    monkeypatch.undo()
    # What was trained is there, and the same command exports it.
    result = fit(config_of(model, "faulty", QUIET))
    assert result.summary["exported"]["read_back"]["largest_difference"] < 1e-4


@pytest.mark.slow
def test_without_room_for_a_second_model_the_summary_says_so(model16, monkeypatch, capsys):
    monkeypatch.setattr("jaxdpo.runs.export.free_memory", lambda: 1000.0)
    result = fit(config_of(model16, "narrow", "lora.rank=4", QUIET))
    assert "there is no memory to hold the exported weights" in capsys.readouterr().out
    exported = result.summary["exported"]
    assert exported["test_is_of"] == "the weights before rounding"
    assert exported["read_back"] is None
    assert result.summary["test"]["after"]["loss"] == trained_loss(result)
    # It is written a matrix at a time, and holds what it would have held.
    monkeypatch.undo()
    wide = fit(config_of(model16, "wide", "lora.rank=4", QUIET))
    written = [folder / "model" / "model.safetensors" for folder in (result.folder, wide.folder)]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_lora_merged_and_as_an_adapter(model, tmp_path):
    config = config_of(model, "lora", "lora.rank=4", "export.lora=adapter")
    _, after = summarised(fit(config))
    run = model.parent / "lora"
    expected, reference = pytest.approx(after, rel=1e-4), base_of(model)
    assert test_loss(with_adapter(model, run / "model"), reference, config) == expected
    convert(ConvertConfig(source=str(run), target=str(tmp_path / "merged")))
    assert test_loss(base_of(tmp_path / "merged"), reference, config) == expected
    assert after < 0.65


def test_qlora_merged(model):
    """The reference is the quantized base, so it is exported by itself for torch."""
    config = config_of(model, "qlora", "lora.rank=4", "lora.base=nf4")
    _, after = summarised(fit(config))
    quantized = load_policy(str(model)).quantized("nf4")
    quantized.save(model.parent / "quantized")
    policy, reference = base_of(model.parent / "qlora/model"), base_of(model.parent / "quantized")
    assert test_loss(policy, reference, config) == pytest.approx(after, rel=1e-4)


@pytest.mark.slow
def test_qlora_in_bfloat16_merged_and_as_an_adapter(model16):
    quantized = model16.parent / "quantized16"
    load_policy(str(model16)).quantized("nf4").save(quantized)
    reference = base_of(quantized)
    config = config_of(model16, "qlora16", "lora.rank=4", "lora.base=nf4", QUIET)
    result = fit(config)
    _, after = summarised(result)
    folder = result.folder / "model"
    assert dtypes_of(folder) == {"BF16"}
    assert test_loss(base_of(folder), reference, config) == pytest.approx(after, rel=1e-5)
    assert trained_loss(result) != pytest.approx(after, rel=1e-4)
    again = model16.parent / "qlora16-again"
    convert(ConvertConfig(source=str(result.folder), target=str(again), check=True))
    weights = [each / "model.safetensors" for each in (again, folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    alone = [*("lora.rank=4", "lora.base=nf4"), "export.lora=adapter", QUIET]
    result = fit(config_of(model16, "qlora-adapter", *alone))
    _, after = summarised(result)
    policy = with_adapter(quantized, result.folder / "model")
    assert test_loss(policy, reference, config) == pytest.approx(after, rel=1e-4)
    assert result.summary["exported"]["read_back"]["largest_difference"] < 1e-3


@pytest.mark.slow
def test_a_new_adapter_over_that_of_supervised_training(model, sft, tmp_path):
    config = config_of(sft, "over", "lora.rank=3", "export.lora=adapter", "lora.targets=[q, down]")
    before, after = summarised(fit(config))
    assert before == pytest.approx(np.log(2), rel=1e-5)
    assert after < 0.65
    run, reference = model.parent / "over", with_adapter(model, sft)
    expected = pytest.approx(after, rel=1e-4)
    assert test_loss(with_adapter(model, run / "model"), reference, config) == expected
    again = tmp_path / "again"
    convert(ConvertConfig(source=str(run), target=str(again), lora="adapter", check=True))
    assert test_loss(with_adapter(model, again), reference, config) == expected


def test_the_adapter_of_supervised_training_continued(model, sft, tmp_path):
    form = ["lora.rank=4", "lora.alpha=16", "lora.targets=[q, v]"]
    config = config_of(sft, "on", "model.adapter=continue", "export.lora=adapter", *form)
    before, after = summarised(fit(config))
    assert before == pytest.approx(np.log(2), rel=1e-5)
    assert after < 0.65
    run, reference = model.parent / "on", with_adapter(model, sft)
    expected = pytest.approx(after, rel=1e-4)
    assert test_loss(with_adapter(model, run / "model"), reference, config) == expected
    again = tmp_path / "again"
    convert(ConvertConfig(source=str(run), target=str(again), lora="adapter", check=True))
    assert test_loss(with_adapter(model, again), reference, config) == expected
    # The ranks that v_proj did not have stayed zero.
    lora: Any = load_policy(str(run / "model")).lora
    assert not np.asarray(lora["layers"]["attention"]["v"]["a"])[..., 2:].any()


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ({"use_dora": True, "use_rslora": True}, ["lora.use_dora=true", "lora.use_rslora=true"]),
        pytest.param({"modules_to_save": ["embed_tokens", "lm_head"]}, [], marks=pytest.mark.slow),
        pytest.param({"trainable_token_indices": [3, 17]}, [], marks=pytest.mark.slow),
    ],
    ids=["DoRA", "new tokens", "rows of tokens"],
)
def test_adapters_with_more_than_pairs_are_trained_further(kind, form, model, tmp_path):
    torch.manual_seed(0)
    base, words = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    if "modules_to_save" in kind:
        words.add_tokens(["<think>", "</think>"])
        base.resize_token_embeddings(len(words))
    lora: Any = dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(base, peft.LoraConfig(**lora, **kind, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.add_(0.05 * torch.randn_like(value))
    adapted.save_pretrained(str(tmp_path / "sft"))
    words.save_pretrained(tmp_path / "sft")
    settings = {
        "model.path": tmp_path / "sft", "data.path": model.parent / "pairs.jsonl",
        "data.cache_dir": tmp_path / "cache", "training.folder": tmp_path / "run",
        "training.completions": 1, "batch.size": 8, "loss.beta": BETA, "lora.rank": 4,
        "optimizer.learning_rate": 1e-2, "model.adapter": "continue", "export.lora": "adapter",
        "lora.alpha": 8, "lora.targets": "[q, v]", "optimizer.loraplus_lr_ratio": 2,
    }  # fmt: skip
    config = load_config(None, [*(f"{key}={value}" for key, value in settings.items()), *form])
    before, after = summarised(fit(config))
    assert before == pytest.approx(np.log(2), rel=1e-5)
    assert after < 0.65

    def with_peft(folder: Path) -> torch.nn.Module:
        under = base_of(model)
        if "modules_to_save" in kind:
            under.resize_token_embeddings(len(words))  # type: ignore[operator]
        return peft.PeftModel.from_pretrained(under, str(folder)).eval()  # type: ignore[arg-type]

    loss = test_loss(with_peft(tmp_path / "run/model"), with_peft(tmp_path / "sft"), config)
    assert loss == pytest.approx(after, rel=1e-4)


def test_what_cannot_be_continued_says_what_to_set(model, sft):
    with pytest.raises(UserError, match=r"set lora.rank=4 lora.alpha=16 'lora.targets=\[q, v\]'"):
        fit(config_of(sft, "other", "model.adapter=continue", "lora.rank=8"))
    with pytest.raises(UserError, match=r"alpha=16 lora.use_dora=false 'lora.targets"):
        fit(config_of(sft, "dora", "model.adapter=continue", "lora.rank=4", "lora.use_dora=true"))
    with pytest.raises(UserError, match="must be a folder of adapters of linear maps"):
        fit(config_of(model, "none", "model.adapter=continue", "lora.rank=8"))
