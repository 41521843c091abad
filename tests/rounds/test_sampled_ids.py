"""Sampled ids and trained ids are the same; transformers stops where sampling stops."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from jaxdpo.data.config import DataConfig
from jaxdpo.data.generations import read_generations
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.hub.policy import load_policy
from jaxdpo.prefer import main as prefer
from jaxdpo.sampling.answers import complete
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.sampling.engine import Request

# Opens the reasoning in the prompt, and looks for its end in the content, as Qwen3.5's does.
REASONING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\n' + m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}"
    "{{ '\n</think>\n\n' + m.content.split('</think>')[-1].lstrip('\n') }}{% else %}"
    "{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
QUESTIONS = [f"What is {i} + {i}?" for i in range(8)]


def first_letters(messages, completion, metadata):
    return Judgement(score=float(sum(map(ord, completion[:9]))), explanation="")


@pytest.fixture
def folder(make_tokenizer, tmp_path):
    """A base model whose configuration ends in another token than its template."""
    tokenizer = make_tokenizer("bytes", "chatml")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.add_tokens([AddedToken("COVID-19", normalized=False)])
    tokenizer.chat_template = REASONING
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # So that one answer differs from the next, and tokens that text hardly spells are drawn.
        model.lm_head.weight.mul_(20)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path


def test_the_ids_that_were_sampled_are_the_ids_that_are_trained(folder):
    lines = [{"messages": [{"role": "user", "content": q}], "split": "TRAIN"} for q in QUESTIONS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prefer(
        [
            f"model={folder}/base", f"data={folder}/prompts.jsonl", f"folder={folder}/out",
            f"criteria={{function: '{__name__}:first_letters'}}", "samples=4",
            "sampling.max_new_tokens=24",
        ]
    )  # fmt: skip
    chat = load_policy(f"{folder}/base").chat
    sampled = {}
    for each in read_generations(folder / "out" / "generations.jsonl"):
        assert each.sampled is not None
        prompt = tuple(chat.encode(each.messages, add_generation_prompt=True))
        sampled.setdefault(prompt, set()).add(each.sampled.ids)
        ended = each.sampled.ids[-1] in chat.end_ids
        assert ended == each.finished
    config = DataConfig(path=f"{folder}/out/pairs.jsonl", cache_dir=str(folder / "cache"))
    trained = load_pairs(config, chat).splits["TRAIN"]
    assert len(trained) >= 4
    for pair in trained:
        answers = sampled[tuple(pair.prompt_ids.tolist())]
        for ids in (pair.chosen_ids, pair.rejected_ids):
            assert tuple(ids.tolist()) in answers
    assert trained.report.ids_unused == ()
    # Encoding the texts would have given other ids, so this test can fail; an edited text does.
    lines = (folder / "out" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert all("sampled" in record["rejected_message"] for record in records)
    for record in records:
        record["rejected_message"]["content"] = "I do not know."
    (folder / "edited.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    edited = load_pairs(config.model_copy(update={"path": f"{folder}/edited.jsonl"}), chat)
    loaded = edited.splits["TRAIN"]
    assert len(loaded.report.ids_unused) == len(loaded) == len(trained)
    for before, after in zip(trained, loaded, strict=True):
        assert np.array_equal(before.chosen_ids, after.chosen_ids)
        assert chat.decode(after.rejected_ids).endswith("I do not know.")


def free_run(model, prompt, count):
    ids = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return ids[0, len(prompt) :].tolist()


def test_generate_of_transformers_stops_where_sampling_stops(folder):
    base = LlamaForCausalLM.from_pretrained(folder / "base")
    base.generation_config.eos_token_id = None
    chat = load_policy(f"{folder}/base").chat
    prompts = [
        chat.encode([{"role": "user", "content": question}], add_generation_prompt=True)
        for question in QUESTIONS
    ]
    # Rows of the head are swapped, so that one prompt's answer comes to the template's end and
    # another's to the configuration's.
    runs = [free_run(base, prompt, 12) for prompt in prompts]
    seen, ends = set(), list(chat.end_ids)
    for run in runs:
        fresh = next((t for i, t in enumerate(run) if i > 1 and t not in run[:i]), None)
        if ends and fresh is not None and fresh not in seen:
            end = ends.pop()
            seen |= {fresh, end}
            with torch.no_grad():
                rows = base.lm_head.weight[[end, fresh]].clone()
                base.lm_head.weight[[fresh, end]] = rows
    assert not ends
    base.save_pretrained(folder / "base")
    policy = load_policy(f"{folder}/base")
    policy.save(folder / "export")
    written = json.loads((folder / "export" / "generation_config.json").read_text())
    assert set(policy.chat.end_ids) <= set(written["eos_token_id"])
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder / "export")
    drawn = SamplingConfig(max_new_tokens=12, temperature=0)
    answers = complete(policy, [Request(p) for p in prompts], drawn)
    ours = {a.number: a.sampled.ids for a in answers if a.sampled is not None}
    stopped = set()
    for number, prompt in enumerate(prompts):
        ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert tuple(ids[0, len(prompt) :].tolist()) == ours[number]
        stopped |= {ours[number][-1]} & set(chat.end_ids)
    assert stopped == set(chat.end_ids)
