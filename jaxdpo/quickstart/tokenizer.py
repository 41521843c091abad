"""The quickstart model's tokenizer: a small byte-level BPE with ChatML-like control tokens."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxdpo.quickstart.task import ENDS, STARTS, make_request, write_answer

PAD, START, END = CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

MAX_LENGTH = 512

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# What transformers needs to know beside tokenizer.json and chat_template.jinja.
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "pad_token": PAD,
    "clean_up_tokenization_spaces": False,
    "model_max_length": MAX_LENGTH,
}


def write_tokenizer(folder: Path, vocab_size: int, rng: random.Random) -> None:
    """Trains the tokenizer on the task's text and writes its files and the chat template."""
    train_tokenizer(task_texts(rng), vocab_size).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def task_texts(rng: random.Random) -> list[str]:
    """Requests and past answers without names, and the roles of the chat template."""
    texts = ["system", "user", "assistant", "tool"] * 100
    for request in (make_request("TRAIN", rng) for _ in range(500)):
        nameless = replace(request, name="")
        texts += [nameless.prompt().strip(), write_answer(nameless, rng).strip()]
    return texts


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Trains the BPE so that any text can be encoded and a museum's word is always two pieces.

    Names are what the model must copy into its answers, and a word that it has never seen must look
    to it as the known ones do. So the syllables are merged before anything else is: they come first
    in the trainer's text, oftener than anything in the rest, which should be free of names.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    syllables = [*STARTS, *(f" {start}" for start in STARTS), *ENDS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*syllables * 10 * len(texts), *texts], trainer)
    # The text may have fewer pieces in it; the rest is reserved, so that the size is as asked.
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|reserved_{number}|>" for number in range(missing)])
    return tokenizer
