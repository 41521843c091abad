"""The maker of the quickstart's files: the whole way, from past answers to judged pairs."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import transformers

from jaxdpo.quickstart.make import MODEL, QUICK
from jaxdpo.quickstart.new_model import write_new_model
from jaxdpo.quickstart.task import SYLLABLES, passes, read_request, split_of


@pytest.mark.slow
def test_model_and_pairs_are_made(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jaxdpo.quickstart.make", str(tmp_path), "--quick"]
    environment = {**os.environ, "JAXDPO_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert str(model.dtype) == "torch.bfloat16"
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert Counter(pair["split"] for pair in pairs) == QUICK.pairs
    for pair in pairs:
        user, chosen = pair["messages"]
        assert passes(user["content"], chosen["content"])
        assert not passes(user["content"], pair["rejected_message"]["content"])
        assert pair["split"] == split_of(read_request(user["content"]).name)


def test_a_new_model_is_one_that_transformers_reads(tmp_path: Path) -> None:
    texts = ["Balex opens at 9."] * 20
    write_new_model(tmp_path / "new", MODEL, {"model_type": "llama"}, texts, SYLLABLES, 0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype="auto")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert model.config.vocab_size == len(tokenizer) == MODEL.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_token_id
