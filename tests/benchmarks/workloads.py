"""Models and preference pairs that the benchmarks train on, the same for every contestant.

A workload is a file of token ids, `{"prompt_ids", "chosen_ids", "rejected_ids"}` a line; a model is
a Hugging Face folder of random weights.
"""

import json
from pathlib import Path

import numpy as np

_FIRST_WORD = 300  # Below are the tokenizer's own and control tokens.

# Name → mean tokens of prompt and completion, and the deviation of their logarithms.
LENGTHS = {
    "chat": (120, 290, 0.6),
    "long prompts": (450, 60, 0.3),
    "equal": (256, 256, 0.0),
    "no prompt": (8, 250, 0.5),
}
LONGEST = 900  # Tokens of a prompt or of a completion.


def write_workload(path: Path, name: str, pairs: int, vocabulary: int, seed: int = 0) -> Path:
    """Random tokens in the lengths of a named workload."""
    prompt, completion, deviation = LENGTHS[name]
    rng = np.random.default_rng(seed)

    def length(mean: int) -> int:
        # The mean of a log-normal is exp(μ + σ² / 2).
        drawn = mean * np.exp(rng.normal(0.0, deviation) - deviation**2 / 2)
        return int(np.clip(round(drawn), 4, LONGEST))

    def ids(mean: int) -> list[int]:
        return rng.integers(_FIRST_WORD, vocabulary, length(mean)).tolist()

    with path.open("w") as file:
        for _ in range(pairs):
            line = {"prompt_ids": ids(prompt)}
            line |= {"chosen_ids": ids(completion), "rejected_ids": ids(completion)}
            file.write(json.dumps(line) + "\n")
    return path


def write_tokenised(path: Path, source: Path, pairs: int, vocabulary: int) -> Path:
    """The first pairs of a preference file, through a tokenizer trained on it."""
    from jaxdpo.data.config import DataConfig
    from jaxdpo.data.tokenization.chat import Chat
    from jaxdpo.data.tokenization.load_pairs import load_pairs
    from tests.folders import CHATML, tokenizer

    words = tokenizer(source.read_text().splitlines(), vocabulary)
    config = DataConfig(
        path=str(source), test_fraction=0.0, max_length=2048, cache_dir=str(path.parent / "cache")
    )
    loaded = load_pairs(config, Chat(words, CHATML)).splits["TRAIN"]
    with path.open("w") as file:
        for index in range(min(pairs, len(loaded))):
            ids = loaded[index]
            line = {
                "prompt_ids": ids.prompt_ids.tolist(),
                "chosen_ids": ids.chosen_ids.tolist(),
                "rejected_ids": ids.rejected_ids.tolist(),
            }
            file.write(json.dumps(line) + "\n")
    return path


def write_llama(folder: Path, layers: int = 8, width: int = 384, vocabulary: int = 8192) -> Path:
    """A random Llama; at 8 × 384 with 8,192 words its head has 20% of the matrices' weights.

    Llama-3.2-1B's has 21%: a larger share would flatter whoever computes fewer logits.
    """
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tests.folders import CHATML

    torch.manual_seed(0)
    heads = width // 64
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        # About a third of the heads; it must divide them.
        num_key_value_heads=max(n for n in range(1, max(1, heads // 3) + 1) if heads % n == 0),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    special = {"pad_token": "word0", "unk_token": "word1", "eos_token": "word2"}
    words = {f"word{number}": number for number in range(vocabulary)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, special["unk_token"])),
        chat_template=CHATML,
        **special,
    ).save_pretrained(folder)
    return folder


def write_adapter(folder: Path, model: Path, rank: int, alpha: float) -> Path:
    """Fresh LoRA adapters on all linear maps of a model, by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules="all-linear", lora_dropout=0.0, bias="none"
    )
    get_peft_model(base, config).save_pretrained(str(folder))
    return folder
