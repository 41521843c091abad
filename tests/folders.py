"""Model folders and preference files that tests make, in Hugging Face's own formats."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_WORDS = (
    "the", "red", "blue", "small", "large", "cat", "dog", "house", "tree", "river", "sees", "likes",
    "finds", "keeps", "near", "under", "over", "and", "but", "often", "never", "today", "please",
    "what", "where", "why", "is", "does", "good", "bad", "short", "long",
)  # fmt: skip


def sentence(rng: random.Random, words: int) -> str:
    """Random words."""
    return " ".join(rng.choice(_WORDS) for _ in range(words))


def tokenizer(texts: list[str], size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template, trained on the texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


def write_pairs(path: Path, count: int, seed: int = 0, test: int = 6) -> Path:
    """Preference pairs of random words, in which the chosen answer always begins with "yes"."""
    rng = random.Random(seed)
    lines = []
    for index in range(count):
        prompt, start = sentence(rng, rng.randint(3, 12)), sentence(rng, rng.randint(2, 9))
        lines.append(
            {
                "messages": [
                    {"role": "user", "content": f"{index} {prompt}"},
                    {"role": "assistant", "content": f"yes {start}"},
                ],
                "rejected_message": {
                    "role": "assistant",
                    "content": f"no {sentence(rng, rng.randint(2, 9))}",
                },
                "split": "TEST" if index < test else "TRAIN",
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_model(folder: Path, seed: int = 0, model: PreTrainedModel | None = None) -> Path:
    """A folder with a random torch model (a tiny Llama by default) and its tokenizer."""
    rng = random.Random(0)
    words = tokenizer([sentence(rng, 12) for _ in range(200)])
    if model is None:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(words) + 5,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.1,
                bos_token_id=0,
                eos_token_id=words.eos_token_id,
            )
        )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
