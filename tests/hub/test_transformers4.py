"""Exports under transformers 4.57, in an environment of its own that `.ci/run` makes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxdpo.hub.families import FAMILIES, config_from_hf
from jaxdpo.hub.folder import read_config
from jaxdpo.hub.policy import load_policy
from jaxdpo.hub.read import load_params
from jaxdpo.hub.write import save_pretrained
from tests.folders import write_model
from tests.hub.conftest import EVERYTHING
from tests.hub.published import PUBLISHED, write_published
from tests.make_tokenizers import TEMPLATES

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
# The families of several folders at once, by the ids of a prompt; texts by a folder's tokenizer.
MODELS_SCRIPT = """
import json, sys, torch
from transformers import AutoModelForCausalLM
answers = {}
for folder in json.loads(sys.argv[1]):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.arange(20)[None] % 50
    with torch.no_grad():
        logits = model.float()(ids).logits[0, -1].tolist()
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12,
                          do_sample=False, pad_token_id=0)
    answers[folder] = [made[0].tolist(), logits, type(model).__name__]
print(json.dumps(answers))
"""
WORDS_SCRIPT = """
import json, sys
from transformers import AutoTokenizer
answers = []
for folder in json.loads(sys.argv[1]):
    words = AutoTokenizer.from_pretrained(folder)
    ids = [words(text)["input_ids"] for text in json.loads(sys.argv[2])]
    chat = words.apply_chat_template([{"role": "user", "content": "Hi  there"}], tokenize=False)
    answers.append([ids, [words.decode(one) for one in ids], chat, words.eos_token])
print(json.dumps(answers))
"""
KNOWN_SCRIPT = """
import json
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
print(json.dumps(sorted(CONFIG_MAPPING_NAMES)))
"""
# Families that came after transformers 4.57, which therefore cannot load their exports.
NEWER = {"ministral3"}
# One of each way to write a config.json; all of them:
# JAXDPO_TEST_FAMILIES=all python -m pytest tests/hub/test_transformers4.py
SPELLINGS = [
    "Llama 3.1", "Mistral Nemo", "Phi-3.5", "Gemma 3 1B", "OLMo 3", "SmolLM3", "Qwen3 MoE", "GPT-2",
]  # fmt: skip
TRIED = list(PUBLISHED) if EVERYTHING else SPELLINGS


def under(python: str, folder: Path) -> list:
    return run(python, SCRIPT, str(folder), json.dumps(PROMPT))


def run(python: str | None, script: str, *arguments: str) -> Any:
    assert python is not None
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-c", script, *arguments],
        capture_output=True, text=True, env=environment, timeout=900,
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


def test_every_family_generates_the_same(tmp_path):
    """The published spellings of the families, exported; one process of 4.57 for all of them."""
    folders = []
    for number, name in enumerate(TRIED):
        source, out = write_published(name, tmp_path / f"source{number}"), tmp_path / f"out{number}"
        hf_config = read_config(source)
        config = config_from_hf(hf_config)
        params = load_params(source, config, np.dtype("float32"))
        save_pretrained(out, config, params, None, hf_config)
        folders.append(str(out))
    old, new = (run(each, MODELS_SCRIPT, json.dumps(folders)) for each in (PYTHON, sys.executable))
    for name, folder in zip(TRIED, folders, strict=True):
        assert old[folder][0] == new[folder][0], name
        assert old[folder][2] == new[folder][2] == PUBLISHED[name]["architectures"][0]
        size = np.abs(new[folder][1]).max()
        np.testing.assert_allclose(
            old[folder][1], new[folder][1], rtol=0, atol=2e-6 * size, err_msg=name
        )


def test_each_family_is_known_to_it_or_named():
    assert set(FAMILIES) - set(run(PYTHON, KNOWN_SCRIPT)) == NEWER


TEXTS = [
    "what does the red cat see?", "  two  spaces, a\ttab\nand a line", "Köln, 東京 and 😊", "",
    "<start_of_turn>user\nhello<end_of_turn>\n", "<bos>again", "x\n\n\ny",
]  # fmt: skip


def write_gemma_tokenizer(folder: Path) -> None:
    """A tokenizer as Gemma's: SentencePiece's BPE, spaces as "▁", bytes for what is unknown."""
    words = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
    )  # fmt: skip
    words.train_from_iterator(["the red▁cat▁sees the▁house", "what▁does▁the▁cat▁see?"], trainer)
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    state = json.loads(words.to_str())
    # Pieces for bytes are no added tokens, and white space is one that is not special.
    state["added_tokens"] = [
        {**token, "special": token["content"] != "\n\n"}
        for token in state["added_tokens"]
        if token["content"] in special
    ]
    (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False))
    config = {
        "tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False,
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        "clean_up_tokenization_spaces": False, "spaces_between_special_tokens": False,
        "sp_model_kwargs": {}, "use_default_system_prompt": False,
        "chat_template": TEMPLATES["gemma"],
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("special_tokens_map.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)


def test_gemmas_tokenizer_is_the_one_that_was_published(tmp_path):
    """Its ids, under both versions, are those of the source under the version that made it."""
    source = write_model(tmp_path / "model")
    write_gemma_tokenizer(source)
    load_policy(str(source)).save(tmp_path / "out")
    texts, out = json.dumps(TEXTS), str(tmp_path / "out")
    published, old = run(PYTHON, WORDS_SCRIPT, json.dumps([str(source), out]), texts)
    [new] = run(sys.executable, WORDS_SCRIPT, json.dumps([out]), texts)
    assert published[0][0][0] == 2
    assert old == published
    assert new == published
