"""Makes the quickstart's model and preference pairs: `python -m jaxdpo.quickstart.make FOLDER`.

A tokenizer is trained on the task's text, a small Llama model on past answers, imperfect as they
are; then it answers new requests, and its own answers, judged, become the preference pairs. All of
it follows from the seed. The files that the package ships were made by this.
"""

import argparse
import itertools
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.data.pairs import PreferencePair, TokenizedPair
from jaxdpo.data.tokenization.chat import Chat, load_chat
from jaxdpo.hub.policy import Policy, load_policy
from jaxdpo.hub.write import save_pretrained
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from jaxdpo.quickstart.pairs import message, sample_pairs
from jaxdpo.quickstart.sft import COMPUTE, train_supervised
from jaxdpo.quickstart.task import SYLLABLES, Split, make_request, sample_texts, write_answer
from jaxdpo.quickstart.tokenizer import CONTROL_TOKENS, END, MAX_LENGTH, PAD, write_tokenizer
from jaxdpo.sampling import SamplingConfig, generate
from jaxdpo.storage.files import replacing

SEED = 0
PAIRS: dict[Split, int] = {"TRAIN": 1500, "TEST": 200}
SUPERVISED_STEPS, PROMPTS_A_STEP, LEARNING_RATE = 1600, 24, 3e-3
# Holds the longest request with two of the longest answers.
ROW_LENGTH = 136

MODEL = ModelConfig(
    vocab_size=576,
    hidden_size=128,
    num_layers=3,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=32),
    mlp=MLPConfig(intermediate_size=384),
    tied_head=True,
)
# What config.json says beside the architecture.
HF_CONFIG = {
    "model_type": "llama",
    "max_position_embeddings": MAX_LENGTH,
    "bos_token_id": None,
    "eos_token_id": CONTROL_TOKENS.index(END),
    "pad_token_id": CONTROL_TOKENS.index(PAD),
}


def past_answers(rng: random.Random) -> PreferencePair:
    """A request with two different past answers, neither preferred."""
    request = make_request("TRAIN", rng)
    first = second = write_answer(request, rng)
    while second == first:
        second = write_answer(request, rng)
    return PreferencePair(
        prompt=(message("user", request.prompt()),),
        chosen=(message("assistant", first),),
        rejected=(message("assistant", second),),
        split="TRAIN",
    )


class GeneratedPairs(list[TokenizedPair]):
    """Tokenised pairs that stand in no file."""

    def source(self, index: int) -> str:
        return f"generated pair {index}"


def supervised_batches(chat: Chat, rng: random.Random) -> Iterator[PackedBatch]:
    """Batches without end: in each row one request and two past answers to it."""
    shape = BatchShape(rows=PROMPTS_A_STEP, row_length=ROW_LENGTH, scores=ROW_LENGTH)
    while True:
        pairs = GeneratedPairs(chat.encode_pair(past_answers(rng)) for _ in range(PROMPTS_A_STEP))
        yield pack_batch(pairs, [[row] for row in range(PROMPTS_A_STEP)], shape)


def answer(policy: Policy, prompts: Sequence[str], seed: int) -> list[str | None]:
    """The model's answers at temperature 1; None where one is empty or does not end."""
    chat: Chat = policy.chat
    completions = generate(
        policy.config,
        policy.params,
        None,
        [chat.encode([message("user", prompt)], add_generation_prompt=True) for prompt in prompts],
        SamplingConfig(max_new_tokens=64, temperature=1.0, seed=seed, batch_size=200),
        chat.end_ids,
        COMPUTE,
    )
    return [chat.decode(done.ids) or None if done.finished else None for done in completions]


def write_model(folder: Path, rng: random.Random) -> None:
    """Trains tokenizer and supervised model and writes them as a Hugging Face folder, in bf16."""
    with tempfile.TemporaryDirectory() as tokenizer_folder:
        write_tokenizer(Path(tokenizer_folder), sample_texts(rng), SYLLABLES, MODEL.vocab_size)
        chat = load_chat(tokenizer_folder)
    params = train_supervised(
        MODEL, supervised_batches(chat, rng), SUPERVISED_STEPS, LEARNING_RATE, SEED
    )
    save_pretrained(folder, MODEL, params, chat.tokenizer, HF_CONFIG, dtype=jnp.bfloat16)


def write_pairs(path: Path, policy: Policy, rng: random.Random) -> None:
    """Samples and judges the model's own answers, and writes the preference pairs."""

    def answer_anew(prompts: Sequence[str]) -> list[str | None]:
        return answer(policy, prompts, seed=rng.randrange(2**31))

    with replacing(path) as file:
        for split, count in PAIRS.items():
            for pair in itertools.islice(sample_pairs(split, answer_anew, rng), count):
                file.write(json.dumps(pair) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where model/ and pairs.jsonl are written")
    folder: Path = parser.parse_args().folder
    write_model(folder / "model", random.Random(SEED))
    policy = load_policy(str(folder / "model"))
    write_pairs(folder / "pairs.jsonl", policy, random.Random(SEED + 1))


if __name__ == "__main__":
    main()
