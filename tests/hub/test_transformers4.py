"""Exports under transformers 4.57, in an environment of its own that `.ci/run` makes."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxdpo.hub.policy import load_policy
from tests.folders import write_model

PYTHON = os.environ.get("JAXDPO_TRANSFORMERS4_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None,
    reason="JAXDPO_TRANSFORMERS4_PYTHON names no Python with transformers 4.57; .ci/run makes one",
)
PROMPT = [{"role": "user", "content": "what does the <|mark|> red cat see?"}]
# Run under both versions: what a folder tokenises to and generates.
SCRIPT = """
import json, sys, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
words = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype="auto").eval()
ids = words.apply_chat_template(json.loads(sys.argv[2]), add_generation_prompt=True)
ids = list(ids["input_ids"]) if hasattr(ids, "keys") else list(ids)
made = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(),
                      max_new_tokens=12, do_sample=False)
print(json.dumps([transformers.__version__, ids, made[0].tolist(), words.eos_token,
                  model.generation_config.eos_token_id, sorted(words.all_special_tokens)]))
"""


def under(python: str, folder: Path) -> list:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-c", SCRIPT, str(folder), json.dumps(PROMPT)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["TokenizersBackend", "Qwen2Tokenizer", "LlamaTokenizerFast"])
def test_exports_load_tokenise_and_generate_the_same(kind, tmp_path):
    source = write_model(tmp_path / "model")
    words = AutoTokenizer.from_pretrained(source)
    words.add_special_tokens({"extra_special_tokens": ["<|mark|>"]})
    words.save_pretrained(source)
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": kind}))
    load_policy(str(source)).save(tmp_path / "out")
    assert PYTHON is not None
    version, *old = under(PYTHON, tmp_path / "out")
    assert version.startswith("4.57")
    new = AutoTokenizer.from_pretrained(tmp_path / "out")
    given = new.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=False)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    made = model.generate(
        torch.tensor([given]), attention_mask=torch.ones(1, len(given)).long(),
        max_new_tokens=12, do_sample=False,
    )  # fmt: skip
    ends = model.generation_config.eos_token_id
    special = sorted(new.all_special_tokens)
    assert old == [given, made[0].tolist(), new.eos_token, ends, special]
