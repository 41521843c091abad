"""lm-evaluation-harness against the server, on a task that needs no download."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from jaxdpo.runs.load import load_source
from jaxdpo.storage.files import shipped
from tests.serving.running import MODEL, running

HARNESS = os.environ.get("JAXDPO_LM_EVAL")
QUESTIONS = ["The museum opens at", "Thank you for your", "As far as I know, the hall", "A"]
WRONG = [" a ticket", " seven paintings"]


@pytest.mark.skipif(
    not HARNESS, reason="set JAXDPO_LM_EVAL to the lm_eval of an environment with lm-eval[api]"
)
def test_the_harness_scores_as_torch_does(tmp_path):
    tokenizer = load_source(shipped(MODEL)).chat.tokenizer
    model: Any = transformers.LlamaForCausalLM.from_pretrained(
        shipped(MODEL), dtype="float32"
    ).eval()

    def continued(text: str, count: int) -> str:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        whole = model.generate(ids, do_sample=False, max_new_tokens=count, eos_token_id=None)
        return str(tokenizer.decode(whole[0, ids.shape[1] :]))

    # The likeliest continuation is among the choices, so that some of them are greedy.
    facts = [
        {"question": each, "choices": [continued(each, 3), *WRONG], "answer": 0}
        for each in QUESTIONS
    ]
    text = continued(QUESTIONS[0], 8)
    until = text[len(text) // 2]
    write_tasks(tmp_path, facts, until)
    with running(batch_size=4) as (root, _):
        # Without a tokenizer's name it asks the server for tokens.
        arguments = f"base_url={root}/v1/completions,model={MODEL},num_concurrent=4,max_length=512"
        done = subprocess.run(
            [str(HARNESS), "run", "--model", "local-completions", "--model_args", arguments,
             "--include_path", ".", "--tasks", "local_facts,local_words", "--log_samples",
             "--output_path", "out"],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = samples(tmp_path, "local_facts")
    assert len(lines) == len(facts)
    greedy = []
    for line in lines:
        asked = [pair.values() for pair in line["arguments"].values()]
        for (context, choice), (found, is_greedy) in zip(
            asked, line["filtered_resps"], strict=True
        ):
            ids = tokenizer(context + choice)["input_ids"]
            begin = len(tokenizer(context)["input_ids"])
            with torch.no_grad():
                logps = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            own = [float(logps[i - 1, ids[i]]) for i in range(begin, len(ids))]
            likeliest = [int(logps[i - 1].argmax()) == ids[i] for i in range(begin, len(ids))]
            assert float(found) == pytest.approx(sum(own), abs=1e-4)
            assert (is_greedy in (True, "True")) == all(likeliest)
            greedy.append(all(likeliest))
    assert len(set(greedy)) == 2
    # Generation, with the end token's text among the texts that it stops at.
    [word] = samples(tmp_path, "local_words")
    assert word["filtered_resps"] == [text.partition(until)[0]]


def samples(folder: Path, task: str):
    [path] = (folder / "out").rglob(f"samples_{task}_*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: line["doc_id"])


def write_tasks(folder: Path, facts: list[dict[str, Any]], until: str):
    """Writes a task of choices, and one of generation."""
    words = [{"question": QUESTIONS[0], "answer": ""}]
    for name, records in (("facts", facts), ("words", words)):
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    common = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}"}
    choices = {
        "task": "local_facts",
        "dataset_kwargs": {"data_files": {"test": "facts.jsonl"}},
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    generated = {
        "task": "local_words",
        "dataset_kwargs": {"data_files": {"test": "words.jsonl"}},
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [until], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    }
    for task in (choices, generated):
        text = yaml.safe_dump({**task, **common, "metadata": {"version": 1.0}})
        (folder / f"{task['task']}.yaml").write_text(text)
