"""The exports of a run, scored by torch: its loss of TEST is the one that the summary states."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxdpo.config import load_config
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy
from jaxdpo.runs.convert import ConvertConfig, convert
from jaxdpo.runs.fit import RunResult, fit
from tests.folders import write_model, write_pairs

BETA = 1.0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_pairs(folder / "pairs.jsonl", 38, test=6)
    return write_model(folder / "model")


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
        "batch.size": 8, "loss.beta": BETA,
        "optimizer.learning_rate": 1e-3 if name == "full" else 1e-2,
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
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, []),
        ({"trainable_token_indices": [3, 17]}, []),
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
