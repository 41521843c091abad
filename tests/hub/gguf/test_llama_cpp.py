"""GGUF files in llama.cpp itself: it finds transformers' token ids and greedy continuation.

llama.cpp comes prebuilt in the npm package node-llama-cpp, for Node 20 or later:
    npm install --prefix FOLDER --ignore-scripts --omit=optional node-llama-cpp \\
        @node-llama-cpp/linux-x64
    JAXDPO_NODE_LLAMA_CPP=FOLDER python -m pytest tests/hub/gguf/test_llama_cpp.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from jaxdpo.runs.convert import ConvertConfig, convert
from tests.folders import CHATML
from tests.hub.gguf.test_tokenizers import SPLITTERS, TEXTS, byte_level, sentencepiece

FOLDER = os.environ.get("JAXDPO_NODE_LLAMA_CPP")
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    FOLDER is None or NODE is None,
    reason="needs node and node-llama-cpp: npm install --prefix FOLDER --ignore-scripts "
    "--omit=optional node-llama-cpp @node-llama-cpp/linux-x64; JAXDPO_NODE_LLAMA_CPP=FOLDER",
)
COUNT = 12


def in_llama_cpp(model: Path, texts: list[str], ids: list[int]) -> Any:
    asked = json.dumps({"texts": texts, "ids": ids, "count": COUNT})
    script = Path(__file__).with_name("llama_cpp.mjs")
    command = [str(NODE), str(script), str(Path(str(FOLDER)).resolve()), str(model), asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def greedy(folder: Path, ids: list[int]) -> tuple[list[int], float]:
    """Torch's greedy continuation, and the smallest lead of a first token over the second."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    said, leads = list(ids), []
    with torch.no_grad():
        for _ in range(COUNT):
            best = model(torch.tensor([said])).logits[0, -1].topk(2)
            leads.append(float(best.values[0] - best.values[1]))
            said.append(int(best.indices[0]))
    return said[len(ids) :], min(leads)


def write_model(folder: Path, tokenizer: Any, **changes: Any) -> None:
    torch.manual_seed(1)
    sizes: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**sizes, **changes}))
    with torch.no_grad():
        # Sharp predictions: llama.cpp keeps keys and values in F16, which must not decide.
        model.get_output_embeddings().weight.mul_(2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "rule", "changes"),
    [
        ("float32", "gpt-2", {}),
        ("float16", "smollm", {"rope_parameters": LLAMA3, "head_dim": 64}),
        ("q8_0", "llama-bpe", {"attention_bias": True}),
        ("float16", "sentencepiece", {}),
    ],
)
def test_ids_and_greedy_continuation(dtype, rule, changes, tmp_path):
    tokenizer: Any = (
        sentencepiece("chatml") if rule == "sentencepiece" else byte_level(SPLITTERS[rule])
    )
    tokenizer.chat_template = CHATML
    write_model(tmp_path / "model", tokenizer, **changes)
    target = tmp_path / "model.gguf"
    settings: Any = dict(target=str(target), format="gguf", dtype=dtype)
    convert(ConvertConfig(source=str(tmp_path / "model"), **settings))
    # The numbers of the file, which are not those of the folder where they were rounded.
    convert(ConvertConfig(source=str(target), target=str(tmp_path / "again")))
    own = AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [text for text in TEXTS if text]
    ids = own("the small cat", add_special_tokens=False).input_ids
    expected, lead = greedy(tmp_path / "again", ids)
    assert lead > 0.02, "this model does not know what it wants; take another seed"
    found = in_llama_cpp(target, texts, ids)
    assert found["tokens"] == [own(text, add_special_tokens=False).input_ids for text in texts]
    ended = expected.index(own.eos_token_id) + 1 if own.eos_token_id in expected else COUNT
    np.testing.assert_array_equal(found["continuation"][:ended], expected[:ended])
    assert found["eos"] == own.eos_token_id
